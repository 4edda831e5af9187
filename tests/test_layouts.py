"""Layouts written out by hand, with sizes and numbers that show every mistaken row, column and order."""

import pytest
import torch

from finetune.exporting.layouts import (
    AdapterParts,
    ExpertPart,
    LinearPart,
    evened,
    from_peft,
    largest_difference,
    to_peft,
    to_per_expert,
)

# Two experts, rank 2, three inputs, four outputs; only expert 1 is chosen.
PART = ExpertPart(
    [1],
    torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]),
    torch.tensor([[[10.0, 11.0], [20.0, 21.0], [30.0, 31.0], [40.0, 41.0]]]),
    0.5,
)


def test_the_peft_layout_is_the_one_written_out_by_hand() -> None:
    A, B = to_peft(PART, n_experts=2)
    # Rows of A: expert 0 rank 0, expert 0 rank 1, expert 1 rank 0, expert 1 rank 1.
    assert A.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 3], [4, 5, 6]]
    # Columns of B: rank 0 expert 0, rank 0 expert 1, rank 1 expert 0, rank 1 expert 1.
    assert B.tolist() == [[0, 10, 0, 11], [0, 20, 0, 21], [0, 30, 0, 31], [0, 40, 0, 41]]
    back = from_peft(A, B, 2, 0.5)
    assert back.chosen == [0, 1]
    assert torch.equal(back.A_NRI[1:], PART.A_NRI) and torch.equal(back.B_NOR[1:], PART.B_NOR)
    assert not back.A_NRI[0].any() and not back.B_NOR[0].any()


@pytest.mark.parametrize(
    ("is_concatenated", "gate", "up"),
    [(True, [[10, 11], [20, 21]], [[30, 31], [40, 41]]), (False, [[10, 11], [30, 31]], [[20, 21], [40, 41]])],
)
def test_the_per_expert_layout_is_the_one_written_out_by_hand(
    is_concatenated: bool, gate: list[list[int]], up: list[list[int]]
) -> None:
    names = ["mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"]
    compact = to_per_expert(PART, names, is_concatenated, n_experts=None)
    assert {name: value.tolist() for name, value in compact.items()} == {
        "mlp.experts.1.gate_proj.lora_A.weight": [[1, 2, 3], [4, 5, 6]],
        "mlp.experts.1.gate_proj.lora_B.weight": gate,
        "mlp.experts.1.up_proj.lora_A.weight": [[1, 2, 3], [4, 5, 6]],
        "mlp.experts.1.up_proj.lora_B.weight": up,
    }
    padded = to_per_expert(PART, names, is_concatenated, n_experts=2)
    assert padded.keys() - compact.keys() == {name.replace(".1.", ".0.") for name in compact}
    assert all(torch.equal(padded[name], value) for name, value in compact.items())
    assert not any(padded[name].any() for name in padded.keys() - compact.keys())


def test_ranks_and_scalings_are_evened_without_changing_an_update() -> None:
    other = LinearPart(torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0], [5.0]]), 2.0)
    parts = AdapterParts({("experts", "down_proj"): PART}, {"q_proj": other})
    rank, scaling, even = evened(parts)
    assert (rank, scaling) == (2, 1.0)
    # 0.5 and 2 are powers of two, so that not one bit is lost.
    assert torch.equal(even.experts["experts", "down_proj"].B_NOR, PART.B_NOR * 0.5)
    assert even.linears["q_proj"].A_RI.tolist() == [[1, -1], [0, 0]]
    assert even.linears["q_proj"].B_OR.tolist() == [[6, 0], [10, 0]]
    assert largest_difference(parts, even) == 0.0
    assert evened(AdapterParts({("experts", "down_proj"): PART}, {}))[:2] == (2, 0.5)


def test_a_wrong_or_missing_update_is_a_difference() -> None:
    parts = AdapterParts({("experts", "down_proj"): PART}, {})
    wrong = PART.B_NOR.clone()
    wrong[0, 3, 1] += 41.0
    # The row of A has 6 at most, an update 0.5 x (40 x 3 + 82 x 6) = 306; 0.5 x 41 x 6 = 123 of it is wrong.
    found = largest_difference(
        parts, AdapterParts({("experts", "down_proj"): PART._replace(B_NOR=wrong)}, {})
    )
    assert found == pytest.approx(123 / 306)
    assert largest_difference(parts, AdapterParts({}, {})) == 1.0
