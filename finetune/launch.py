"""Start a stage in several processes on this machine: torchrun, without torchrun's own traceback.

    python -m finetune.launch STAGE N --config FILE

`local-experts run` does this when profile.n_processes or train.n_processes is above 1. Writes the run's
config, as it is after all changes, to run_config.json in the output folder; the processes read it from there.
"""

from __future__ import annotations

import codecs
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, write_json
from data_recipes.settings import settings_dict
from finetune.checkpoints.stop_signals import EXIT_CODES, Stopped
from finetune.config import RunConfig

LAUNCHED = "LOCAL_EXPERTS_LAUNCHED"  # in the environment of the processes started here
LOST_EXIT_CODE = 4  # of a process that lost another one: it leaves the telling to this module
STAGE_MODULES = {"profile": "finetune.profiling.routing", "train": "finetune.train"}


def run_in_processes(stage: str, config: RunConfig) -> None:
    """Run a stage in as many processes as its part of the config says, and wait for them.

    Raises: UserError when one fails; its own message stands above. Stopped when a signal ended them.
    """
    written = Path(config.output) / "run_config.json"  # JSON is YAML
    write_json(written, settings_dict(config))
    n_processes = getattr(config, stage).n_processes
    line = [sys.executable, "-m", "finetune.launch", stage, str(n_processes), "--config", str(written)]
    exit_code = run_and_show(line, stage_environment(stage, config))
    if exit_code in EXIT_CODES.values():
        raise Stopped(f"{stage} was asked to stop; the message stands above", exit_code)
    if exit_code != 0:
        raise UserError(f"{stage} stopped in one of its processes; the message stands above")


def run_and_show(line: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, showing what it writes as it comes; returns its exit code.

    It ends in its own time when it is asked to stop: SIGTERM is handed on to it, and Ctrl-C reaches it by
    itself.
    """
    # In a notebook `print` goes to the cell, and a child's own output to the terminal of the server.
    in_notebook = sys.stdout is not sys.__stdout__
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if in_notebook else {}
    started: Any = subprocess.Popen(line, env=environment, **pipes)
    with started, _asked_to_stop(started, in_notebook):
        if started.stdout is not None:
            _show(started.stdout.fileno())
        return started.wait()


def _show(pipe: int) -> None:
    """Print what comes as it comes, not by lines: a progress bar goes back to the start of its own."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while output := os.read(pipe, 1 << 16):
        print(decoder.decode(output), end="", flush=True)


@contextmanager
def _asked_to_stop(started: subprocess.Popen[bytes], in_notebook: bool) -> Iterator[None]:
    """Inside, a signal that asks this process to stop asks `started` too, where it does not by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number: int, frame: object) -> None:
        if number == signal.SIGTERM or in_notebook:  # the cell was interrupted
            started.send_signal(signal.SIGTERM)

    former = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def stage_environment(stage: str, config: RunConfig) -> dict[str, str]:
    """This process's environment, with Accelerate told to stay on the CPU when that is where the run is.

    Without ACCELERATE_USE_CPU, two CPU processes are two copies that never talk. A profile is to be that of
    one process to the bit, and the last bits depend on the number of threads: each process takes as many as
    this one, and waits for its turn instead of spinning.
    """
    import torch

    environment = dict(os.environ)
    device = config.base.device
    if device.startswith("cpu") or (device == "auto" and not torch.accelerator.is_available()):
        environment["ACCELERATE_USE_CPU"] = "true"
    if stage == "profile":
        environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment


def main(argv: Sequence[str] | None = None) -> int:
    """`STAGE N [arguments of the stage]`: exit code 0 when all N processes ended well, else 2.

    Or that of a signal (finetune/checkpoints/stop_signals.py), when one stopped them.
    """
    stage, n_processes, *rest = sys.argv[1:] if argv is None else argv
    # torchrun's own report would bury the message of the process that failed.
    logging.disable(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    # Unset, torchrun takes one thread a process and says so at length. train.n_threads has the last word.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(n_processes))))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--standalone", f"--nproc_per_node={n_processes}", "-m", STAGE_MODULES[stage], *rest])
    except SignalException as asked:  # the processes had it too, and their own message stands above
        return EXIT_CODES.get(asked.sigval, 2)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in sorted(failed.failures.items())}
        if asked := [code for code in codes.values() if code in EXIT_CODES.values()]:
            return asked[0]
        if message := ending(stage, codes):
            print(f"\n{message}", file=sys.stderr)  # a progress bar that nobody closed may stand in the line
        return 2
    return 0


def ending(stage: str, codes: Mapping[int, int]) -> str | None:
    """What to say of processes that ended badly, by their exit codes; None where one of them said it."""
    # torchrun ends those that are left by SIGTERM.
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:  # it had no time for a message of its own
            killed = f"error: {stage} process {rank} was killed by signal {-code}"
            return f"{killed}; if nobody stopped it, the machine ran out of memory"
    for rank, code in codes.items():
        if code == LOST_EXIT_CODE:
            return (
                f"error: {stage} process {rank} waited in vain for another one: one of them hangs, or "
                "train.layout.time_limit_s is too short"
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
