"""The tasks of a stage on several machines, by datatrove's executors.

`run_parts` takes and gives what that of `data_recipes.parts.workers` does, so the parts have the same bytes.
A rank of the pipeline runs every n-th task. Needs `pip install 'local-experts[cluster]'` (and Ray for "ray"),
a folder that all machines share, and on each of them this environment under one path.

Writes tasks, results and datatrove's logs into a folder of each call, inside `Cluster.folder`, and removes it
when all went well. Killed with -9, the caller leaves its processes to end their share.
"""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_recipes.artefact import UserError, whole_file
from data_recipes.parts.workers import GRACE_S, ONE_THREAD, SAY_EVERY_S, terminable, unwind

Task = TypeVar("Task")
Result = TypeVar("Result")

KEPT = "The parts that were finished are kept: run it again to go on"
POLL_S = 0.05


@dataclass(frozen=True)
class Cluster:
    """Which machines, and where they meet.

    Raises:
        UserError: no folder, no node, or another executor.
    """

    folder: str  # seen by all machines under this one name
    executor: Literal["processes", "ray"] = "processes"
    # Of "processes": what the command for a machine stands behind, as "ssh worker-1" or "srun --nodes=1"; ""
    # is this machine. Ray knows its own.
    nodes: tuple[str, ...] = ("",)
    memory_gb: float = 1.0  # of "ray": what one task is given

    def __post_init__(self) -> None:
        wrong = [] if self.folder else ["no folder that all machines see"]
        wrong += [] if self.executor in ("processes", "ray") else [f"executor={self.executor!r}"]
        wrong += [] if self.nodes else ["no nodes"]
        wrong += [] if self.memory_gb > 0 else [f"memory_gb={self.memory_gb} (above 0)"]
        if wrong:
            raise UserError(f"cluster: {', '.join(wrong)}")


