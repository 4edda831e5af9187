"""Put the weights of one part of a checkpoint into a model on the meta device, and take them out again.

Reads `*.safetensors` of a folder; writes nothing. What a checkpoint calls its tensors and how they become the
model's parameters is transformers' own conversion table, and so is the taking apart of FP8. Files are read
with plain reads into memory that is already there: no file is mapped, and beside the part itself no more than
one expert, or `CHUNK_BYTES` of another tensor, is in memory.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.quantizers.auto import get_hf_quantizer

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.exporting.checkpoint_files import DTYPES, Place, checkpoint_folder, read_places
from finetune.exporting.checkpoint_names import model_type
from finetune.model import sampled_bytes
from finetune.moe import decoder_layers

CHUNK_BYTES = 1 << 25


class Stored(NamedTuple):
    """What of the checkpoint becomes one parameter, or the several that a converter makes of one tensor.

    `names` maps a source pattern of the converter to the checkpoint's names, in their order.
    """

    converter: WeightConverter | None
    names: dict[str, list[str]]


@dataclass(frozen=True)
class LayerWeights:
    """A model on the meta device and where its parameters lie on disk.

    A part is the number of a decoder layer, "embedding", "outside" (what else the decoder needs) or "head"
    (what only the language-model head needs). `samples` are those of every tensor that was loaded, for the
    fingerprint; `n_read_bytes` counts what was read from disk.
    """

    model: Any
    layers: nn.ModuleList
    folder: Path
    places: dict[str, Place]
    parts: dict[int | str, dict[str, Stored]]
    device: torch.device
    quantizer: Any
    meta: dict[str, torch.Tensor]
    samples: dict[str, bytes] = field(default_factory=dict)
    n_read_bytes: dict[int | str, int] = field(default_factory=dict)


def open_weights(base: BaseConfig, device: torch.device) -> LayerWeights:
    """The base with its names and shapes, and the place of each weight; no weight is read.

    Raises:
        UserError: no such base, no safetensors files, a missing shard or tensor, or a quantization that
            transformers does not take apart on load.
    """
    folder = checkpoint_folder(base)
    places = read_places(folder)
    model, quantizer = _empty_model(base, folder)
    layers, prefix = decoder_layers(model, "set profile.offload=false")
    meta = dict(model.state_dict())
    parts: dict[int | str, dict[str, Stored]] = {}
    for target, stored in _sources(model, quantizer, places, meta).items():
        parts.setdefault(_part(model, prefix, target), {})[target] = stored
    found = {
        name for part in parts.values() for target, stored in part.items() for name in _made(target, stored)
    }
    if missing := sorted(meta.keys() - found - model.all_tied_weights_keys.keys(), key=dot_natural_key):
        raise UserError(
            f"the checkpoint {folder} lacks {len(missing)} tensor(s) of {model_type(model)}, first "
            f"{missing[0]}: copy it again, or set base.model to a complete one"
        )
    return LayerWeights(model, layers, folder, places, parts, device, quantizer, meta)


def load_part(weights: LayerWeights, part: int | str) -> None:
    """Read the tensors of `part` from disk into the model.

    Raises:
        UserError: a tensor has another shape than the model's, or its file cannot be read.
    """
    weights.n_read_bytes[part] = 0
    for target, stored in weights.parts.get(part, {}).items():
        values = {
            name: torch.empty_like(weights.meta[name], device=weights.device)
            for name in _made(target, stored)
        }
        with torch.no_grad():
            _fill(weights, part, target, stored, values)
        for name, value in values.items():
            weights.samples[name] = sampled_bytes(value)
            _set(weights.model, name, value)


def drop_part(weights: LayerWeights, part: int | str) -> None:
    """Give the memory of a part back: its parameters are on the meta device again."""
    for target, stored in weights.parts.get(part, {}).items():
        for name in _made(target, stored):
            _set(weights.model, name, weights.meta[name])


def part_bytes(weights: LayerWeights, part: int | str) -> int:
    """Bytes of a part in memory."""
    names = (name for target, stored in weights.parts.get(part, {}).items() for name in _made(target, stored))
    return sum(weights.meta[name].nbytes for name in names)


def stored_bytes(weights: LayerWeights, part: int | str) -> int:
    """Bytes of a part on disk."""
    names = (name for stored in weights.parts.get(part, {}).values() for name in _checkpoint_names(stored))
    return sum(weights.places[name].end - weights.places[name].start for name in names)


def _empty_model(base: BaseConfig, folder: Path) -> tuple[Any, Any]:
    """The model on the meta device in the dtypes of `from_pretrained`, and transformers' quantizer if any."""
    dtype = getattr(torch, base.dtype)
    try:
        config = AutoConfig.from_pretrained(folder)
        quantizer, config, _ = get_hf_quantizer(config, None, None, True, {})
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    except Exception as error:  # OSError, ValueError, ImportError: each library has its own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read the config of the base {base.model!r}: {first_line}") from error
    if quantizer is not None:
        if not getattr(quantizer.quantization_config, "dequantize", False):
            raise UserError(
                f"{base.model} is quantized ({quantizer.quantization_config.quant_method}) and stays so when "
                "transformers loads it: set base.model to its bf16 or FP8 checkpoint"
            )
        quantizer.preprocess_model(model, dtype=dtype, device_map=None, checkpoint_files=[])
        quantizer.remove_quantization_config(model)
    if plan := model._get_dtype_plan(dtype):
        kept, groups, _ = build_glob_alternation(list(plan))
        for name, value in model.state_dict().items():
            if hit := kept.search(name):
                _set(model, name, value.to(plan[groups[str(hit.lastgroup)]]))
    _compute_buffers(model)
    return model, quantizer


