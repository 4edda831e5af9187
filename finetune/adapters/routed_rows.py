"""Move rows between the order of tokens and the order of experts, forward and backward without index_add.

Reads and writes tensors only. Every one of the T x K routed rows has one place among those sorted by expert,
so each move is a gather in both directions: autograd's own backward of `x[index]` adds row by row, serially
on CPU and with atomics (in no fixed order) on CUDA.

Legend: T tokens, K experts per token, S rows in the order in which experts compute them: T x K of them sorted
by expert, and others between them where a path fills up (their weight is zero); D width.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


class RowOrder(NamedTuple):
    """Where rows go: row -> token x K + slot, the inverse of that, row -> token, and row -> is it filled up.

    A filled-up row is token 0's, with a weight of zero; `is_filler_S` is None where there is none.
    """

    order_S: torch.Tensor
    place_TK: torch.Tensor
    token_S: torch.Tensor
    is_filler_S: torch.Tensor | None


def row_order(
    sorted_TK: torch.Tensor, top_k: int, position_TK: torch.Tensor | None = None, n_rows: int = 0
) -> RowOrder:
    """The moves of a sort of all T x K routed rows by expert; `sorted_TK` is what the sort returned.

    Row i of the sort lies at `position_TK[i]` of `n_rows`, or at i of T x K when that is None.
    """
    place_TK = torch.empty_like(sorted_TK)
    if position_TK is None:
        place_TK[sorted_TK] = torch.arange(sorted_TK.shape[0], device=sorted_TK.device)
        return RowOrder(sorted_TK, place_TK, sorted_TK // top_k, None)
    place_TK[sorted_TK] = position_TK
    order_S = sorted_TK.new_zeros(n_rows)
    order_S[position_TK] = sorted_TK
    is_filler_S = torch.ones(n_rows, dtype=torch.bool, device=sorted_TK.device)
    is_filler_S[position_TK] = False
    return RowOrder(order_S, place_TK, order_S // top_k, is_filler_S)


class _Spread(torch.autograd.Function):
    """`spread`, and its gradient: each token's K rows, fetched back and added up."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: torch.Tensor, rows: RowOrder) -> torch.Tensor:
        ctx.rows, ctx.n_tokens = rows, hidden_TD.shape[0]
        return hidden_TD.index_select(0, rows.token_S)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad_SD,) = grads
        rows: RowOrder = ctx.rows
        by_token_TKD = grad_SD.index_select(0, rows.place_TK).unflatten(0, (ctx.n_tokens, -1))
        return by_token_TKD.sum(dim=1), None


class _Combine(torch.autograd.Function):
    """`combine`, and its gradients: of the rows, and of the weights (the router's input may be trained)."""

    @staticmethod
    def forward(ctx: Any, out_SD: torch.Tensor, weight_TK: torch.Tensor, rows: RowOrder) -> torch.Tensor:
        ctx.rows = rows
        ctx.save_for_backward(out_SD, weight_TK)
        by_token_TKD = out_SD.index_select(0, rows.place_TK).unflatten(0, weight_TK.shape)
        # The wider of the two: autocast may hand bfloat16 weights to float32 rows, and the other way round.
        dtype = torch.promote_types(out_SD.dtype, weight_TK.dtype)
        return torch.bmm(weight_TK.to(dtype).unsqueeze(1), by_token_TKD.to(dtype)).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        (grad_TD,) = grads
        rows: RowOrder = ctx.rows
        out_SD, weight_TK = ctx.saved_tensors
        grad_SD = grad_TD.index_select(0, rows.token_S)
        grad_weight_TK = None
        if ctx.needs_input_grad[1]:
            dots_S = torch.linalg.vecdot(grad_SD, out_SD.to(grad_SD.dtype))
            by_token_TK = dots_S.index_select(0, rows.place_TK).view(weight_TK.shape)
            grad_weight_TK = by_token_TK.to(weight_TK.dtype)
        weight_S1 = weight_TK.reshape(-1).index_select(0, rows.order_S).unsqueeze(-1)
        if rows.is_filler_S is not None:
            weight_S1 = weight_S1.masked_fill(rows.is_filler_S.unsqueeze(-1), 0.0)
        return grad_SD.mul_(weight_S1).to(out_SD.dtype), grad_weight_TK, None


def spread(hidden_TD: torch.Tensor, rows: RowOrder) -> torch.Tensor:
    """The rows [S, D] that experts work on, sorted by expert: each token's row K times."""
    return _Spread.apply(hidden_TD, rows)  # type: ignore[return-value]


def combine(out_SD: torch.Tensor, weight_TK: torch.Tensor, rows: RowOrder) -> torch.Tensor:
    """The weighted sum [T, D] of each token's K rows, in the wider dtype of the two and in a fixed order."""
    return _Combine.apply(out_SD, weight_TK, rows)  # type: ignore[return-value]
