"""The folder of one adapter: ours is written and read here, that of our PeftModel is read.

Ours holds adapter.safetensors, plan.json and adapter_config.json, which has the hashes of all three: an
edited alpha would give other numbers and no error. A PeftModel's (peft_model.py) is PEFT's own, of the
type "EXPERT_LORA" and without any hash.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data_recipes.artefact import (
    ARTEFACT_HEAD,
    UserError,
    read_artefact,
    sha256_file,
    sha256_json,
    write_artefact,
)
from finetune.adapters.active_adapter import active_adapter, adapter_state, file_name
from finetune.adapters.linear_lora import is_linear_as
from finetune.adapters.lora import ExpertLora
from finetune.config import LoraConfig
from finetune.exporting.layouts import experts_modules
from finetune.exporting.peft_folder import CONFIG_FILE, read_peft_folder
from finetune.exporting.peft_folder import TENSORS_FILE as PEFT_TENSORS_FILE

TENSORS_FILE, PLAN_FILE = "adapter.safetensors", "plan.json"
PEFT_TYPE = "EXPERT_LORA"
OPTIONS = [option.name for option in fields(LoraConfig)]
# What PEFT's config calls our options; the others have one name in both.
PEFT_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"}


class SavedAdapter(NamedTuple):
    """What an adapter's folder holds: the values of our adapter_config.json, plan, options, tensors."""

    saved: dict[str, Any]
    plan: dict[str, Any]
    config: LoraConfig
    tensors: dict[str, torch.Tensor]


def write_adapter_files(model: nn.Module, plan: Mapping[str, Any], config: LoraConfig, folder: Path) -> None:
    """Write the three files of the active adapter into an existing `folder`.

    Raises:
        UserError: no adapter is active, or it has other options than `config`.
    """
    state = adapter_state(model)
    if not state:
        raise UserError("the model has no adapter to save: attach one first")
    name = active_adapter(model)
    assert name is not None, "a state has an adapter"
    adapters = [module for module in model.modules() if isinstance(module, ExpertLora)]
    used = {adapter.config for adapter in adapters if adapter.name == name}
    if used - {config} or not is_linear_as(model, name, config):
        options = ", ".join(map(str, used - {config})) or "other options"
        raise UserError(f"the adapter was attached with {options}, not with {config}")
    save_file(state, folder / TENSORS_FILE)
    plan_body = {key: value for key, value in plan.items() if key not in ARTEFACT_HEAD}
    write_artefact(folder / PLAN_FILE, "expert_plan", plan.get("inputs", {}), plan_body)
    inputs = {"plan": sha256_file(folder / PLAN_FILE)}
    body = {
        **asdict(config),
        "model_fingerprint": plan["model_fingerprint"],
        "n_trainable": sum(value.numel() for value in state.values()),
        "sha256": sha256_file(folder / TENSORS_FILE),
    }
    body["config_sha256"] = _config_sha256({"inputs": inputs, **body})
    write_artefact(folder / CONFIG_FILE, "expert_adapter", inputs, body)


