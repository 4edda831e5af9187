"""LoRA on chosen experts of a fused expert stack, computed only on the rows that the router sent to them.

Each MoE layer with chosen experts carries one `ExpertLora` inside its experts module. The experts' forward is
swapped through transformers' public table `ALL_EXPERTS_FUNCTIONS`. The frozen stacks are only ever read:
nothing of their size is built, saved for backward or given a gradient. A layer without an adapter, or with it
off, runs the former forward untouched. Under expert parallelism every process holds the whole adapter and
computes with the part of it that belongs to the experts it has.

Legend: T tokens, K experts per token, S = T x K routed rows sorted by expert, M of them on a chosen expert,
E experts, N chosen experts, R rank, I inputs and O outputs of a projection.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from finetune.adapters.paired_linear import PairedRows, pair_rows, paired_linear
from finetune.adapters.routed_rows import combine, row_order, spread
from finetune.config import LoraConfig
from finetune.moe import n_experts_of_all, own_experts

IMPLEMENTATION = "expert_lora_over_"
# F.grouped_mm wants every row of its operands to start on a multiple of this.
GROUPED_MM_ALIGNMENT_BYTES = 16


class LowRank(nn.Module):
    """One low-rank update B·A per chosen expert of the projection `stack`: `A` [N, R, I], `B` [N, O, R].

    Parameters are kept in float32 and cast to the rows' dtype for use: an AdamW step is lost in bfloat16.
    """

    def __init__(
        self, experts: Any, stack: str, n_chosen: int, rank: int, alpha: float, config: LoraConfig
    ) -> None:
        super().__init__()
        n_in, n_out = _sizes(experts, stack)
        self.stack, self.rank, self.alpha, self.dropout = stack, rank, alpha, config.dropout
        self.own: slice | None = None  # of the chosen experts, those this process has; None is all
        self.scaling = alpha / (math.sqrt(rank) if config.rslora else rank)
        device = getattr(experts, stack).device
        self.A = nn.Parameter(torch.zeros(n_chosen, rank, n_in, device=device))
        self.B = nn.Parameter(torch.zeros(n_chosen, n_out, rank, device=device))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Give A its random start and B zeros: the update is nothing yet."""
        # Kaiming uniform (a = sqrt(5)) expert by expert: nn.init would count R x I inputs in a 3-D tensor.
        bound = self.A.shape[-1] ** -0.5
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator))
        self.B.zero_()

    def update(self, number: int) -> torch.Tensor:
        """scaling x B A [O, I] of the expert `chosen[number]`: what this adapter adds to its weight."""
        return self.scaling * self.B[number] @ self.A[number]

    def own_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the chosen experts that this process has."""
        return (self.A, self.B) if self.own is None else (self.A[self.own], self.B[self.own])

    def dropped(self, rows_MI: torch.Tensor) -> torch.Tensor:
        """The rows as the low-rank path sees them: with dropout while training, else as they are."""
        return F.dropout(rows_MI, self.dropout) if self.dropout and self.training else rows_MI

    def forward(self, rows_MI: torch.Tensor, ends_N: torch.Tensor) -> torch.Tensor:
        """Update [M, O] of rows sorted by chosen expert; `ends_N` (int32) is where each one's rows end.

        Not scaled yet: who adds it to the output scales it in the same pass.
        """
        A, B = (values.to(rows_MI.dtype) for values in self.own_values())
        padding = -A.shape[1] % (GROUPED_MM_ALIGNMENT_BYTES // rows_MI.dtype.itemsize)
        if padding:
            A, B = F.pad(A, (0, 0, 0, padding)), F.pad(B, (0, padding))
        inner_MR = F.grouped_mm(self.dropped(rows_MI), A.transpose(-2, -1), offs=ends_N)
        return F.grouped_mm(inner_MR, B.transpose(-2, -1), offs=ends_N)


class ExpertLora(nn.Module):
    """One adapter of one MoE layer: `up` acts before the activation (gate_up_proj), `down` after it.

    `chosen` are expert ids, ascending; the i-th slice of `up` and `down` belongs to `chosen[i]`. All values
    are zero until `start`. `local` are those of them that this process has, counted from its first expert.
    """

    chosen_N: torch.Tensor
    is_chosen_E: torch.Tensor

    def __init__(
        self, experts: Any, chosen: Sequence[int], config: LoraConfig, name: str = "default"
    ) -> None:
        super().__init__()
        self.chosen, self.config, self.name = list(chosen), config, name
        self.enabled = True
        # While merged: (stack, expert) -> the weight from before.
        self.originals: dict[tuple[str, int], torch.Tensor] = {}
        down_rank = config.rank if config.down_rank is None else config.down_rank
        down_alpha = config.alpha if config.down_alpha is None else config.down_alpha
        n_chosen = len(self.chosen)
        self.up = LowRank(experts, _up_name(experts), n_chosen, config.rank, config.alpha, config)
        self.down = LowRank(experts, "down_proj", n_chosen, down_rank, down_alpha, config)
        own = own_experts(experts)
        first, last = bisect_left(self.chosen, own.start), bisect_left(self.chosen, own.stop)
        self.local = [expert - own.start for expert in self.chosen[first:last]]
        if len(own) < n_experts_of_all(experts):
            self.up.own = self.down.own = slice(first, last)
        # One place more than there are experts: id n_experts is the expert-parallel "not mine", never chosen.
        is_chosen_E = torch.zeros(len(own) + 1, dtype=torch.bool)
        is_chosen_E[self.local] = True
        # On the experts' device at once: PEFT may make the parameters on "meta", which cannot be moved.
        device = experts.down_proj.device
        self.register_buffer(
            "chosen_N", torch.tensor(self.local, dtype=torch.int64, device=device), persistent=False
        )
        self.register_buffer("is_chosen_E", is_chosen_E.to(device), persistent=False)
        # A new module is in training mode, whatever its parent is in: dropout would act in evaluation.
        self.train(experts.training)

    def start(self, generator: torch.Generator) -> None:
        """Give both projections their start, `up` first."""
        self.up.start(generator)
        self.down.start(generator)


class RoutedRows(NamedTuple):
    """Routed rows in order of expert: the expert of each, and where each expert's rows end."""

    expert_S: torch.Tensor
    ends_E: torch.Tensor
    # Rows of other processes under expert parallelism: grouped_mm leaves them unset.
    not_mine_S1: torch.Tensor | None


