"""What a process has to know of the others: which rows are its own, and how adapters are kept the same.

Reads and writes nothing. The base is frozen: whatever its layout, only the adapter, which is small, is
synchronised, in one message a step. Every process holds all of it, also where the experts are shared out.
"""

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune.batches import Example, contiguous_part
from finetune.processes import broadcast_parameters, gather, stop_together, sum_gradients
from finetune.training_options import SHARED_OUT, LayoutKind


@dataclass(frozen=True)
class Layout:
    """The processes of a run. Those with one `data_index` work on the same rows."""

    accelerator: Accelerator
    data_index: int  # from 0
    n_data: int  # shares that a step's rows are cut into
    kind: LayoutKind = "data_parallel"
    ep_size: int = 1  # processes, one after the other, that share out the experts

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    @property
    def in_step(self) -> bool:
        """Whether a forward asks other processes, for weights or for experts: all must make equally many."""
        return self.kind in SHARED_OUT

    @property
    def counts(self) -> bool:
        """Whether this process's numbers of its rows count: one of those that work on the same ones does."""
        return self.accelerator.process_index % (self.accelerator.num_processes // self.n_data) == 0

    def place(self, model: Any) -> Any:
        """Move a base that is whole in each process to its device; any other is where it belongs."""
        return model if self.in_step or self.kind == "device_map" else model.to(self.device)

    def own_rows(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share of the rows of a step."""
        return contiguous_part(items, self.data_index, self.n_data)

    def n_forwards(self, n_items: int, batch_size: int) -> int:
        """Forwards of at most `batch_size` rows that this process makes for its share of `n_items`."""
        largest = -(-n_items // self.n_data)
        own = len(self.own_rows(range(n_items)))
        return -(-(largest if self.in_step else own) // batch_size)

    def broadcast(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the adapter that the first one has."""
        broadcast_parameters(self.accelerator, parameters)

    def sum_gradients(self, own: Mapping[str, nn.Parameter]) -> None:
        """Replace each gradient of the adapter `own`, by name, by that of the whole step's rows.

        An expert is on one of the processes that work on the same rows, and has the gradient of all their
        tokens there. What is not an expert's has the same gradient on each of these, and counts once.
        """
        if not self.counts:
            for name, parameter in own.items():
                if ".expert_lora." not in name:
                    parameter.grad = None
        sum_gradients(self.accelerator, list(own.values()))

    def sum_over_rows(self, value: torch.Tensor) -> float:
        """The sum, over all rows of a step, of a number each process has for its own rows."""
        counted = value if self.counts else torch.zeros_like(value)
        return float(torch.as_tensor(self.accelerator.reduce(counted, reduction="sum")))

    def hit_by_any(self, hit: Mapping[int, Set[int]]) -> Mapping[int, Set[int]]:
        """Layer -> experts that got a token, from any process whose tokens may come to this one's experts."""
        if self.ep_size == 1:
            return hit
        found = gather(self.accelerator, {layer: sorted(experts) for layer, experts in hit.items()})
        first = self.accelerator.process_index // self.ep_size * self.ep_size
        found = found[first : first + self.ep_size]
        layers = set().union(*found)
        return {layer: set().union(*(other.get(layer, ()) for other in found)) for layer in layers}

    def check_same(self, parameters: Sequence[nn.Parameter]) -> None:
        """Compare the adapters of all processes, bit by bit.

        Raises:
            UserError: they differ; on all processes.
        """
        if self.accelerator.num_processes == 1:
            return
        digest = hashlib.sha256()
        for parameter in parameters:
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        differing = unlike_the_first(gather(self.accelerator, digest.hexdigest()))
        if differing:
            stop_together(
                self.accelerator,
                f"the adapter of process(es) {differing} differs from that of process 0: one of them "
                "computed something else, and none is to be trusted; go on from the last checkpoint, and "
                "look for processes on other hardware or other versions",
            )

    def check_rows(self, examples: Sequence[Example]) -> None:
        """Compare the rows that all processes have for a step, and see that there are enough.

        Raises:
            UserError: they differ, or there are fewer different rows than shares; on all processes.
        """
        if self.accelerator.num_processes == 1:
            return
        n_rows = len({example.row_id for example in examples})
        rows = [(example.row_id, example.tokens, example.labels) for example in examples]
        self.check_same_inputs({"rows": hashlib.sha256(repr(rows).encode()).hexdigest()})
        if n_rows < self.n_data:
            stop_together(
                self.accelerator,
                f"{n_rows} different row(s) for {self.n_data} processes: take fewer processes, or more rows",
            )

    def check_same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Compare the hashes, by name, of what each process read.

        Raises:
            UserError: they differ; on all processes, naming what differs and where.
        """
        if self.accelerator.num_processes == 1:
            return
        found = gather(self.accelerator, dict(inputs))
        for name in inputs:
            if differing := unlike_the_first([other[name] for other in found]):
                stop_together(
                    self.accelerator,
                    f"the {name} of process(es) {differing} differ(s) from process 0's: every process needs "
                    "the same files, so copy the run's folder to each machine, or share it",
                )


def unlike_the_first(values: Sequence[str]) -> str:
    """Numbers of the values that are not the first one, as text; empty when there are none."""
    return ", ".join(str(number) for number, value in enumerate(values) if value != values[0])


def data_parallel(accelerator: Accelerator) -> Layout:
    """Every process has the whole base and rows of its own."""
    return Layout(accelerator, accelerator.process_index, accelerator.num_processes)
