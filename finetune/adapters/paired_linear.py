"""The frozen product and the update of chosen experts, two experts at a time: the path for float32 on a CPU.

Reads and writes tensors only. `F.grouped_mm` multiplies one expert after the other there, each product shared
out over the threads, and with some dozen rows an expert most of that is waiting and copying of weights. A
product of two experts at once (`torch.bmm`) gives each thread one of its own. Two experts of like row counts
make a pair, the shorter is filled up with rows that count nothing, and any two slices of a stack are a view
of it with an even step, so no weight is copied. How much it saves, measured: LOG.md.

Legend: S routed rows sorted by expert, P the same rows in order of pairs, filled up; E experts, N chosen
experts, R rank, I inputs and O outputs of the projection; in a pair, M rows of each of 2 experts (or of 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from finetune.adapters.routed_rows import RowOrder, row_order


class Pair(NamedTuple):
    """One or two experts whose rows lie together: `n_rows` of the first from row `start`, then the second's.

    `numbers` says which of the chosen experts they are; it is empty for a pair without LoRA.
    """

    experts: Sequence[int]
    numbers: Sequence[int]
    start: int
    n_rows: int

    def rows(self, values_PD: torch.Tensor) -> torch.Tensor:
        """The pair's rows of a contiguous [P, D] as a view [2, M, D]."""
        width = values_PD.shape[1]
        shape = (len(self.experts), self.n_rows, width)
        strides = (self.n_rows * width, width, 1)
        return values_PD.as_strided(shape, strides, values_PD.storage_offset() + self.start * width)

    def weights(self, stack_EXY: torch.Tensor) -> torch.Tensor:
        """The pair's two slices of a stack as a view [2, X, Y]."""
        return _two_of(stack_EXY, self.experts)

    def updates(self, values_NXY: torch.Tensor) -> torch.Tensor:
        """The pair's two slices of A or B as a view [2, X, Y]."""
        return _two_of(values_NXY, self.numbers)


class PairedRows(NamedTuple):
    """How the rows of one forward lie: the pairs, those with LoRA first, and where each row goes."""

    pairs: list[Pair]
    order: RowOrder
    expert_P: torch.Tensor
    n_chosen_rows: int  # of P; those of pairs with LoRA


def pair_rows(expert_TK: torch.Tensor, n_experts: int, chosen: Sequence[int]) -> PairedRows:
    """Sort the routed rows of T tokens by expert and lay experts of like row counts side by side."""
    expert_S, order_S = torch.sort(expert_TK.reshape(-1))
    n_rows_E = torch.bincount(expert_S, minlength=n_experts)
    pairs = _pairs(n_rows_E.tolist(), {expert: number for number, expert in enumerate(chosen)})
    first_E, expert_P = [0] * n_experts, []
    for pair in pairs:
        for position, expert in enumerate(pair.experts):
            first_E[expert] = pair.start + position * pair.n_rows
            expert_P += [expert] * pair.n_rows
    # Row s is the (s - rows of lower experts)th of its expert.
    shift_E = torch.tensor(first_E) - (n_rows_E.cumsum(0) - n_rows_E)
    position_S = torch.arange(expert_S.shape[0]) + shift_E[expert_S]
    order = row_order(order_S, expert_TK.shape[-1], position_S, len(expert_P))
    n_chosen_rows = sum(len(pair.experts) * pair.n_rows for pair in pairs if pair.numbers)
    return PairedRows(pairs, order, torch.tensor(expert_P), n_chosen_rows)


def paired_linear(
    rows_PI: torch.Tensor,
    weight_EOI: torch.Tensor,
    A_NRI: torch.Tensor,
    B_NOR: torch.Tensor,
    scaling: float,
    paired: PairedRows,
) -> torch.Tensor:
    """Each row times the weight of its expert, plus scaling x B A of a chosen one: [P, O].

    The weight is frozen and gets no gradient. Filled-up rows must get one of zero, as `combine` gives them.
    """
    return _PairedLinear.apply(rows_PI, weight_EOI, A_NRI, B_NOR, scaling, paired)  # type: ignore[return-value]


