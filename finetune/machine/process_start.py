"""Whether several processes can be started here and find each other. Reads and writes nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune.machine.finding import Finding

N_PROCESSES, SUM = 2, 3
# torchrun asks its workers to end, and kills them after SHUTDOWN_S; torchrun itself is killed after GRACE_S.
SHUTDOWN_S, GRACE_S = 3, 6
WAY_OUT = (
    "look whether the machine's own name resolves and a firewall lets processes talk to each other "
    "(GLOO_SOCKET_IFNAME=lo takes the loopback), or train in one process"
)


def launch_command(device: str, time_limit_s: int) -> list[str]:
    """What starts the processes, as a training's are started."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [
        *torchrun,
        f"--nproc_per_node={N_PROCESSES}",
        "-m",
        "finetune.machine.add_up",
        device,
        str(time_limit_s),
    ]


def check_launch(device: str, time_limit_s: int, command: Sequence[str] | None = None) -> Finding:
    """Start two processes on `device` ("cpu", or "auto" for accelerators) that add up a number.

    Whatever is left of them after `time_limit_s` is killed. `command` takes the place of the usual one.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN_S)
    places = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    if device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    where = "the CPU" if device == "cpu" else "accelerators"
    what, started = f"{N_PROCESSES} processes on {where}", time.monotonic()
    output, code = _run(command or launch_command(device, time_limit_s), environment, time_limit_s)
    seconds = time.monotonic() - started
    if code is None:
        return Finding("launch", False, f"{what} added up nothing within {time_limit_s} s: {WAY_OUT}")
    if code == 0 and f"sum {SUM}" in output:
        return Finding("launch", True, f"{what} added up {SUM} in {seconds:.1f} s")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or ["without a word"]
    return Finding("launch", False, f"{what} ended with {code} ({errors[0]}): {WAY_OUT}")


def _run(command: Sequence[str], environment: dict[str, str], time_limit_s: float) -> tuple[str, int | None]:
    """What a command wrote, and its exit code; None when it had to be killed, with all that it started."""
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=time_limit_s)
        return output, process.returncode
    except subprocess.TimeoutExpired:
        return "", None
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End what is left of a command; nothing where its output was read to the end.

    torchrun puts each worker into a session of its own, which no signal to torchrun's group reaches, so it is
    asked to end them itself. One that lives on for all that holds the pipe: nobody waits for it.
    """
    if process.stdout is None or process.stdout.closed:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.stdout.close()
