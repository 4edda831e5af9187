"""Write a checkpoint with an adapter merged into it: the base's own files, the touched tensors changed.

Reads the base's folder (safetensors) and an adapter's parts; writes another folder. Each shard is copied as
it is and then changed in place, tensor by tensor: names, dtypes and all that transformers drops on load, such
as the layer of multi-token prediction (its index is num_hidden_layers), stay byte for byte, and no more than
one expert's weight is in memory.
"""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from data_recipes.artefact import UserError, sha256_file
from finetune.exporting.checkpoint_files import Place
from finetune.exporting.checkpoint_names import StoredAs, conversion_table, stored_as
from finetune.exporting.layouts import AdapterParts, ExpertPart, delta, experts_modules, linear_delta

MERGEABLE = ("F32", "BF16", "F16")  # others are quantized
# Files of weights, of which only those of the checkpoint itself are copied.
LEFT_OUT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
# Transformers' conversions that merging can go back through.
OPERATIONS = ({"MergeModulelist"}, {"MergeModulelist", "Concatenate"})


class Change(NamedTuple):
    """What is added to one tensor, or to its slice `expert` when all experts share the tensor."""

    name: str
    expert: int | None
    shape: list[int]
    addend: Callable[[], torch.Tensor]  # in float64, built when it is needed


def planned_changes(model: Any, parts: AdapterParts, places: Mapping[str, Place]) -> list[Change]:
    """What merging `parts` adds to which tensors of the checkpoint; `model` may be a skeleton.

    Raises:
        UserError: a tensor is not there, has another shape, is quantized, or is stored in a form that
            merging cannot write.
    """
    table, modules = conversion_table(model), experts_modules(model)
    changes: list[Change] = []
    for (name, parameter), part in parts.experts.items():
        module = modules[name]
        stored = stored_as(table, f"{name}.{parameter}")
        changes += _expert_changes(
            part, f"{name}.{parameter}", stored, places, module.is_transposed, module.is_concatenated
        )
    for name, linear in parts.linears.items():
        stored = stored_as(table, f"{name}.weight").names[0]
        key = stored if stored in places else f"{name}.weight"
        shape = [len(linear.B_OR), linear.A_RI.shape[1]]
        changes.append(Change(key, None, shape, partial(linear_delta, linear)))
    for change in changes:
        _require_place(change, places)
    return changes


def write_merged(source: Path, target: Path, changes: list[Change], places: Mapping[str, Place]) -> None:
    """Copy the checkpoint of `source` to `target` and add the changes there."""
    weight_files = {place.file for place in places.values()}
    for path in sorted(source.iterdir()):
        # Other weights beside these, in whatever format, would be the unmerged ones.
        is_other = path.suffix in LEFT_OUT and path.name not in weight_files
        if path.is_file() and not path.name.startswith(".") and not is_other:
            shutil.copyfile(path, target / path.name)
    for change in changes:
        place = places[change.name]
        weight = _read(source, change, place)
        merged = (weight.double() + change.addend()).to(weight.dtype).contiguous()
        start = place.start + (change.expert or 0) * merged.nbytes
        with (target / place.file).open("r+b") as file:
            file.seek(start)
            file.write(merged.view(torch.uint8).numpy().tobytes())


def check_merged(
    source: Path, target: Path, changes: list[Change], places: Mapping[str, Place]
) -> dict[str, Any]:
    """Read both checkpoints again and compare: W + update where it was merged, equal bytes everywhere else.

    Returns counts and the largest difference, as a share of what rounding to the tensor's dtype may cost.

    Raises:
        UserError: the merged checkpoint is not what it should be.
    """
    worst = 0.0
    for change in changes:
        place = places[change.name]
        expected = _read(source, change, place).double() + change.addend()
        found = _read(target, change, place)
        # Half a unit in the last place is at most eps / 2 of the value; the rest is for subnormal numbers.
        allowed = torch.finfo(found.dtype).eps / 2 * expected.abs() + torch.finfo(found.dtype).tiny
        share = float(((found.double() - expected).abs() / allowed).max())
        worst = max(worst, share if math.isfinite(share) else math.inf)  # NaN is above nothing
    if not worst <= 1.01:  # float64 to bfloat16 goes through float32 and so rounds twice
        raise UserError(
            f"the merged checkpoint differs from W + update by {worst:.3g} times what rounding may cost: "
            "nothing is written; please report this"
        )
    changed: dict[str, set[int | None]] = {}
    for change in changes:
        changed.setdefault(change.name, set()).add(change.expert)
    touched_files = {places[name].file for name in changed}
    for name, place in places.items():
        kept = _kept(place, changed.get(name, set())) if place.file in touched_files else ()
        if not all(_same_bytes(source, target, part) for part in kept):
            raise UserError(
                f"{name} changed while others were merged: nothing is written; please report this"
            )
    for file in {place.file for place in places.values()} - touched_files:
        if sha256_file(source / file) != sha256_file(target / file):
            raise UserError(
                f"{target / file} is not the copy of {source / file}: nothing is written; try again"
            )
    return {
        "merged_tensors": len(changed),
        "kept_tensors": len(places) - len(changed),
        "share_of_rounding": worst,
    }