def peft_type(folder: Path) -> str | None:
    """PEFT's type of the adapter in `folder`; None when its adapter_config.json has none or is not whole."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # who reads it in earnest says what is wrong
    return config.get("peft_type") if isinstance(config, dict) else None


def read_adapter_folder(model: nn.Module, folder: Path) -> SavedAdapter:
    """Read an adapter from our folder or from that of our PeftModel, each file held against the others.

    `model` names its experts modules and needs no weights.

    Raises:
        UserError: a file is missing, damaged, truncated or changed, or it is an adapter of another kind.
    """
    found = peft_type(folder)
    if found == PEFT_TYPE:
        return _read_peft_model(model, folder)
    if found is not None:
        raise UserError(
            f"{folder} is an adapter of PEFT's type {found!r}: take it in with `local-experts import` first"
        )
    return _read_ours(folder)


def require_base(folder: Path, saved: Mapping[str, Any], fingerprint: str) -> None:
    """Raise UserError when the adapter in `folder` was trained on a model of another fingerprint."""
    if fingerprint != saved["model_fingerprint"]:
        raise UserError(
            f"{folder} was trained on another model (fingerprint {saved['model_fingerprint'][:12]}, "
            f"this one has {fingerprint[:12]}): load the base it was trained on"
        )


def _read_ours(folder: Path) -> SavedAdapter:
    path, plan_path, tensors_path = (folder / name for name in (CONFIG_FILE, PLAN_FILE, TENSORS_FILE))
    saved = read_artefact(
        path, "expert_adapter", ("inputs", "model_fingerprint", "sha256", "config_sha256", *OPTIONS)
    )
    if _config_sha256(saved) != saved["config_sha256"]:
        raise UserError(
            f"{path} was changed after it was saved (its config_sha256 differs): copy it again, or train "
            "again with other options"
        )
    plan = read_artefact(plan_path, "expert_plan", ("experts",))
    if saved["inputs"] != {"plan": sha256_file(plan_path)}:
        raise UserError(f"{plan_path} is not the plan this adapter was trained with: copy it again")
    if sha256_file(tensors_path) != saved["sha256"]:
        raise UserError(
            f"{tensors_path} is damaged or truncated (its sha256 differs): copy it again or train again"
        )
    tensors = load_file(tensors_path)
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{tensors_path}: {name} holds values that are not finite: train it again")
    return SavedAdapter(saved, plan, LoraConfig(**{name: saved[name] for name in OPTIONS}), tensors)


def _config_sha256(saved: Mapping[str, Any]) -> str | None:
    """Hash of all that adapter_config.json says of the adapter; None of what cannot have been written."""
    said = {
        key: value
        for key, value in saved.items()
        if key not in ("kind", "schema", "versions", "config_sha256")
    }
    try:
        return sha256_json(said)
    except ValueError:  # NaN or infinity
        return None


def _read_peft_model(model: nn.Module, folder: Path) -> SavedAdapter:
    config, tensors = read_peft_folder(folder, PEFT_TYPE)
    path = folder / CONFIG_FILE
    fingerprint, options = config.get("model_fingerprint"), _options_of_peft(path, config)
    if not isinstance(fingerprint, str):
        raise UserError(
            f"{path}: model_fingerprint = {fingerprint!r}: must be that of the base; get_expert_peft_model "
            "writes it"
        )
    saved = {
        **asdict(options),
        "model_fingerprint": fingerprint,
        "n_trainable": sum(value.numel() for value in tensors.values()),
        "sha256": sha256_file(folder / PEFT_TENSORS_FILE),
    }
    plan = {"model_fingerprint": fingerprint, **_plan_of_peft(model, path, config.get("experts"))}
    return SavedAdapter(saved, plan, options, {_our_name(name): value for name, value in tensors.items()})


def _options_of_peft(path: Path, config: Mapping[str, Any]) -> LoraConfig:
    hints = get_type_hints(LoraConfig)
    names = {name: PEFT_NAMES.get(name, name) for name in OPTIONS}
    if lacking := [theirs for theirs in names.values() if theirs not in config]:
        raise UserError(f"{path} lacks {', '.join(lacking)}: copy it again")
    problems = [
        f"{theirs} = {config[theirs]!r}: must be {getattr(hints[ours], '__name__', hints[ours])}"
        for ours, theirs in names.items()
        if not _is_of_type(config[theirs], hints[ours])
    ]
    if not problems:
        options = LoraConfig(**{ours: config[theirs] for ours, theirs in names.items()})
        problems = options.problems()
        if not problems:
            return options
    raise UserError(f"{path}: {'; '.join(problems)}: copy it again")


def _is_of_type(value: Any, hint: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    allowed = get_args(hint) or (hint,)
    return type(value) in allowed or (type(value) is int and float in allowed)


def _plan_of_peft(model: nn.Module, path: Path, experts: Any) -> dict[str, Any]:
    """The plan that says the same as `experts`, which maps names of experts modules to expert ids."""
    modules = experts_modules(model)
    if not isinstance(experts, dict) or not all(
        isinstance(ids, list) and all(type(expert) is int for expert in ids) for ids in experts.values()
    ):
        raise UserError(f"{path}: experts = {experts!r}: must map names of modules to lists of expert ids")
    if unknown := sorted(experts.keys() - modules.keys()):
        raise UserError(
            f"{path} names experts {unknown[0]!r}, but the base has {', '.join(modules)}: set --base to the "
            "model it was trained on"
        )
    return {
        "method": "peft_model",
        "n_experts": next(iter(modules.values())).n_experts,
        "experts": {str(modules[name].index): experts[name] for name in modules if name in experts},
    }


def _our_name(name: str) -> str:
    """What our file calls a tensor of a PeftModel's file, which leaves the adapter's name out."""
    name = name.replace(".peft.expert_lora.", ".peft.expert_lora.default.")
    for side in ("lora_A", "lora_B"):
        name = name.replace(f".{side}.weight", f".{side}.default.weight")
    return file_name(name)
