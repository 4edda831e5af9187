"""Add an adapter to the base's weights in place, and take it out again bit for bit.

One expert after the other: nothing of the size of a stack is built. What is kept for the way back is the
weights of the chosen experts, on the CPU. Changes the model in memory; reads and writes no file.
"""

from typing import Any

import torch
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.linear_lora import linear_layers, refuse_peft_model
from finetune.adapters.lora import ExpertLora

MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def merge(model: nn.Module) -> None:
    """Add the active adapter to the base's weights: the model computes the same without the low-rank path.

    Sums are made in float32 and rounded once to the weights' dtype.

    Raises:
        UserError: no adapter is active, one is merged already, or weights or adapter are not finite floats.
    """
    refuse_peft_model(model)
    refuse_merged(model)
    merging, linears = _active(model), active_linears(model)
    if not (merging or linears):
        raise UserError("the model has no active adapter to merge: attach or load one first")
    for experts, adapter in merging:
        check_mergeable(experts, adapter)
    for experts, adapter in merging:
        merge_experts(experts, adapter)
        adapter.enabled = False
    for layer in linears:
        keep_weight(layer)
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Put back the weights from before `merge`, bit for bit, and switch the low-rank path on again.

    Raises:
        UserError: no adapter is merged.
    """
    if not is_merged(model):
        raise UserError("no adapter is merged into the model: there is nothing to take out")
    for experts, adapter in _active(model):
        unmerge_experts(experts, adapter)
        adapter.enabled = True
    for layer in active_linears(model):
        layer.unmerge()
        put_back_weight(layer)


def is_merged(model: nn.Module) -> bool:
    """Whether an adapter is part of the base's weights now."""
    of_experts = any(isinstance(module, ExpertLora) and module.originals for module in model.modules())
    return of_experts or any(layer.merged for _, layer in linear_layers(model))


def refuse_merged(model: nn.Module) -> None:
    """Raise UserError when an adapter is merged: the base's own numbers cannot be had then."""
    if is_merged(model):
        raise UserError("an adapter is merged into the model's weights: call unmerge(model) first")


def check_mergeable(experts: Any, adapter: ExpertLora) -> None:
    """Raise UserError when adding `adapter` to its stacks would give no weights that can be used."""
    for low_rank in (adapter.up, adapter.down):
        dtype = getattr(experts, low_rank.stack).dtype
        if dtype not in MERGEABLE:
            raise UserError(
                f"{low_rank.stack} is kept in {dtype}, too coarse for a merged weight: "
                "to merge, load the base with base.dtype=float32 or bfloat16"
            )
        if not (torch.isfinite(low_rank.A).all() and torch.isfinite(low_rank.B).all()):
            raise UserError(f"adapter {adapter.name!r} holds values that are not finite: train it again")


@torch.no_grad()
def merge_experts(experts: Any, adapter: ExpertLora) -> None:
    """Add `adapter` to the weights of its chosen experts, which it keeps a copy of in `originals`."""
    for low_rank in (adapter.up, adapter.down):
        stack = getattr(experts, low_rank.stack)
        for number, expert in enumerate(adapter.chosen):
            update = low_rank.update(number)
            adapter.originals[low_rank.stack, expert] = stack[expert].to("cpu", copy=True)
            stack[expert].add_(update.T if experts.is_transposed else update)


@torch.no_grad()
def unmerge_experts(experts: Any, adapter: ExpertLora) -> None:
    """Copy back what `merge_experts` kept."""
    for (stack, expert), original in adapter.originals.items():
        getattr(experts, stack)[expert].copy_(original)
    adapter.originals.clear()


def active_linears(model: nn.Module) -> list[Any]:
    """PEFT's LoRA layers that the active adapter has a part in."""
    layers = [layer for _, layer in linear_layers(model)]
    return [layer for layer in layers if any(name in layer.lora_A for name in layer.active_adapters)]


def keep_weight(layer: Any) -> None:
    """Keep a copy of the weight under one of PEFT's LoRA layers: its own unmerge subtracts, and so rounds."""
    layer.original_weight = layer.get_base_layer().weight.detach().to("cpu", copy=True)


@torch.no_grad()
def put_back_weight(layer: Any) -> None:
    """Copy back what `keep_weight` kept."""
    layer.get_base_layer().weight.copy_(layer.original_weight)
    del layer.original_weight


def _active(model: nn.Module) -> list[tuple[nn.Module, ExpertLora]]:
    """Each experts module that has an active adapter, with it."""
    found = ((module, getattr(module, "expert_lora", None)) for module in model.modules())
    return [(module, adapter) for module, adapter in found if isinstance(adapter, ExpertLora)]
