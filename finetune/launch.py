"""Start a stage in several processes on this machine: torchrun, without torchrun's own traceback.

    python -m finetune.launch STAGE N --config FILE

`local-experts run` does this when profile.n_processes or train.n_processes is above 1. Writes the run's
config, as it is after all changes, to run_config.json in the output folder; the processes read it from there.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_recipes.artefact import UserError, write_json
from data_recipes.settings import settings_dict
from finetune.config import RunConfig

LAUNCHED = "LOCAL_EXPERTS_LAUNCHED"  # in the environment of the processes started here
LOST_EXIT_CODE = 3  # of a process that lost another one: it leaves the telling to this module
STAGE_MODULES = {"profile": "finetune.profiling.routing", "train": "finetune.train"}


def run_in_processes(stage: str, config: RunConfig) -> None:
    """Run a stage in as many processes as its part of the config says, and wait for them.

    Raises: UserError when one fails; its own message stands above.
    """
    written = Path(config.output) / "run_config.json"  # JSON is YAML
    write_json(written, settings_dict(config))
    n_processes = getattr(config, stage).n_processes
    line = [sys.executable, "-m", "finetune.launch", stage, str(n_processes), "--config", str(written)]
    if run_and_show(line, stage_environment(stage, config)) != 0:
        raise UserError(f"{stage} stopped in one of its processes; the message stands above")


def run_and_show(line: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, showing what it writes as it comes; returns its exit code."""
    if sys.stdout is sys.__stdout__:
        return subprocess.run(line, env=environment).returncode
    # In a notebook `print` goes to the cell, and a child's own output to the terminal of the server.
    started = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with started:
        assert started.stdout is not None
        try:
            for output in started.stdout:
                print(output, end="", flush=True)
        except BaseException:  # the cell was interrupted
            started.terminate()
            raise
    return started.returncode


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
    """`STAGE N [arguments of the stage]`: exit code 0 when all N processes ended well, else 2."""
    stage, n_processes, *rest = sys.argv[1:] if argv is None else argv
    # torchrun's own report would bury the message of the process that failed.
    logging.disable(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    # Unset, torchrun takes one thread a process and says so at length. train.n_threads has the last word.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(n_processes))))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(["--standalone", f"--nproc_per_node={n_processes}", "-m", STAGE_MODULES[stage], *rest])
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in sorted(failed.failures.items())}
        if message := ending(stage, codes):
            print(message, file=sys.stderr)
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
