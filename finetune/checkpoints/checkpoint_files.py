"""One checkpoint on disk: a folder `step-<n>` that is whole or skipped.

Writes and reads adapter.safetensors, optimizer.safetensors, best.safetensors (the adapter of the lowest
validation loss, with train.keep_best), metrics.jsonl (the lines up to that step) and checkpoint.json, which
holds the step, what the run is made from, the numbers told so far and a hash of each of the others. Nothing
is pickled. There is no state of a random number generator in it: a step's rows and its dropout follow from
the seed and the step alone (tests/test_resume.py scrambles every generator), and so does the learning rate.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from data_recipes.artefact import UserError, read_artefact, sha256_file, whole_folder, write_artefact
from finetune.processes import say

KIND = "train_checkpoint"
HEAD_FILE, METRICS_FILE = "checkpoint.json", "metrics.jsonl"
TENSORS = ".safetensors"

Tensors = Mapping[str, torch.Tensor]


class Checkpoint(NamedTuple):
    """A whole checkpoint and what its checkpoint.json says."""

    folder: Path
    head: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.head["step"]


def write_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Tensors], metrics: Path | None, body: Mapping[str, Any]
) -> Path:
    """Write `root`/step-`step` (steps done) to the platter, whole or not at all; returns the folder.

    `tensors` maps the name of a file to its tensors by name; `body` goes into checkpoint.json.

    Raises:
        UserError: no space is left; OSError when the disk fails otherwise.
    """
    folder = root / f"step-{step}"
    with whole_folder(folder, KIND) as partial:
        for name, values in tensors.items():
            save_file(dict(values), partial / f"{name}{TENSORS}")
        if metrics is not None and metrics.exists():
            shutil.copyfile(metrics, partial / METRICS_FILE)
        hashes = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
        write_artefact(partial / HEAD_FILE, KIND, {}, {"step": step, "files": hashes, **body})
        for file in (*partial.iterdir(), partial):
            _flush(file)
    _flush(root)
    return folder


def newest_whole(root: Path) -> Checkpoint | None:
    """The checkpoint of the highest step whose files are all there and unchanged; others are told."""
    for folder in reversed(checkpoint_folders(root)):
        try:
            return read_whole(folder)
        except UserError as error:
            say(f"skipped a damaged checkpoint: {error}")
    return None


def read_whole(folder: Path) -> Checkpoint:
    """Read checkpoint.json and hold every file against its hash.

    Raises:
        UserError: a file is missing, cut short or changed.
    """
    head = read_artefact(folder / HEAD_FILE, KIND, ("step", "files", "run", "monitor"))
    for name, expected in head["files"].items():
        if sha256_file(folder / name) != expected:
            raise UserError(f"{folder / name} is not as it was written (its sha256 differs)")
    return Checkpoint(folder, head)


def read_tensors(found: Checkpoint) -> dict[str, dict[str, torch.Tensor]]:
    """Name of a file of tensors -> its tensors, on the CPU."""
    names = [name for name in found.head["files"] if name.endswith(TENSORS)]
    return {name.removesuffix(TENSORS): load_file(found.folder / name) for name in names}


def checkpoint_folders(root: Path) -> list[Path]:
    """Folders of checkpoints under `root`, by step."""
    return sorted((path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """How many steps were done, by the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def remove_checkpoints(root: Path, keep: int = 0) -> None:
    """Remove all but the newest `keep`; with none left, `root` goes too when nothing else is in it."""
    folders = checkpoint_folders(root)
    remove_folders(root, folders[: max(0, len(folders) - keep)])
    if not keep and root.is_dir() and not any(root.iterdir()):
        root.rmdir()


def remove_folders(root: Path, folders: Iterable[Path]) -> None:
    """Remove these folders of checkpoints under `root`, and what killed processes left half written."""
    for folder in folders:
        # Renamed first: killed in the middle, this leaves no checkpoint that only looks like one.
        gone = folder.with_name(f".{folder.name}.partial-old")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
    for unfinished in root.glob(".step-*.partial-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _flush(path: Path) -> None:
    """Ask the disk to keep what was written: a rename may reach it before the bytes do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
