"""SIGTERM and Ctrl-C end a training after the step under way, saved, with an exit code for schedulers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interrupted_training import after_optimizer_step, save_run, told_by_both, wait_for
from killed_training import end, start, train_by_command

from finetune import cli
from finetune.checkpoints.checkpoint_files import checkpoint_folders
from finetune.checkpoints.stop_signals import Stopped, stop_requests
from finetune.config import RunConfig

ROOT = Path(__file__).parents[1]
# What `local-experts run` does for train.n_processes=2.
RUN_IN_PROCESSES = """
import sys
from finetune.checkpoints.stop_signals import Stopped
from finetune.config import load_run_config
from finetune.launch import run_in_processes
try:
    run_in_processes("train", load_run_config(sys.argv[1], sys.argv[2:]))
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""
ENDLESS = ("train.n_processes=2", "train.steps=2000", "train.checkpoint.every_steps=null")


@pytest.fixture
def saved_run(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    return save_run(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_under_way_and_ends_with_its_exit_code(
    saved_run: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    exit_code: int,
) -> None:
    former = signal.getsignal(number)
    # A launcher hands the signal on, so that it may come twice.
    with after_optimizer_step(5, lambda: [signal.raise_signal(number) for _ in range(2)]):
        assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == exit_code
    saved = tmp_path / "run/checkpoints/step-5"
    assert f"stopped by {number.name}; the same command goes on from {saved}" in capsys.readouterr().err
    assert signal.getsignal(number) is former
    assert not (tmp_path / "run/adapter").exists()
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert f"resumed from step 5 of {saved}" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_at_once_and_a_signal_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), stop_requests() as request:
        signal.raise_signal(signal.SIGINT)
        request.received_at -= 5
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGTERM after the last step") as caught, stop_requests():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 75


@pytest.mark.slow
def test_a_signal_to_one_process_of_two_stops_both_at_the_same_step(
    saved_run: RunConfig, tmp_path: Path
) -> None:
    config_file = tmp_path / "config.yaml"
    children = start(tmp_path, train_by_command, config_file, ENDLESS, n_processes=2)
    wait_for_steps(tmp_path)
    children[1].terminate()
    assert end(children) == [75, 75]
    told = told_by_both(tmp_path)
    (saved,) = checkpoint_folders(tmp_path / "run/checkpoints")
    assert told.count(f"stopped by SIGTERM; the same command goes on from {saved}") == 1
    assert len((saved / "metrics.jsonl").read_text().split('"loss"')) - 1 == int(saved.name[5:])


@pytest.mark.slow
@pytest.mark.usefixtures("saved_run")
def test_a_run_of_several_processes_hands_sigterm_on_and_ends_with_75(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_IN_PROCESSES, str(tmp_path / "config.yaml"), *ENDLESS],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )
    try:
        wait_for_steps(tmp_path)
        process.terminate()
        assert process.wait(timeout=60) == 75, log.read_text()
    finally:
        process.kill()
    (saved,) = checkpoint_folders(tmp_path / "run/checkpoints")
    told = log.read_text()
    assert told.count(f"stopped by SIGTERM; the same command goes on from {saved}") == 1
    assert "Traceback" not in told


def wait_for_steps(folder: Path) -> None:
    """Wait until a training has told of some steps."""
    metrics = wait_for(lambda: list((folder / "run").glob(".adapter*/*.jsonl")))[0]
    wait_for(lambda: len(metrics.read_text().splitlines()) > 3)
