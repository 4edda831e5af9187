"""The options of evaluation, the section `eval` of a run.

Filled from YAML and `key=value` as a part of `finetune.config.RunConfig`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_recipes.settings import out_of_range


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
