"""Take an adapter apart into its updates, from our folder or from one that PEFT, vLLM or SGLang can read.

Reads adapter folders against a model, which may be a skeleton without weights; writes nothing.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_parameters, attach, detach
from finetune.adapters.adapter_folder import read_adapter_folder
from finetune.exporting.checkpoint_names import conversion_table, stored_as
from finetune.exporting.layouts import (
    PREFIX,
    AdapterParts,
    ExpertPart,
    ExpertsModule,
    LinearPart,
    experts_modules,
    from_old_peft,
    from_peft,
    from_per_expert,
    pair_names,
)
from finetune.exporting.peft_folder import is_of_swapped_peft, scaling_of
from finetune.moe import moe_layers


def read_adapter(model: Any, folder: Path, announces: bool = False) -> tuple[dict[str, Any], AdapterParts]:
    """An adapter folder of `save_adapter` or of our PeftModel as (adapter_config.json, parts).

    `model` needs no weights and is left as it was. What it holds is printed when it `announces`.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others or the model.
    """
    saved, plan, config, tensors = read_adapter_folder(model, folder)
    attach(model, plan, config, seed=0, announces=announces)
    try:
        own = adapter_parameters(model)
        shapes = {name: value.shape for name, value in tensors.items()}
        if wrong := sorted(name for name in own.keys() | shapes if _shape(own.get(name)) != shapes.get(name)):
            raise UserError(
                f"{folder}: {len(wrong)} tensor(s) do not fit the base, first {wrong[0]}: set --base"
            )
        values = {id(parameter): tensors[name] for name, parameter in own.items()}
        return saved, AdapterParts(_expert_parts(model, values), _linear_parts(model, values))
    finally:
        detach(model)


def parts_of_tensors(
    model: Any, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], is_old: bool = False
) -> AdapterParts:
    """The updates in the tensors of a PEFT, vLLM or SGLang adapter; `config` is its adapter_config.json.

    `is_old` says that PEFT <= 0.19.0 wrote them.

    Raises:
        UserError: a tensor that the model has no place for, of another shape, or of the old layout unsaid.
    """
    left = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    for name, value in left.items():
        if name.endswith((".lora_A.weight", ".lora_B.weight")) and value.ndim != 2:
            raise UserError(f"{name} has shape {tuple(value.shape)}: a LoRA tensor has two axes")
    modules = experts_modules(model)
    _refuse_other_axes(modules, config, left, is_old)
    # Each of these takes what it reads out of `left`.
    experts = _stacked_parts(modules, config, left, is_old)
    per_expert = _per_expert_parts(model, modules, config, left)
    if twice := sorted(experts.keys() & per_expert.keys()):
        raise UserError(f"{'.'.join(twice[0])} is there as one stack and expert by expert: keep one of them")
    experts |= per_expert
    linears = _linears_of_tensors(model, config, left)
    parts = AdapterParts(experts, linears)
    _require_sizes(model, modules, parts)
    if left or not (experts or linears):
        first = next(iter(sorted(left)), None)
        raise UserError(
            f"{len(left)} tensor(s) have no place in this base, first {first!r}: it is an adapter of another "
            "model, or of a kind that is not read here; set --base to the model it was trained on"
        )
    return parts


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def _expert_parts(model: nn.Module, values: Mapping[int, torch.Tensor]) -> dict[tuple[str, str], ExpertPart]:
    """`values` maps id(parameter) to its saved value."""
    names = {id(module): name for name, module in model.named_modules()}
    parts = {}
    for layer in moe_layers(model):
        adapter: Any = getattr(layer.experts, "expert_lora", None)
        if adapter is None:
            continue
        up_name = "gate_up_proj" if layer.experts.has_gate else "up_proj"
        for parameter, low_rank in ((up_name, adapter.up), ("down_proj", adapter.down)):
            # Of the projection where it has one of its own, else of the layer.
            scaling = low_rank.scaling if hasattr(low_rank, "scaling") else adapter.scaling
            parts[names[id(layer.experts)], parameter] = ExpertPart(
                list(adapter.chosen), values[id(low_rank.A)], values[id(low_rank.B)], float(scaling)
            )
    return parts


def _linear_parts(model: nn.Module, values: Mapping[int, torch.Tensor]) -> dict[str, LinearPart]:
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            (active,) = layer.active_adapters
            A, B = layer.lora_A[active].weight, layer.lora_B[active].weight
            parts[name] = LinearPart(values[id(A)], values[id(B)], float(layer.scaling[active]))
    return parts


def _peft_keys(
    name: str, module: ExpertsModule, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Parameter -> the name under which PEFT keeps its LoRA.

    PEFT wraps one parameter after the other, in the order they are declared in: the last one is outside and
    bears the module's own name, the one before is in its base_layer.
    """
    targets = config.get("target_parameters") or []
    targeted = [
        parameter
        for parameter in module.sizes
        if any(f".{name}.{parameter}".endswith(f".{target}") for target in targets)
    ]
    keys = {parameter: name + ".base_layer" * depth for depth, parameter in enumerate(reversed(targeted))}
    sides = [side for key in keys.values() for side in pair_names(key)]
    found = [side for side in sides if side in tensors]
    if found and len(found) < len(sides):
        missing = next(side for side in sides if side not in tensors)
        raise UserError(f"{missing} is missing: adapter_config.json names its parameter in target_parameters")
    return keys if found else {}


