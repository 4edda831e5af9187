"""Run a function over the tasks of a stage, in this process or in several on this machine.

A function takes one picklable task, reads and writes part files, and returns a small summary; both it and the
tasks belong to a module that can be imported. Reads and writes nothing itself. More machines:
`data_recipes.parts.datatrove_engine`, by the same function and tasks.

The processes are spawned, never forked: torch, tokenizers and Arrow have threads, which a fork loses with
their locks held. Neither of the standard pools would do: `multiprocessing.Pool` waits for ever for a worker
that was killed, and `ProcessPoolExecutor` does not say which task it had, nor ends what runs.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

from data_recipes.artefact import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Read when the libraries are loaded, so they must stand before a process starts. Rayon is what tokenizers and
# rensa have.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SAY_EVERY_S = 15.0
GRACE_S = 5.0  # for a stopped worker to remove the file it was writing


def run_parts(
    function: Callable[[Task], Result], tasks: Sequence[Task], n_workers: int, name: str = ""
) -> list[Result]:
    """Return what `function` gives for each task, in the order of the tasks.

    With one worker, or one task, everything runs in this process. The first error ends the work; what was
    written before stays. `name` is what a long run is called in its progress lines; "" prints none.

    Raises:
        UserError: a task's own, as it is; a worker was killed; there is less than one worker.
    """
    if n_workers < 1:
        raise UserError(f"{n_workers} workers: at least 1 is needed")
    progress = _Progress(name, len(tasks))
    if min(n_workers, len(tasks)) <= 1:
        results = []
        for task in tasks:
            results.append(function(task))
            progress.one_more()
        return results
    with _pool(function, min(n_workers, len(tasks))) as workers:
        return _results(workers, tasks, progress)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: int = -1  # the place of the task it has


class _Progress:
    """Says how many tasks are done, seldom enough for a log file."""

    def __init__(self, name: str, n_tasks: int) -> None:
        self.name, self.n_tasks, self.n_done, self.said = name, n_tasks, 0, time.monotonic()

    def one_more(self) -> None:
        self.n_done += 1
        if self.name and time.monotonic() - self.said >= SAY_EVERY_S:
            self.said = time.monotonic()
            print(f"{self.name:<9} {self.n_done:,} of {self.n_tasks:,} parts", flush=True)


def _results(workers: list[_Worker], tasks: Sequence[Any], progress: _Progress) -> list[Any]:
    results: list[Any] = [None] * len(tasks)
    waiting = iter(range(len(tasks)))
    for worker in workers:
        _hand_out(worker, tasks, waiting)
    while busy := {worker.pipe: worker for worker in workers if worker.task >= 0}:
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]  (what was given is what comes back)
            result, error = _answer(worker, tasks)
            if error is not None:
                raise error
            results[worker.task] = result
            progress.one_more()
            _hand_out(worker, tasks, waiting)
    return results


def _hand_out(worker: _Worker, tasks: Sequence[Any], waiting: Iterator[int]) -> None:
    worker.task = next(waiting, -1)
    if worker.task >= 0:
        # A worker that is dead already is found by `_answer`, which knows what to say.
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send(tasks[worker.task])


def _answer(worker: _Worker, tasks: Sequence[Any]) -> tuple[Any, BaseException | None]:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(GRACE_S)
    code = worker.process.exitcode
    which = f"task {worker.task + 1} of {len(tasks)}, {tasks[worker.task]!r:.300}"
    kept = "The parts that were finished are kept: run it again to go on"
    if code is not None and code < 0:
        raise UserError(
            f"a worker was killed by signal {-code} at {which}. If nobody stopped it, the machine ran out of "
            f"memory: use fewer workers or smaller parts. {kept}"
        )
    raise UserError(
        f"a worker ended with exit code {code} at {which}; its message stands above. A script of your own "
        f'must start the work under `if __name__ == "__main__":`. {kept}'
    )


@contextmanager
def _pool(function: Callable[[Any], Any], n_workers: int) -> Iterator[list[_Worker]]:
    """Start the processes; end them whatever happens, also on SIGTERM, which would leave them running."""
    workers: list[_Worker] = []
    with terminable():
        try:
            with _environment(ONE_THREAD):
                for _ in range(n_workers):
                    workers.append(_start(function))
            yield workers
            for worker in workers:
                worker.pipe.close()  # a worker that waits for a task ends
                worker.process.join(GRACE_S)
        finally:
            _stop(workers)


def _start(function: Callable[[Any], Any]) -> _Worker:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_work, args=(function, there), daemon=True)
    process.start()
    there.close()  # so that the pipe ends when the process does
    return _Worker(process, here)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    """What a process does: a task comes in, its result or its error goes out, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first of them decides
    signal.signal(signal.SIGTERM, unwind)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                answer = function(task), None
            except Exception as error:
                answer = None, _sendable(error)
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; one that does not survive pickling as a RuntimeError."""
    if isinstance(error, UserError):
        return error
    note = f"in a worker process:\n{traceback.format_exc()}"
    try:
        error.add_note(note)
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # whatever a foreign class does when it is pickled
        return RuntimeError(note)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def unwind(_number: int, _frame: Any) -> NoReturn:
    """A signal's handler: end this process, but put away what is half made."""
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM unwinds as an interrupt does; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
