"""The options of evaluation, the section `eval` of a run.

Filled from YAML and `key=value` as a part of `finetune.config.RunConfig`. Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_recipes.settings import out_of_range
from data_recipes.translate.endpoint_options import EndpointConfig

# The two that are always there: in the results they have keys of their own.
ALWAYS_THERE = ("base", "tuned")


@dataclass(frozen=True, kw_only=True)
class ContestantConfig:
    """One more model that answers the held-out rows, beside base and tuned."""

    kind: Literal["adapter", "merged", "endpoint"]
    folder: str = ""  # adapter: of a run or of an adapter; merged: of a checkpoint
    plan: str = ""  # adapter: of this run's `local-experts ablate`, as random_0, all, attention_only
    trained_on: tuple[str, ...] = ()  # adapter: folders of the datasets it learned from, if not this run's
    # It is sent the questions of the held-out rows.
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    max_tokens: int = 1024  # endpoint: longest answer, in its own tokens, with those of its thinking

    def problems(self) -> list[str]:
        """Values no contestant can use, as "key: reason"."""
        wrong = out_of_range({"max_tokens": self.max_tokens})
        own = {
            "adapter": ("folder", "plan", "trained_on"),
            "merged": ("folder",),
            "endpoint": ("endpoint", "max_tokens"),
        }[self.kind]
        # By name alone: an endpoint shown as a whole would show what must not be shown.
        wrong += [
            f"{name} (value not shown): has no meaning for kind={self.kind}"
            for name in ("folder", "plan", "trained_on", "endpoint", "max_tokens")
            if name not in own and getattr(self, name) != getattr(ContestantConfig(kind=self.kind), name)
        ]
        if self.kind == "adapter" and bool(self.folder) == bool(self.plan):
            wrong.append("folder: name either the folder of a run or an adapter, or the plan of an ablation")
        if self.kind == "merged" and not self.folder:
            wrong.append("folder: is missing: the folder of the merged checkpoint")
        if self.kind == "endpoint":
            needed = ["base_url", "model"]
            needed += ["currency"] if self.endpoint.price_prompt is not None else []
            wrong += [f"endpoint.{n}: is missing" for n in needed if not getattr(self.endpoint, n)]
        return wrong

    @property
    def is_folder(self) -> bool:
        """Whether it is in files of this machine."""
        return self.kind != "endpoint"

    def shown(self) -> dict[str, Any]:
        """What results say of it: who answered, and not at which address."""
        if self.kind == "endpoint":
            asked = {"max_tokens": self.max_tokens, "parameters": self.endpoint.parameters}
            return {"model": self.endpoint.model, **asked}
        return {"plan": self.plan} if self.plan else {"folder": self.folder}

    def place(self, output: str) -> Path:
        """The folder of the adapter or the checkpoint; `output` is that of the run."""
        if self.plan:
            return Path(output) / "ablation" / self.plan / "adapter"
        folder = Path(self.folder)
        is_run = self.kind == "adapter" and (folder / "adapter").is_dir()
        return folder / "adapter" if is_run else folder


GATE_EXIT_CODE = 3  # of `local-experts eval` and `run` when the gate found that too much was forgotten


class GateFailed(Exception):
    """More was forgotten than the run allows; what the command writes is there."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How much may be forgotten: a run that lost more ends with exit code 3, after all is written."""

    languages: tuple[str, ...] = ("general",)  # codes, or general (or target): all rows of that group at once
    metric: Literal["exact_match", "chrf", "bits_per_byte", "script_share"] = "exact_match"
    max_loss: float = 0.02  # in the metric's own unit
    # point: the measured loss is larger; interval: the whole 95 % interval of the loss is
    by: Literal["point", "interval"] = "point"

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        wrong = [] if self.languages else ["languages: is empty: name at least one, as [en], or [general]"]
        return wrong + ([] if self.max_loss >= 0 else ["max_loss: must be at least 0"])


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Base and tuned on the same held-out rows."""

    batch_size: int = 64  # rows
    max_new_tokens: int = 64  # longest answer
    n_bootstrap: int = 2000  # resamples for each interval and each p value, which is at least 1 / (this + 1)
    max_rows_per_task: int | None = None  # of each task and language; None is all
    samples: int = 3  # rows shown for each task; each language is shown at least once unless this is 0
    contestants: dict[str, ContestantConfig] = field(default_factory=dict)  # by the name they get in results
    gate: GateConfig | None = None  # null: whatever was forgotten, the run is done
    # Beside the test rows: task files, or "lm_eval:NAME" of lm-evaluation-harness.
    tasks: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        names = ("batch_size", "max_new_tokens", "n_bootstrap", "max_rows_per_task")
        wrong = out_of_range({name: getattr(self, name) for name in names})
        wrong += [
            f"contestants.{name}: cannot be a name: use letters, digits, '.', '-' and '_', and not "
            f"{' or '.join(ALWAYS_THERE)}"
            for name in self.contestants
            if name in ALWAYS_THERE or not re.fullmatch(r"\w[\w.-]*", name)
        ]
        named = [path for path in self.tasks if not path.startswith("lm_eval:")]
        wrong += [f"tasks: there is no file {path}" for path in named if not Path(path).is_file()]
        return wrong + out_of_range({"samples": self.samples}, minimum=0)
