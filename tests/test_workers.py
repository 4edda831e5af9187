"""Parts in several processes: order, one thread each, errors as they are, and nothing left running."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_recipes.artefact import UserError, whole_file, write_text
from data_recipes.parts import workers
from data_recipes.parts.workers import ONE_THREAD, run_parts

ROOT = Path(__file__).parents[1]
STILL_THERE_S = 10.0


@dataclass(frozen=True)
class PartTask:
    number: int
    folder: str = ""
    fault: str = ""


class TwoArguments(Exception):
    """Pickles, but cannot be read back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def square(task: PartTask) -> tuple[int, int, dict[str, str | None], str | None]:
    time.sleep(0.05 * (task.number == 0))  # the first is not the first to be ready
    method = multiprocessing.get_start_method(allow_none=True)
    return task.number**2, os.getpid(), {name: os.environ.get(name) for name in ONE_THREAD}, method


def write_or_fail(task: PartTask) -> int:
    if task.number < 2:
        write_text(Path(task.folder) / f"{task.number}.txt", "whole")
        return task.number
    while len(list(Path(task.folder).glob("?.txt"))) < 2:
        time.sleep(0.01)
    if task.fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.fault == "ended":
        os._exit(3)
    raise {
        "user": UserError("row 7 of part 2 is no JSON; mend it"),
        "bug": ZeroDivisionError("a bug"),
        "unreadable": TwoArguments("no", "pe"),
    }[task.fault]


def write_for_ever(task: PartTask) -> None:
    with whole_file(Path(task.folder) / f"{task.number}.part") as partial:
        partial.write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(600)


def tasks_with(fault: str, folder: Path) -> list[PartTask]:
    return [PartTask(i, str(folder), fault) for i in range(3)]


def test_one_worker_is_this_process_and_several_are_spawned_with_one_thread_each():
    tasks = [PartTask(i) for i in range(7)]
    before = dict(os.environ)
    alone, together = run_parts(square, tasks, 1), run_parts(square, tasks, 3)
    assert [result[0] for result in alone] == [result[0] for result in together] == [0, 1, 4, 9, 16, 25, 36]
    assert {result[1] for result in alone} == {os.getpid()}
    assert os.getpid() not in (pids := {result[1] for result in together}) and 2 <= len(pids) <= 3
    assert all(result[2:] == (ONE_THREAD, "spawn") for result in together)
    assert os.environ == before
    assert multiprocessing.active_children() == []


def test_no_tasks_have_no_results_and_one_task_needs_no_other_process():
    assert run_parts(square, [], 4) == []
    assert run_parts(square, [PartTask(3)], 4)[0][1] == os.getpid()


def test_less_than_one_worker_is_an_error():
    with pytest.raises(UserError, match="0 workers: at least 1 is needed"):
        run_parts(square, [PartTask(0)], 0)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_error_of_the_user_arrives_as_it_is(tmp_path: Path, n_workers: int):
    with pytest.raises(UserError) as caught:
        run_parts(write_or_fail, tasks_with("user", tmp_path), n_workers)
    assert str(caught.value) == "row 7 of part 2 is no JSON; mend it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt"]


def test_a_bug_arrives_with_the_traceback_of_its_process(tmp_path: Path):
    with pytest.raises(ZeroDivisionError) as caught:
        run_parts(write_or_fail, tasks_with("bug", tmp_path), 2)
    assert "in write_or_fail" in caught.value.__notes__[0]


def test_an_error_that_cannot_be_sent_arrives_as_its_traceback(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"(?s)in write_or_fail.*TwoArguments: nope"):
        run_parts(write_or_fail, tasks_with("unreadable", tmp_path), 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("killed", r"a worker was killed by signal 9 at task 3 of 3, PartTask\(number=2.*ran out of memory"),
        ("ended", r"a worker ended with exit code 3 at task 3 of 3, PartTask\(number=2.*__main__"),
    ],
)
def test_a_dead_worker_is_one_message_with_its_task_and_finished_parts_stay(
    tmp_path: Path, fault: str, message: str
):
    with pytest.raises(UserError, match=message) as caught:
        run_parts(write_or_fail, tasks_with(fault, tmp_path), 2)
    assert str(caught.value).endswith("The parts that were finished are kept: run it again to go on")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt"]
    assert multiprocessing.active_children() == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals):
    """The two workers are in the middle of a file; Ctrl-C goes to the parent, as from a notebook."""
    code = (
        "from tests.test_workers import *\n"
        # A shell starts what it puts into the background with Ctrl-C ignored, and so may start the tests.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_parts(write_for_ever, [PartTask(i, {str(tmp_path)!r}) for i in range(2)], 2)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while len(pids := [p.read_text() for p in tmp_path.iterdir()]) < 2 or "" in pids:
            assert parent.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        parent.send_signal(number)
        parent.wait(timeout=60)
    finally:
        parent.kill()
    until = time.monotonic() + STILL_THERE_S
    while any(is_running(int(pid)) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert [pid for pid in pids if is_running(int(pid))] == []
    # What is killed can put nothing away; its next run does not take the half file for a whole one.
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == (2 if number == signal.SIGKILL else 0)
    assert all(re.fullmatch(r"\.\d\.part\.partial-\w+", name) for name in left)


def test_a_thread_that_is_not_the_main_one_may_call_it():
    found: list[int] = []
    tasks = [PartTask(1), PartTask(2)]
    thread = threading.Thread(target=lambda: found.extend(r[0] for r in run_parts(square, tasks, 2)))
    thread.start()
    thread.join(timeout=60)
    assert found == [1, 4]


def test_progress_is_said_seldom_and_only_under_a_name(monkeypatch, capsys):
    run_parts(square, [PartTask(i) for i in range(3)], 1, name="text")
    monkeypatch.setattr(workers, "SAY_EVERY_S", 0.0)
    run_parts(square, [PartTask(i) for i in range(2)], 1)
    assert capsys.readouterr().out == ""
    run_parts(square, [PartTask(i) for i in range(2)], 1, name="text")
    assert capsys.readouterr().out == "text      1 of 2 parts\ntext      2 of 2 parts\n"
