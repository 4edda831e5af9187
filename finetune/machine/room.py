"""Whether memory and disk have room for a run: what is free, and what a config needs at least.

Reads the base's config.json, plan.json where there is one, and what the system says is free. Writes a file of
one byte into the folder it looks at, and removes it.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import AutoConfig

from data_recipes.artefact import read_artefact
from finetune.adapters.linear_lora import linear_names
from finetune.config import RunConfig
from finetune.layouts.placement import base_without_weights
from finetune.machine.finding import Finding
from finetune.model import choose_device, resolve_model_path
from finetune.moe import moe_layers, parameters_per_rank
from finetune.profiling.planner import free_memory_bytes, offload_needs
from finetune.profiling.profile_offload import uses_offload
from finetune.training_options import SHARED_OUT

# Of an adapter's parameter, in float32: itself, its gradient, and AdamW's two moments.
BYTES_TRAINED = 4 * 4
# On disk: itself and the two moments in a checkpoint, and the best one with train.keep_best.
N_SAVED, N_SAVED_WITH_BEST = 3, 4
INDEX_FILE, WEIGHT_FILE = "model.safetensors.index.json", "model.safetensors"


class Needs(NamedTuple):
    """What a run needs at least, in bytes; the adapter is that of the plan, without a plan of no expert."""

    base: int
    n_adapter: int  # parameters
    has_plan: bool
    offloads: bool  # the profile reads the base layer by layer


def needs_of(config: RunConfig) -> Needs:
    """Calculate the needs of a run from the base's config, without any weight.

    Raises:
        UserError: the base or the plan cannot be read, or the base has no experts.
    """
    model = base_without_weights(config.base)
    dtype: torch.dtype = getattr(torch, config.base.dtype)
    base = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    linears = [model.get_submodule(name) for name in linear_names(model, config.lora)]
    n_adapter = sum(config.lora.rank * sum(linear.weight.shape) for linear in linears)
    plan = Path(config.output) / "plan.json"
    chosen = read_artefact(plan, "expert_plan", ("experts",))["experts"] if plan.exists() else {}
    for layer in moe_layers(model):
        n_adapter += config.lora.rank * parameters_per_rank(layer) * len(chosen.get(str(layer.index), ()))
    device = choose_device(config.base.device)
    return Needs(base, n_adapter, plan.exists(), uses_offload(config.base, config.profile, device))


def check_memory(config: RunConfig | None = None, needs: Needs | None = None) -> list[Finding]:
    """What is free; with a config and its `needs`, whether training and profile fit into that."""
    cpu = free_memory_bytes(torch.device("cpu"))
    if config is None or needs is None:
        device = choose_device("auto")
        more = "" if device.type == "cpu" else f", {_gb(free_memory_bytes(device))} on {device}"
        return [Finding("memory", True, f"{_gb(cpu)} free on the CPU{more}")]
    device = choose_device(config.base.device)
    n_sharing = config.train.n_processes if device.type == "cpu" else 1  # of one memory
    return [
        _training(config, needs, free_memory_bytes(device) // n_sharing),
        _profile(config, needs, free_memory_bytes(device)),
    ]


def _training(config: RunConfig, needs: Needs, free: int) -> Finding:
    train = config.train
    is_shared = train.layout.kind in SHARED_OUT
    n_shares = train.n_processes if is_shared else 1
    if train.layout.kind == "device_map":
        n_shares = max(1, torch.accelerator.device_count())
    base = needs.base // n_shares
    needed = base + needs.n_adapter * BYTES_TRAINED
    adapter = f"adapter and optimizer {_gb(needed - base)}"
    if not needs.has_plan:
        adapter += " and what the plan chooses"
    what = (
        f"training: at least {_gb(needed)} in each of {train.n_processes} process(es), base {_gb(base)}, "
        f"{adapter}, without activations; {_gb(free)} free for each"
    )
    if needed <= free:
        return Finding("memory", True, what)
    ways = ["base.dtype=bfloat16"] if config.base.dtype == "float32" else []
    ways.append("more processes" if is_shared else "train.layout.kind=fsdp in more processes")
    return Finding("memory", False, f"{what}: take {' or '.join(ways)}, or a machine with more")


def _profile(config: RunConfig, needs: Needs, free: int) -> Finding:
    if not needs.offloads:
        n_processes = config.profile.n_processes
        n_sharing = n_processes if choose_device(config.base.device).type == "cpu" else 1
        what = (
            f"profile: the whole base, {_gb(needs.base)} in each of {n_processes} process(es); "
            f"{_gb(free // n_sharing)} free for each"
        )
        if needs.base <= free // n_sharing:
            return Finding("memory", True, what)
        fewer = " or take fewer profile.n_processes" if n_sharing > 1 else ""
        return Finding("memory", False, f"{what}: set profile.offload=true{fewer}")
    held = config.profile.max_tokens if config.profile.hidden_states == "memory" else 0
    needed = _offload(config).memory_bytes(held)
    what = f"profile: layer by layer, at least {_gb(needed)} of {_gb(free)} free"
    if needed <= free:
        return Finding("memory", True, what)
    ways = "set profile.hidden_states=disk, lower profile.max_tokens, or take a machine with more"
    return Finding("memory", False, f"{what}: {ways}")


def _offload(config: RunConfig) -> Any:
    loaded = AutoConfig.from_pretrained(resolve_model_path(config.base.model), revision=config.base.revision)
    return offload_needs(loaded, getattr(torch, config.base.dtype), config.train.max_length_tokens)


def check_disk(config: RunConfig | None = None, needs: Needs | None = None) -> list[Finding]:
    """Whether the output's disk can be written and has room; with `needs`, also for a base from the Hub."""
    if config is None:
        return [_has_room(Path.cwd(), 0, "here")]
    if needs is None:
        return [_has_room(Path(config.output), 0, config.output)]
    n_bytes = 4 * needs.n_adapter
    n_each = N_SAVED_WITH_BEST if config.train.keep_best else N_SAVED
    # One checkpoint more is there while the oldest goes, and the adapter itself.
    needed = n_bytes * (n_each * (config.train.checkpoint.keep + 1) + 1)
    if config.profile.hidden_states == "disk" and needs.offloads:
        needed += config.profile.max_tokens * _offload(config).state_bytes_per_token
    findings = [_has_room(Path(config.output), needed, f"{config.output}: adapter and checkpoints")]
    model = resolve_model_path(config.base.model)
    if not Path(model).is_dir() and not _is_cached(model, config.base.revision):
        cache = Path(HF_HUB_CACHE)
        beside = needed if _disk(cache) == _disk(Path(config.output)) else 0
        what = f"{HF_HUB_CACHE}: the base's files"
        findings.append(_has_room(cache, needs.base, what, "HF_HOME", beside))
    return findings


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether all files of the weights are there: a download that was cut leaves the index and some."""

    def cached(name: str) -> str | None:
        path = try_to_load_from_cache(model, name, revision=revision)
        return path if isinstance(path, str) else None

    index = cached(INDEX_FILE)
    if index is None:
        return cached(WEIGHT_FILE) is not None
    weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    return all(cached(name) for name in set(weight_map.values()))


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())


def _disk(folder: Path) -> int:
    return _nearest(folder).stat().st_dev


def _has_room(folder: Path, needed: int, what: str, setting: str = "output=", beside: int = 0) -> Finding:
    """Whether the nearest folder that exists can be written, and its disk has room.

    `setting` names the folder; `beside` bytes are needed on the same disk for something else.
    """
    place = _nearest(folder)
    free = shutil.disk_usage(place).free
    need = f" need {_gb(needed)}" if needed else ""
    if beside:
        need += f" beside {_gb(beside)} of the output"
    told = f"{what}{need}, {_gb(free)} free"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"1")
            file.flush()
    except OSError as error:
        reason = f"{place} cannot be written ({error.strerror})"
        return Finding("disk", False, f"{told}, but {reason}: set {setting} to another folder")
    if needed + beside > free:
        return Finding("disk", False, f"{told}: free some, or set {setting} to a folder on another disk")
    return Finding("disk", True, told)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.3g} GB"
