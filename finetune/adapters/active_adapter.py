"""Which adapter of a model computes, trains and is saved: switch between several, switch off, read values.

A layer's experts hold the active adapter as `expert_lora`, so that the forward need not look for it, and the
others in `inactive_expert_lora`. Changes the model in memory; reads and writes no file.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.linear_lora import linear_layers, refuse_peft_model
from finetune.adapters.lora import ExpertLora
from finetune.adapters.merge import refuse_merged
from finetune.moe import moe_layers


def set_active(model: nn.Module, name: str) -> None:
    """Let the adapter called `name` compute, train and be saved; the others keep their values.

    Raises:
        UserError: there is no adapter of that name, or one is merged.
    """
    refuse_peft_model(model)
    refuse_merged(model)
    require_name(model, name)
    switch(model, name)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all attached adapters, sorted."""
    of_experts = {module.name for module in model.modules() if isinstance(module, ExpertLora)}
    return sorted(of_experts.union(*(linear.lora_A for _, linear in linear_layers(model))))


def active_adapter(model: nn.Module) -> str | None:
    """Name of the adapter that computes, None when there is none."""
    for module in model.modules():
        adapter = getattr(module, "expert_lora", None)
        if isinstance(adapter, ExpertLora):
            return adapter.name
    for _, linear in linear_layers(model):  # of an adapter that is on no expert
        for name in linear.active_adapters:
            if name in linear.lora_A:
                return name
    return None


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The active adapter's parameters by name, in the model's order; empty when there is none."""
    own: set[int] = set()
    for module in model.modules():
        adapter = getattr(module, "expert_lora", None)
        if isinstance(adapter, ExpertLora):
            own.update(id(value) for value in adapter.parameters())
        if isinstance(module, BaseTunerLayer):
            groups: list[Any] = [getattr(module, group) for group in module.adapter_layer_names]
            parts = [group[name] for group in groups for name in module.active_adapters if name in group]
            own.update(id(value) for part in parts for value in part.parameters())
    return {name: value for name, value in model.named_parameters() if id(value) in own}


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the active adapter's values on the CPU, by a name that does not hold the adapter's own."""
    own = adapter_parameters(model)
    return {file_name(name): value.detach().cpu().clone() for name, value in own.items()}


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes the base's numbers bit for bit, on experts and linear layers alike.

    Raises:
        UserError: no adapter is active, so that base and tuned would be the same model, or one is merged.
    """
    refuse_merged(model)
    if not adapter_parameters(model):
        raise UserError("the model has no adapter to switch off: attach or load one first")
    experts = [module for module in model.modules() if isinstance(module, ExpertLora) and module.enabled]
    by_peft = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters
    ]
    try:
        for module in experts:
            module.enabled = False
        for module in by_peft:
            module.enable_adapters(False)
        yield
    finally:
        for module in experts:
            module.enabled = True
        for module in by_peft:
            module.enable_adapters(True)


def switch(model: nn.Module, name: str | None) -> None:
    """Make `name` the active adapter, or none of them."""
    for layer in moe_layers(model):
        place(layer.experts, adapters_of(layer.experts), name)
    for _, linear in linear_layers(model):
        linear.set_adapter([] if name is None else name)


def adapters_of(experts: Any) -> list[ExpertLora]:
    """All adapters of one layer, active or not."""
    active = [experts.expert_lora] if hasattr(experts, "expert_lora") else []
    return active + list(getattr(experts, "inactive_expert_lora", ()))


def place(experts: Any, adapters: Sequence[ExpertLora], active: str | None) -> None:
    """Let `experts` hold these adapters and no others; the one called `active` computes and trains."""
    for attribute in ("expert_lora", "inactive_expert_lora"):
        if hasattr(experts, attribute):
            delattr(experts, attribute)
    for adapter in adapters:
        adapter.requires_grad_(adapter.name == active)
        if adapter.name == active:
            experts.add_module("expert_lora", adapter)
    waiting = [adapter for adapter in adapters if adapter.name != active]
    if waiting:
        experts.add_module("inactive_expert_lora", nn.ModuleList(waiting))


def file_name(name: str) -> str:
    """A parameter's name in a file: whatever the adapter is called, with or without a PeftModel around."""
    name = re.sub(r"\.peft\.expert_lora\.[^.]+\.", ".expert_lora.", name.removeprefix("base_model.model."))
    return re.sub(r"\.(lora_[AB])\.[^.]+\.", r".\1.default.", name)


def require_name(model: nn.Module, name: str) -> None:
    """Raise UserError when the model has no adapter of that name."""
    names = adapter_names(model)
    if name not in names:
        raise UserError(f"the model has no adapter {name!r}: it has {', '.join(names) or 'none'}")
