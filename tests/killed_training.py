"""Trainings that can be killed: one process has torch and transformers imported and forks each of them.

An import costs more than a training of the tiny model, so Python's own fork server is that process: a child
starts in milliseconds, with one thread, and is a whole process to the system: SIGKILL ends it with no chance
to tidy up, and its sockets and files are as a killed process leaves them.
"""

import atexit
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from finetune import cli
from finetune import train as train  # imported once, by the fork server

# tqdm's own lock is shared by all forks: a child that is killed while it writes would keep it for ever.
tqdm.set_lock(threading.RLock())
ROOT = Path(__file__).parents[1]
LONGEST_WAIT_S = 100
_STARTED: list[BaseProcess] = []
# Python waits at its end for every child: one that a failed test left behind would hold up all of them.
atexit.register(lambda: kill(_STARTED))


def start(folder: Path, function: Callable[..., Any], *arguments: Any, n_processes: int = 1) -> list[Any]:
    """Fork `n_processes` that form a group and call `function(*arguments)`; each writes to `folder`/log-<n>.

    An argument that is a list holds one value for each process.
    """
    settings = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)  # the fork server is started with the first child
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["killed_training"])
        meeting = folder / f"meeting-{time.monotonic_ns()}"
        children = []
        for rank in range(n_processes):
            own = [value[rank] if isinstance(value, list) else value for value in arguments]
            group = (rank, n_processes, meeting, folder / f"log-{rank}")
            children.append(context.Process(target=_child, args=(group, function, own)))
            children[-1].start()
            _STARTED.append(children[-1])
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return children


def end(children: Sequence[BaseProcess]) -> list[int | None]:
    """Wait for all; returns their exit codes, None of one that hangs and had to be killed."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    codes = [child.exitcode for child in children]
    kill(children)
    return codes


def kill(children: Sequence[BaseProcess]) -> None:
    """SIGKILL to all that still run."""
    for child in children:
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()


def train_by_command(config_file: Path, changes: Sequence[str], folder: Path = ROOT) -> None:
    """`local-experts train`, as the command line runs it in `folder`."""
    os.chdir(folder)
    sys.exit(cli.main(["train", "--config", str(config_file), *changes]))


def train_with_kills(
    folder: Path, changes: Sequence[str], n_processes: int, n_kills: int, seed: int, seconds: float
) -> tuple[int, int]:
    """Train by `folder`/config.yaml, killed up to `n_kills` times at random moments, until it ends well.

    Every second kill waits for a checkpoint that is being written. With several processes one of them is
    killed, and then, as torchrun does, the others. Returns how many were killed, and how many of these in
    the middle of writing a checkpoint.
    """
    generator = random.Random(seed)
    n_killed = n_torn = 0
    arguments = (train_by_command, folder / "config.yaml", tuple(changes))
    while n_killed < n_kills:
        children = start(folder, *arguments, n_processes=n_processes)
        moment = time.monotonic() + generator.uniform(0, seconds)
        while _all_run(children) and time.monotonic() < moment:
            time.sleep(0.001)
        while n_killed % 2 and _all_run(children) and not _half_written(folder):
            pass
        if not _all_run(children):
            assert end(children) == [0] * n_processes, (folder / "log-0").read_text()
            return n_killed, n_torn
        kill([generator.choice(children)])
        kill(children)
        n_killed, n_torn = n_killed + 1, n_torn + bool(_half_written(folder))
    codes = end(start(folder, *arguments, n_processes=n_processes))
    assert codes == [0] * n_processes, (folder / "log-0").read_text()
    return n_killed, n_torn


def _all_run(children: Sequence[BaseProcess]) -> bool:
    return all(child.is_alive() for child in children)


def _half_written(folder: Path) -> list[Path]:
    return list((folder / "run" / "checkpoints").glob(".step-*.partial-*"))


def _child(group: tuple[int, int, Path, Path], function: Callable[..., Any], arguments: list[Any]) -> None:
    rank, n_processes, meeting, log = group
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if n_processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"})
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=n_processes,
            timeout=timedelta(seconds=60),
        )
    function(*arguments)