def not_loaded(places: Mapping[str, Place], n_layers: int) -> list[str]:
    """Tensors of layers that transformers drops on load (multi-token prediction): kept by merging."""
    numbers = {name: re.search(r"(?:^|\.)layers\.(\d+)\.", name) for name in places}
    return sorted(name for name, number in numbers.items() if number and int(number[1]) >= n_layers)


def _expert_changes(
    part: ExpertPart,
    parameter: str,
    stored: StoredAs,
    places: Mapping[str, Place],
    is_transposed: bool,
    is_concatenated: bool,
) -> Iterator[Change]:
    """The changes of one fused projection, in whichever of the two forms the checkpoint has it."""
    first, n_out, n_in = part.chosen[0], part.B_NOR.shape[1], part.A_NRI.shape[2]
    if stored.is_per_expert and stored.names[0].replace("*", str(first)) in places:
        if set(stored.operations) not in OPERATIONS or is_transposed or not is_concatenated:
            raise _cannot_write(parameter, stored)
        for number, expert in enumerate(part.chosen):
            for share, name in enumerate(stored.names):
                addend = partial(_share, part, number, share, len(stored.names))
                yield Change(name.replace("*", str(expert)), None, [n_out // len(stored.names), n_in], addend)
        return
    if stored.operations and not stored.is_per_expert:
        raise _cannot_write(parameter, stored)
    fused = parameter if parameter in places or stored.is_per_expert else stored.names[0]
    for number, expert in enumerate(part.chosen):
        shape = [n_in, n_out] if is_transposed else [n_out, n_in]
        yield Change(fused, expert, shape, partial(_stacked, part, number, is_transposed))


def _cannot_write(parameter: str, stored: StoredAs) -> UserError:
    return UserError(
        f"{parameter} is stored in a form that merging cannot write ({', '.join(stored.operations)}): "
        "export it with --to peft and merge it there"
    )


def _share(part: ExpertPart, number: int, share: int, n_shares: int) -> torch.Tensor:
    return delta(part, number).chunk(n_shares)[share]


def _stacked(part: ExpertPart, number: int, is_transposed: bool) -> torch.Tensor:
    update_OI = delta(part, number)
    return update_OI.T if is_transposed else update_OI


def _require_place(change: Change, places: Mapping[str, Place]) -> None:
    place = places.get(change.name)
    if place is None:
        start = change.name.rpartition(".")[0]
        near = next((name for name in places if name.startswith(start)), "none of that layer")
        raise UserError(
            f"the checkpoint has no tensor {change.name!r} (it has {near}): another model, or quantized: "
            "merge into its unquantized checkpoint"
        )
    if place.dtype not in MERGEABLE:
        raise UserError(
            f"{change.name} is {place.dtype}: an update cannot be merged into quantized weights; "
            "merge into the bf16 checkpoint, then quantize that"
        )
    shape = place.shape if change.expert is None else place.shape[1:]
    if change.shape != shape:
        raise UserError(
            f"{change.name} has shape {shape}, its update {change.shape}: "
            "set --base to the model the adapter was trained on"
        )


def _read(folder: Path, change: Change, place: Place) -> torch.Tensor:
    with safe_open(folder / place.file, framework="pt") as file:
        if change.expert is None:
            return file.get_tensor(change.name)
        return file.get_slice(change.name)[change.expert]


def _kept(place: Place, changed: Set[int | None]) -> list[Place]:
    """The parts of a tensor that merging leaves as they are: all, none, or the other experts' slices."""
    if not changed or None in changed:
        return [] if changed else [place]
    size = (place.end - place.start) // place.shape[0]
    starts = {expert: place.start + expert * size for expert in range(place.shape[0])}
    return [
        place._replace(start=start, end=start + size)
        for expert, start in starts.items()
        if expert not in changed
    ]


def _same_bytes(source: Path, target: Path, place: Place, step: int = 1 << 24) -> bool:
    with (source / place.file).open("rb") as first, (target / place.file).open("rb") as second:
        for start in range(place.start, place.end, step):
            size = min(step, place.end - start)
            first.seek(start)
            second.seek(start)
            if first.read(size) != second.read(size):
                return False
    return True
