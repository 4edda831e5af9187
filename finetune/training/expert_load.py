"""How much of what the routers send reaches the chosen experts, and how evenly it is spread over them.

Counted in every tenth step, at the routers; tests/expert_load_cost.py measures what it costs. Reads and
writes nothing.
Legend: B rows, T tokens of a row, N = B x T, K experts per token, E experts, C chosen experts of a layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from finetune.adapters.lora import ExpertLora
from finetune.batching.packing import Pack
from finetune.layouts.layout import Layout
from finetune.moe import moe_layers

EVERY_STEPS = 10


class ExpertLoad:
    """Counts of one step at a time, over the layers that have chosen experts."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self.layout = layout
        self.n_experts: dict[int, int] = {}
        self.chosen: dict[int, list[int]] = {}
        for layer in moe_layers(model):
            adapter = getattr(layer.experts, "expert_lora", None)
            if isinstance(adapter, ExpertLora):
                self.chosen[layer.index], self.n_experts[layer.index] = adapter.chosen, layer.n_experts
        self._clear()

    @property
    def n_chosen(self) -> int:
        """Chosen experts of all layers."""
        return sum(map(len, self.chosen.values()))

    def is_due(self, step: int) -> bool:
        """Whether `step` (from 0) is counted: what a run tells must not depend on where it went on."""
        return step % EVERY_STEPS == 0 and bool(self.chosen)

    def add(self, routing: Mapping[int, torch.Tensor], packs: Sequence[Pack]) -> None:
        """Count a forward pass of `packs`, without padding; `routing` maps a layer to expert ids [N, K]."""
        lengths_B = torch.tensor([sum(len(example.tokens) for example in pack) for pack in packs])
        is_token_N = (torch.arange(int(lengths_B.max())) < lengths_B[:, None]).flatten()
        for layer, chosen in self.chosen.items():
            # The id n_experts is "no expert", which some routers choose.
            n_ids = self.n_experts[layer] + 1
            counts_E = torch.bincount(routing[layer].cpu()[is_token_N].flatten(), minlength=n_ids)[:-1]
            self._counts_of[layer] += torch.cat([counts_E.sum()[None], counts_E[chosen]])

    def told(self, step: int) -> dict[str, float]:
        """Numbers of `step`, of all processes together, or none when it is not counted.

        `chosen_share`: of all choices of these layers' routers, those of chosen experts. `chosen_balance`:
        mean over busiest of a layer's chosen experts, 1 when all get equally many, averaged over layers.
        """
        if not self.is_due(step):
            return {}
        counts = torch.cat(list(self._counts_of.values())).to(self.layout.device)
        counted = counts if self.layout.counts else torch.zeros_like(counts)
        summed = torch.as_tensor(self.layout.accelerator.reduce(counted, reduction="sum")).cpu()
        parts = summed.split([len(counts_1C) for counts_1C in self._counts_of.values()])
        self._clear()
        n_choices = sum(int(part[0]) for part in parts)
        n_reached = sum(int(part[1:].sum()) for part in parts)
        loads = [part[1:].double() for part in parts if part[1:].any()]
        even = [float(load_C.mean() / load_C.max()) for load_C in loads]
        return {
            "chosen_share": n_reached / n_choices,
            "chosen_balance": sum(even) / len(even) if even else 0.0,
        }

    def _clear(self) -> None:
        # Of each layer: all choices, then those of each chosen expert.
        self._counts_of = {
            layer: torch.zeros(1 + len(chosen), dtype=torch.int64) for layer, chosen in self.chosen.items()
        }
