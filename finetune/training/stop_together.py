"""An end that all processes come to at the same point: its message is told once, and none is left waiting.

Writes to stderr.
"""

import sys
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import gather_object

from data_recipes.artefact import UserError


def stop_together(accelerator: Accelerator, error: UserError) -> NoReturn:
    """End every process with `error`, which only the first one tells; all must call this at one point.

    Raises:
        UserError: in a run of one process; SystemExit in one of several.
    """
    if accelerator.num_processes == 1:
        raise error
    tell_together(accelerator, f"error: {error}")
    raise SystemExit(2)


def stop_if_any(accelerator: Accelerator, problem: str | None) -> None:
    """End all processes when one of them has a problem; each calls this, with None when it has none.

    Raises:
        UserError: as `stop_together`.
    """
    problems = [problem] if accelerator.num_processes == 1 else gather_object([problem])
    found = [(process, text) for process, text in enumerate(problems) if text is not None]
    if found:
        process, text = found[0]
        where = f"process {process}: " if process else ""
        stop_together(accelerator, UserError(f"{where}{text}"))


def tell_together(accelerator: Accelerator, message: str) -> None:
    """Tell `message` from the first process; the others wait for it.

    A launcher ends all processes as soon as one is gone, also one that has something left to say.
    """
    if accelerator.is_main_process:
        print(message, file=sys.stderr, flush=True)
    accelerator.wait_for_everyone()
