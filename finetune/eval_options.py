"""The options of evaluation, the section `eval` of a run.

Filled from YAML and `key=value` as a part of `finetune.config.RunConfig`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_recipes.settings import out_of_range

GATE_EXIT_CODE = 3  # of `local-experts eval` and `run` when the gate found that too much was forgotten


class GateFailed(Exception):
    """More was forgotten than the run allows; results and report are written."""


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
    gate: GateConfig | None = None  # null: whatever was forgotten, the run is done

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        names = ("batch_size", "max_new_tokens", "n_bootstrap", "max_rows_per_task")
        wrong = out_of_range({name: getattr(self, name) for name in names})
        return wrong + out_of_range({"samples": self.samples}, minimum=0)
