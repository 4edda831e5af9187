"""finetune.profiling.router_recorder adds up what told routers choose: every number is worked out by hand."""

import pytest
import torch
from torch import nn

from data_recipes.artefact import UserError
from finetune.moe import MoeLayer
from finetune.profiling.calibration import CalibrationBatch
from finetune.profiling.profile import MASS_UNIT, Cell
from finetune.profiling.router_recorder import LanguageTally, RouterRecorder

# Two rows of three tokens, the second's last is padding; the last token of each row is the answer.
ATTENTION = torch.tensor([[1, 1, 1], [1, 1, 0]])
SLOTS = torch.tensor([[0, 0, 1], [2, 3, 0]])
IDS = torch.tensor([[0, 1], [0, 2], [1, 2], [2, 0], [2, 1], [1, 0]])
WEIGHTS = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 3.0], [7.0, 1.0], [1.0, 1.0], [9.0, 9.0]])
# Row weights of three replicates: as they are, the first row twice, the second row alone.
ROW_WEIGHTS = torch.tensor([[1, 1], [2, 0], [0, 1]])


class ToldRouter(nn.Module):
    """Returns what it is told."""

    def forward(self, weights_NK: torch.Tensor, indices_NK: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.zeros(len(weights_NK), 3), weights_NK, indices_NK


def told_layers(n: int = 1) -> list[MoeLayer]:
    return [
        MoeLayer(5 + i, f"layers.{5 + i}.mlp", nn.Module(), nn.Module(), ToldRouter(), 3, 2) for i in range(n)
    ]


def batch(*sources: str) -> CalibrationBatch:
    return CalibrationBatch(torch.zeros(2, 3), ATTENTION, SLOTS, ROW_WEIGHTS, list(sources))


def tallied(kinds, sources=("a", "b"), weights=WEIGHTS, ids=IDS) -> LanguageTally:
    layers = told_layers()
    tally = LanguageTally(1, 3, 3, kinds)
    with RouterRecorder(layers, tally.add) as recorder:
        tally.begin(batch(*sources))
        recorder.expect(ATTENTION, SLOTS, 4)
        layers[0].router(weights, ids)
    whole_2LE = torch.stack(list(tally.named_cells("ta").values())).sum(dim=0)
    assert torch.equal(torch.stack([recorder.counts_LE, recorder.mass_LE]), whole_2LE)
    return tally


def mass(*shares: float) -> list[int]:
    return [int(share / MASS_UNIT) for share in shares]


def test_cells_by_source_and_kind() -> None:
    cells = tallied("all").named_cells("ta")
    assert {cell: sums[0, 0].tolist() for cell, sums in cells.items()} == {
        Cell("ta", "a", "prompt"): [2, 1, 1],
        Cell("ta", "a", "answer"): [0, 1, 1],
        Cell("ta", "b", "prompt"): [1, 0, 1],
        Cell("ta", "b", "answer"): [0, 1, 1],
    }
    assert cells[Cell("ta", "a", "prompt")][1, 0].tolist() == mass(0.75 + 0.5, 0.25, 0.5)
    assert cells[Cell("ta", "b", "prompt")][1, 0].tolist() == mass(0.125, 0, 0.875)
    assert list(tallied("all", ("a", "a")).sources) == ["a"]


def test_replicates_count_a_row_as_often_as_its_weight() -> None:
    first, second = torch.tensor([2, 2, 2]), torch.tensor([1, 1, 2])
    expected = torch.stack([first + second, 2 * first, second])
    assert torch.equal(tallied("all").replicates[0, :, 0], expected)
    assert tallied("all").replicates[1, 1, 0].tolist() == mass(2 * 1.25, 2 * 0.5, 2 * 1.25)


def test_replicates_and_tokens_are_of_the_kinds_asked_for() -> None:
    prompt, answer, both = (tallied(kinds) for kinds in ("prompt", "answer", "all"))
    assert torch.equal(prompt.replicates + answer.replicates, both.replicates)
    assert answer.replicates[0, 0, 0].tolist() == [0, 2, 2]
    assert (prompt.n_tokens, answer.n_tokens, both.n_tokens, both.n_rows) == (3, 2, 5, 2)
    assert torch.equal(answer.counts_LE(), torch.tensor([[0, 2, 2]]))


def test_a_mass_of_more_than_53_bits_stays_exact() -> None:
    """In float64 alone 2^53 + 1 is 2^53: the two halves of a mass must keep the last bit."""
    tally = LanguageTally(1, 3, 3, "all")
    tally.begin(batch("a", "a"))
    sums_2SE = torch.zeros(2, 4, 3, dtype=torch.int64)
    sums_2SE[1, 0, 0], sums_2SE[1, 2, 0] = 2**52 + 1, 2**53 - 2
    tally.add(0, sums_2SE)
    assert tally.replicates[1, :, 0, 0].tolist() == [2**52 + 1 + 2**53 - 2, 2 * (2**52 + 1), 2**53 - 2]


def test_an_id_past_the_experts_is_no_expert() -> None:
    """Only `router_output` decides whether a router may say so; here it is asked to let it pass."""
    ids = IDS.clone()
    ids[0, 1] = ids[2, 0] = ids[2, 1] = 3
    recorder = RouterRecorder(told_layers())
    sums_2SE = recorder._sums(recorder.layers[0], torch.zeros(6, dtype=torch.int64), WEIGHTS.double(), ids)
    assert sums_2SE[0].tolist() == [[4, 2, 3]], "three of the twelve choices are no expert's"
    assert sums_2SE[1].sum().item() * MASS_UNIT == 5, "one of the six tokens has none"


def test_nan_weights_are_an_error_and_padding_is_not() -> None:
    weights = WEIGHTS.clone()
    weights[5] = torch.nan
    assert torch.equal(tallied("all", weights=weights).replicates, tallied("all").replicates)
    weights[2, 0] = torch.nan
    with pytest.raises(UserError, match=r"layers\.5\.mlp.*not finite for 1 of 5"):
        tallied("all", weights=weights)


def test_tallies_of_batches_add_up_in_any_order() -> None:
    layers = told_layers(2)
    sums = []
    for order in ((0, 1, 2), (2, 0, 1)):
        tally = LanguageTally(2, 3, 3, "all")
        with RouterRecorder(layers, tally.add) as recorder:
            for number in order:
                tally.begin(batch(*("ab", "ca", "bb")[number]))
                recorder.expect(ATTENTION, SLOTS, 4)
                for layer in layers:
                    layer.router(WEIGHTS.roll(number + layer.index, 0), IDS.roll(number, 0))
        sums.append(tally)
    first, second = sums
    assert torch.equal(first.replicates, second.replicates) and first.replicates.any()
    assert first.sources.keys() == second.sources.keys() == {"a", "b", "c"}
    assert all(torch.equal(first.sources[name], second.sources[name]) for name in "abc")
