"""Experts two at a time: the pairs, the numbers, the gradients, and what the update costs beside the rest."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.adapters.paired_linear import pair_rows, paired_linear
from finetune.adapters.routed_rows import combine, spread


def test_pairs_by_hand():
    # Rows of experts 0..5: 1, 4, 0, 2, 3, 2. Chosen are 4, 3 and 2 (which has none).
    expert_TK = torch.tensor([[1, 4], [1, 4], [1, 4], [1, 3], [0, 3], [5, 5]])
    paired = pair_rows(expert_TK, 6, chosen=[2, 3, 4])
    found = [(pair.experts, pair.numbers, pair.start, pair.n_rows) for pair in paired.pairs]
    # Chosen first; then by rows: 1 (4 rows) with 5 (2 rows), and 0 alone.
    assert found == [([3, 4], [1, 2], 0, 3), ([1, 5], [], 6, 4), ([0], [], 14, 1)]
    assert paired.n_chosen_rows == 6
    assert paired.expert_P.tolist() == [3, 3, 3, 4, 4, 4, 1, 1, 1, 1, 5, 5, 5, 5, 0]
    assert paired.order.is_filler_S is not None
    assert paired.order.is_filler_S.nonzero().flatten().tolist() == [2, 12, 13]
    # Every routed row lies among those of its expert, and is that of its token.
    assert torch.equal(paired.expert_P[paired.order.place_TK].view(6, 2), expert_TK)
    assert torch.equal(paired.order.token_S[paired.order.place_TK], torch.arange(6).repeat_interleave(2))


@pytest.mark.parametrize("chosen", [[3], [0, 4], [0, 1, 2, 3, 4, 5, 6], [6]])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_output_and_gradients_are_those_of_one_expert_after_the_other(chosen, is_transposed):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    hidden, weight = random(9, 5).requires_grad_(), random(7, 4, 5)
    A, B = random(len(chosen), 2, 5).requires_grad_(), random(len(chosen), 4, 2).requires_grad_()
    # Expert 6 gets no row: its LoRA has a gradient of zero.
    expert_TK = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(9)])
    gate_TK = random(9, 3).requires_grad_()
    stack = weight.mT.contiguous().mT if is_transposed else weight

    paired = pair_rows(expert_TK, 7, chosen)
    out_PO = paired_linear(spread(hidden, paired.order), stack, A, B, 0.5, paired)
    found = combine(out_PO.tanh(), gate_TK, paired.order)

    dense = weight.index_add(0, torch.tensor(chosen), 0.5 * B @ A)
    weight_of_TKOI = dense[expert_TK]
    expected = (gate_TK.unsqueeze(-1) * torch.einsum("tkoi,ti->tko", weight_of_TKOI, hidden).tanh()).sum(1)
    torch.testing.assert_close(found, expected)
    weights = random(*found.shape)
    leaves = (hidden, A, B, gate_TK)
    own = torch.autograd.grad((found * weights).sum(), leaves)
    by_autograd = torch.autograd.grad((expected * weights).sum(), leaves)
    for mine, true in zip(own, by_autograd, strict=True):
        torch.testing.assert_close(mine, true)
    assert chosen != [6] or not own[1].any()


class CountedOperations(TorchDispatchMode):
    """Counts every operation of a forward and backward by its name and the shapes it takes."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = tuple(tuple(a.shape) for a in args if torch.is_tensor(a))
        self.found[str(func), shapes] += 1
        return func(*args, **(kwargs or {}))


def operations(n_experts, chosen):
    """Of a projection whose rows go to experts 0..3 as always, and evenly to all the others."""
    generator = torch.Generator().manual_seed(0)
    on_chosen_T = torch.arange(4).repeat_interleave(torch.tensor([3, 5, 6, 2]))
    others_T = 4 + torch.arange(128) % (n_experts - 4)
    expert_TK = torch.cat([on_chosen_T, others_T]).unsqueeze(1)
    stack = torch.randn(n_experts, 6, 8, generator=generator)
    A = torch.randn(len(chosen), 2, 8, generator=generator).requires_grad_()
    B = torch.randn(len(chosen), 6, 2, generator=generator).requires_grad_()
    rows = torch.randn(len(expert_TK), 8, generator=generator).requires_grad_()
    paired = pair_rows(expert_TK, n_experts, chosen)
    with CountedOperations() as counted:
        out = paired_linear(spread(rows, paired.order), stack, A, B, 0.5, paired)
        combine(out, torch.ones(len(expert_TK), 1), paired.order).sum().backward()
    return counted.found


def test_what_the_update_adds_does_not_depend_on_the_number_of_experts():
    added = []
    for n_experts in (20, 36, 68):
        # The rows of the others are such that the first four are the same two pairs with and without LoRA.
        found = operations(n_experts, [0, 1, 2, 3])
        found.subtract(operations(n_experts, []))
        added.append({key: n for key, n in found.items() if n})
    assert sum(n for (name, _), n in added[0].items() if "bmm" in name) == 2 * (2 + 4)
    assert added[0] == added[1] == added[2]
