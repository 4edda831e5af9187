"""The tasks of a stage on a cluster of two nodes: each a process of its own, and they meet in a folder."""

import glob
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_recipes.artefact import UserError, sha256_folder, whole_file, write_text
from data_recipes.parts import workers
from data_recipes.parts.datatrove_engine import Cluster, run_parts
from tests.test_workers import is_running

ROOT = Path(__file__).parents[1]
TWO_NODES = ("env NODE=one", "env NODE=two")


@dataclass(frozen=True)
class PartTask:
    number: int
    folder: str
    wait_for: int = 0  # how many other parts must be under way: so they run at the same time
    fault: str = ""


def write_part(task: PartTask) -> dict[str, str | int | None]:
    folder = Path(task.folder)
    write_text(folder / f"{task.number}.started", "")
    until = time.monotonic() + 60
    while len(list(folder.glob("*.started"))) < task.wait_for and time.monotonic() < until:
        time.sleep(0.01)
    if task.fault and task.number == 3:
        if task.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("row 7 is half a character: \ud83d") if task.fault == "user" else ZeroDivisionError
    write_text(folder / "parts" / f"{task.number}.jsonl", f'{{"part": {task.number}, "text": "பகுதி"}}')
    node, threads = os.environ.get("NODE"), os.environ.get("OMP_NUM_THREADS")
    return {"number": task.number, "pid": os.getpid(), "node": node, "threads": threads}


def write_for_ever(task: PartTask) -> None:
    with whole_file(Path(task.folder) / f"{task.number}.part") as partial:
        partial.write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(600)


def processes_that_name(folder: Path) -> list[str]:
    lines = [Path(path) for path in glob.glob("/proc/[0-9]*/cmdline")]
    return [path.parent.name for path in lines if str(folder) in read_or_nothing(path)]


def read_or_nothing(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended in between
        return ""


def tasks_in(folder: Path, **options) -> list[PartTask]:
    folder.mkdir(exist_ok=True)
    return [PartTask(i, str(folder), **options) for i in range(5)]


def test_two_nodes_at_once_give_the_bytes_and_the_results_of_one_process(tmp_path: Path):
    alone = workers.run_parts(write_part, tasks_in(tmp_path / "alone"), 1)
    cluster = Cluster(str(tmp_path / "shared"), nodes=TWO_NODES)
    together = run_parts(write_part, tasks_in(tmp_path / "together", wait_for=2), 1, "text", cluster=cluster)
    assert sha256_folder(tmp_path / "together/parts") == sha256_folder(tmp_path / "alone/parts")
    assert (
        [result["number"] for result in together] == [result["number"] for result in alone] == list(range(5))
    )
    # A rank runs every second task.
    assert [result["node"] for result in together] == ["one", "two", "one", "two", "one"]
    assert len({result["pid"] for result in together} | {os.getpid()}) == 3
    assert {result["threads"] for result in together} == {"1"}
    assert list((tmp_path / "shared").iterdir()) == []


def test_no_tasks_start_nothing(tmp_path: Path):
    assert run_parts(write_part, [], 2, cluster=Cluster(str(tmp_path / "shared"))) == []
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("user", UserError, "^row 7 is half a character: \ud83d$"),
        ("bug", RuntimeError, r"(?s)in process 1 of the cluster:.*in write_part.*ZeroDivisionError"),
        (
            "killed",
            UserError,
            r"killed by signal 9 at task 4 of 6, PartTask\(number=3.*run it again to go on$",
        ),
    ],
)
def test_a_fault_in_one_node_ends_the_other_and_is_one_message(
    tmp_path: Path, fault: str, kind: type[Exception], message: str
):
    cluster = Cluster(str(tmp_path / "shared"), nodes=("", ""))
    tasks = [*tasks_in(tmp_path / "rows", fault=fault), PartTask(5, str(tmp_path / "rows"), wait_for=99)]
    tasks[2] = PartTask(2, str(tmp_path / "rows"), wait_for=99)  # of the other node: waits till it is ended
    tasks[3] = replace(tasks[3], wait_for=4)  # it fails when the other node has done the first and is at this
    with pytest.raises(kind, match=message):
        run_parts(write_part, tasks, 1, cluster=cluster)
    kept = sorted(path.name for path in (tmp_path / "rows/parts").iterdir())
    assert kept == ["0.jsonl", "1.jsonl"]
    # Not even the process that datatrove starts beside each of its own; what was killed takes a moment.
    until = time.monotonic() + 10
    while processes_that_name(tmp_path / "shared") and time.monotonic() < until:
        time.sleep(0.02)
    assert processes_that_name(tmp_path / "shared") == []


def test_nothing_runs_on_when_the_run_is_stopped(tmp_path: Path):
    tasks = f"[PartTask(i, {str(tmp_path / 'rows')!r}) for i in range(2)]"
    cluster = f"Cluster({str(tmp_path / 'shared')!r}, nodes=('', ''))"
    code = (
        f"from tests.test_datatrove_engine import *\nrun_parts(write_for_ever, {tasks}, 1, cluster={cluster})"
    )
    (tmp_path / "rows").mkdir()
    run = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while len(pids := [path.read_text() for path in (tmp_path / "rows").iterdir()]) < 2 or "" in pids:
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        run.terminate()
        assert run.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        run.kill()
    assert [pid for pid in pids if is_running(int(pid))] == processes_that_name(tmp_path / "shared") == []
    assert list((tmp_path / "rows").iterdir()) == []  # the half file of each was put away


def test_a_node_that_does_not_answer_is_one_message_with_the_place_of_its_words(tmp_path: Path):
    cluster = Cluster(str(tmp_path / "shared"), nodes=("false",))
    with pytest.raises(UserError, match="ended at task 1 of 5.*what it said is in") as caught:
        run_parts(write_part, tasks_in(tmp_path / "rows"), 1, cluster=cluster)
    assert re.findall(r"is in (\S+)\. ", str(caught.value)) == [
        str(p) for p in (tmp_path / "shared").iterdir()
    ]


def test_what_is_wrong_with_a_cluster_is_told_together():
    with pytest.raises(UserError, match=r"no folder .*executor='dask', no nodes, memory_gb=0 "):
        Cluster("", executor="dask", nodes=(), memory_gb=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="0 workers"):
        run_parts(write_part, [], 0, cluster=Cluster("shared"))


RAY_CLUSTER = """
import os
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
from ray.cluster_utils import Cluster as RayCluster
from tests.test_datatrove_engine import *
two = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1})
two.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = two.address
try:
    folder = Path(os.environ["FOLDER"])
    cluster = Cluster(str(folder / "shared"), executor="ray", memory_gb=0.2)
    results = run_parts(write_part, tasks_in(folder / "ray", wait_for=2), 1, cluster=cluster)
    print([result["number"] for result in results], {result["threads"] for result in results})
    tasks = tasks_in(folder / "fault", fault="user")
    try:
        run_parts(write_part, tasks, 1, cluster=cluster)
    except UserError as error:
        print("UserError", ascii(str(error)))
finally:
    import ray
    ray.shutdown()
    two.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_of_ray_give_the_bytes_of_one_process(tmp_path: Path):
    pytest.importorskip("ray", reason="Ray is not installed")
    workers.run_parts(write_part, tasks_in(tmp_path / "alone"), 1)
    environment = {**os.environ, "FOLDER": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", RAY_CLUSTER], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "[0, 1, 2, 3, 4] {'1'}" in run.stdout
    assert r"UserError 'row 7 is half a character: \ud83d'" in run.stdout
    assert sha256_folder(tmp_path / "ray/parts") == sha256_folder(tmp_path / "alone/parts")
