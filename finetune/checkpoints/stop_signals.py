"""A polite end: SIGTERM or SIGINT is noted, the step is finished and saved, and only then the process ends.

Reads and writes nothing, and imports no torch: the command line catches `Stopped`.

SIGTERM ends with exit code 75 (EX_TEMPFAIL: "try again later"), for schedulers to start the same command
again, which then goes on. With Slurm: `#SBATCH --requeue --signal=TERM@120`, and after the command
`[ $? -eq 75 ] && scontrol requeue $SLURM_JOB_ID`. With Kubernetes: a Job whose podFailurePolicy ignores
exit code 75, and a terminationGracePeriodSeconds longer than a step. `torchrun` and `accelerate launch` end
with a code of their own and kill after 30 s (TORCH_ELASTIC_SHUTDOWN_TIMEOUT); `python -m finetune.launch` and
`local-experts run` hand the 75 on. SIGINT (Ctrl-C) is a person's: it ends with 130, and the second one ends
at once.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REQUEUE_EXIT_CODE, INTERRUPTED_EXIT_CODE = 75, 130
EXIT_CODES = {signal.SIGTERM: REQUEUE_EXIT_CODE, signal.SIGINT: INTERRUPTED_EXIT_CODE}
# A terminal signals every process of a group, and a launcher hands the signal on: one Ctrl-C arrives twice.
ECHO_S = 1.0


class Stopped(Exception):
    """A run that ended early because it was asked to; nothing is lost."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Which signal asked this process to stop, if any."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.received_at = 0.0

    def note(self, number: int, frame: Any) -> None:
        """Remember the first signal; a later Ctrl-C interrupts at once."""
        again = self.received is not None and time.monotonic() - self.received_at > ECHO_S
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGTERM and SIGINT are noted and end nothing; what came after the last step is raised outside.

    Outside the main thread signals cannot be had, and nothing changes.

    Raises:
        Stopped: a signal came and nobody had acted on it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request.note) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if request.received is not None:
        name = request.received.name
        raise Stopped(f"stopped by {name} after the last step", EXIT_CODES[request.received])
