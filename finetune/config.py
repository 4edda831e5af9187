"""The options of one run, each declared once, in a frozen dataclass tree filled from YAML and `key=value`.

Reads configs/runs/*.yaml. Imports no torch, so that `--help` and config errors answer at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from data_recipes.settings import load_settings, out_of_range

# Names that stand for a model shipped inside this package; any other name is a folder or a Hub id.
SHIPPED_MODELS = {"tiny-glm": Path(__file__).parent / "tiny_glm"}

# selecting/choices.py defines each: those that follow the routing, and the controls that do not. none chooses
# no expert, for attention or shared experts alone.
CountingMethod = Literal["token_share", "gate_mass", "top_k", "contrast", "budget"]
SelectMethod = Literal[CountingMethod, "random", "all", "none"]


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The frozen model that is profiled, tuned and compared with."""

    model: str = "tiny-glm"  # "tiny-glm" (shipped), a folder, or a Hub id
    revision: str | None = None  # Hub commit, tag or branch; None is the default branch
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in memory
    device: str = "auto"  # "auto" takes an accelerator when there is one; else a torch device name
    thinking: bool | None = None  # chat template's enable_thinking; None leaves it to the template


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset of the run."""

    recipe: str  # path of a recipe file, relative to the working folder
    overrides: tuple[str, ...] = ()  # "key=value" changes to the recipe


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What is counted at the routers."""

    max_tokens: int = 65536  # read of each language at most; ESFT found the chosen sets stable at 2^17
    batch_size: int = 32  # rows
    kinds: Literal["prompt", "answer", "all"] = "all"  # tokens in the bootstrap; the counts keep both apart
    replicates: int = 64  # bootstrap resamples of the rows; 0 is none
    stable_jaccard: float | None = None  # stop a language early, when its replicates' top sets agree so well
    stable_share: float = 0.5  # of a layer's choices in its top set; select.share, to stop for that choice
    check_tokens: int = 16384  # of a language between two looks whether it is stable
    shuffle_rows: int = 10000  # of a stream, held in memory to draw from; rows on disk are shuffled whole
    # "2/8": profile the second of eight parts; `local-experts profile-merge` adds them up.
    shard: str | None = None
    n_processes: int = 1  # expected processes; another count is an error
    # Read the base layer by layer, once for all rows; "auto": when its folder is larger than free memory.
    offload: Literal["auto", "true", "false"] = "auto"
    hidden_states: Literal["memory", "disk"] = "memory"  # of an offloaded base, between two layers
    n_threads: int | None = None  # CPU threads of a process; the last bits of the gate mass depend on it

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        names = ("max_tokens", "batch_size", "check_tokens", "shuffle_rows", "n_processes", "n_threads")
        wrong = out_of_range({name: getattr(self, name) for name in names})
        wrong += out_of_range({"replicates": self.replicates}, minimum=0)
        shares = {"stable_jaccard": self.stable_jaccard, "stable_share": self.stable_share}
        wrong += [
            f"{name}: must be above 0 and at most 1"
            for name, value in shares.items()
            if value is not None and not 0 < value <= 1
        ]
        if self.stable_jaccard is not None and self.replicates == 0:
            wrong.append("stable_jaccard: needs replicates to compare")
        if self.shard is not None:
            wrong += self._shard_problems(self.shard)
        return wrong

    def _shard_problems(self, shard: str) -> list[str]:
        number, _, n_shards = shard.partition("/")
        is_whole = number.isdecimal() and n_shards.isdecimal() and 1 <= int(number) <= int(n_shards)
        wrong = [] if is_whole else ['shard: write it as "2/8", the second of eight']
        if self.stable_jaccard is not None:
            wrong.append("shard: a shard does not see the others' counts, so set stable_jaccard=null")
        return wrong


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which experts are tuned."""

    method: SelectMethod = "token_share"
    share: float = 0.5  # of a layer's routed tokens (or gate mass) that its chosen experts must reach, 0 to 1
    k: int | None = None  # top_k: experts of each layer
    budget: int | None = None  # budget: of all layers together, in budget_unit
    # parameters: of the adapter at rank 1 (divide by lora.rank); bytes: of the experts' own weights
    budget_unit: Literal["experts", "parameters", "bytes"] = "experts"
    kinds: Literal["prompt", "answer", "all"] | None = None  # tokens that decide; None is as profile.kinds
    sources: tuple[str, ...] = ()  # sources of rows that decide; empty is all
    floor: float = 0.5  # contrast: least traffic of a chosen expert, as a multiple of even routing, 0 to 1
    # random: as many experts in each layer as that method takes (equal budgets); true is token_share, false
    # is `share` of all experts
    match: CountingMethod | bool = True
    seed: int = 0  # of the random method

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = [] if 0 < self.share <= 1 else ["share: must be above 0 and at most 1"]
        wrong += [] if 0 <= self.floor <= 1 else ["floor: must be at least 0 and at most 1"]
        used = (self.method, self.match if self.method == "random" else None)
        if "top_k" in used and self.k is None:
            wrong.append("k: top_k needs it, as select.k=8: how many experts of each layer")
        if "budget" in used and self.budget is None:
            wrong.append("budget: the method of that name needs it, as select.budget=100")
        wrong += out_of_range({"k": self.k, "budget": self.budget})
        return wrong + out_of_range({"seed": self.seed}, minimum=0)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter: W x + scaling B A x, with scaling = alpha / rank."""

    rank: int = 8
    alpha: float = 16.0  # the update is scaled by alpha / rank
    down_rank: int | None = None  # of the experts' second projection (down_proj); None is rank
    down_alpha: float | None = None  # of the experts' second projection; None is alpha
    rslora: bool = False  # scale by alpha / sqrt(rank) instead (rank-stabilized LoRA, arXiv 2312.03732)
    dropout: float = 0.0  # share of the inputs of A that are zeroed in training, the others scaled up
    attention: bool = False  # also adapt the attention projections
    shared_experts: bool = False  # also adapt the experts that every token passes

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        positive = {"alpha": self.alpha, "down_alpha": self.down_alpha}
        low = [name for name, value in positive.items() if value is not None and value <= 0]
        wrong = [f"{name}: must be above 0" for name in low]
        if not 0 <= self.dropout < 1:
            wrong.append("dropout: must be at least 0 and below 1")
        return wrong + out_of_range({"rank": self.rank, "down_rank": self.down_rank})


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
    # Stop when the loss stays above so many times its running median, and above where it began; None is never
    explode_ratio: float | None = 4.0
    explode_steps: int = 10  # so many steps in a row
    tracker: str | None = None  # one that Accelerate knows, as "tensorboard", beside metrics.jsonl
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


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Base and tuned on the same held-out rows."""

    batch_size: int = 64  # rows
    max_new_tokens: int = 64  # longest answer
    n_bootstrap: int = 2000  # resamples for each interval
    max_rows_per_task: int | None = None  # of each task and language; None is all
    samples: int = 3  # example answers shown for each task

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        names = ("batch_size", "max_new_tokens", "n_bootstrap", "max_rows_per_task")
        wrong = out_of_range({name: getattr(self, name) for name in names})
        return wrong + out_of_range({"samples": self.samples}, minimum=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: from a recipe to a report, all files under `output`."""

    name: str  # letters, digits, ".", "-" and "_"
    seed: int = 0  # of training order and LoRA start
    output: str = ""  # folder of all files of the run; empty means runs/<name>
    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if not self.output:
            object.__setattr__(self, "output", f"runs/{self.name}")

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = out_of_range({"seed": self.seed}, minimum=0)
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            wrong.append('name: use letters, digits, ".", "-" and "_" only; it names a folder')
        if self.select.method == "none" and not (self.lora.attention or self.lora.shared_experts):
            wrong.append(
                "select.method: none leaves nothing to train: set lora.attention or lora.shared_experts to "
                "true, or choose experts"
            )
        if self.lora.dropout and self.train.layout.kind.startswith("expert_parallel"):
            wrong.append(
                f"lora.dropout: must be 0 with train.layout.kind={self.train.layout.kind}: which values are "
                "dropped would depend on the number of processes"
            )
        return wrong


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Fill a RunConfig from a YAML file and "a.b=value" changes.

    Raises: UserError that lists every problem.
    """
    return load_settings(RunConfig, path, overrides)


def config_parser(stage: str, purpose: str) -> argparse.ArgumentParser:
    """The command line every stage shares: `--config FILE [key=value ...]`, to be parsed intermixed."""
    parser = argparse.ArgumentParser(prog=f"local-experts {stage}", description=purpose, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="as configs/runs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.steps=50")
    return parser


def config_from_arguments(argv: Sequence[str] | None, stage: str, purpose: str) -> RunConfig:
    """Read the command line every stage shares: `--config FILE [key=value ...]`.

    Raises: UserError for a bad config; SystemExit after `--help` or a malformed command line.
    """
    # intermixed: changes may stand before and after --config
    arguments = config_parser(stage, purpose).parse_intermixed_args(argv)
    return load_run_config(arguments.config, arguments.overrides)
