"""Processes that are not as one, and a process that is killed: each is one message, and nothing hangs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_train import write_run_inputs
from test_two_processes import ROOT, TORCHRUN

from data_recipes.artefact import write_json
from data_recipes.settings import settings_dict

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def told(tmp_path_factory: Any) -> list[dict[str, str]]:
    """What each of the two processes of process_cases.py was told."""
    folder = tmp_path_factory.mktemp("processes")
    line = [sys.executable, *TORCHRUN, "tests/process_cases.py", str(folder)]
    finished = subprocess.run(
        line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_what_is_the_same_on_all_processes_passes(told: list[dict[str, str]]) -> None:
    assert {process[case] for process in told for case in ("same adapter", "same rows")} == {"ok"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("one drifted by a bit", "the adapter of process(es) 1 differs from that of process 0"),
        ("rows in another order", "the rows of process(es) 1 differ(s) from process 0's"),
        ("other data", "the data of process(es) 1 differ(s) from process 0's"),
        ("one row twice", "1 different row(s) for 2 processes: take fewer processes, or more rows"),
    ],
)
def test_what_differs_stops_all_processes_with_one_message(
    told: list[dict[str, str]], case: str, message: str
) -> None:
    assert message in told[0][case]
    assert told[1][case] == "ends with 2: without a word"


def test_a_process_that_hangs_ends_the_others_within_the_time_limit(told: list[dict[str, str]]) -> None:
    assert "did not answer within train.layout.time_limit_s=6" in told[0]["the other hangs"]
    assert float(told[0]["seconds"]) < 11


@pytest.mark.parametrize("launcher", ["finetune.launch", "torchrun"])
def test_a_killed_process_ends_all_with_one_message(
    launcher: str, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    write_json(tmp_path / "config.yaml", settings_dict(config))
    arguments = ["--config", str(tmp_path / "config.yaml"), "train.n_processes=2", "train.steps=1000000"]
    starts = {
        "finetune.launch": ["-m", launcher, "train", "2"],
        "torchrun": [*TORCHRUN, "-m", "finetune.train"],
    }
    with (tmp_path / "errors").open("w+", encoding="utf-8") as errors:
        started = subprocess.Popen(
            [sys.executable, *starts[launcher], *arguments],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        try:
            wait_for(lambda: any(file.stat().st_size for file in tmp_path.glob("run/**/metrics.jsonl")), 120)
            os.kill(process_of_rank(started.pid, 1), signal.SIGKILL)
            killed = time.monotonic()
            assert started.wait(timeout=60) != 0
        finally:
            started.kill()
        assert time.monotonic() - killed < 40
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.startswith("error:")]
    if launcher == "finetune.launch":
        assert [line.partition(";")[0] for line in lines] == ["error: train process 1 was killed by signal 9"]
    else:  # torchrun's own report tells of the signal
        assert len(lines) <= 1 and all("another process of this run ended" in line for line in lines)
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_error_of_all_processes_is_told_once(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    write_json(tmp_path / "config.yaml", settings_dict(config))
    config_file = ["--config", str(tmp_path / "config.yaml")]
    changes = ["train.n_processes=2", "train.max_length_tokens=3"]
    finished = subprocess.run(
        [sys.executable, "-m", "finetune.launch", "train", "2", *config_file, *changes],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert finished.stderr.count("error:") == 1 and "max_length_tokens" in finished.stderr


def wait_for(is_so: Any, seconds: float) -> None:
    """Look again until `is_so()`."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


def process_of_rank(launcher: int, rank: int) -> int:
    """The child of `launcher` that runs as that rank."""
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for child in (task / "children").read_text().split():
            if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise AssertionError(f"no process of rank {rank}")
