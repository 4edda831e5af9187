"""Find the MoE layers of a transformers model: the only file that knows how models lay them out.

Reads a loaded model, writes nothing. Layers are found by what their modules carry, never by class name.
Legend: N tokens of a batch laid end to end (B x T), E experts, K experts per token.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from data_recipes.artefact import UserError

# What transformers sets on every fused experts module, whatever the family calls its class.
EXPERTS_ATTRIBUTES = ("num_experts", "is_transposed", "is_concatenated", "has_bias", "_apply_gate")
ROUTER_NAMES = ("gate", "router")
# Modules of a block that every token passes. A gate before them (`shared_expert_gate`) is none of them.
SHARED_EXPERTS_NAMES = ("shared_experts", "shared_expert", "shared_mlp")
# Experts that see no text: ERNIE-VL has a stack of text experts and one of vision experts in each layer.
NOT_TEXT = re.compile(r"vision|visual|audio")


@dataclass(frozen=True)
class MoeLayer:
    """One decoder layer with routed experts.

    `index` counts all decoder layers, dense ones too; `name` is the block's dotted name in the model.
    """

    index: int
    name: str
    block: nn.Module
    experts: nn.Module
    router: nn.Module
    n_experts: int
    top_k: int


class RouterOutput(NamedTuple):
    """What a router returned: scores before any bias, the weights of the chosen experts, and their ids.

    The id `n_experts` means no expert: the token skips the mixture, and its weight is 0.
    """

    logits_NE: torch.Tensor
    weights_NK: torch.Tensor
    indices_NK: torch.Tensor


def moe_layers(model: nn.Module) -> list[MoeLayer]:
    """All MoE layers of `model`, by ascending layer index.

    Raises:
        UserError: the model has no fused experts, or a layer whose index or router cannot be told.
    """
    modules = dict(model.named_modules())
    names = [name for name, module in modules.items() if _is_experts(module) and not NOT_TEXT.search(name)]
    if not names and (own := _own_experts(modules)):
        raise UserError(
            f"the model (type {_model_type(model)!r}) computes its experts by code of its own "
            f"({type(modules[own]).__name__}, at {own}), not through transformers' table of experts "
            "implementations, so nothing can be added to single experts: choose another base.model"
        )
    if not names:
        raise UserError(
            f"the model (type {_model_type(model)!r}) has no routed experts to choose from: "
            "set base.model to a mixture-of-experts model (such as glm_moe_dsa, qwen3_moe, mixtral, gpt_oss) "
            "that transformers 5 loads with its own classes"
        )
    layers = sorted((_moe_layer(name, modules) for name in names), key=lambda layer: layer.index)
    indices = [layer.index for layer in layers]
    if len(set(indices)) < len(indices):
        raise UserError(f"two stacks of experts share a layer index: {indices}")
    return layers


def router_output(layer: MoeLayer, output: Any) -> RouterOutput:
    """Check what `layer.router` returned and name its parts.

    The true choice is `indices_NK`: top-k over the logits picks the wrong experts where a bias or groups
    take part (GLM, DeepSeek). Where the router has a class more than there are experts (Zaya), a token in
    that class gets the id `n_experts`: Zaya itself returns expert 0 for it, with weight 0.

    Raises:
        UserError: not a (logits, weights, indices) triple of the expected shapes, or an id out of range.
    """
    # Inkling and Zaya return a fourth part, which is not about routed experts.
    parts = output[:3] if isinstance(output, tuple) else ()
    if not (len(parts) == 3 and all(torch.is_tensor(part) for part in parts)):
        kind = type(output).__name__
        raise UserError(f"{layer.name}: the router returned {kind}, not (logits, weights, indices)")
    found = RouterOutput(*parts)
    shape = (found.logits_NE.shape[0], layer.top_k)
    shapes = (tuple(found.weights_NK.shape), tuple(found.indices_NK.shape))
    if shapes != (shape, shape) or found.indices_NK.is_floating_point():
        raise UserError(
            f"{layer.name}: the router returned weights and indices of shapes {shapes} "
            f"({found.indices_NK.dtype}), expected {shape} and whole numbers"
        )
    last = layer.n_experts - 1
    if found.indices_NK.numel() and not 0 <= found.indices_NK.min() <= found.indices_NK.max() <= last:
        raise UserError(f"{layer.name}: an expert id outside 0..{last}")
    if found.logits_NE.shape[-1] == layer.n_experts + 1:
        skips_NK = found.weights_NK == 0
        found = found._replace(indices_NK=found.indices_NK.masked_fill(skips_NK, layer.n_experts))
    return found


def own_experts(experts: Any) -> range:
    """Ids of the experts whose weights this process holds: all, unless they are shared out over processes."""
    n_own = int(experts.num_experts)
    if not experts._is_expert_parallel:
        return range(n_own)
    number = experts.down_proj.device_mesh.get_local_rank("ep")
    return range(number * n_own, (number + 1) * n_own)


def n_experts_of_all(experts: Any) -> int:
    """Experts of a layer, on all processes together: `num_experts` counts those of this one."""
    # A stack that is shared out is a DTensor, whose length is the whole one's.
    return len(experts.down_proj) if experts._is_expert_parallel else int(experts.num_experts)


def parameters_per_rank(layer: MoeLayer) -> int:
    """LoRA parameters of one expert of `layer` at rank 1: inputs + outputs, summed over its fused stacks."""
    stacks = [weight for weight in layer.experts.parameters(recurse=False) if weight.ndim == 3]
    return sum(weight.shape[1] + weight.shape[2] for weight in stacks)


def expert_bytes(layer: MoeLayer) -> int:
    """Bytes of one expert of `layer` as it is loaded: its slice of the fused stacks, biases too."""
    stacks = [weight for weight in layer.experts.parameters(recurse=False) if len(weight) == layer.n_experts]
    return sum(weight[0].numel() * weight.element_size() for weight in stacks)


def shared_expert_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the full name of every module inside a shared expert of `model` starts with."""
    return tuple(f"{layer.name}.{name}." for layer in moe_layers(model) for name in SHARED_EXPERTS_NAMES)