class _PairedLinear(torch.autograd.Function):
    """`paired_linear`, and its gradients: of the rows, of A and of B."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_PI: torch.Tensor,
        weight_EOI: torch.Tensor,
        A_NRI: torch.Tensor,
        B_NOR: torch.Tensor,
        scaling: float,
        paired: PairedRows,
    ) -> torch.Tensor:
        rows_PI = rows_PI.contiguous()
        out_PO = rows_PI.new_empty(len(rows_PI), weight_EOI.shape[1])
        inner_PR = rows_PI.new_empty(paired.n_chosen_rows, A_NRI.shape[1])
        for pair in paired.pairs:
            rows_2MI, out_2MO = pair.rows(rows_PI), pair.rows(out_PO)
            torch.bmm(rows_2MI, pair.weights(weight_EOI).mT, out=out_2MO)
            if pair.numbers:
                inner_2MR = torch.bmm(rows_2MI, pair.updates(A_NRI).mT, out=pair.rows(inner_PR))
                out_2MO.baddbmm_(inner_2MR, pair.updates(B_NOR).mT, alpha=scaling)
        # A slice would keep all rows alive.
        is_all = paired.n_chosen_rows == len(rows_PI)
        kept_PI = rows_PI if is_all else rows_PI[: paired.n_chosen_rows].clone()
        ctx.save_for_backward(kept_PI, weight_EOI, A_NRI, B_NOR, inner_PR)
        ctx.scaling, ctx.paired = scaling, paired
        return out_PO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept_PI, weight_EOI, A_NRI, B_NOR, inner_PR = ctx.saved_tensors
        paired: PairedRows = ctx.paired
        grad_PO = grads[0].contiguous()
        needs_rows = ctx.needs_input_grad[0]
        grad_PI = grad_PO.new_empty(len(grad_PO), weight_EOI.shape[2]) if needs_rows else None
        # Experts without rows are in no pair.
        grad_A, grad_B = torch.zeros_like(A_NRI), torch.zeros_like(B_NOR)
        for pair in paired.pairs:
            grad_2MO = pair.rows(grad_PO)
            rows_grad = None if grad_PI is None else pair.rows(grad_PI)
            if rows_grad is not None:
                torch.bmm(grad_2MO, pair.weights(weight_EOI), out=rows_grad)
            if pair.numbers:
                inner_grad_2MR = torch.bmm(grad_2MO, pair.updates(B_NOR)).mul_(ctx.scaling)
                if rows_grad is not None:
                    rows_grad.baddbmm_(inner_grad_2MR, pair.updates(A_NRI))
                pair.updates(grad_A).copy_(torch.bmm(inner_grad_2MR.mT, pair.rows(kept_PI)))
                found_2OR = torch.bmm(grad_2MO.mT, pair.rows(inner_PR))
                torch.mul(found_2OR, ctx.scaling, out=pair.updates(grad_B))
        return grad_PI, None, grad_A, grad_B, None, None


def _pairs(n_rows_E: Sequence[int], number_of: Mapping[int, int]) -> list[Pair]:
    """Pairs of experts with rows, the chosen ones first: two by two in order of their row counts."""
    pairs: list[Pair] = []
    start = 0
    hit = [expert for expert, n_rows in enumerate(n_rows_E) if n_rows]
    for is_chosen in (True, False):
        alike = sorted(
            (expert for expert in hit if (expert in number_of) == is_chosen),
            key=lambda expert: (-n_rows_E[expert], expert),
        )
        for first in range(0, len(alike), 2):
            experts = sorted(alike[first : first + 2])
            numbers = [number_of[expert] for expert in experts] if is_chosen else []
            pairs.append(Pair(experts, numbers, start, n_rows_E[alike[first]]))
            start += len(experts) * pairs[-1].n_rows
    return pairs


def _two_of(stack_EXY: torch.Tensor, slices: Sequence[int]) -> torch.Tensor:
    """Two slices (or one) of a stack, ascending, as a view: the step between them is even, whatever it is."""
    of_slice, of_row, of_column = stack_EXY.stride()
    return stack_EXY.as_strided(
        (len(slices), *stack_EXY.shape[1:]),
        ((slices[-1] - slices[0]) * of_slice, of_row, of_column),
        stack_EXY.storage_offset() + slices[0] * of_slice,
    )
