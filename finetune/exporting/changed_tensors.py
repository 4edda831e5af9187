"""What training moved, measured on saved files: an adapter's updates, and a merged checkpoint by its base.

Reads an adapter folder, or two folders of safetensors files a tensor at a time; writes nothing.

Legend: L MoE layers, E experts.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.exporting.adapter_parts import read_adapter
from finetune.exporting.checkpoint_files import read_places
from finetune.exporting.checkpoint_names import skeleton
from finetune.exporting.layouts import delta, experts_modules

# GLM, DeepSeek, Qwen and others give each expert its tensors; gpt_oss and Llama 4 stack them, [E, I, O].
EXPERT = re.compile(r"\.layers\.(\d+)\..*\bexperts\.(?:(\d+)\.|.*\[(\d+)\])")


def update_sizes(adapter: Path, base: BaseConfig) -> np.ndarray:
    """How much an adapter folder adds to each expert, [L, E]: the L2 norm over its weights, 0 for nothing.

    The base's weights are not loaded.

    Raises:
        UserError: a file of the adapter is missing, damaged, or does not fit the base.
    """
    model = skeleton(base)
    _, parts = read_adapter(model, adapter)
    modules = experts_modules(model)
    rows = {name: row for row, name in enumerate(sorted(modules, key=lambda name: modules[name].index))}
    squares_LE = np.zeros((len(rows), max(module.n_experts for module in modules.values())))
    for (name, _), part in parts.experts.items():
        for number, expert in enumerate(part.chosen):
            squares_LE[rows[name], expert] += float(delta(part, number).square().sum())
    return np.sqrt(squares_LE)


def changed_tensors(before: Path, after: Path) -> dict[str, float]:
    """The largest absolute change of each tensor that is not bit for bit the same, by name.

    Tensors that stack the experts of a layer are compared expert by expert: the name ends in "[expert]".

    Raises:
        UserError: a folder holds no checkpoint, or one has tensors, shapes or dtypes that the other has not.
    """
    old, new = read_places(before), read_places(after)
    shapes = [{name: (place.dtype, place.shape) for name, place in places.items()} for places in (old, new)]
    if shapes[0] != shapes[1]:
        differ = sorted(
            name for name in old.keys() | new.keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise UserError(
            f"{before} and {after} do not hold the same tensors ({len(differ)} differ, first {differ[0]}): "
            "compare a base with what was merged into it"
        )
    changes = {}
    for name in sorted(old):
        was, now = _read(before / old[name].file, name), _read(after / new[name].file, name)
        is_stack = was.ndim == 3 and ".experts." in name
        pairs = zip(was, now, strict=True) if is_stack else [(was, now)]
        for number, (one, other) in enumerate(pairs):
            if not one.equal(other):
                change = float((other.double() - one.double()).abs().max())
                changes[f"{name}[{number}]" if is_stack else name] = change
    return changes


def experts_of_tensors(names: Iterable[str]) -> dict[int, list[int]]:
    """The experts that tensors belong to, by layer, both ascending; other tensors are passed over."""
    found: dict[int, set[int]] = {}
    for match in filter(None, map(EXPERT.search, names)):
        layer, expert = (int(group) for group in match.groups() if group)
        found.setdefault(layer, set()).add(expert)
    return {layer: sorted(found[layer]) for layer in sorted(found)}


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
