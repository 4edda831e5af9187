"""The adapter of a whole model: attach it by a plan, switch it off, check that it alone learns, save, load.

Writes and reads a folder: adapter.safetensors, adapter_config.json, plan.json. The base is never written.
"""

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_recipes.artefact import UserError, whole_folder
from finetune.adapters.active_adapter import (
    active_adapter,
    adapter_names,
    adapter_parameters,
    adapters_of,
    file_name,
    place,
    require_name,
    set_active,
    switch,
)
from finetune.adapters.active_adapter import adapter_disabled as adapter_disabled
from finetune.adapters.active_adapter import adapter_state as adapter_state
from finetune.adapters.adapter_folder import read_adapter_folder, require_base, write_adapter_files
from finetune.adapters.linear_lora import (
    attach_linear,
    linear_layers,
    linear_names,
    refuse_peft_model,
)
from finetune.adapters.lora import ExpertLora, former_implementation, implementation_over
from finetune.adapters.merge import is_merged, refuse_merged, unmerge
from finetune.config import LoraConfig
from finetune.model import model_fingerprint
from finetune.moe import MoeLayer, moe_layers, own_experts, router_output
from finetune.processes import say


def attach(
    model: Any,
    plan: Mapping[str, Any],
    config: LoraConfig,
    seed: int,
    name: str = "default",
    announces: bool = True,
) -> int:
    """Freeze `model`, give the experts of `plan["experts"]` a LoRA; returns how many parameters train.

    `plan["experts"]` maps a layer index (as text) to expert ids; a layer not named or without ids gets none.
    With `config.attention` or `config.shared_experts` those of all layers get one too; a plan of the method
    "none" trains these alone. Adapters attached before, under other names, stay, and are switched off: the
    new one is active. What trains is printed when it `announces`.

    Raises:
        UserError: nothing is chosen, a layer or expert does not exist, or the name cannot be used.
    """
    refuse_peft_model(model)
    refuse_merged(model)
    _check_name(model, name)
    layers = moe_layers(model)
    chosen = chosen_experts(layers, plan, config)
    linears = linear_names(model, config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    attach_linear(model, linears, config, generator, name)
    for layer in layers:
        if chosen.get(layer.index):
            adapter = ExpertLora(layer.experts, chosen[layer.index], config, name)
            adapter.start(generator)
            place(layer.experts, [*adapters_of(layer.experts), adapter], name)
    change_implementation(model, implementation_over)
    set_active(model, name)
    n_trainable = sum(parameter.numel() for parameter in adapter_parameters(model).values())
    assert n_trainable == sum(value.numel() for value in model.parameters() if value.requires_grad)
    if announces:
        say(count_line(name, n_trainable, config, chosen, linears))
    return n_trainable


def count_line(
    name: str, n_trainable: int, config: LoraConfig, chosen: Mapping[int, list[int]], linears: list[str]
) -> str:
    """What trains, in one line."""
    n_experts = sum(len(experts) for experts in chosen.values())
    down = "" if config.down_rank is None or not chosen else f" (down_proj {config.down_rank})"
    places = [f"on {n_experts} experts of {len(chosen)} layers"] if chosen else []
    places += [f"on {len(linears)} linear layers"] if linears else []
    return (
        f"adapter {name}: {n_trainable:,} trainable parameters, rank {config.rank}{down}, "
        f"{' and '.join(places)}"
    )


def detach(model: Any, name: str | None = None) -> None:
    """Take the adapter called `name` off, or all: without any the model computes as before `attach`.

    Its parameters stay frozen. When the active one goes, no other takes its place before `set_active`.

    Raises:
        UserError: there is no adapter of that name.
    """
    refuse_peft_model(model)
    if is_merged(model):
        unmerge(model)
    names = adapter_names(model)
    if name is not None:
        require_name(model, name)
    leaving = names if name is None else [name]
    active = None if active_adapter(model) in leaving else active_adapter(model)
    switch(model, active)
    for layer in moe_layers(model):
        staying = [adapter for adapter in adapters_of(layer.experts) if adapter.name not in leaving]
        place(layer.experts, staying, active)
    for linear_name, linear in list(linear_layers(model)):
        for leaver in set(leaving) & set(linear.lora_A):
            linear.delete_adapter(leaver)
        if not linear.lora_A:
            parent, _, attribute = linear_name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, linear.get_base_layer())
    if set(names) == set(leaving):
        change_implementation(model, former_implementation)


