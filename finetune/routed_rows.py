"""Move rows between the order of tokens and the order of experts, forward and backward without index_add.

Reads and writes tensors only. A token's K routed rows are a permutation of the S = T x K rows sorted by
expert, so each move is a gather in both directions: autograd's own backward of `x[index]` adds row by row,
serially on CPU and with atomics (in no fixed order) on CUDA.

Legend: T tokens, K experts per token, S = T x K rows sorted by expert, D width.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable


class RowOrder(NamedTuple):
    """Where rows go: sorted row -> token x K + slot, the inverse of that, and sorted row -> token."""

    order_S: torch.Tensor
    place_S: torch.Tensor
    token_S: torch.Tensor


def row_order(order_S: torch.Tensor, top_k: int) -> RowOrder:
    """The moves of a sort of all T x K routed rows by expert; `order_S` is what the sort returned."""
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.shape[0], device=order_S.device)
    return RowOrder(order_S, place_S, order_S // top_k)


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
        by_token_TKD = grad_SD.index_select(0, rows.place_S).unflatten(0, (ctx.n_tokens, -1))
        return by_token_TKD.sum(dim=1), None


class _Combine(torch.autograd.Function):
    """`combine`, and its gradients: of the rows, and of the weights (the router's input may be trained)."""

    @staticmethod
    def forward(ctx: Any, out_SD: torch.Tensor, weight_TK: torch.Tensor, rows: RowOrder) -> torch.Tensor:
        ctx.rows = rows
        ctx.save_for_backward(out_SD, weight_TK)
        by_token_TKD = out_SD.index_select(0, rows.place_S).unflatten(0, weight_TK.shape)
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
            by_token_TK = dots_S.index_select(0, rows.place_S).view(weight_TK.shape)
            grad_weight_TK = by_token_TK.to(weight_TK.dtype)
        weight_S1 = weight_TK.reshape(-1).index_select(0, rows.order_S).unsqueeze(-1)
        return grad_SD.mul_(weight_S1).to(out_SD.dtype), grad_weight_TK, None


def spread(hidden_TD: torch.Tensor, rows: RowOrder) -> torch.Tensor:
    """The rows [S, D] that experts work on, sorted by expert: each token's row K times."""
    return _Spread.apply(hidden_TD, rows)  # type: ignore[return-value]


def combine(out_SD: torch.Tensor, weight_TK: torch.Tensor, rows: RowOrder) -> torch.Tensor:
    """The weighted sum [T, D] of each token's K rows, in the wider dtype of the two and in a fixed order."""
    return _Combine.apply(out_SD, weight_TK, rows)  # type: ignore[return-value]
