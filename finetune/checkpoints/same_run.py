"""Whether a checkpoint is of the run that wants to go on from it: what must be equal, and what differs.

Reads and writes nothing. Everything that changes a number of the adapter must be equal. What may differ:
the processes, their threads, how rows are cut into forward passes (they change the last bits only), where
numbers are told, when to give up, and the checkpoints themselves. With dropout the cuts must stay: its draws
follow them, and so must what is left out of them, which train.memory.prefix_cache does with padding.
"""

from collections.abc import Mapping
from typing import Any

from data_recipes.settings import settings_dict
from finetune.config import RunConfig

MAY_DIFFER = (
    "n_processes",
    "n_threads",
    "accumulate",
    "memory",
    "layout",
    "tracker",
    "checkpoint",
    "explode_ratio",
    "explode_steps",
)
# Options that change nothing while they are None: left out then, so that older checkpoints are of this run.
OPTIONAL = ("early_stop", "keep_best")
# Beginnings of what train.checkpoint.resume=changed lets differ.
CHANGEABLE = ("train.", "data", "replay", "seed")


def run_identity(config: RunConfig, plan: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the numbers of a training, flat; `inputs` are the hashes of datasets and plan.

    A plan that was read is of the base and the tokenizer at hand.
    """
    base = {name: plan.get(f"{name}_fingerprint") for name in ("model", "tokenizer")}
    train = settings_dict(config.train)
    off = [name for name in OPTIONAL if train[name] is None]
    said = {f"train.{name}": value for name, value in train.items() if name not in (*MAY_DIFFER, *off)}
    said |= {f"lora.{name}": value for name, value in settings_dict(config.lora).items()}
    if config.lora.dropout > 0:
        said["train.n_processes x train.accumulate"] = config.train.n_processes * config.train.accumulate
        said["train.memory.prefix_cache keeps rows"] = config.train.memory.prefix_cache != "none"
    return {**inputs, **base, "seed": config.seed, "base.dtype": config.base.dtype, **said}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """What differs -> "was ..., is ..."; hashes are cut to be read."""
    absent = "not there"
    return {
        name: f"was {_shown(saved.get(name, absent))}, is {_shown(wanted.get(name, absent))}"
        for name in (*saved, *(name for name in wanted if name not in saved))
        if saved.get(name, absent) != wanted.get(name, absent)
    }


def _shown(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)
