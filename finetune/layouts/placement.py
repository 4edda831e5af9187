"""Choose the layout that a config asks for, and check before loading that it can be.

    layout, sharing = choose_layout(config.base, config.train, accelerator)
    model, tokenizer = load_base(config.base, layout, sharing, time_limit_s)

Loading in shares is transformers' own (`DistributedConfig`): a process reads its slices of the files, and
nothing the size of the base is ever on one device. Reads the base's config.json; writes nothing.

    kind                  the base                                      rows of a step
    one_device            whole, on one device                          one process has all
    device_map            layer by layer over this machine's devices    one process has all
    data_parallel         whole, in each process                        shared out
    fsdp                  a share of each tensor, gathered by layer     shared out
    zero3                 as fsdp, by DeepSpeed (zero3.py)                  shared out
    expert_parallel       experts shared out, all else in each process  every process has all
    expert_parallel_fsdp  experts shared out, all else as fsdp          shared out
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoConfig
from transformers.distributed.configuration_utils import DistributedConfig

from data_recipes.artefact import UserError
from finetune.config import BaseConfig
from finetune.layouts.layout import Layout
from finetune.layouts.zero3 import load_zero3
from finetune.model import auto_class, load_model, resolve_model_path
from finetune.moe import moe_layers
from finetune.processes import stop_if_any
from finetune.training_options import SHARED_OUT, LayoutKind, TrainConfig


def choose_layout(
    base: BaseConfig, train: TrainConfig, accelerator: Accelerator
) -> tuple[Layout, DistributedConfig | None]:
    """The layout of this process, and how transformers is to share the base out, if it is.

    Raises:
        UserError: the layout cannot be here; all problems are in one message.
    """
    kind, n_processes = train.layout.kind, accelerator.num_processes
    if kind == "auto":
        kind = "one_device" if n_processes == 1 else "data_parallel"
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    problems = problems_here(kind, base, n_local) + _problems_of_launch(os.environ)
    model = base_without_weights(base) if kind in SHARED_OUT and kind != "zero3" else None
    if model is not None:
        problems += problems_of_base(kind, model, train.layout.ep_size or n_processes)
    told = "\n  ".join([f"train.layout.kind={kind} cannot be had here:", *problems])
    stop_if_any(accelerator, told if problems else None)
    data_index = accelerator.process_index if train.n_data > 1 else 0
    if model is None:
        return Layout(accelerator, data_index, train.n_data, kind), None
    config = distributed_config(kind, train.layout.ep_size, n_processes, model)
    layout = Layout(accelerator, data_index, train.n_data, kind, config.ep_size or 1)
    return layout, config


def load_base(
    base: BaseConfig, layout: Layout, sharing: DistributedConfig | None, time_limit_s: int
) -> tuple[Any, Any]:
    """Load the base as `layout` says, frozen, and its tokenizer.

    Raises:
        UserError: as `load_model`.
    """
    if layout.kind == "zero3":
        return load_zero3(base)
    if layout.kind == "device_map":
        return load_model(base, {"device_map": "balanced"})
    loaded: Any = load_model(base, {"distributed_config": sharing} if sharing else {})
    model, tokenizer = loaded
    # Transformers makes groups of processes of its own: they get the time limit of the whole run's.
    axes = ("fsdp", "tp", "efsdp", "ep") if sharing else ()
    for axis in axes:
        model._mesh_manager.get_mesh(axis).get_group().set_timeout(timedelta(seconds=time_limit_s))
    return model, tokenizer


def distributed_config(
    kind: LayoutKind, ep_size: int | None, n_processes: int, model: Any
) -> DistributedConfig:
    """Transformers' name for a sharded layout of `model`, which needs no weights."""
    if kind == "fsdp":
        return DistributedConfig(fsdp_size=n_processes)
    if kind == "expert_parallel":
        # The group of processes with one batch is that of tensor parallelism, all of whose rules are switched
        # off here. `tp_plan={}` is documented to do so; transformers 5.23 then says that there is no plan.
        rules = list(model.tp_plan) or [name for name, _ in model.named_children()][:1]
        return DistributedConfig(
            tp_size=n_processes, tp_plan=dict.fromkeys(rules, "replicate"), ep_size=n_processes
        )
    return DistributedConfig(fsdp_size=n_processes, ep_size=ep_size or n_processes)


def problems_here(kind: LayoutKind, base: BaseConfig, n_local: int) -> list[str]:
    """What this machine lacks for `n_local` processes of a run."""
    n_devices = torch.accelerator.device_count()
    on_cpu = base.device == "cpu" or n_devices == 0
    problems = []
    if kind == "zero3" and find_spec("deepspeed") is None:
        problems.append("DeepSpeed is not installed: pip install 'local-experts[deepspeed]', or take fsdp")
    if kind == "device_map" and (on_cpu or n_devices < 2):
        problems.append(f"device_map needs two devices, this machine has {n_devices}: take one_device")
    if kind in SHARED_OUT and n_devices and base.device != "auto":
        problems.append(
            f"base.device is {base.device!r}, and each process takes a device of its own: set auto"
        )
    if not on_cpu and n_local > n_devices:
        problems.append(f"{n_local} processes run on this machine, which has {n_devices} device(s)")
    return problems


def _problems_of_launch(environment: Mapping[str, str]) -> list[str]:
    """What `accelerate launch` was told to do to a model that it does not get here."""
    plugins = {
        "ACCELERATE_USE_FSDP": "FSDP: take configs/accelerate/fsdp2.yaml and train.layout.kind=fsdp",
        "ACCELERATE_USE_DEEPSPEED": "DeepSpeed: take configs/accelerate/zero3.yaml",
        "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM: take configs/accelerate/expert_parallel.yaml",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config: take configs/accelerate/fsdp2.yaml",
    }
    asked = [text for name, text in plugins.items() if environment.get(name, "false").lower() == "true"]
    problems = [
        f"the base is shared out by transformers, not by Accelerate, which was asked for {text}"
        for text in asked
    ]
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no":
        problems.append(
            f"Accelerate was asked for mixed precision ({precision}), which changes nothing here: set "
            'mixed_precision to "no", and base.dtype=bfloat16 for a base of half the size'
        )
    return problems


def problems_of_base(kind: LayoutKind, model: Any, n_groups: int) -> list[str]:
    """What the base's class and sizes do not allow; `model` needs no weights."""
    problems = []
    if kind != "expert_parallel" and not model.fsdp_plan:
        problems.append(f"transformers has no fsdp plan for {type(model).__name__}: take data_parallel")
    if kind == "fsdp":
        return problems
    if "ep_dispatch_experts" not in model.ep_plan.values():
        problems.append(f"transformers has no expert-parallel plan for {type(model).__name__}: take fsdp")
    uneven = sorted({layer.n_experts for layer in moe_layers(model) if layer.n_experts % n_groups})
    if uneven:
        problems.append(f"{uneven[0]} experts cannot be shared out evenly over {n_groups} processes")
    return problems


def base_without_weights(base: BaseConfig) -> Any:
    """The base with tensors that have a shape and no values.

    Raises:
        UserError: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model_path(base.model), revision=base.revision)
        with torch.device("meta"):
            model: nn.Module = auto_class(config).from_config(config)
    except Exception as error:  # OSError, ValueError: each library has its own
        raise UserError(f"cannot read the config of the base {base.model!r}: {error}") from error
    return model
