"""The files of a checkpoint: where they are, and where in them each tensor lies.

Reads folders and the headers of safetensors files; writes nothing.

The safetensors format (github.com/huggingface/safetensors, README): eight bytes with the length of the
header, the header as JSON with each tensor's dtype, shape and place, then the tensors, row by row.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from transformers.modeling_utils import str_to_torch_dtype

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.model import resolve_model_path

# What safetensors calls a dtype -> torch's; transformers 5.23 lacks that of FP8 scales.
DTYPES: dict[str, torch.dtype] = {**str_to_torch_dtype, "F8_E8M0": torch.float8_e8m0fnu}


class Place(NamedTuple):
    """Where one tensor lies in one shard."""

    file: str
    dtype: str
    shape: list[int]
    start: int  # bytes from the start of the file
    end: int


def checkpoint_folder(base: BaseConfig) -> Path:
    """The folder with the base's files; a Hub id is fetched when the network is allowed.

    Raises:
        UserError: there is no such folder or repository.
    """
    path = Path(resolve_model_path(base.model))
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(path), revision=base.revision))
    except Exception as error:  # many kinds, of several libraries
        raise UserError(f"cannot find the files of the base {base.model!r}: {error}") from error


def read_places(folder: Path) -> dict[str, Place]:
    """Every tensor of the checkpoint in a folder, from the headers of its files.

    Raises:
        UserError: there are none, a file is missing or damaged, or two hold a tensor of one name.
    """
    places: dict[str, Place] = {}
    for path in _weight_files(folder):
        for name, place in _header(path).items():
            if name in places:
                raise UserError(
                    f"{folder}: {name} is in {places[name].file} and in {place.file}: remove the file that "
                    "is not of this checkpoint"
                )
            places[name] = place
    if not places:
        raise UserError(
            f"{folder} has no *.safetensors files, and no other format is read: load the base and save it "
            "with save_pretrained"
        )
    return places


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: the one file, else those of the index, else all there are."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} holds no weight_map of tensors and files: copy it again") from error
    for path in paths:
        if not path.is_file():
            raise UserError(f"{index} names {path.name}, which is not there: copy the checkpoint again")
    return paths


def _header(path: Path) -> dict[str, Place]:
    """The tensors of one file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # Else the first bytes of another format ask for more memory than there is.
            header = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = Place(path.name, entry["dtype"], list(entry["shape"]), start, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file: copy it again") from error
    if max((place.end for place in found.values()), default=0) > size:
        raise UserError(f"{path} is truncated: copy it again")
    return found
