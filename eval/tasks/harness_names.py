"""Which tasks lm-evaluation-harness has, its own and those of a folder; the harness is an extra.

Reads the harness' index of task files; writes nothing. Loads no data and no model.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError


@lru_cache(maxsize=8)  # reading its own thousands of files takes seconds, and base and tuned both ask
def task_manager(name: str, folder: Path | None) -> Any:
    """Return the harness' manager of tasks, which knows the task `name`.

    Raises:
        UserError: the harness is not installed, or it has no task of that name.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "a task of lm-evaluation-harness needs the extra: pip install 'local-experts[lm-eval]', or leave "
            "the task out"
        )
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    with quiet():
        manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else TaskManager()
        if folder and name not in manager.all_tasks:
            manager = TaskManager(include_path=str(folder))
    if name not in manager.all_tasks:
        nearest = get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"lm-evaluation-harness has no task {name!r}: {hint}`lm_eval ls tasks` lists them")
    return manager


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the harness neither logs its steps nor prints."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