def _compute_buffers(model: Any) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) get their values as in `from_pretrained`."""
    for name, buffer in model.named_non_persistent_buffers():
        _set(model, name, torch.empty_like(buffer, device="cpu"))
    for module in model.modules():
        module._is_hf_initialized = False
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()  # does nothing to what is on the meta device


def _sources(
    model: Any, quantizer: Any, places: Mapping[str, Place], meta: Mapping[str, torch.Tensor]
) -> dict[str, Stored]:
    """Target -> what it is made of; the first half of transformers' convert_and_load_state_dict_in_model."""
    table = get_model_conversion_mapping(model, None, quantizer)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = model.base_model_prefix, dict(meta)
    sources: dict[str, Stored] = {}
    for name in sorted(places, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in meta and name in meta:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target in meta:  # else a tensor the model has no use for: layers of multi-token prediction
            converter = None if pattern is None else of_pattern[pattern]
            stored = sources.setdefault(target, Stored(converter, {}))
            stored.names.setdefault(pattern or name, []).append(name)
    return sources


def _part(model: Any, prefix: str, target: str) -> int | str:
    if target.startswith(prefix):
        return int(target.removeprefix(prefix).partition(".")[0])
    base_model = model.base_model
    start = "" if base_model is model else f"{model.base_model_prefix}."
    if not target.startswith(start):
        return "head"
    embedding = model.get_input_embeddings()
    owner = model.get_submodule(target.rpartition(".")[0])
    return "embedding" if owner is embedding else "outside"


def _made(target: str, stored: Stored) -> list[str]:
    """Names of the parameters that `stored` becomes."""
    if stored.converter is None:
        return [target]
    first, *others = stored.converter.target_patterns
    return [target, *(target.replace(first, other) for other in others)]


def _fill(
    weights: LayerWeights, part: int | str, target: str, stored: Stored, values: Mapping[str, torch.Tensor]
) -> None:
    """Write what is stored into `values`."""
    if stored.converter is None:
        ((name,),) = stored.names.values()
        _copy(weights, part, name, target, values[target])
        return
    value = values[target]
    of_dequantizer = any(
        getattr(operation, "hf_quantizer", None) for operation in stored.converter.operations
    )
    dtype = None if of_dequantizer else value.dtype
    n_experts = _n_merged(stored, value)
    # One expert at a time: the whole stack at once would be in memory twice.
    for expert in range(n_experts) if n_experts else [None]:
        converter = deepcopy(stored.converter)
        for pattern, names in stored.names.items():
            for name in names if expert is None else [names[expert]]:
                converter.add_tensor(target, name, pattern, _read(weights, part, name, dtype))  # type: ignore[arg-type]
        made = converter.convert(
            target, model=weights.model, config=weights.model.config, hf_quantizer=weights.quantizer
        )
        for name, found in made.items():
            found = found[0] if isinstance(found, list) else found
            place = values[name] if expert is None else values[name][expert : expert + 1]
            _require_shape(weights, name, found.shape, place.shape)
            place.copy_(found)


def _n_merged(stored: Stored, value: torch.Tensor) -> int | None:
    """The number of experts if the parameter is a stack with one expert of each source in each slice."""
    assert stored.converter is not None
    counts = {len(names) for names in stored.names.values()}
    merges = [op for op in stored.converter.operations if isinstance(op, MergeModulelist) and op.dim == 0]
    is_stack = merges and len(stored.converter.target_patterns) == 1 and value.ndim > 0
    return len(value) if is_stack and counts == {len(value)} else None


def _copy(weights: LayerWeights, part: int | str, name: str, target: str, value: torch.Tensor) -> None:
    """Read a tensor that is stored as the model has it, some rows at a time."""
    place = weights.places[name]
    _require_shape(weights, target, place.shape, value.shape)
    if value.ndim == 0 or not value.numel():
        value.copy_(_read(weights, part, name, None))
        return
    row_bytes = (place.end - place.start) // len(value)
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(value), step):
        rows = value[start : start + step]
        rows.copy_(_read(weights, part, name, None, (start, len(rows))))


def _read(
    weights: LayerWeights,
    part: int | str,
    name: str,
    dtype: torch.dtype | None,
    rows: tuple[int, int] | None = None,
) -> torch.Tensor:
    """A tensor of the checkpoint, or `rows` (first, number) of it, by a plain read of its file."""
    place = weights.places[name]
    if place.dtype not in DTYPES:
        raise UserError(f"{name} is {place.dtype}, which torch {torch.__version__} has no type for")
    first, n_rows = rows or (0, place.shape[0] if place.shape else 1)
    shape = [n_rows, *place.shape[1:]] if place.shape else []
    found = torch.empty(shape, dtype=DTYPES[place.dtype])
    with (weights.folder / place.file).open("rb") as file:
        file.seek(place.start + first * (found.nbytes // n_rows if n_rows else 0))
        n_read = file.readinto(found.view(-1).view(torch.uint8).numpy().data) if found.numel() else 0
    if n_read != found.nbytes:
        raise UserError(f"{weights.folder / place.file} is truncated at {name}: copy it again")
    weights.n_read_bytes[part] += n_read
    return found.to(device=weights.device, dtype=dtype)


def _require_shape(weights: LayerWeights, name: str, found: Iterable[int], expected: Iterable[int]) -> None:
    if list(found) != list(expected):
        raise UserError(
            f"{name} has shape {list(found)} in {weights.folder}, and {list(expected)} in the model its "
            "config.json describes: the two do not belong together"
        )


def _checkpoint_names(stored: Stored) -> list[str]:
    return [name for names in stored.names.values() for name in names]


def _set(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put `value` where the parameter or buffer of that name is."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    is_parameter = leaf in module._parameters
    setattr(module, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)
