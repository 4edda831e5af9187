"""Validation losses decide when a training stops early and which adapter is kept, also after a crash."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_training import (
    EVERY_TWO,
    Crash,
    Training,
    adapter_bytes,
    after_optimizer_step,
    crash,
    crashed,
    lines_without_times,
    save_run,
    train_in_two_processes,
)
from killed_training import train_with_kills
from safetensors.torch import load_file
from test_train import LORA, PLAN, chat_rows, train_config

from data_recipes.artefact import UserError, read_artefact, write_json
from data_recipes.settings import load_settings, settings_dict
from finetune.adapters.adapter import attach
from finetune.checkpoints.checkpoint_files import checkpoint_folders
from finetune.config import RunConfig, load_run_config
from finetune.layouts.layout import data_parallel
from finetune.processes import start_accelerator
from finetune.train import train_rows, train_stage
from finetune.training.losses import Losses
from finetune.training.monitor import Monitor
from finetune.training.validation import Lowest, Validation
from finetune.training_options import EarlyStopConfig, TrainConfig

# Nothing is that much better: the second evaluation, after six steps, is the first that is not.
STOPS_AT_6 = EarlyStopConfig(patience=1, min_delta=10.0)
# The rate grows until the loss of the validation rows rises again.
RISING: dict[str, Any] = {"learning_rate": 0.03, "schedule": "constant", "warmup_steps": 8}


def validation(parameter: torch.nn.Parameter, **changes: Any) -> Validation:
    """One of a run that trains `parameter` and evaluates two groups."""
    layout, config = data_parallel(start_accelerator(1, "cpu")), train_config(steps=99, **changes)
    losses, monitor = Losses(None, layout, config, 0, 0), Monitor(layout.accelerator, None, 99)
    return Validation({"target": [], "general": []}, losses, monitor, config, {"a.B": parameter})


def noted(found: Validation, group: str, losses: list[float]) -> list[bool]:
    """Whether the run is over after each loss of `group`; that of the other group always falls."""
    other = {"target": "general", "general": "target"}[group]
    over = []
    for number, loss in enumerate(losses):
        found.note(number + 1, {group: loss, other: -float(number)})
        over.append(found.is_over)
    return over


@pytest.mark.parametrize("group", ["target", "general"])
def test_a_run_is_over_after_so_many_evaluations_without_a_lower_loss_of_its_group(group: Any) -> None:
    stop = EarlyStopConfig(patience=2, min_delta=0.1, group=group)
    # 1.95 is not 0.1 below 2.0; 1.85 is, and then 1.8 and 1.76 are not 0.1 below 1.85.
    losses = [2.0, 1.95, 1.85, 1.8, 1.76, 1.0]
    found = validation(torch.nn.Parameter(torch.ones(1)), early_stop=stop)
    assert noted(found, group, losses) == [False, False, False, False, True, False]
    assert found.lowest[group] == Lowest(1.0, 6)
    assert not any(noted(validation(torch.nn.Parameter(torch.ones(1))), group, [1.0] * 50))


def test_the_adapter_of_the_lowest_loss_is_kept_and_put_back() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    found = validation(parameter, keep_best="general")
    for step, loss in enumerate([float("nan"), 2.0, 2.0, float("nan"), 2.5], start=1):
        with torch.no_grad():
            parameter.fill_(step)
        found.note(step, {"target": -step, "general": loss})
    assert found.outcome(5) == {
        "lowest_eval_loss": {"target": -5, "general": 2.0},
        "lowest_eval_step": {"target": 5, "general": 2},
        "adapter_step": 2,
        "stopped_early": False,
    }
    found.put_best_back()
    assert parameter.tolist() == [2.0, 2.0], "the first of two equal ones"


def test_what_another_group_decided_does_not_count() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    first = validation(parameter, early_stop=EarlyStopConfig(patience=1), keep_best="target")
    noted(first, "target", [1.0, 2.0])
    state = json.loads(json.dumps(first.state()))
    same = validation(parameter, early_stop=EarlyStopConfig(patience=1), keep_best="target")
    same.restore(state, first.kept)
    assert same.is_over and same.kept_at == Lowest(1.0, 1) and same.kept.keys() == {"a.B"}
    changed = EarlyStopConfig(patience=1, group="general")
    other = validation(parameter, early_stop=changed, keep_best="general")
    other.restore(state, first.kept)
    assert not other.is_over and other.kept_at is None and other.lowest == first.lowest
    old = validation(parameter, early_stop=changed, keep_best="general")
    old.restore({}, {})
    assert not old.is_over and old.lowest == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_best": "general"}, "train.keep_best=general: .* no validation rows .*; there are target"),
        ({"early_stop": EarlyStopConfig(patience=1)}, "train.early_stop.group=target: .*are none at all"),
    ],
)
def test_a_group_without_rows_cannot_decide(
    tiny_model_factory: Any, tiny_tokenizer: Any, changes: dict[str, Any], message: str
) -> None:
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    held_out = chat_rows(3)[1:] if "keep_best" in changes else []
    with pytest.raises(UserError, match=message):
        train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=9, **changes), 0, held_out)


def test_options_that_cannot_stop_a_run_are_problems() -> None:
    shared = ["steps=40", "learning_rate=1e-3", "eval_every=10"]
    with pytest.raises(UserError) as caught:
        load_settings(TrainConfig, None, [*shared, "early_stop.patience=3"])
    assert "early_stop.patience: 3 with eval_every 10 cannot stop before steps (40)" in str(caught.value)
    with pytest.raises(UserError, match=r"early_stop\.patience = 0: must be at least 1"):
        load_settings(TrainConfig, None, [*shared, "early_stop.patience=0"])
    with pytest.raises(UserError, match=r"early_stop\.min_delta = -1.0: must be at least 0"):
        load_settings(TrainConfig, None, [*shared, "early_stop.patience=1", "early_stop.min_delta=-1"])
    config = load_settings(TrainConfig, None, [*shared, "early_stop.patience=2", "keep_best=general"])
    assert config.early_stop == EarlyStopConfig(patience=2) and config.keep_best == "general"


def test_options_of_the_loop_that_no_run_can_use_are_refused_from_python_too(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    bad = train_config(learning_rate=-1.0, batch_size=2, accumulate=4)
    with pytest.raises(UserError, match=r"cannot be used\n  learning_rate: .* 0\n  batch_size: must"):
        train_rows(model, tiny_tokenizer, chat_rows(8), bad)


def folder_of(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_kept_adapter_is_that_of_a_run_that_ends_at_the_lowest_loss_also_after_a_crash(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    whole, broken = (
        Training(tiny_model_factory, tiny_tokenizer, folder_of(tmp_path / name)) for name in "ab"
    )
    whole.run(keep_best="target", **RISING)
    losses = {line["step"]: line["eval_loss_target"] for line in whole.metrics() if "loss" not in line}
    assert losses[6] < losses[3] and losses[6] < losses[9], "the best is not the last"
    assert (whole.result.adapter_step, whole.result.lowest_eval_step["target"]) == (6, 6)
    assert whole.result.lowest_eval_loss["target"] == losses[6]
    # Removed by keep=2 or not, the best one is in each checkpoint that follows it.
    with after_optimizer_step(9, crash), pytest.raises(Crash):
        broken.run(replace(EVERY_TWO, keep=1), keep_best="target", **RISING)
    (saved,) = checkpoint_folders(broken.folder / "checkpoints")
    assert saved.name == "step-8" and (saved / "best.safetensors").exists()
    broken.run(replace(EVERY_TWO, keep=1), keep_best="target", **RISING)
    assert broken.metrics() == whole.metrics()
    folders = checkpoint_folders(whole.folder / "checkpoints")
    at_6, at_8 = (load_file(folder / "adapter.safetensors") for folder in folders)
    assert whole.adapter.keys() == at_6.keys() and len(at_6) > 20
    for name, value in whole.adapter.items():
        assert torch.equal(broken.adapter[name], value) and torch.equal(at_6[name], value), name
    assert not all(torch.equal(at_8[name], value) for name, value in whole.adapter.items())


def test_a_run_that_stopped_early_stops_again_from_the_checkpoint_of_that_step(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    whole, broken = (
        Training(tiny_model_factory, tiny_tokenizer, folder_of(tmp_path / name)) for name in "ab"
    )
    whole.run(early_stop=STOPS_AT_6)
    assert whole.result.steps == whole.result.adapter_step == 6 and whole.result.stopped_early
    with after_optimizer_step(5, crash), pytest.raises(Crash):
        broken.run(early_stop=STOPS_AT_6)
    for _ in range(2):  # from step 4, then from step 6, where nothing is left to do
        broken.run(early_stop=STOPS_AT_6)
        assert broken.metrics() == whole.metrics() and len(whole.metrics()) == 6 + 2
        assert broken.result.steps == 6 and broken.result.stopped_early
        assert all(torch.equal(broken.adapter[name], value) for name, value in whole.adapter.items())


@pytest.fixture
def saved_run(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    return save_run(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path)


def test_a_checkpoint_from_before_these_options_goes_on_without_them_and_not_with_them(
    saved_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed(saved_run)
    (newest,) = [path for path in checkpoint_folders(tmp_path / "run/checkpoints") if path.name == "step-4"]
    head = json.loads((newest / "checkpoint.json").read_text())
    assert not {name for name in head["run"] if "early_stop" in name or "keep_best" in name}
    del head["validation"], head["monitor"]["peak_memory_bytes"]
    (newest / "checkpoint.json").write_text(json.dumps(head))
    with pytest.raises(UserError, match=r"train\.keep_best was not there, is target"):
        train_stage(load_run_config(tmp_path / "config.yaml", ["train.keep_best=target"]))
    capsys.readouterr()
    folder = train_stage(saved_run)
    assert "resumed from step 4" in capsys.readouterr().out
    result = read_artefact(folder / "train.json", "train_result")
    assert result["lowest_eval_step"].keys() == {"target", "general"} and not result["stopped_early"]


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_killed_with_both_options_on_it_ends_with_the_adapter_of_an_uninterrupted_one(
    saved_run: RunConfig, tmp_path: Path, n_processes: int
) -> None:
    stop, rising = EarlyStopConfig(patience=3, min_delta=10.0), {**RISING, "learning_rate": 0.1}
    train = replace(saved_run.train, steps=40, keep_best="general", early_stop=stop, **rising)
    write_json(tmp_path / "config.yaml", settings_dict(replace(saved_run, train=train)))
    changes = (f"train.n_processes={n_processes}",)
    assert train_with_kills(tmp_path, changes, n_processes, 0, 0, 0.0) == (0, 0)
    whole = adapter_bytes(tmp_path)
    lines: list[dict[Any, float]] = lines_without_times(tmp_path / "run/adapter/metrics.jsonl")
    result = read_artefact(tmp_path / "run/adapter/train.json", "train_result")
    losses = {line["step"]: line["eval_loss_general"] for line in lines if "loss" not in line}
    assert result["stopped_early"] and result["steps"] == 12 and len(losses) == 4
    assert result["adapter_step"] == min(losses, key=lambda step: losses[step])
    assert result["adapter_step"] == 9 or n_processes == 2, "the best is not the last"
    shutil.rmtree(tmp_path / "run/adapter")
    n_killed, _ = train_with_kills(tmp_path, changes, n_processes, 4, seed=3, seconds=0.4)
    assert n_killed > 0
    assert adapter_bytes(tmp_path) == whole
    assert lines_without_times(tmp_path / "run/adapter/metrics.jsonl") == lines


@pytest.mark.slow
@pytest.mark.usefixtures("saved_run")
def test_two_processes_stop_at_the_same_step_with_the_same_adapter(tmp_path: Path) -> None:
    changes = ("train.early_stop.patience=1", "train.early_stop.min_delta=10", "train.keep_best=target")
    codes, told = train_in_two_processes(tmp_path, *changes)
    assert codes == [0, 0], told
    result = read_artefact(tmp_path / "run/adapter/train.json", "train_result")
    assert result["stopped_early"] and result["steps"] == 6
