"""The adapter of a whole model: attach it by a plan, switch it off, check that it alone learns, save, load.

Writes and reads a folder: adapter.safetensors, adapter_config.json, plan.json. The base is never written.
"""

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from data_recipes.artefact import (
    UserError,
    read_artefact,
    sha256_file,
    sha256_json,
    whole_folder,
    write_artefact,
)
from finetune.config import LoraConfig
from finetune.lora import ExpertLora, former_implementation, implementation_over
from finetune.model import model_fingerprint
from finetune.moe import MoeLayer, moe_layers, router_output
from finetune.processes import say

TENSORS_FILE = "adapter.safetensors"
ADAPTER_NAME = re.compile(r"\.expert_lora\.|\.lora_[AB]\.")
ARTEFACT_HEAD = {"kind", "schema", "inputs", "versions"}


def attach(model: Any, plan: Mapping[str, Any], config: LoraConfig, seed: int) -> int:
    """Freeze `model`, give the experts of `plan["experts"]` a LoRA; returns how many parameters train.

    `plan["experts"]` maps a layer index (as text) to expert ids; a layer not named or without ids gets none.
    With `config.attention` the attention projections of all layers get one too.

    Raises:
        UserError: nothing is chosen, a layer or expert does not exist, or an adapter is attached already.
    """
    if adapter_parameters(model):
        raise UserError("the model already has an adapter: call detach(model) first")
    layers = moe_layers(model)
    chosen = _chosen_experts(layers, plan)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    if config.attention:
        # Before the experts': PEFT freezes every parameter that is not its own.
        _attach_attention(model, config, generator)
    for layer in layers:
        if chosen.get(layer.index):
            adapter = ExpertLora(layer.experts, chosen[layer.index], config.rank, config.alpha, generator)
            layer.experts.add_module("expert_lora", adapter)
    _change_implementation(model, implementation_over)
    n_trainable = sum(parameter.numel() for parameter in adapter_parameters(model).values())
    n_experts = sum(len(experts) for experts in chosen.values())
    say(
        f"adapter: {n_trainable:,} trainable parameters, rank {config.rank}, "
        f"on {n_experts} experts of {len(chosen)} layers" + (" and on attention" if config.attention else "")
    )
    return n_trainable


def detach(model: Any) -> None:
    """Take every adapter off: the model computes as before `attach`. Its parameters stay frozen."""
    for layer in moe_layers(model):
        if hasattr(layer.experts, "expert_lora"):
            delattr(layer.experts, "expert_lora")
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config  # PEFT's note of what it injected
    _change_implementation(model, former_implementation)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in the model's order; empty when none is attached."""
    return {name: value for name, value in model.named_parameters() if ADAPTER_NAME.search(name)}


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the adapter's values on the CPU, by name."""
    return {name: value.detach().cpu().clone() for name, value in adapter_parameters(model).items()}


@contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes the base's numbers bit for bit, on experts and attention alike.

    Raises:
        UserError: no adapter is attached, so that base and tuned would be the same model.
    """
    experts = [module for module in model.modules() if isinstance(module, ExpertLora) and module.enabled]
    attention = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters
    ]
    if not adapter_parameters(model):
        raise UserError("the model has no adapter to switch off: attach or load one first")
    try:
        for module in experts:
            module.enabled = False
        for module in attention:
            module.enable_adapters(False)
        yield
    finally:
        for module in experts:
            module.enabled = True
        for module in attention:
            module.enable_adapters(True)


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

    `hit` maps a layer index to the experts that got a token whose prediction is trained. B starts at
    zero, so it is B that must have a gradient; A has none before B has moved.

    Raises:
        UserError: a hit chosen expert has no gradient, or a parameter outside the adapter has one.
    """
    dead, own = [], adapter_parameters(model)
    for layer in moe_layers(model):
        adapter = getattr(layer.experts, "expert_lora", None)
        if isinstance(adapter, ExpertLora):
            dead += [
                f"{layer.name}: expert {expert}"
                for number, expert in enumerate(adapter.chosen)
                if expert in hit.get(layer.index, ())
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
    """Write the adapter as a folder that is whole or absent; returns the folder.

    Raises:
        UserError: no adapter is attached, no space is left, or the folder holds somebody's own files.
    """
    with whole_folder(folder) as partial:
        write_adapter_files(model, plan, config, partial)
    return Path(folder)


def write_adapter_files(model: nn.Module, plan: Mapping[str, Any], config: LoraConfig, folder: Path) -> None:
    """Write the three files of an adapter into an existing `folder`.

    Raises:
        UserError: no adapter is attached.
    """
    state = adapter_state(model)
    if not state:
        raise UserError("the model has no adapter to save: attach one first")
    save_file(state, folder / TENSORS_FILE)
    body = {
        "rank": config.rank,
        "alpha": config.alpha,
        "attention": config.attention,
        "model_fingerprint": plan["model_fingerprint"],
        "n_trainable": sum(value.numel() for value in state.values()),
        "sha256": sha256_file(folder / TENSORS_FILE),
    }
    inputs = {"experts": sha256_json(plan["experts"])}
    write_artefact(folder / "adapter_config.json", "expert_adapter", inputs, body)
    plan_body = {key: value for key, value in plan.items() if key not in ARTEFACT_HEAD}
    write_artefact(folder / "plan.json", "expert_plan", plan.get("inputs", {}), plan_body)


def load_adapter(model: Any, folder: str | Path) -> dict[str, Any]:
    """Attach the adapter saved in `folder`, bit for bit; returns its adapter_config.json.

    Raises:
        UserError: a file is missing, damaged or truncated, or belongs to another model or plan.
    """
    folder = Path(folder)
    saved = read_artefact(folder / "adapter_config.json", "expert_adapter")
    plan = read_artefact(folder / "plan.json", "expert_plan")
    tensors_path = folder / TENSORS_FILE
    if sha256_file(tensors_path) != saved["sha256"]:
        raise UserError(
            f"{tensors_path} is damaged or truncated (its sha256 differs): copy it again or train again"
        )
    if sha256_json(plan["experts"]) != saved["inputs"]["experts"]:
        raise UserError(
            f"{folder / 'plan.json'} is not the plan this adapter was trained with: copy it again"
        )
    fingerprint = model_fingerprint(model)
    if fingerprint != saved["model_fingerprint"]:
        raise UserError(
            f"{folder} was trained on another model (fingerprint {saved['model_fingerprint'][:12]}, "
            f"this one has {fingerprint[:12]}): load the base it was trained on"
        )
    attach(
        model,
        plan,
        LoraConfig(rank=saved["rank"], alpha=saved["alpha"], attention=saved["attention"]),
        seed=0,
    )
    try:
        _load_state(model, load_file(tensors_path), tensors_path)
    except UserError:
        detach(model)
        raise
    return saved


def _load_state(model: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    own = adapter_parameters(model)
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise UserError(
            f"{path}: {len(differing)} tensor(s) do not fit this model; first {name}: "
            f"shape {found.get(name)} in the file, {expected.get(name)} expected"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def _chosen_experts(layers: list[MoeLayer], plan: Mapping[str, Any]) -> dict[int, list[int]]:
    """Layer index -> ascending expert ids, without layers that have none."""
    n_experts = {layer.index: layer.n_experts for layer in layers}
    chosen = {int(index): sorted(experts) for index, experts in plan["experts"].items() if experts}
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


def _attach_attention(model: nn.Module, config: LoraConfig, generator: torch.Generator) -> None:
    """LoRA by PEFT on every linear projection of attention."""
    # The indexer of sparse attention runs under no_grad: LoRA on it would never learn.
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and re.search(r"\.\w*att(n|ention)\.", name)
        and ".indexer." not in name
    ]
    if not names:
        raise UserError(
            "lora.attention is set, but the model has no attention projections: set lora.attention=false"
        )
    alpha: Any = config.alpha  # PEFT annotates an int and divides it
    peft_config = PeftLoraConfig(r=config.rank, lora_alpha=alpha, target_modules=names)
    inject_adapter_in_model(peft_config, model)
    for name, value in adapter_parameters(model).items():
        value.data = value.data.float()
        if ".lora_A." in name:
            # Again, from our own generator: PEFT draws from torch's global one.
            bound = value.shape[1] ** -0.5
            value.data.copy_(torch.empty(value.shape).uniform_(-bound, bound, generator=generator))


def _change_implementation(model: Any, rename: Any) -> None:
    current: dict[str, str | None] = model.get_experts_implementation()
    model.set_experts_implementation(
        {part: rename(name) for part, name in current.items() if name is not None}
    )


def _learns(parameter: nn.Parameter, number: int | None = None) -> bool:
    if parameter.grad is None:
        return False
    gradient = parameter.grad if number is None else parameter.grad[number]
    return bool((gradient != 0).any())
