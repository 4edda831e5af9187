"""Count what the routers choose during a forward pass, in whole numbers; the model's numbers are not touched.

Reads the outputs of a model's routers by forward hooks; writes nothing. `RouterRecorder` sums one batch by
slots (a slot is one kind of token of one row), `LanguageTally` adds the batches of a language up.

Legend: B rows, T tokens of a row, N = B x T, S slots, L MoE layers, E experts, K experts per token,
R bootstrap replicates. An axis 2 holds counts and gate mass in MASS_UNIT.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from data_recipes.artefact import UserError
from finetune.calibration import CalibrationBatch
from finetune.moe import MoeLayer, router_output
from finetune.profile import MASS_UNIT, Cell, Kind, Kinds

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
        self.counts_LE = torch.zeros(shape_LE, dtype=torch.int64)
        self.mass_LE = torch.zeros(shape_LE, dtype=torch.int64)
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
        self.counts_LE[position] += sums_2SE[0].sum(dim=0)
        self.mass_LE[position] += sums_2SE[1].sum(dim=0)
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

    `cells` maps (source, kind) to int64 [2, L, E]; `replicates`, int64 [2, R, L, E], counts `kinds` alone.
    Call `begin` with each batch before its forward, and `add` with the sums of each layer.
    """

    def __init__(self, n_layers: int, n_experts: int, n_replicates: int, kinds: Kinds) -> None:
        self.shape_LE = (n_layers, n_experts)
        self.kinds: Kinds = kinds
        self.cells: dict[tuple[str, Kind], torch.Tensor] = {}
        self.replicates = torch.zeros((2, n_replicates, *self.shape_LE), dtype=torch.int64)
        self.n_rows = 0
        self.n_tokens = 0  # of the kinds in `kinds`
        self._batch: CalibrationBatch | None = None

    def open_cells(self, sources: Iterable[str]) -> None:
        """Make the cells of these sources: every process needs the same ones, whoever counts in them."""
        for source in sources:
            for kind in KINDS:
                self.cell(source, kind)

    def begin(self, batch: CalibrationBatch, is_first_pass: bool = True) -> None:
        """Take the sums that follow as those of `batch`; its rows are counted in its first pass only."""
        self._batch = batch
        if not is_first_pass:
            return
        is_answer_BT = batch.slot_BT % 2 == 1
        is_counted_BT = batch.attention_BT == 1
        if self.kinds != "all":
            is_counted_BT = is_counted_BT & (is_answer_BT == (self.kinds == "answer"))
        self.n_rows += len(batch.sources)
        self.n_tokens += int(is_counted_BT.sum())

    def add(self, position: int, sums_2SE: torch.Tensor) -> None:
        """Add one layer's sums of the current batch: exact, as all numbers are whole."""
        assert self._batch is not None, "begin() names the batch"
        sums_2BKE = sums_2SE.unflatten(1, (-1, len(KINDS)))
        for source in set(self._batch.sources):
            rows = [number for number, found in enumerate(self._batch.sources) if found == source]
            of_source_2KE = sums_2BKE[:, rows].sum(dim=1)
            for number, kind in enumerate(KINDS):
                self.cell(source, kind)[:, position] += of_source_2KE[:, number]
        if self.replicates.shape[1]:
            chosen = slice(None) if self.kinds == "all" else [KINDS.index(self.kinds)]
            counts_BE, mass_BE = sums_2BKE[:, :, chosen].sum(dim=2)
            # Integer matmul is slow and float64 holds 53 bits: a mass goes in two halves of 18 bits.
            low_BE = mass_BE & (2**_LOW_BITS - 1)
            parts_BX = torch.cat([counts_BE, low_BE, mass_BE >> _LOW_BITS], dim=1).double()
            parts_RX = (self._batch.weights_RB.double() @ parts_BX).long()
            counts_RE, low_RE, high_RE = parts_RX.chunk(3, dim=1)
            self.replicates[0, :, position] += counts_RE
            self.replicates[1, :, position] += low_RE + (high_RE << _LOW_BITS)

    def summed(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> "LanguageTally":
        """The tally of all processes: `add_up` sums a tensor over them; all have the same cells."""
        found = LanguageTally(*self.shape_LE, self.replicates.shape[1], self.kinds)
        found.n_rows, found.n_tokens = add_up(torch.tensor([self.n_rows, self.n_tokens])).tolist()
        found.replicates = add_up(self.replicates)
        names = sorted(self.cells)
        if names:
            both = add_up(torch.stack([self.cells[name] for name in names]))
            found.cells = dict(zip(names, both, strict=True))
        return found

    def cell(self, source: str, kind: Kind) -> torch.Tensor:
        """Counts and mass of one source and kind, [2, L, E]; zeros at first."""
        return self.cells.setdefault((source, kind), torch.zeros((2, *self.shape_LE), dtype=torch.int64))

    def counts_LE(self) -> torch.Tensor:
        """Choices of the kinds that the replicates count, int64 [L, E]."""
        counted = [sums[0] for (_, kind), sums in self.cells.items() if self.kinds in ("all", kind)]
        return torch.stack(counted).sum(dim=0) if counted else torch.zeros(self.shape_LE, dtype=torch.int64)

    def named_cells(self, language: str) -> dict[Cell, torch.Tensor]:
        """The cells that counted anything, by their full name."""
        return {Cell(language, *name): sums for name, sums in sorted(self.cells.items()) if sums.any()}