def decoder_layers(model: nn.Module, way_out: str) -> tuple[nn.ModuleList, str]:
    """The list of layers that holds the experts, dense ones too, and its name with a dot behind it.

    Raises:
        UserError: experts lie in several such lists; `way_out` says what to do then.
    """
    prefixes = {re.split(r"(?<=layers)\.\d+", layer.name)[0] for layer in moe_layers(model)}
    if len(prefixes) > 1:
        raise UserError(f"the experts lie in several stacks of layers ({sorted(prefixes)}): {way_out}")
    name = prefixes.pop()
    layers = model.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    return layers, f"{name}."


def _is_experts(module: nn.Module) -> bool:
    return all(hasattr(module, attribute) for attribute in EXPERTS_ATTRIBUTES)


def _own_experts(modules: Mapping[str, nn.Module]) -> str | None:
    """Name of the first module that holds experts in a form of its own; None in a dense model."""
    for name, module in modules.items():
        if "expert" in f"{name} {type(module).__name__}".lower():
            return name
    return None


def _router_number(router: Any, *names: str) -> int | None:
    """The first of `names` that the router has, or else its config: Gemma's routers carry only that."""
    for holder in (router, getattr(router, "config", None)):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int):
                return value
    return None


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def _moe_layer(experts_name: str, modules: Mapping[str, nn.Module]) -> MoeLayer:
    """The layer around the experts module called `experts_name`."""
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", experts_name)
    if number is None:
        raise UserError(f"{experts_name}: no layer index in the name (expected 'layers.<number>')")
    name = experts_name.rpartition(".")[0]
    block, experts = modules[name], modules[experts_name]
    n_experts = n_experts_of_all(experts)
    for router_name in ROUTER_NAMES:
        router = getattr(block, router_name, None)
        top_k = _router_number(router, "top_k", "top_k_experts")
        # A plain linear gate (of a shared expert) carries neither of the two.
        if router is not None and top_k is not None and _router_number(router, "num_experts") == n_experts:
            return MoeLayer(int(number[1]), name, block, experts, router, n_experts, top_k)
    raise UserError(f"{name}: no router beside the experts (looked for {', '.join(ROUTER_NAMES)})")
