"""The options of training, the section `train` of a run: the loop, the layout, batches, memory, checkpoints.

Filled from YAML and `key=value` as a part of `finetune.config.RunConfig`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from data_recipes.settings import out_of_range

# auto is one_device, or data_parallel with several processes. layouts/placement.py says what each is.
SharedOut = Literal["fsdp", "zero3", "expert_parallel", "expert_parallel_fsdp"]
LayoutKind = Literal["auto", "one_device", "device_map", "data_parallel", SharedOut]
SHARED_OUT: tuple[SharedOut, ...] = get_args(SharedOut)


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """How the frozen base lies over devices and processes while it is trained."""

    kind: LayoutKind = "auto"
    # expert_parallel_fsdp: processes that share out a layer's experts; None is all of them
    ep_size: int | None = None
    time_limit_s: int = 1800  # of one exchange between processes; then a process that hangs ends the run

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = out_of_range({"time_limit_s": self.time_limit_s}) + out_of_range({"ep_size": self.ep_size}, 2)
        if self.ep_size is not None and self.kind != "expert_parallel_fsdp":
            wrong.append("ep_size: is of kind expert_parallel_fsdp; expert_parallel takes all processes")
        return wrong

    def problems_of(self, n_processes: int) -> list[str]:
        """What does not go with that number of processes."""
        if self.kind in ("one_device", "device_map") and n_processes > 1:
            return [f"layout.kind: {self.kind} is one process, and n_processes is {n_processes}"]
        if self.kind in SHARED_OUT and n_processes == 1:
            return [f"layout.kind: {self.kind} shares the base out over processes: set n_processes"]
        if self.ep_size is not None and n_processes % self.ep_size:
            return [f"layout.ep_size: {self.ep_size} does not divide n_processes ({n_processes})"]
        return []


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Rows of a second dataset among those of the run, against forgetting."""

    data: str  # folder of a built dataset; its training rows are taken
    share: float  # of all rows that are trained on, between 0 and 1

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        return [] if 0 < self.share < 1 else ["share: must be above 0 and below 1"]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What makes training need less memory, or a later epoch less time; none of it changes what is learnt."""

    gradient_checkpointing: bool = False  # compute a layer's activations again where the backward needs them
    # Predictions whose logits are made at one time. "auto" makes all at once, as "whole" always does, unless
    # they would be larger than training/vocabulary_loss.py allows.
    loss_chunk_tokens: Literal["auto", "whole"] | int = "auto"
    # Keep what the layers below the first adapter gave for a row, for the next epoch. Padding is zero then
    # and goes to other experts: the same adapter to 1e-6, and with lora.dropout one of other draws.
    prefix_cache: Literal["none", "memory", "disk"] = "none"
    prefix_cache_gb: float = 4.0  # of each process at most; rows beyond it are computed again
    prefix_cache_folder: str | None = None  # of "disk"; None is the system's folder for temporary files

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        chunk = self.loss_chunk_tokens
        wrong = out_of_range({"loss_chunk_tokens": chunk}) if isinstance(chunk, int) else []
        wrong += [] if self.prefix_cache_gb > 0 else ["prefix_cache_gb: must be above 0"]
        if self.prefix_cache_folder is not None and not Path(self.prefix_cache_folder).is_dir():
            wrong.append(f"prefix_cache_folder: there is no folder {self.prefix_cache_folder}: create it")
        return wrong


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where a killed training goes on from: folders in <output>/checkpoints/, removed when it is done."""

    # Minutes between two; longer where writing them would take more than 2 % of the time. None: none by time.
    every_minutes: float | None = 1.0
    every_steps: int | None = None  # one after each so many steps, too
    keep: int = 2  # newest ones
    # auto: goes on from the newest whole one, where there is any; must: it is an error when there is none;
    # changed: goes on although options of train, seed or dataset differ; never: removes them and starts anew
    resume: Literal["auto", "must", "changed", "never"] = "auto"

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = out_of_range({"every_steps": self.every_steps, "keep": self.keep})
        if self.every_minutes is not None and self.every_minutes <= 0:
            wrong.append("every_minutes: must be above 0, or null")
        return wrong


