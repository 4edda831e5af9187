"""A folder with an adapter as PEFT, vLLM and SGLang keep it: written with a stamp, read with suspicion.

Writes and reads adapter_model.safetensors, adapter_config.json (PEFT's own) and export.json, our stamp:
format, layout version, PEFT's version, the base's fingerprint, sha256 of every tensor file.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact, write_json

TENSORS_FILE, CONFIG_FILE, STAMP_FILE = "adapter_model.safetensors", "adapter_config.json", "export.json"
LAYOUT_VERSION = 1  # of the stamp and of what it describes
LAST_SWAPPED_PEFT = (0, 19, 0)  # up to here PEFT read the axes of a stack the wrong way round

# Settings that change the numbers of a LoRA, and that we do not compute; each must be off.
REFUSED_SETTINGS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "monteclora_config",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
)
# PEFT's own tuner reads these; `finetune.adapters.peft_model` refuses them.
REFUSED_ON_EXPERTS = ("rank_pattern", "alpha_pattern", "target_parameters", "exclude_modules")
# Starts that take the update out of the base's weights: it fits no untouched base.
REFUSED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def write_peft_folder(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    rank: int,
    scaling: float,
    base_model: str,
    target_modules: list[str],
    target_parameters: list[str] | None = None,
) -> None:
    """Write tensors and adapter_config.json of an adapter with one rank and one scaling.

    `tensors` come in the order of `shapes`, and each is written before the next one is asked for.
    """
    _write_tensors(folder / TENSORS_FILE, shapes, tensors)
    alpha: Any = scaling * rank  # PEFT annotates an int and divides it
    PeftLoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_modules,
        target_parameters=target_parameters,
        base_model_name_or_path=base_model,
        task_type="CAUSAL_LM",
        inference_mode=True,
    ).save_pretrained(str(folder))
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # PEFT writes sets, in another order each time: the same inputs must give the same bytes.
    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in settings.items()}
    write_json(folder / CONFIG_FILE, ordered)


def _write_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]], tensors: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write a safetensors file of float32 tensors one by one: `save_file` wants all of them in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, value), expected in zip(tensors, shapes, strict=True):
            assert name == expected and list(value.shape) == list(shapes[name]), name
            assert value.dtype == torch.float32, name
            file.write(value.detach().cpu().contiguous().numpy().data)


def write_stamp(
    folder: Path, kind: str, fingerprint: str, adapter_sha256: str, check: Mapping[str, Any]
) -> None:
    """Write export.json: what this folder is, made from which adapter and base, and how it was checked."""
    tensors = {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}
    body = {
        "format": kind,
        "layout_version": LAYOUT_VERSION,
        "model_fingerprint": fingerprint,
        "tensors": tensors,
        "check": dict(check),
    }
    write_artefact(folder / STAMP_FILE, "adapter_export", {"adapter": adapter_sha256}, body)


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp of a folder, its tensor files compared with it; None when another program wrote the folder.

    Raises:
        UserError: a tensor file is missing, damaged, or none of those the stamp lists.
    """
    path = folder / STAMP_FILE
    if not path.exists():
        return None
    stamp = read_artefact(path, "adapter_export", ("layout_version", "model_fingerprint", "tensors"))
    if stamp["layout_version"] != LAYOUT_VERSION:
        raise UserError(
            f"{path} has layout version {stamp['layout_version']}, this version reads {LAYOUT_VERSION}: "
            "export the adapter again"
        )
    if not isinstance(stamp["tensors"], dict) or not isinstance(stamp["model_fingerprint"], str):
        raise UserError(f"{path}: its tensors or model_fingerprint are damaged: export the adapter again")
    if outside := [name for name in stamp["tensors"] if Path(name).name != name]:
        raise UserError(f"{path} lists {outside[0]!r}, outside of its folder: export the adapter again")
    found = {file.name for file in folder.glob("*.safetensors")}
    if foreign := sorted(found - stamp["tensors"].keys()):
        raise UserError(
            f"{folder / foreign[0]} is not of this export ({STAMP_FILE} does not list it): remove it"
        )
    for name, sha256 in stamp["tensors"].items():
        if sha256_file(folder / name) != sha256:
            raise UserError(
                f"{folder / name} is damaged or truncated (its sha256 differs): copy it again or export again"
            )
    return stamp


def read_peft_folder(folder: Path, peft_type: str = "LORA") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """adapter_config.json and the tensors (float32) of an adapter of this PEFT type.

    Raises:
        UserError: a file is missing, damaged, of another type, or has a setting that we do not compute.
    """
    config, path = read_peft_config(folder, peft_type), folder / TENSORS_FILE
    try:
        tensors = load_file(path)
    except OSError as error:
        raise _cannot_read(path, error) from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}): copy it again") from error
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds values that are not finite: train it again")
    return config, {name: value.float() for name, value in tensors.items()}


def read_peft_config(folder: Path, peft_type: str = "LORA") -> dict[str, Any]:
    """adapter_config.json of an adapter of this PEFT type.

    Raises:
        UserError: it is missing, damaged, of another type, or has a setting that we do not compute.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _cannot_read(path, error) from error
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON ({error}): copy it again") from error
    if not isinstance(config, dict) or config.get("peft_type") != peft_type:
        found = config.get("peft_type", config.get("kind")) if isinstance(config, dict) else None
        raise UserError(f"{path} is of type {found!r}, but a PEFT config of type {peft_type!r} is needed")
    refused = REFUSED_SETTINGS if peft_type == "LORA" else REFUSED_SETTINGS + REFUSED_ON_EXPERTS
    wrong = [name for name in refused if config.get(name)]
    wrong += ["bias"] if config.get("bias", "none") != "none" else []
    start = str(config.get("init_lora_weights")).lower()
    wrong += ["init_lora_weights"] if start.startswith(REFUSED_STARTS) else []
    if wrong:
        listed = ", ".join(f"{name}={config[name]!r}" for name in wrong)
        raise UserError(f"{path} sets {listed}, which is not computed here: merge it with PEFT instead")
    _check_numbers(path, config)
    return config


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {error.filename or path}: {error.strerror or error}; an adapter is "
        f"a folder with {CONFIG_FILE} and {TENSORS_FILE}"
    )


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse an alpha that no scaling can be computed from, and targets that are no list of names."""
    patterns, targets = config.get("alpha_pattern") or {}, config.get("target_parameters") or []
    if not isinstance(patterns, dict) or not all(_is_pattern(pattern) for pattern in patterns):
        raise UserError(f"{path}: alpha_pattern = {patterns!r}: must map patterns of names to numbers")
    for key, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if type(alpha) not in (int, float) or not 0 < alpha < float("inf"):
            raise UserError(f"{path}: {key} = {alpha!r}: must be a number above 0")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{path}: target_parameters = {targets!r}: must be a list of names")


def _is_pattern(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def scaling_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The scaling of a module or parameter `name` whose tensors have `rank`, by PEFT's alpha_pattern."""
    if rank < 1:
        raise UserError(f"{name}: its A has no row: a LoRA has a rank of at least 1")
    alpha = config["lora_alpha"]
    for pattern, of_pattern in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = of_pattern
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def is_of_swapped_peft(config: Mapping[str, Any]) -> bool | None:
    """Whether the PEFT that wrote the config swapped the axes of stacks; None when it left no version."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", str(config.get("peft_version")))
    # A development version ("0.19.1.dev0@…") has either layout.
    if found is None or "dev" in config["peft_version"]:
        return None
    return tuple(map(int, found.groups())) <= LAST_SWAPPED_PEFT