@dataclass(frozen=True)
class TasksOfRank:
    """One step of a datatrove pipeline: runs the tasks of a rank, and leaves their results or the error."""

    folder: str

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Run tasks[rank::world_size]; an error leaves its text and ends the rank."""
        folder = Path(self.folder)
        function, tasks = pickle.loads((folder / "tasks.pickle").read_bytes())
        results = []
        try:
            for number in range(rank, len(tasks), world_size):
                (folder / f"at_{rank:05d}").write_text(f"{len(results)} {number}", encoding="ascii")
                results.append(function(tasks[number]))
        except Exception as error:
            if isinstance(error, UserError):
                _write(folder / f"error_{rank:05d}", str(error))
            else:
                _write(folder / f"bug_{rank:05d}", traceback.format_exc())
            raise
        _write(folder / f"result_{rank:05d}", results)


def _write(path: Path, value: Any) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(pickle.dumps(value))


def run_parts(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    n_workers: int,
    name: str = "",
    *,
    cluster: Cluster,
) -> list[Result]:
    """Return what `function` gives for each task, in the order of the tasks; `n_workers` at once a machine.

    Raises:
        UserError: a task's own, as it is; a process was killed; datatrove or Ray is missing; no Ray cluster.
    """
    if n_workers < 1:
        raise UserError(f"{n_workers} workers: at least 1 is needed")
    if not tasks:
        return []
    Path(cluster.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name or 'tasks'}-", dir=Path(cluster.folder).resolve()))
    (folder / "tasks.pickle").write_bytes(pickle.dumps((function, list(tasks))))
    if cluster.executor == "ray":
        world_size = _run_on_ray(folder, len(tasks), n_workers, cluster)
    else:
        world_size = _run_as_processes(folder, tasks, n_workers, name, cluster)
    results: list[Any] = [None] * len(tasks)
    for rank in range(world_size):
        results[rank::world_size] = pickle.loads((folder / f"result_{rank:05d}").read_bytes())
    shutil.rmtree(folder, ignore_errors=True)
    return results


def _run_as_processes(folder: Path, tasks: Sequence[Any], n_workers: int, name: str, cluster: Cluster) -> int:
    """Start a process for each rank and wait for all; the first that fails ends the others.

    Each has a LocalPipelineExecutor that runs one rank, told by its offset. One executor a machine, with
    several workers, would be a `Pool`, which waits for ever for a process that was killed.
    """
    world_size = min(len(tasks), n_workers * len(cluster.nodes))
    running: dict[int, subprocess.Popen[bytes]] = {}
    said = time.monotonic()
    with terminable():
        try:
            for rank in range(world_size):
                running[rank] = _start(folder, rank, world_size, cluster.nodes[rank % len(cluster.nodes)])
            while running:
                time.sleep(POLL_S)
                for rank, code in [(rank, p.poll()) for rank, p in running.items()]:
                    if code is not None and (code != 0 or not (folder / f"result_{rank:05d}").exists()):
                        raise _failure(folder, rank, code, tasks)
                    if code is not None:
                        del running[rank]
                if name and time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    print(f"{name:<9} {_n_done(folder):,} of {len(tasks):,} parts", flush=True)
        finally:
            _stop(list(running.values()))
    return world_size


def _start(folder: Path, rank: int, world_size: int, node: str) -> subprocess.Popen[bytes]:
    try:
        import dill  # of datatrove, as its own launcher reads it
        from datatrove.executor import LocalPipelineExecutor
    except ImportError as error:
        raise _missing("datatrove", error) from error
    executor = LocalPipelineExecutor(
        [TasksOfRank(str(folder))],
        tasks=world_size,
        workers=1,
        logging_dir=str(folder),
        local_tasks=1,
        local_rank_offset=rank,
    )
    pickled = folder / f"executor_{rank:05d}"
    pickled.write_bytes(dill.dumps(executor))
    # All in the command itself: `ssh` takes neither variables nor the folder along.
    there = [f"--chdir={os.getcwd()}"] if node else []
    variables = [f"{key}={value}" for key, value in _environment().items()]
    launcher = [sys.executable, "-m", __name__, str(pickled)]
    with open(folder / f"process_{rank:05d}.log", "wb") as log:
        return subprocess.Popen(
            [*shlex.split(node), "env", *there, *variables, *launcher],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # datatrove starts a process of its own beside it; both are to be ended
        )


def _environment() -> dict[str, str]:
    return {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, until - time.monotonic()))
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _failure(folder: Path, rank: int, code: int | None, tasks: Sequence[Any]) -> Exception:
    """The error of a rank that failed: its own, or what is known of a process that left none."""
    if (own := folder / f"error_{rank:05d}").exists():
        return UserError(pickle.loads(own.read_bytes()))
    if (bug := folder / f"bug_{rank:05d}").exists():
        return RuntimeError(f"in process {rank} of the cluster:\n{pickle.loads(bug.read_bytes())}")
    at = folder / f"at_{rank:05d}"
    number = int(at.read_text(encoding="ascii").split()[1]) if at.exists() else rank
    which = f"task {number + 1} of {len(tasks)}, {tasks[number]!r:.300}"
    if code is not None and code < 0:
        return UserError(
            f"a process of the cluster was killed by signal {-code} at {which}. If nobody stopped it, its "
            f"machine ran out of memory: use fewer workers or smaller parts. {KEPT}"
        )
    return UserError(f"a process of the cluster ended at {which}; what it said is in {folder}. {KEPT}")


def _n_done(folder: Path) -> int:
    places = [path.read_text(encoding="ascii").split() for path in folder.glob("at_*")]
    return sum(int(place[0]) for place in places if place)


def _run_on_ray(folder: Path, n_tasks: int, n_workers: int, cluster: Cluster) -> int:
    """Run on the Ray cluster that is there (RAY_ADDRESS, or one of this machine); nothing is started."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from datatrove.executor import RayPipelineExecutor
    except ImportError as error:
        raise _missing("datatrove and ray", error) from error
    from loguru import logger

    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers: start one with `ray start --head` ({error})") from error
    slots = n_workers * sum(node["Alive"] for node in ray.nodes())
    # Four ranks a slot: one that is done early takes another. Each costs an actor, so there are no more.
    world_size = min(n_tasks, 4 * slots)
    executor = RayPipelineExecutor(
        [TasksOfRank(str(folder))],
        tasks=world_size,
        workers=slots,
        logging_dir=str(folder),
        mem_per_cpu_gb=cluster.memory_gb,
        ray_remote_kwargs={"runtime_env": {"env_vars": _environment()}},
    )
    logger.disable("datatrove")  # here only; each rank's log is in the folder
    try:
        executor.run()
    finally:
        logger.enable("datatrove")
    tasks = pickle.loads((folder / "tasks.pickle").read_bytes())[1]
    for rank in executor.get_incomplete_ranks(skip_completed=True):
        raise _failure(folder, rank, None, tasks)
    return world_size


def _missing(what: str, error: ImportError) -> UserError:
    return UserError(f"{what} cannot be imported ({error}); install it: pip install 'local-experts[cluster]'")


def main() -> None:
    """Run one pickled executor, as datatrove's own launcher does; SIGTERM puts away what is half written."""
    from datatrove.tools import launch_pickled_pipeline

    signal.signal(signal.SIGTERM, unwind)
    launch_pickled_pipeline.main()


if __name__ == "__main__":
    main()