ValidationGroup = Literal["target", "general"]


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """When to end before the last step: the validation loss of one group of rows does not fall any more."""

    patience: int  # evaluations in a row without a lower loss
    min_delta: float = 0.0  # nats that a loss must be below the lowest one to count as lower
    group: ValidationGroup = "target"  # rows that decide

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = out_of_range({"patience": self.patience})
        return wrong + out_of_range({"min_delta": self.min_delta}, minimum=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    steps: int  # optimizer steps
    learning_rate: float  # peak, of AdamW
    b_learning_rate_ratio: float = 1.0  # B's learning rate over A's; LoRA+ (arXiv 2402.12354) is above 1
    batch_size: int = 32  # rows in one step over ALL processes and accumulation
    accumulate: int = 1  # forward passes a process makes for one step
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0  # steps of linear rise to learning_rate
    clip_norm: float = 1.0  # largest L2 norm of the gradient
    weight_decay: float = 0.0
    max_length_tokens: int = 256  # a longer row is an error, it is never cut
    # Several rows of a step one after another, in packs of at most so many tokens; None: each is padded.
    pack_length_tokens: int | None = None
    group_by_length: bool = False  # rows of like length make a step: less padding
    # Weights of the values of mixture_by, as {target: 0.7, general: 0.3}; None: every row once an epoch.
    mixture: dict[str, float] | None = None
    mixture_by: Literal["group", "language", "task", "source"] = "group"  # column; results count by it too
    replay: ReplayConfig | None = None
    eval_every: int = 100  # steps between two validation losses
    eval_rows: int = 128  # validation rows of each of them
    early_stop: EarlyStopConfig | None = None  # None: all steps are made
    # The adapter that is written is that of the evaluation with the lowest loss of these rows; None: the last
    keep_best: ValidationGroup | None = None
    # Stop when the loss stays above so many times its running median, and above where it began; None is never
    explode_ratio: float | None = 4.0
    explode_steps: int = 10  # so many steps in a row
    # One that Accelerate knows, as "tensorboard" or "trackio", beside metrics.jsonl. training/trackers.py
    tracker: str | None = None
    n_processes: int = 1  # expected processes; another count is an error
    n_threads: int | None = None  # CPU threads of a process; None leaves torch's choice
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)

    @property
    def n_data(self) -> int:
        """Shares that a step's rows are cut into: under expert_parallel all processes work on the same."""
        return 1 if self.layout.kind == "expert_parallel" else self.n_processes

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        counts = ("steps", "batch_size", "accumulate", "max_length_tokens", "eval_every", "eval_rows")
        others = ("explode_steps", "n_processes", "n_threads")
        wrong = out_of_range({name: getattr(self, name) for name in (*counts, *others)})
        not_negative = {"warmup_steps": self.warmup_steps, "weight_decay": self.weight_decay}
        wrong += out_of_range(not_negative, minimum=0)
        names = ("learning_rate", "b_learning_rate_ratio", "clip_norm")
        positive = {name: getattr(self, name) for name in names}
        wrong += [f"{name}: must be above 0" for name, value in positive.items() if value <= 0]
        if self.explode_ratio is not None and self.explode_ratio <= 1:
            wrong.append("explode_ratio: must be above 1")
        if self.steps >= 1 and self.warmup_steps >= self.steps:
            wrong.append(f"warmup_steps: must be below steps ({self.steps})")
        stop = self.early_stop
        if stop is not None and (stop.patience + 1) * self.eval_every >= self.steps:
            wrong.append(
                f"early_stop.patience: {stop.patience} with eval_every {self.eval_every} cannot stop before "
                f"steps ({self.steps}): lower one of them, or leave early_stop out"
            )
        parts = self.n_data * self.accumulate
        if parts >= 1 and self.batch_size % parts:
            wrong.append(f"batch_size: must be a multiple of n_processes x accumulate ({parts})")
        wrong += self._batching_problems() + self.layout.problems_of(self.n_processes)
        return wrong + self._shared_out_problems()

    def _shared_out_problems(self) -> list[str]:
        """A layout whose forwards ask other processes needs equally many forwards in all of them."""
        if self.layout.kind not in SHARED_OUT:
            return []
        alone = {
            "memory.prefix_cache": self.memory.prefix_cache != "none",
            "memory.loss_chunk_tokens": isinstance(self.memory.loss_chunk_tokens, int),
        }
        return [
            f"{key}: does not go with layout.kind={self.layout.kind} yet" for key, on in alone.items() if on
        ]

    def _batching_problems(self) -> list[str]:
        wrong = []
        if self.pack_length_tokens is not None and self.pack_length_tokens < self.max_length_tokens:
            wrong.append(f"pack_length_tokens: must be at least max_length_tokens ({self.max_length_tokens})")
        if self.mixture is not None and not (self.mixture and min(self.mixture.values()) > 0):
            wrong.append("mixture: needs at least one value, and weights above 0")
        if self.group_by_length and (self.mixture is not None or self.replay is not None):
            wrong.append(
                "group_by_length: rows of a mixture or replay are drawn by their shares, not by length: set "
                "pack_length_tokens to save padding"
            )
        if self.pack_length_tokens is not None and self.memory.prefix_cache != "none":
            wrong.append(
                "pack_length_tokens: memory.prefix_cache keeps rows that stand alone: leave one of them out"
            )
        return wrong
