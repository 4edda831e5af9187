"""What a process has to know of the others: which rows are its own, and how adapters are kept in step.

Reads and writes nothing. The base is frozen: whatever its layout, only the adapter, which is small, is
synchronised, in one message a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune.batches import contiguous_part
from finetune.processes import broadcast_parameters, sum_gradients


@dataclass(frozen=True)
class Layout:
    """The processes of a run. Those with one `data_index` work on the same rows."""

    accelerator: Accelerator
    data_index: int  # from 0
    n_data: int  # shares that a step's rows are cut into

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    def own_rows(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's share of the rows of a step."""
        return contiguous_part(items, self.data_index, self.n_data)

    def broadcast(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the adapter that the first one has."""
        broadcast_parameters(self.accelerator, parameters)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by that of the whole step's rows."""
        sum_gradients(self.accelerator, parameters)

    def sum_over_rows(self, value: torch.Tensor) -> float:
        """The sum, over all rows of a step, of a number each process has for its own rows."""
        return float(torch.as_tensor(self.accelerator.reduce(value, reduction="sum")))


def data_parallel(accelerator: Accelerator) -> Layout:
    """Every process has the whole base and rows of its own."""
    return Layout(accelerator, accelerator.process_index, accelerator.num_processes)
