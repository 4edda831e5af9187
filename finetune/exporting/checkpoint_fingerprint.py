"""Tell from a checkpoint's files whether it is the base of an adapter, without loading its weights.

Reads a few values of each tensor in place; writes nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.adapters.adapter_folder import require_base
from finetune.config import BaseConfig
from finetune.exporting.checkpoint_files import DTYPES, Place, checkpoint_folder, read_places
from finetune.exporting.checkpoint_names import StoredAs, conversion_table, stored_as
from finetune.exporting.merged_checkpoint import MERGEABLE, OPERATIONS
from finetune.model import fingerprint_of, load_model, model_fingerprint, sample_bytes, sampled_positions


def require_base_files(adapter: Path, saved: Mapping[str, Any], base: BaseConfig, model: Any) -> None:
    """Compare the base's fingerprint with the one in `saved`; `model` is the base's skeleton.

    Where the files do not give that fingerprint, the weights are loaded: they have the last word.

    Raises:
        UserError: it is another model, or its files are missing or damaged.
    """
    if checkpoint_fingerprint(model, checkpoint_folder(base)) != saved["model_fingerprint"]:
        require_base(adapter, saved, model_fingerprint(load_model(base)[0]))


def checkpoint_fingerprint(model: Any, folder: Path) -> str | None:
    """The `model_fingerprint` of the checkpoint in `folder`; None when some tensor is not stored plainly.

    Raises:
        UserError: the folder has no safetensors files, or one is damaged.
    """
    places, table = read_places(folder), conversion_table(model)
    tensors = model.state_dict()
    samples: dict[str, bytes] = {}
    for names in _tied_names(model, list(tensors)):
        for name in names:
            stored = stored_as(table, name)
            found = _sample(folder, places, stored, tensors[name].shape)
            if found is not None:
                sample = found.to(tensors[name].dtype)
                samples |= dict.fromkeys(names, sample_bytes(tensors[name].shape, sample))
                break
        else:
            return None
    return fingerprint_of(model.config, samples)


def _tied_names(model: Any, names: list[str]) -> Iterator[list[str]]:
    """Names of the same tensor together: a checkpoint has tied embeddings once."""
    of_tensor: dict[int, list[str]] = {}
    for every in (model.named_parameters, model.named_buffers):
        for name, value in every(remove_duplicate=False):
            if name in names:
                of_tensor.setdefault(id(value), []).append(name)
    yield from of_tensor.values()


def _sample(
    folder: Path, places: Mapping[str, Place], stored: StoredAs, shape: torch.Size
) -> torch.Tensor | None:
    """The values that the fingerprint samples of one tensor; None when it is not there, or not plainly."""
    positions = np.array(sampled_positions(shape.numel()))
    if not stored.operations and len(stored.names) == 1:
        return _values(folder, places.get(stored.names[0]), positions)
    if set(stored.operations) not in OPERATIONS or not stored.is_per_expert:
        return None
    # One expert after the other, and in each its gate before its up.
    size = shape.numel() // shape[0] // len(stored.names)
    tensor_of, within = np.divmod(positions, size)
    found = torch.empty(len(positions))
    for number in np.unique(tensor_of):
        expert, share = divmod(int(number), len(stored.names))
        place = places.get(stored.names[share].replace("*", str(expert)))
        values = _values(folder, place, within[tensor_of == number])
        if values is None:
            return None
        found[torch.from_numpy(tensor_of == number)] = values.float()
    return found


def _values(folder: Path, place: Place | None, positions: np.ndarray) -> torch.Tensor | None:
    """The values at `positions` of one tensor laid flat."""
    if place is None or place.dtype not in MERGEABLE:
        return None
    dtype = DTYPES[place.dtype]
    n_values = (place.end - place.start) // dtype.itemsize
    if not len(positions) or positions.max() >= n_values:
        return None
    on_disk = np.memmap(
        folder / place.file, np.uint8, "r", offset=place.start, shape=(n_values, dtype.itemsize)
    )
    return torch.frombuffer(bytearray(on_disk[positions].tobytes()), dtype=dtype)