def _refuse_other_axes(
    modules: Mapping[str, ExpertsModule],
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    is_old: bool,
) -> None:
    """Refuse stacks whose axes are not as `is_old` says, or cannot be told."""
    swaps = _swapped_axes(modules, config, tensors)
    if swaps and not is_old:
        raise UserError(
            "the expert LoRA is of the old PEFT layout (peft <= 0.19.0 read inputs and outputs of a stack "
            "the wrong way round): import it with --old-peft-layout, which turns it exactly"
        )
    if is_old and swaps is False:
        raise UserError("the expert LoRA is not of the old PEFT layout: import it without --old-peft-layout")
    if swaps is None and not is_old and is_of_swapped_peft(config) is not False:
        raise UserError(
            "inputs and outputs of the experts are equally many, and adapter_config.json does not say that a "
            "PEFT after 0.19.0 wrote it: pass --old-peft-layout, or set its peft_version to the one that did"
        )


def _swapped_axes(
    modules: Mapping[str, ExpertsModule], config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> bool | None:
    """Whether shapes show PEFT's old layout; None when they cannot tell, False too when no stack is there."""
    seen: set[bool | None] = set()
    for name, module in modules.items():
        if module.is_transposed:
            continue  # these were never swapped
        for parameter, key in _peft_keys(name, module, config, tensors).items():
            A, B = (tensors[side] for side in pair_names(key))
            n_in, n_out = module.sizes[parameter]
            if n_in == n_out:
                seen.add(None)
            elif (A.shape[1], len(B)) in ((n_in, n_out), (n_out, n_in)):
                seen.add(A.shape[1] == n_out)
            # Any other size is another base's; its own error names it.
    told = seen - {None}
    return (None if seen else False) if not told else True in told


def _stacked_parts(
    modules: Mapping[str, ExpertsModule],
    config: Mapping[str, Any],
    left: dict[str, torch.Tensor],
    is_old: bool,
) -> dict[tuple[str, str], ExpertPart]:
    """PEFT's: one pair for all experts of a parameter."""
    parts = {}
    for name, module in modules.items():
        read = from_old_peft if is_old and not module.is_transposed else from_peft
        for parameter, key in _peft_keys(name, module, config, left).items():
            A, B = (left.pop(side) for side in pair_names(key))
            part = read(A, B, module.n_experts, 1.0)
            scaling = scaling_of(config, f"{name}.{parameter}", len(A) // module.n_experts)
            parts[name, parameter] = part._replace(scaling=scaling)
    return parts


def _per_expert_parts(
    model: Any,
    modules: Mapping[str, ExpertsModule],
    config: Mapping[str, Any],
    left: dict[str, torch.Tensor],
) -> dict[tuple[str, str], ExpertPart]:
    """Those of vLLM and SGLang: a pair for each expert and each projection of the checkpoint."""
    table, parts = conversion_table(model), {}
    keys = [(name, parameter) for name, module in modules.items() for parameter in module.sizes]
    for name, parameter in keys:
        stored = stored_as(table, f"{name}.{parameter}")
        if not stored.is_per_expert:
            continue
        names = [stored_name.removesuffix(".weight") for stored_name in stored.names]
        part = from_per_expert(left, names, modules[name].is_concatenated, partial(scaling_of, config))
        if part is None:
            continue
        parts[name, parameter] = part
        of_experts = (stored_name.replace("*", str(e)) for stored_name in names for e in part.chosen)
        for side in (side for of_expert in of_experts for side in pair_names(of_expert)):
            del left[side]
    return parts


def _linears_of_tensors(
    model: Any, config: Mapping[str, Any], left: dict[str, torch.Tensor]
) -> dict[str, LinearPart]:
    """Takes the LoRA of ordinary linear layers out of `left`, under the model's or the checkpoint's name."""
    if not left:
        return {}
    table, parts = conversion_table(model), {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        stored = stored_as(table, f"{name}.weight").names[0].removesuffix(".weight")
        for key in (name, stored):
            if left.keys() >= set(pair_names(key)):
                A_RI, B_OR = (left.pop(side) for side in pair_names(key))
                parts[name] = LinearPart(A_RI, B_OR, scaling_of(config, key, len(A_RI)))
                break
    return parts


def _require_sizes(model: nn.Module, modules: Mapping[str, ExpertsModule], parts: AdapterParts) -> None:
    for (name, parameter), part in parts.experts.items():
        module = modules[name]
        if part.chosen[-1] >= module.n_experts:
            raise UserError(
                f"{name} has experts 0..{module.n_experts - 1}, the adapter has {part.chosen[-1]}"
            )
        _require_size(f"{name}.{parameter}", part.A_NRI, part.B_NOR, module.sizes[parameter])
    for name, linear in parts.linears.items():
        weight: Any = model.get_submodule(name).weight
        _require_size(name, linear.A_RI, linear.B_OR, (weight.shape[1], weight.shape[0]))


def _require_size(name: str, A: torch.Tensor, B: torch.Tensor, sizes: tuple[int, int]) -> None:
    found = (A.shape[-1], B.shape[-2])
    if found != sizes or A.shape[-2] != B.shape[-1]:
        raise UserError(
            f"{name}: the adapter has (inputs, outputs) {found}, this base {sizes}: "
            "set --base to the model it was trained on"
        )