class ChosenRows(NamedTuple):
    """Rows of chosen experts among the routed ones; `rows_M` is None when that is all of them."""

    rows_M: torch.Tensor | None
    ends_N: torch.Tensor


def implementation_over(former: str) -> str:
    """Register the forward that adds `ExpertLora` to the implementation `former`; returns its name."""
    name = IMPLEMENTATION + former
    ALL_EXPERTS_FUNCTIONS.register(name, partial(expert_lora_forward, former))
    return name


def former_implementation(name: str) -> str:
    """The implementation under `implementation_over(...)`; any other name comes back as it is."""
    return name.removeprefix(IMPLEMENTATION)


def expert_lora_forward(
    former: str,
    experts: Any,
    hidden_TI: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:
    """Forward of an experts module, [T, I]: the base's own unless the layer has an adapter that is on."""
    adapter = getattr(experts, "expert_lora", None)
    if adapter is None or not adapter.enabled or not adapter.local:
        original = type(experts).forward.__wrapped__
        base_forward: Callable[..., torch.Tensor] = ALL_EXPERTS_FUNCTIONS.get_interface(former, original)
        out_TI = base_forward(experts, hidden_TI, expert_TK, weight_TK)
        # All chosen experts of the layer may be on other processes.
        return out_TI if adapter is None or not adapter.enabled else out_TI + _nothing(adapter, out_TI)
    if former == "eager":
        return _eager_forward(experts, adapter, hidden_TI, expert_TK, weight_TK)
    if _can_pair(experts, adapter, hidden_TI):
        return _paired_forward(experts, adapter, hidden_TI, expert_TK, weight_TK)
    return _grouped_forward(experts, adapter, hidden_TI, expert_TK, weight_TK)


def _can_pair(experts: Any, adapter: ExpertLora, hidden_TI: torch.Tensor) -> bool:
    """Whether the path of paired experts is the faster one and computes all that is asked for.

    Measured on a CPU only: in float32 with two threads it is, with one thread grouped_mm is by 3 %, and in
    bfloat16 by more than half. Without gradients base and tuned are compared: both take grouped_mm, so that
    rows without LoRA are the same bits.
    """
    return (
        torch.is_grad_enabled()
        and torch.get_num_threads() > 1
        and hidden_TI.device.type == "cpu"
        and hidden_TI.dtype == experts.down_proj.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not experts._is_expert_parallel
        and not (adapter.training and adapter.config.dropout)
    )


def _paired_forward(
    experts: Any,
    adapter: ExpertLora,
    hidden_TI: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:
    """Multiply two experts at a time, frozen weight and update together."""
    paired = pair_rows(expert_TK, experts.num_experts, adapter.local)
    rows_PI = spread(hidden_TI, paired.order)
    up_PO = _paired_projection(experts, adapter.up, rows_PI, paired)
    down_PO = _paired_projection(experts, adapter.down, _activate(experts, up_PO), paired)
    if experts.has_post_expert_norm:
        down_PO = experts.post_expert_norm(down_PO)
    return combine(down_PO, weight_TK, paired.order).to(hidden_TI.dtype)


def _paired_projection(
    experts: Any, low_rank: LowRank, rows_PI: torch.Tensor, paired: PairedRows
) -> torch.Tensor:
    weight = getattr(experts, low_rank.stack)
    weight_EOI = weight.mT if experts.is_transposed else weight
    out_PO = paired_linear(rows_PI, weight_EOI, low_rank.A, low_rank.B, low_rank.scaling, paired)
    if experts.has_bias:
        out_PO.add_(getattr(experts, f"{low_rank.stack}_bias")[paired.expert_P])
    return out_PO


def _grouped_forward(
    experts: Any,
    adapter: ExpertLora,
    hidden_TI: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:
    """Sort rows by expert once, multiply group by group: transformers' grouped_mm forward plus the update."""
    expert_S, order_S = torch.sort(expert_TK.reshape(-1))
    order = row_order(order_S, expert_TK.shape[-1])
    routed = _routed_rows(experts, expert_S)
    chosen = _chosen_rows(experts, adapter, expert_S, routed.ends_E)

    rows_SI = spread(hidden_TI, order)
    if routed.not_mine_S1 is not None:
        # Also stops the unset gradient of these rows from reaching hidden_TI.
        rows_SI = rows_SI.masked_fill(routed.not_mine_S1, 0.0)
    up_SO = _frozen_grouped_linear(experts, _up_name(experts), rows_SI, routed)
    # From hidden_TI and not from rows_SI: then the gradient of M rows is spread over T rows and not over S.
    chosen_MI = rows_SI if chosen.rows_M is None else hidden_TI[order.token_S[chosen.rows_M]]
    _add_update(up_SO, adapter.up, chosen_MI, chosen)

    active_SI = _activate(experts, up_SO)
    down_SO = _frozen_grouped_linear(experts, "down_proj", active_SI, routed)
    chosen_MI = active_SI if chosen.rows_M is None else active_SI[chosen.rows_M]
    _add_update(down_SO, adapter.down, chosen_MI, chosen)
    if experts.has_post_expert_norm:
        down_SO = experts.post_expert_norm(down_SO)

    return combine(down_SO, weight_TK, order).to(hidden_TI.dtype)


def _routed_rows(experts: Any, expert_S: torch.Tensor) -> RoutedRows:
    ids_E = torch.arange(experts.num_experts, device=expert_S.device)
    ends_E = torch.searchsorted(expert_S, ids_E, right=True).to(torch.int32)
    if not experts._is_expert_parallel:
        return RoutedRows(expert_S, ends_E, None)
    not_mine_S1 = (expert_S >= experts.num_experts).unsqueeze(-1)
    return RoutedRows(expert_S.clamp(max=experts.num_experts - 1), ends_E, not_mine_S1)


def _chosen_rows(
    experts: Any, adapter: ExpertLora, expert_S: torch.Tensor, ends_E: torch.Tensor
) -> ChosenRows:
    if len(adapter.chosen) == experts.num_experts and not experts._is_expert_parallel:
        return ChosenRows(None, ends_E)
    n_rows_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    ends_N = n_rows_E[adapter.chosen_N].cumsum(0, dtype=torch.int32)
    return ChosenRows(adapter.is_chosen_E[expert_S].nonzero().squeeze(-1), ends_N)


def _frozen_grouped_linear(
    experts: Any, name: str, rows_SI: torch.Tensor, routed: RoutedRows
) -> torch.Tensor:
    weight = getattr(experts, name)
    weight_EIO = weight if experts.is_transposed else weight.transpose(-2, -1)
    # grouped_mm knows nothing of autocast, which may hand float32 rows to bfloat16 weights.
    out_SO = F.grouped_mm(rows_SI.to(weight.dtype), weight_EIO, offs=routed.ends_E)
    if experts.has_bias:
        out_SO.add_(getattr(experts, f"{name}_bias")[routed.expert_S])
    return out_SO if routed.not_mine_S1 is None else out_SO.masked_fill(routed.not_mine_S1, 0.0)


def _add_update(out_SO: torch.Tensor, low_rank: LowRank, rows_MI: torch.Tensor, chosen: ChosenRows) -> None:
    """Add scaling x (rows A^T) B^T to the chosen rows of `out_SO`, in place: no other row is touched."""
    update_MO = low_rank(rows_MI.to(out_SO.dtype), chosen.ends_N)
    if chosen.rows_M is None:
        out_SO.add_(update_MO, alpha=low_rank.scaling)
    else:
        out_SO.index_add_(0, chosen.rows_M, update_MO, alpha=low_rank.scaling)


def _eager_forward(
    experts: Any,
    adapter: ExpertLora,
    hidden_TI: torch.Tensor,
    expert_TK: torch.Tensor,
    weight_TK: torch.Tensor,
) -> torch.Tensor:
    """One expert after the other with plain matrix products: for devices without a good grouped_mm."""
    out_TO = torch.zeros_like(hidden_TI)
    # One unbind for all experts: slicing in the loop would build a gradient of the whole A for each of them.
    values = [*adapter.up.own_values(), *adapter.down.own_values()]
    pairs = zip(*(stack.unbind() for stack in values), strict=True)
    update_of = dict(zip(adapter.local, pairs, strict=True))
    hit = set(expert_TK.unique().tolist())
    for expert in sorted(hit - {experts.num_experts}):
        slot_M, token_M = torch.where(expert == expert_TK.T)
        rows_MI = hidden_TI[token_M]
        up_MO = _frozen_linear(experts, _up_name(experts), expert, rows_MI)
        if expert in update_of:
            up_A, up_B, down_A, down_B = update_of[expert]
            up_MO = up_MO + adapter.up.scaling * _low_rank_linear(adapter.up.dropped(rows_MI), up_A, up_B)
            active_MI = _activate(experts, up_MO)
            down_MO = _frozen_linear(experts, "down_proj", expert, active_MI)
            update_MO = _low_rank_linear(adapter.down.dropped(active_MI), down_A, down_B)
            down_MO = down_MO + adapter.down.scaling * update_MO
        else:
            down_MO = _frozen_linear(experts, "down_proj", expert, _activate(experts, up_MO))
        if experts.has_post_expert_norm:
            down_MO = experts.post_expert_norm(down_MO)
        weighted_MO = down_MO * weight_TK[token_M, slot_M, None]
        out_TO.index_add_(0, token_M, weighted_MO.to(out_TO.dtype))
    return out_TO + _nothing(adapter, out_TO) if hit.isdisjoint(adapter.local) else out_TO


def _nothing(adapter: ExpertLora, out_TO: torch.Tensor) -> torch.Tensor:
    """Zero, with the adapter in its graph: its gradient is zero and not None, or collectives would hang."""
    zero = torch.stack([parameter.sum() for parameter in adapter.parameters()]).sum() * 0.0
    return zero.to(out_TO.dtype)


def _frozen_linear(experts: Any, name: str, expert: int, rows_MI: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    if not experts.is_transposed:
        return F.linear(rows_MI, weight, bias)
    return rows_MI @ weight if bias is None else rows_MI @ weight + bias


def _low_rank_linear(rows_MI: torch.Tensor, A_RI: torch.Tensor, B_OR: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(rows_MI, A_RI.to(rows_MI.dtype)), B_OR.to(rows_MI.dtype))


def _activate(experts: Any, up_SO: torch.Tensor) -> torch.Tensor:
    return experts._apply_gate(up_SO) if experts.has_gate else experts.act_fn(up_SO)


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _sizes(experts: Any, name: str) -> tuple[int, int]:
    """(inputs, outputs) of one fused projection."""
    weight = getattr(experts, name)
    # DeepSpeed's ZeRO-3 leaves a tensor without elements between two uses.
    _, first, second = getattr(weight, "ds_shape", weight.shape)
    return (first, second) if experts.is_transposed else (second, first)
