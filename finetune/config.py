"""The options of one run, each declared once, in a frozen dataclass tree filled from YAML and `key=value`.

Reads configs/runs/*.yaml. Imports no torch, so that `--help` and config errors answer at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_recipes.settings import load_settings, out_of_range
from finetune.eval_options import EvalConfig
from finetune.training_options import TrainConfig

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
