"""The command line: stages by name, one line for each problem, and no torch before it is needed."""

import errno
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from data_recipes.artefact import UserError
from finetune import run
from finetune.cli import STAGES, main

ROOT = Path(__file__).parents[1]
SMALLEST = "name: small\ndata: {recipe: a.yaml}\ntrain: {steps: 10, learning_rate: 1e-3}\n"
CONFIG_STAGES = [name for name, stage in STAGES.items() if stage.takes_config]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does."""
    line = [sys.executable, "-X", "importtime", "-m", "finetune.cli", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)


def imported(finished: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in finished.stderr.splitlines() if line.startswith("import time:")]
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


def said(finished: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in finished.stderr.splitlines() if not line.startswith("import time:")]


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the `run` stage end in this error."""

    def stage(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(run, "main", stage)


def test_help_names_every_stage_on_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, stage in STAGES.items():
        assert [line for line in lines if line.split()[:1] == [name]] == [f"  {name:<15}{stage.purpose}"]
    assert max(len(line) for line in lines) <= 100


def test_no_stage_is_a_mistake(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "usage: local-experts STAGE" in shown.err
    assert shown.out == ""


def test_an_unknown_stage_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["trian", "--config", "a.yaml"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown stage 'trian'; nearest: train; stages are run, data"
    )


def test_every_stage_has_a_module_with_a_main():
    modules = [importlib.import_module(stage.module) for stage in STAGES.values()]
    assert len(modules) == 17
    assert all(callable(module.main) for module in modules)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["run", "--help"], ["trian"]])
def test_help_imports_no_torch(arguments: list[str]):
    finished = command(*arguments)
    assert finished.returncode == (2 if arguments == ["trian"] else 0)
    assert imported(finished) >= {"yaml", "finetune"}
    assert imported(finished) & {"torch", "transformers", "datasets", "numpy"} == set()


def test_a_bad_config_ends_with_two_and_one_message_before_torch(tmp_path: Path):
    (tmp_path / "bad.yaml").write_text(SMALLEST.replace("steps", "stepz"), encoding="utf-8")
    finished = command("train", "--config", str(tmp_path / "bad.yaml"), "lora.rank=0")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert said(finished)[0] == "error: 3 problems in the settings"
    assert len(said(finished)) == 4
    assert "torch" not in imported(finished)


@pytest.mark.parametrize("stage", [*CONFIG_STAGES, "run"])
def test_a_config_that_cannot_be_read_is_one_line(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flag = [] if stage == "run" else ["--config"]
    for path, reason in {tmp_path / "missing.yaml": "No such file", tmp_path: "Is a directory"}.items():
        assert main([stage, *flag, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: cannot read {path}: {reason}")
        assert error.count("\n") == 1


def test_a_problem_in_a_stage_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    raising(UserError("the plan is for another model"), monkeypatch)
    assert main(["run", "a.yaml"]) == 2
    assert capsys.readouterr().err == "error: the plan is for another model\n"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), RuntimeError("I/O: No space left on device")])
def test_a_full_disk_anywhere_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    raising(error, monkeypatch)
    assert main(["run", "a.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: no space left on the disk")


def test_an_interrupt_ends_with_130_and_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    raising(KeyboardInterrupt(), monkeypatch)
    assert main(["run", "a.yaml"]) == 130
    raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["run", "a.yaml"])
