"""LoRA by PEFT on ordinary linear layers, of attention and shared experts: on exactly those, never on more.

Changes the model in memory; reads and writes no file.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from data_recipes.artefact import UserError
from finetune.config import LoraConfig
from finetune.moe import shared_expert_prefixes

ATTENTION = re.compile(r"\.\w*att(n|ention)\.")


def linear_names(model: nn.Module, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that `config` asks for beside the experts, in the model's order.

    Raises:
        UserError: attention or shared experts are asked for, and the model has none.
    """
    inside = tuple(f"{name}." for name, _ in linear_layers(model))
    linears = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or name + "." in inside) and not name.startswith(inside)
    ]
    shared = shared_expert_prefixes(model)
    of_option = {
        # The indexer of sparse attention runs under no_grad: LoRA on it would never learn.
        "attention": [name for name in linears if ATTENTION.search(name) and ".indexer." not in name],
        "shared_experts": [name for name in linears if name.startswith(shared)],
    }
    wanted = {option: names for option, names in of_option.items() if getattr(config, option)}
    for option, names in wanted.items():
        if not names:
            raise UserError(
                f"lora.{option} is set, but the model has no linear layers there: set lora.{option}=false"
            )
    return [name for name in linears if any(name in names for names in wanted.values())]


def attach_linear(
    model: nn.Module, names: Sequence[str], config: LoraConfig, generator: torch.Generator, adapter_name: str
) -> None:
    """Give the linear layers called `names` a LoRA, and make it their active one. Freezes all the rest."""
    if not names:
        return
    # PEFT rewrites targets that end in gate_proj, up_proj or down_proj, full names too, to the routed experts
    # of all layers. It looks up the model's type for that: this module around the model has none.
    around = nn.Module()
    around.add_module("around", model)
    alpha: Any = config.alpha  # PEFT annotates an int and divides it
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=[f"around.{name}" for name in names],
    )
    inject_adapter_in_model(peft_config, around, adapter_name)
    having = [name for name, module in model.named_modules() if has_adapter(module, adapter_name)]
    assert having == list(names), f"PEFT gave a LoRA to {sorted(set(having) ^ set(names))}"
    for name in names:
        start_linear(model.get_submodule(name), adapter_name, generator)


def start_linear(layer: Any, adapter_name: str, generator: torch.Generator) -> None:
    """Start one of PEFT's LoRA layers in float32, from `generator`: PEFT draws from torch's global one."""
    A, B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    A.data, B.data = A.data.float(), torch.zeros_like(B.data, dtype=torch.float32)
    bound = A.shape[1] ** -0.5
    A.data.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
    # Else dropout would act in a model that evaluates: new modules are in training mode.
    layer.train(layer.get_base_layer().training)


def is_linear_as(model: nn.Module, adapter_name: str, config: LoraConfig) -> bool:
    """Whether PEFT's layers of that adapter are those that `config` asks for, made with its options."""
    layers = {name: layer for name, layer in linear_layers(model) if has_adapter(layer, adapter_name)}
    wanted = (config.rank, config.alpha, config.rslora, config.dropout)
    return list(layers) == linear_names(model, config) and all(
        wanted
        == (
            layer.r[adapter_name],
            layer.lora_alpha[adapter_name],
            layer.use_rslora[adapter_name],
            getattr(layer.lora_dropout[adapter_name], "p", 0.0),
        )
        for layer in layers.values()
    )


def has_adapter(module: nn.Module, adapter_name: str) -> bool:
    """Whether `module` is a linear layer with PEFT's LoRA of that name."""
    return isinstance(module, BaseTunerLayer) and adapter_name in getattr(module, "lora_A", ())


def linear_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every linear layer with a LoRA by PEFT, active or not."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "lora_A"):
            yield name, module


def refuse_peft_model(model: nn.Module) -> None:
    """Raise UserError for a PeftModel of ours: PEFT keeps its own account of adapters."""
    tuners = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(not hasattr(tuner, "lora_A") for tuner in tuners):
        raise UserError(
            "this is a PeftModel: use its own add_adapter, set_adapter, delete_adapter, merge_adapter, unload"
        )