@contextmanager
def record_routing(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Yield a dict that each forward inside fills: layer index -> expert ids [tokens, experts per token]."""
    indices: dict[int, torch.Tensor] = {}

    def recorder(layer: MoeLayer) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            indices[layer.index] = router_output(layer, output).indices_NK.detach()

        return hook

    handles = [layer.router.register_forward_hook(recorder(layer)) for layer in moe_layers(model)]
    try:
        yield indices
    finally:
        for handle in handles:
            handle.remove()


def check_first_backward(model: nn.Module, hit: Mapping[int, Set[int]]) -> None:
    """After the first backward: the adapter learns wherever it should, and nothing else does.

    `hit` maps a layer index to the experts that got a token whose prediction is trained, from any process
    that sends tokens to this one; those that this one has are looked at. B starts at zero, so it is B that
    must have a gradient; A has none before B has moved.

    Raises:
        UserError: a hit chosen expert has no gradient, or a parameter outside the adapter has one.
    """
    dead, own = [], adapter_parameters(model)
    for layer in moe_layers(model):
        adapter, own_ids = getattr(layer.experts, "expert_lora", None), own_experts(layer.experts)
        if isinstance(adapter, ExpertLora):
            dead += [
                f"{layer.name}: expert {expert}"
                for number, expert in enumerate(adapter.chosen)
                if expert in own_ids
                and expert in hit.get(layer.index, ())
                and not (_learns(adapter.up.B, number) and _learns(adapter.down.B, number))
            ]
    dead += [name for name, value in own.items() if ".lora_B." in name and not _learns(value)]
    if dead:
        raise UserError(
            f"{len(dead)} part(s) of the adapter got tokens but no gradient: {', '.join(dead[:5])}"
        )
    foreign = [name for name, value in model.named_parameters() if value.grad is not None and name not in own]
    if foreign:
        raise UserError(
            f"{len(foreign)} parameter(s) outside the adapter got a gradient: {', '.join(foreign[:5])}; "
            "freeze them after attach (requires_grad_(False))"
        )


def save_adapter(model: nn.Module, plan: Mapping[str, Any], config: LoraConfig, folder: str | Path) -> Path:
    """Write the active adapter as a folder that is whole or absent; returns the folder.

    Raises:
        UserError: no adapter is active, or it has other options than `config`; no space is left; `folder`
            holds anything but an adapter.
    """
    with whole_folder(folder, "expert_adapter") as partial:
        write_adapter_files(model, plan, config, partial)
    return Path(folder)


def load_adapter(model: Any, folder: str | Path, name: str = "default") -> dict[str, Any]:
    """Attach the adapter saved in `folder`, bit for bit, as `name`; returns its adapter_config.json.

    The folder is one of `save_adapter`, or one that our PeftModel saved.

    Raises:
        UserError: a file is missing, damaged, truncated or changed, or belongs to another model or plan.
    """
    folder = Path(folder)
    saved, plan, config, tensors = read_adapter_folder(model, folder)
    require_base(folder, saved, model_fingerprint(model))
    former = active_adapter(model)
    attach(model, plan, config, seed=0, name=name)
    try:
        _load_state(model, tensors, folder)
    except UserError:
        detach(model, name)
        if former is not None:
            set_active(model, former)
        raise
    return saved


def _load_state(model: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    own = {file_name(name): value for name, value in adapter_parameters(model).items()}
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise UserError(
            f"{folder}: {len(differing)} tensor(s) do not fit this model; first {name}: "
            f"shape {found.get(name)} in the file, {expected.get(name)} expected"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def chosen_experts(
    layers: list[MoeLayer], plan: Mapping[str, Any], config: LoraConfig
) -> dict[int, list[int]]:
    """Layer index -> ascending expert ids, without layers that have none.

    Raises:
        UserError: nothing would train, or a layer or expert does not exist.
    """
    n_experts = {layer.index: layer.n_experts for layer in layers}
    chosen = {int(index): sorted(experts) for index, experts in plan["experts"].items() if experts}
    if not chosen and plan.get("method") == "none":
        if config.attention or config.shared_experts:
            return {}
        raise UserError(
            "the plan chooses no expert on purpose (select.method=none), so nothing would train: set "
            "lora.attention=true or lora.shared_experts=true, or another select.method"
        )
    if not chosen:
        raise UserError("the plan chooses no expert, so nothing would train: raise select.share")
    for index, experts in chosen.items():
        if index not in n_experts:
            raise UserError(
                f"the plan names layer {index}, but the layers with experts are {sorted(n_experts)}"
            )
        wrong = [expert for expert in experts if not 0 <= expert < n_experts[index]]
        if wrong or len(set(experts)) < len(experts):
            raise UserError(
                f"the plan's experts of layer {index} must be different ids in 0..{n_experts[index] - 1}, "
                f"not {wrong or experts}: select again for this model"
            )
    return chosen


def change_implementation(model: Any, rename: Any) -> None:
    """Let the experts of `model` run through the implementation that `rename` makes of the former one."""
    current: dict[str, str | None] = model.get_experts_implementation()
    model.set_experts_implementation(
        {part: rename(former_implementation(name)) for part, name in current.items() if name is not None}
    )


def _check_name(model: nn.Module, name: str) -> None:
    # A name becomes a key of PEFT's ModuleDict, which takes no dot and none of its own attributes.
    if not re.fullmatch(r"\w[\w-]*", name) or hasattr(nn.ModuleDict, name):
        raise UserError(
            f"{name!r} cannot name an adapter: use letters, digits, '_' and '-', and another word"
        )
    if name in adapter_names(model):
        raise UserError(
            f"the model already has an adapter {name!r}: call detach(model) first, or use another name"
        )


def _learns(parameter: nn.Parameter, number: int | None = None) -> bool:
    if parameter.grad is None:
        return False
    gradient = parameter.grad if number is None else parameter.grad[number]
    return bool((gradient != 0).any())
