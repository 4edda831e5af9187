"""The options of evaluation, the section `eval` of a run.

Filled from YAML and `key=value` as a part of `finetune.config.RunConfig`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_recipes.settings import out_of_range


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Base and tuned on the same held-out rows."""

    batch_size: int = 64  # rows
    max_new_tokens: int = 64  # longest answer
    n_bootstrap: int = 2000  # resamples for each interval
    max_rows_per_task: int | None = None  # of each task and language; None is all
    samples: int = 3  # example answers shown for each task
    tasks: tuple[
        str, ...
    ] = ()  # beside the test rows: task files, or "lm_eval:NAME" of lm-evaluation-harness

    def problems(self) -> list[str]:
        """Values no run can use, as "key: reason"."""
        names = ("batch_size", "max_new_tokens", "n_bootstrap", "max_rows_per_task")
        wrong = out_of_range({name: getattr(self, name) for name in names})
        named = [path for path in self.tasks if not path.startswith("lm_eval:")]
        wrong += [f"tasks: there is no file {path}" for path in named if not Path(path).is_file()]
        return wrong + out_of_range({"samples": self.samples}, minimum=0)
