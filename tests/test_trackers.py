"""TensorBoard and Trackio get the numbers of metrics.jsonl, and no step twice when a run goes on."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from interrupted_training import Crash, after_optimizer_step, crash, save_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.config import RunConfig
from finetune.processes import start_accelerator
from finetune.train import train_stage
from finetune.training.trackers import start_trackers

has_trackio = importlib.util.find_spec("trackio") is not None


@pytest.fixture
def saved_run(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    return save_run(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path)


def crash_after_five_steps(config: RunConfig) -> None:
    with after_optimizer_step(6, crash), pytest.raises(Crash):
        train_stage(config)


def as_of_before(events: Path) -> None:
    """Let the files there be of a process that began earlier: within one second their order is not told."""
    for number, file in enumerate(sorted(events.glob("events.*"))):
        file.rename(file.with_name(f"events.out.tfevents.{number:010}.machine.1.0"))


def lines_by_name(metrics: Path) -> dict[str, dict[int, float]]:
    """Name of a number -> step -> value, by metrics.jsonl."""
    found: dict[str, dict[int, float]] = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        for name in line.keys() - {"step"}:
            found.setdefault(name, {})[line["step"]] = line[name]
    return found


def test_tensorboard_shows_each_step_of_a_crashed_run_once_with_the_numbers_of_metrics_jsonl(
    saved_run: RunConfig, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    config = replace(saved_run, train=replace(saved_run.train, tracker="tensorboard"))
    crash_after_five_steps(config)
    events = tmp_path / "run/tracker/test"
    shown = EventAccumulator(str(events)).Reload()
    assert [event.step for event in shown.Scalars("loss")] == [1, 2, 3, 4, 5], "the last checkpoint has four"
    as_of_before(events)
    told = lines_by_name(train_stage(config) / "metrics.jsonl")
    assert len(list(events.glob("events.*"))) == 2
    shown = EventAccumulator(str(events)).Reload()
    assert set(shown.Tags()["scalars"]) == set(told) >= {"loss", "eval_loss_target", "chosen_share"}
    for name, by_step in told.items():
        values = {event.step: event.value for event in shown.Scalars(name)}
        assert [event.step for event in shown.Scalars(name)] == list(by_step), name
        assert values == pytest.approx(by_step, rel=1e-6), name
    assert len(list(events.glob("*/hparams.yml"))) == 1, "the options are noted when a run begins"


def test_a_run_that_begins_anew_hides_the_older_one_of_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for n_steps, loss in ((5, 2.0), (3, 1.0)):
        accelerator = start_accelerator(1, "cpu", "tensorboard", str(tmp_path))
        start_trackers(accelerator, "test", {"train": "options"})
        for step in range(n_steps):
            accelerator.log({"loss": loss}, step=step + 1)
        accelerator.end_training()
        if loss == 2.0:
            as_of_before(tmp_path / "test")
    shown = EventAccumulator(str(tmp_path / "test")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 1.0)]


class Remembering(GeneralTracker):
    """A tracker that cannot hide anything, as most."""

    name, requires_logging_directory = "remembering", False

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int | None, dict[str, Any]]] = []
        self.options: list[dict[str, Any]] = []

    @property
    def tracker(self) -> Any:
        """Nothing is behind it."""
        return self

    def start(self) -> None:
        """Nothing to open."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Note the options of a run."""
        self.options.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Note the numbers of a step."""
        self.told.append((step, values))


def test_a_tracker_that_cannot_hide_begins_a_run_with_what_was_told_before(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}, {"step": 2, "eval_loss_target": 1.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracker: Any = Remembering()
    accelerator = start_accelerator(1, "cpu")
    accelerator.log_with = [tracker]
    start_trackers(accelerator, "run", {"train": "options"}, 2, tmp_path / "metrics.jsonl")
    assert tracker.options == [{"train": "options"}]
    assert tracker.told == [(1, {"loss": 2.0}), (2, {"loss": 1.5}), (2, {"eval_loss_target": 1.75})]
    fresh: Any = Remembering()
    accelerator.log_with, accelerator.trackers = [fresh], []
    start_trackers(accelerator, "run", {}, 0, None)
    assert fresh.told == [] and fresh.options == [{}]


@pytest.mark.skipif(not has_trackio, reason="the extra `trackio` is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_trackio_has_each_step_of_a_crashed_run_once_in_its_newest_run(
    saved_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    config = replace(saved_run, train=replace(saved_run.train, tracker="trackio"))
    crash_after_five_steps(config)
    told = lines_by_name(train_stage(config) / "metrics.jsonl")["loss"]
    runs = storage.get_runs("test")
    assert len(runs) == 2
    logged = [storage.get_logs("test", run) for run in runs]
    newest = logged[-1]  # by their creation
    losses = [(entry["step"], entry["loss"]) for entry in newest if "loss" in entry]
    assert losses == list(told.items())
