"""Count what the routers choose during a forward pass, in whole numbers; the model's numbers are not touched.

Reads the outputs of a model's routers by forward hooks; writes nothing. `RouterRecorder` sums one batch by
slots (a slot is one kind of token of one row), `LanguageTally` adds the batches of a language up.

Legend: B rows, T tokens of a row, N = B x T, S slots, L MoE layers, E experts, K experts per token,
P kinds of token, R bootstrap replicates, X sources and then replicates. An axis 2 holds counts and gate mass,
in MASS_UNIT.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from data_recipes.artefact import UserError
from finetune.moe import MoeLayer, router_output
from finetune.profiling.calibration import CalibrationBatch
from finetune.profiling.profile import MASS_UNIT, Cell, Kind, Kinds

KINDS: tuple[Kind, ...] = ("prompt", "answer")  # a row's two slots, in this order
_LOW_BITS = 18  # of a gate mass; half of what float64 holds of it


class RouterRecorder:
    """Adds up what the routers of `layers` choose while it is entered. Call `expect` before each forward.

    `counts_LE` (int64): how often each expert was chosen; rows are layers and sum to n_tokens x top_k, or to
    less where the router sends a token to no expert. `mass_LE` (int64, MASS_UNIT): router weights, normalised
    for each token to sum to 1 over its chosen experts; rows are layers and sum to n_tokens.
    `on_layer(position, sums_2SE)`, when given, gets each layer's sums of each batch by slot.
    """

    def __init__(
        self, layers: Sequence[MoeLayer], on_layer: Callable[[int, torch.Tensor], None] | None = None
    ) -> None:
        self.layers = list(layers)
        self.n_tokens = 0
        shape_LE = (len(self.layers), self.layers[0].n_experts)
        self._totals_2LE = torch.zeros((2, *shape_LE), dtype=torch.int64)
        self.counts_LE, self.mass_LE = self._totals_2LE
        self._on_layer = on_layer
        self._n_slots = 1
        self._slot_N: list[torch.Tensor | None] = [None] * len(self.layers)
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "RouterRecorder":
        for position, layer in enumerate(self.layers):
            self._hooks.append(layer.router.register_forward_hook(partial(self._record, position)))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def expect(
        self, attention_mask_BT: torch.Tensor, slot_BT: torch.Tensor | None = None, n_slots: int = 1
    ) -> None:
        """Name the tokens that the next forward counts (the attended ones) and the slot of each."""
        is_counted_BT = attention_mask_BT.bool().cpu()
        slots_BT = torch.zeros_like(is_counted_BT, dtype=torch.int64) if slot_BT is None else slot_BT.cpu()
        self.n_tokens += int(is_counted_BT.sum())
        self._n_slots = n_slots
        # One slot more takes the padding: cheaper than to pick the counted tokens in each layer.
        self._slot_N = [torch.where(is_counted_BT, slots_BT, n_slots).flatten()] * len(self.layers)

    def _record(self, position: int, _router: nn.Module, _inputs: Any, output: Any) -> None:
        """Forward hook; a mask serves one forward, so no batch is counted by the mask of another."""
        layer, slot_N = self.layers[position], self._slot_N[position]
        self._slot_N[position] = None
        _, weights_NK, indices_NK = router_output(layer, output)
        if slot_N is None or len(slot_N) != len(indices_NK):
            raise RuntimeError(f"{layer.name}: call expect() with the mask of this batch before each forward")
        sums_2SE = self._sums(layer, slot_N, weights_NK.cpu().double(), indices_NK.cpu().long())
        self._totals_2LE[:, position] += sums_2SE.sum(dim=1)
        if self._on_layer is not None:
            self._on_layer(position, sums_2SE)

    def _sums(
        self, layer: MoeLayer, slot_N: torch.Tensor, weights_NK: torch.Tensor, indices_NK: torch.Tensor
    ) -> torch.Tensor:
        """Counts and gate mass of one layer by slot: int64 [2, S, E]."""
        n_columns = layer.n_experts + 1  # id n_experts is "no expert", which some routers choose
        has_expert_NK = indices_NK < layer.n_experts
        weights_NK = weights_NK * has_expert_NK
        share_NK = weights_NK / weights_NK.sum(dim=1, keepdim=True)
        units_NK = (share_NK / MASS_UNIT).round().where(has_expert_NK, 0.0)
        index_J = (slot_N[:, None] * n_columns + indices_NK).flatten()
        n_bins = (self._n_slots + 1) * n_columns
        counts_J = torch.bincount(index_J, minlength=n_bins)
        mass_J = torch.bincount(index_J, weights=units_NK.flatten(), minlength=n_bins)
        both = torch.stack([counts_J.double(), mass_J]).view(2, self._n_slots + 1, n_columns)
        # The last slot is padding: a row without any attended token may rightly carry NaN.
        both = both[:, : self._n_slots, : layer.n_experts]
        if not both.isfinite().all():
            is_counted_N = slot_N < self._n_slots
            is_broken_N = ~units_NK[is_counted_N].isfinite().all(dim=1)
            raise UserError(
                f"{layer.name}: the router's weights are not finite for {int(is_broken_N.sum())} of "
                f"{len(is_broken_N)} tokens: "
                f"the base's own numbers are broken; try base.dtype=float32 or another checkpoint"
            )
        return both.long()


class LanguageTally:
    """Sums of one language: by source and kind, and over the bootstrap replicates.

    `sources` maps a source to int64 [2, P, L, E], P its kinds in the order of KINDS; `replicates`, int64
    [2, R, L, E], counts `kinds` alone. Call `begin` with each batch before its forward, and `add` with the
    sums of each layer.
    """

    def __init__(self, n_layers: int, n_experts: int, n_replicates: int, kinds: Kinds) -> None:
        self.shape_LE = (n_layers, n_experts)
        self.kinds: Kinds = kinds
        self.sources: dict[str, torch.Tensor] = {}
        self.replicates = torch.zeros((2, n_replicates, *self.shape_LE), dtype=torch.int64)
        self.n_rows = 0
        self.n_tokens = 0  # of the kinds in `kinds`
        self._batch_sources: list[str] = []
        self._weights_XB = torch.zeros(0)

    def open_sources(self, sources: Iterable[str]) -> None:
        """Make room for these sources: every process needs the same ones, whoever counts in them."""
        for source in set(sources) - self.sources.keys():
            self.sources[source] = torch.zeros((2, len(KINDS), *self.shape_LE), dtype=torch.int64)

    def begin(self, batch: CalibrationBatch, is_first_pass: bool = True) -> None:
        """Take the sums that follow as those of `batch`; its rows are counted in its first pass only."""
        self.open_sources(batch.sources)
        self._batch_sources = sorted(set(batch.sources))
        # A source is a resample too: each of its rows once, all others never. So one product gives both.
        is_of_source = [[found == source for found in batch.sources] for source in self._batch_sources]
        self._weights_XB = torch.cat([torch.tensor(is_of_source), batch.weights_RB]).double()
        if not is_first_pass:
            return
        is_counted_BT = batch.attention_BT == 1
        if self.kinds != "all":
            is_counted_BT = is_counted_BT & (batch.slot_BT % 2 == KINDS.index(self.kinds))
        self.n_rows += len(batch.sources)
        self.n_tokens += int(is_counted_BT.sum())

    def add(self, position: int, sums_2SE: torch.Tensor) -> None:
        """Add one layer's sums of the current batch: exact, as all numbers are whole."""
        counts_BPE, mass_BPE = sums_2SE.unflatten(1, (-1, len(KINDS)))
        # Integer matmul is slow and float64 holds 53 bits: a mass goes in two halves.
        low_BPE, high_BPE = mass_BPE & (2**_LOW_BITS - 1), mass_BPE >> _LOW_BITS
        parts_B3PE = torch.stack([counts_BPE, low_BPE, high_BPE], dim=1).double()
        summed_X = self._weights_XB @ parts_B3PE.flatten(1)
        counts_XPE, low_XPE, high_XPE = summed_X.long().view(-1, *parts_B3PE.shape[1:]).unbind(dim=1)
        both_2XPE = torch.stack([counts_XPE, low_XPE + (high_XPE << _LOW_BITS)])
        for number, source in enumerate(self._batch_sources):
            self.sources[source][:, :, position] += both_2XPE[:, number]
        replicates_2RPE = both_2XPE[:, len(self._batch_sources) :, self._counted()]
        self.replicates[:, :, position] += replicates_2RPE.sum(dim=2)

    def summed(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> "LanguageTally":
        """The tally of all processes: `add_up` sums a tensor over them; all have the same sources."""
        found = LanguageTally(*self.shape_LE, self.replicates.shape[1], self.kinds)
        found.n_rows, found.n_tokens = add_up(torch.tensor([self.n_rows, self.n_tokens])).tolist()
        found.replicates = add_up(self.replicates)
        names = sorted(self.sources)
        sums = add_up(torch.stack([self.sources[name] for name in names]))
        found.sources = dict(zip(names, sums, strict=True))
        return found

    def counts_LE(self) -> torch.Tensor:
        """Choices of the kinds that the replicates count, int64 [L, E]."""
        return sum((sums[0, self._counted()].sum(dim=0) for sums in self.sources.values()), torch.tensor(0))

    def named_cells(self, language: str) -> dict[Cell, torch.Tensor]:
        """Sums [2, L, E] of the cells that counted anything, by their full name."""
        cells = {
            Cell(language, source, kind): sums[:, number]
            for source, sums in self.sources.items()
            for number, kind in enumerate(KINDS)
        }
        return {cell: cells[cell] for cell in sorted(cells) if cells[cell].any()}

    def _counted(self) -> slice:
        if self.kinds == "all":
            return slice(None)
        return slice(number := KINDS.index(self.kinds), number + 1)
