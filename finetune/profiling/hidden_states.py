"""Keep what a decoder layer returned for each batch until the next layer is there: in memory, or in files.

Writes one file a batch into the folder it is given, reads it again, and removes them at the end. What a layer
returns is its hidden states, in some families with more beside them: the tokens that GLM's indexer chose.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from data_recipes.artefact import UserError, whole_file


class HiddenStates:
    """The last layer's output of each batch; `folder` None keeps them in memory."""

    def __init__(self, n_batches: int, folder: Path | None = None) -> None:
        self.folder = folder
        self._outputs: list[Any] = [None] * n_batches  # with a folder, tensors without values in their places
        self.n_bytes = [0] * n_batches

    def put(self, batch: int, output: Any) -> None:
        """Keep the output for a batch in place of the layer's before.

        Raises:
            UserError: no space left, or the folder cannot be written.
        """
        output = map_tensors(lambda tensor: tensor.cpu(), output)
        tensors = tensors_of(output)
        self.n_bytes[batch] = sum(tensor.nbytes for tensor in tensors)
        if self.folder is None:
            self._outputs[batch] = output
            return
        # Copies, because safetensors takes no two tensors that share memory.
        copies = {
            str(number): tensor.clone(memory_format=torch.contiguous_format)
            for number, tensor in enumerate(tensors)
        }
        with whole_file(self._path(batch)) as partial:
            save_file(copies, partial)
        self._outputs[batch] = map_tensors(lambda tensor: tensor.to("meta"), output)

    def get(self, batch: int, device: torch.device) -> Any:
        """The output that was kept last for a batch."""
        if self.folder is None:
            return map_tensors(lambda tensor: tensor.to(device), self._outputs[batch])
        kept = load_file(self._path(batch))
        in_order = (kept[str(number)] for number in range(len(kept)))
        # Copies: where a tensor lies in the file decides about the last bits of products with it.
        return map_tensors(lambda _: next(in_order).clone().to(device), self._outputs[batch])

    def check_space(self, n_more_bytes: int) -> None:
        """Refuse before hours of work what the disk cannot hold.

        Raises:
            UserError: the folder's disk has less than `n_more_bytes` free.
        """
        if self.folder is None:
            return
        free = shutil.disk_usage(self.folder).free
        if free < n_more_bytes:
            raise UserError(
                f"the hidden states need {n_more_bytes / 1e9:.3g} GB more in {self.folder}, and its disk has "
                f"{free / 1e9:.3g} GB free: free some, lower profile.max_tokens, or set another output"
            )

    def _path(self, batch: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{batch}.safetensors"


@contextmanager
def kept_hidden_states(n_batches: int, folder: Path | None = None) -> Iterator[HiddenStates]:
    """`HiddenStates` that leave no file behind, whatever happens."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield HiddenStates(n_batches, folder)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`value` with every tensor in it replaced, through tuples, lists and mappings."""
    if torch.is_tensor(value):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, part) for part in value)
    if isinstance(value, Mapping):
        return {name: map_tensors(function, part) for name, part in value.items()}
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Every tensor in `value`, through tuples, lists and mappings."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found
