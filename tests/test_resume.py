"""A killed training goes on where it was: the adapter is that of an uninterrupted one, to the bit.

What is real: the slow test kills processes of the operating system with SIGKILL at random moments (loading,
a step, the writing of a checkpoint), each of which runs `local-experts train` on files on disk, and two of
them talk over gloo. What is not: they are forked with the libraries imported already, meet through a file
instead of torchrun, and the machine itself never loses power.
"""

import json
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_training import train_with_kills
from safetensors.torch import load_file
from test_train import PLAN, chat_rows, train_config, write_run_inputs
from torch.optim.optimizer import register_optimizer_step_post_hook

from data_recipes.artefact import UserError, write_json
from data_recipes.settings import settings_dict
from finetune import cli
from finetune.adapters.adapter import adapter_state, attach
from finetune.batches import Example, step_rows
from finetune.checkpoints.checkpoint_files import checkpoint_folders
from finetune.checkpoints.checkpoints import Checkpoints
from finetune.checkpoints.stop_signals import Stopped, stop_requests
from finetune.config import CheckpointConfig, LoraConfig, RunConfig, load_run_config
from finetune.layouts.layout import data_parallel
from finetune.model import load_model
from finetune.processes import start_accelerator
from finetune.train import train_rows, train_stage
from finetune.training.bad_numbers import BadNumbers

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.2, attention=True)
EVERY_TWO = CheckpointConfig(every_steps=2, every_minutes=None)
# Name, processes, changes to the config. Each is killed, and must end with its own uninterrupted adapter.
LAYOUTS = [("one process", 1, ()), ("data parallel", 2, ())]
N_KILLS = 50  # over all layouts


class Crash(Exception):
    """What ends a training in the middle."""


@contextmanager
def after_optimizer_step(number: int, action: Any) -> Iterator[None]:
    """Inside, `action()` is called when the optimizer has made its `number`-th step (from 1)."""
    counted = iter(range(1, 1000))
    handle = register_optimizer_step_post_hook(lambda *_: action() if next(counted) == number else None)
    try:
        yield
    finally:
        handle.remove()


def crash() -> None:
    raise Crash


class Training:
    """One training of a fresh tiny model, with everything it leaves."""

    def __init__(self, model_factory: Any, tokenizer: Any, folder: Path) -> None:
        self.model_factory, self.tokenizer, self.folder = model_factory, tokenizer, folder
        self.rows = chat_rows(24)
        self.optimizers: list[torch.optim.Optimizer] = []

    def run(self, options: CheckpointConfig = EVERY_TWO, **changes: Any) -> None:
        """Train for nine steps, going on from what is in the folder."""
        model = self.model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        config = train_config(steps=9, weight_decay=0.1, **changes)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", options, {"train.steps": 9})
        seen = register_optimizer_step_post_hook(lambda optimizer, *_: self.optimizers.append(optimizer))
        try:
            self.result = train_rows(
                model,
                self.tokenizer,
                self.rows,
                config,
                3,
                self.rows[:6],
                self.folder / "metrics.jsonl",
                checkpoints=self.checkpoints,
            )
        finally:
            seen.remove()
        self.adapter = adapter_state(model)

    def optimizer_state(self) -> list[dict[str, torch.Tensor]]:
        """The state of each parameter, in the optimizer's order."""
        state = self.optimizers[-1].state_dict()["state"]
        return [state[number] for number in sorted(state)]

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl without times."""
        return lines_without_times(self.folder / "metrics.jsonl")


def lines_without_times(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = ("tokens_per_s", "step_time_s")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


@pytest.fixture
def training(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> Training:
    return Training(tiny_model_factory, tiny_tokenizer, tmp_path)


@pytest.fixture
def saved_run(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    """A run on disk that saves every two of its steps, with its config in config.yaml."""
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    train = replace(config.train, steps=12, checkpoint=EVERY_TWO)
    config = replace(config, train=train, lora=LORA)
    write_json(tmp_path / "config.yaml", settings_dict(config))  # JSON is YAML
    return config


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "run/adapter/adapter.safetensors").read_bytes()


def test_a_run_that_went_on_equals_the_uninterrupted_one_to_the_bit(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = (Training(tiny_model_factory, tiny_tokenizer, tmp_path / name) for name in "ab")
    whole.folder.mkdir()
    broken.folder.mkdir()
    whole.run()
    with after_optimizer_step(6, crash), pytest.raises(Crash):
        broken.run()
    assert len(broken.metrics()) == 6, "five steps and the evaluation after the third"
    # No generator's state is saved: wherever torch, numpy and python stand, the same numbers come.
    torch.manual_seed(999)
    np.random.seed(999)
    random.seed(999)
    broken.run()
    told = capsys.readouterr().out
    assert f"resumed from step 4 of {broken.folder}/checkpoints/step-4" in told
    assert broken.adapter.keys() == whole.adapter.keys() and len(whole.adapter) > 20
    for name, value in whole.adapter.items():
        assert torch.equal(broken.adapter[name], value), name
    states = list(zip(whole.optimizer_state(), broken.optimizer_state(), strict=True))
    assert len(states) == len(whole.adapter)
    for expected, found in states:
        assert expected.keys() == found.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, found[key]) for key, value in expected.items())
        assert float(found["step"]) == 9
    assert broken.metrics() == whole.metrics() and len(whole.metrics()) == 9 + 3
    same = ("steps", "tokens", "first_loss", "last_loss", "n_trainable", "row_order_sha256", "seed")
    assert all(getattr(broken.result, name) == getattr(whole.result, name) for name in same)
    assert broken.result.seconds > broken.result.step_time_s * 8


def test_a_checkpoint_is_of_whole_steps_and_the_newest_are_kept(training: Training) -> None:
    training.run(replace(EVERY_TWO, keep=3))
    folders = checkpoint_folders(training.folder / "checkpoints")
    assert [folder.name for folder in folders] == ["step-4", "step-6", "step-8"]
    head = json.loads((folders[0] / "checkpoint.json").read_text())
    assert head["step"] == 4 and len(head["monitor"]["losses"]) == 4
    assert {path.name for path in folders[0].iterdir()} == {*head["files"], "checkpoint.json"}
    assert sorted(head["files"]) == ["adapter.safetensors", "metrics.jsonl", "optimizer.safetensors"]
    adapter = load_file(folders[-1] / "adapter.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert adapter.keys() == training.adapter.keys()


@pytest.mark.parametrize("harm", ["cut", "changed", "lost", "no head"])
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_taken(
    training: Training, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    with after_optimizer_step(7, crash), pytest.raises(Crash):
        training.run()
    newest = training.folder / "checkpoints" / "step-6"
    file = newest / ("checkpoint.json" if harm == "no head" else "optimizer.safetensors")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "changed":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    half_written = training.folder / "checkpoints" / ".step-8.partial-12345678"
    half_written.mkdir()
    training.run()
    told = capsys.readouterr().out
    assert f"skipped a damaged checkpoint: {'' if harm != 'lost' else 'cannot read '}{file}" in told
    assert "resumed from step 4 of" in told
    assert not half_written.exists()


def test_without_any_whole_checkpoint_it_starts_anew_unless_there_must_be_one(training: Training) -> None:
    with pytest.raises(UserError, match=r"resume=must, but .*checkpoints holds no whole checkpoint"):
        training.run(replace(EVERY_TWO, resume="must"))
    training.run()
    assert training.result.steps == 9


def test_checkpoints_come_by_time_at_no_more_than_two_hundredths_of_it(training: Training) -> None:
    by_time = CheckpointConfig(every_minutes=1e-9)
    training.run(by_time)
    root = training.folder / "checkpoints"
    assert checkpoint_folders(root), "the first one costs nothing that is known"
    write_s = training.checkpoints.write_s
    assert write_s > 0
    shutil.rmtree(root)
    training.run(CheckpointConfig())
    assert not root.exists(), "a run that takes a second writes none"


def crashed(config: RunConfig) -> None:
    """Train until the fifth step, of which nothing is saved."""
    with after_optimizer_step(5, crash), pytest.raises(Crash):
        train_stage(config)


DATA_MESSAGE = "data was cccccccccccc, is dddddddddddd"


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    saved_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashed(saved_run)
    file = tmp_path / "config.yaml"
    refused = {
        "train.learning_rate=0.01": r"step-4 is of another run: train\.learning_rate was 0\.005, is 0\.01\. "
        "Set it back to go on from there, train.checkpoint.resume=changed to go on in spite of it, or "
        "train.checkpoint.resume=never to lose it and start anew",
        "lora.rank=2": r"lora\.rank was 4, is 2\. Set it back to go on from there, or train",
        "train.accumulate=2": r"train\.n_processes x train\.accumulate was 1, is 2",
        "seed=1": "seed was 0, is 1",
    }
    for change, message in refused.items():
        with pytest.raises(UserError, match=message):
            train_stage(load_run_config(file, [change]))
    manifest = tmp_path / "run/data/manifest.json"
    manifest.write_text(manifest.read_text().replace("c" * 64, "d" * 64))
    with pytest.raises(UserError, match=DATA_MESSAGE):
        train_stage(saved_run)
    capsys.readouterr()
    with after_optimizer_step(1, crash), pytest.raises(Crash):
        train_stage(load_run_config(file, ["train.learning_rate=0.01", "train.checkpoint.resume=changed"]))
    told = capsys.readouterr().out
    assert "goes on although train.learning_rate was 0.005, is 0.01" in told
    assert f"goes on although {DATA_MESSAGE}" in told and "resumed from step 4" in told
    with pytest.raises(UserError, match="lora.rank was 4, is 2"):
        train_stage(load_run_config(file, ["lora.rank=2", "train.checkpoint.resume=changed"]))
    with after_optimizer_step(1, crash), pytest.raises(Crash):
        train_stage(load_run_config(file, ["lora.rank=2", "train.checkpoint.resume=never"]))
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_stage_that_crashed_goes_on_and_leaves_only_the_adapter(
    saved_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_stage(saved_run)
    whole, lines = adapter_bytes(tmp_path), lines_without_times(tmp_path / "run/adapter/metrics.jsonl")
    shutil.rmtree(tmp_path / "run/adapter")
    crashed(saved_run)
    (tmp_path / "run/.adapter.partial-01234567").mkdir()  # as a killed process leaves it
    capsys.readouterr()
    # Options that change no number of the adapter may be others.
    train_stage(replace(saved_run, train=replace(saved_run.train, explode_steps=99)))
    assert f"resumed from step 4 of {tmp_path}/run/checkpoints/step-4" in capsys.readouterr().out
    assert adapter_bytes(tmp_path) == whole
    assert lines_without_times(tmp_path / "run/adapter/metrics.jsonl") == lines
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "plan.json", "adapter"}


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


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))

    root = training.folder / "checkpoints"
    told = f"no space left to write {root}/step-4: free some disk.* after step 4: {root}/step-2 is whole"
    try:
        with after_optimizer_step(3, fill), pytest.raises(UserError, match=told + ", and the same command"):
            training.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert [path.name for path in root.iterdir()] == ["step-2"]
    training.run()
    assert "resumed from step 2 of" in capsys.readouterr().out


def test_a_loss_that_is_no_number_names_rows_and_last_checkpoint_and_saves_nothing(
    training: Training,
) -> None:
    poison = training.model_factory
    seen: list[Any] = []

    def remembered(**settings: Any) -> Any:
        seen.append(poison(**settings))
        return seen[-1]

    def harm() -> None:
        with torch.no_grad():
            seen[-1].lm_head.weight[7] = float("nan")

    training.model_factory = remembered
    ids = ", ".join(training.rows[number]["id"] for number in step_rows(24, 8, 5, 3))
    message = (
        rf"loss is nan at step 6, rows {ids}: nothing of this step is kept; the last good checkpoint is "
    )
    with after_optimizer_step(5, harm), pytest.raises(UserError, match=message + r".*/step-4; lower"):
        training.run()
    assert [path.name for path in checkpoint_folders(training.folder / "checkpoints")] == ["step-2", "step-4"]


def test_a_gradient_that_is_no_number_names_all_rows_of_the_step() -> None:
    examples = [Example(f"r{number}", [1], [1]) for number in range(40)]
    numbers = BadNumbers(train_config(), data_parallel(start_accelerator(1, "cpu")))
    with pytest.raises(UserError, match="gradient norm is inf at step 3, rows r0, r1, .*, r31 and 8 more: "):
        numbers.refuse(2, 1.0, 1.0, float("inf"), examples)


def test_a_loss_far_above_its_median_for_some_steps_is_an_explosion() -> None:
    layout = data_parallel(start_accelerator(1, "cpu"))
    config = train_config(explode_ratio=3.0, explode_steps=3)
    usual = [4.0, 3.0, 1.0, 1.0, 1.0]
    # 3.5 is above three times the median, but not above where the loss began; two high ones are a spike.
    calm = BadNumbers(config, layout, None, [*usual, 3.5, 3.5, 3.5, 11.0, 11.0, 1.0, 11.0, 11.0])
    assert not calm.is_calm
    with pytest.raises(
        UserError, match=r"explodes: 3 steps in a row above 3 times its usual 3, now 12, at step 14"
    ):
        calm.refuse(13, 12.0, 12.0, 1.0, [])
    never = BadNumbers(train_config(explode_ratio=None), layout, None, [1.0] + [1e9] * 100)
    never.refuse(101, 1e9, 1e9, 1.0, [])


def test_a_learning_rate_far_too_high_is_an_explosion(training: Training) -> None:
    model = training.model_factory(vocab_size=262)
    with torch.no_grad():
        model.lm_head.weight *= 50  # so that there is a loss to lose
    training.model_factory = lambda **settings: model
    with pytest.raises(UserError, match=r"loss explodes: 2 steps in a row .* rows r\d+, .*step-\d; lower"):
        training.run(learning_rate=1.0, schedule="constant", explode_ratio=1.5, explode_steps=2)
    assert training.checkpoints.newest == training.folder / "checkpoints" / "step-2"


def test_a_killed_run_ends_with_the_adapter_of_an_uninterrupted_one(
    saved_run: RunConfig, tmp_path: Path
) -> None:
    train_stage(saved_run)
    whole = adapter_bytes(tmp_path)
    shutil.rmtree(tmp_path / "run/adapter")
    started = time.monotonic()
    n_killed, _ = train_with_kills(tmp_path, (), 1, 2, seed=1, seconds=0.1)
    assert n_killed == 2 and adapter_bytes(tmp_path) == whole
    assert time.monotonic() - started < 60


def two_processes(folder: Path, *changes: Any) -> tuple[list[int | None], str]:
    """Train in two processes; returns their exit codes and all that both wrote to stdout and stderr."""
    options = (*changes, "train.n_processes=2")
    codes = end(start(folder, train_by_command, folder / "config.yaml", options, n_processes=2))
    return codes, "".join((folder / f"log-{rank}").read_text() for rank in range(2))


@pytest.mark.slow
def test_a_number_that_goes_bad_in_one_process_of_two_ends_both_with_one_message(
    saved_run: RunConfig, tmp_path: Path
) -> None:
    model, tokenizer = load_model(saved_run.base)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.encode("~")] = float("nan")
    rows = chat_rows(24)
    orders = [step_rows(24, 8, step, 0) for step in range(3)]
    # In the third step, and in the half of its rows that is the second process's.
    rows[orders[2][5]]["messages"][0]["content"] += "~"
    config = write_run_inputs(tmp_path / "bad", model, tokenizer, rows)
    write_json(tmp_path / "bad/config.yaml", settings_dict(replace(saved_run, base=config.base)))
    codes, told = two_processes(tmp_path / "bad", f"output={tmp_path}/bad/run")
    assert codes == [2, 2], told
    named = ", ".join(rows[number]["id"] for number in orders[2][4:])
    last = f"{tmp_path}/bad/run/checkpoints/step-2"
    assert told.count("error: ") == 1 and "Traceback" not in told
    assert f"error: the loss is nan at step 3, rows {named}: nothing" in told
    assert f"the last good checkpoint is {last}; lower" in told
    assert [path.name for path in checkpoint_folders(tmp_path / "bad/run/checkpoints")] == ["step-2"]
    assert all(value.isfinite().all() for value in load_file(Path(last) / "adapter.safetensors").values())


@pytest.mark.slow
def test_a_signal_to_one_process_of_two_stops_both_at_the_same_step(
    saved_run: RunConfig, tmp_path: Path
) -> None:
    children = start(
        tmp_path,
        train_by_command,
        tmp_path / "config.yaml",
        ("train.n_processes=2", "train.steps=2000", "train.checkpoint.every_steps=null"),
        n_processes=2,
    )
    metrics = wait_for(lambda: [path for path in (tmp_path / "run").glob(".adapter*/*.jsonl")])[0]
    wait_for(lambda: len(metrics.read_text().splitlines()) > 3)
    children[1].terminate()
    assert end(children) == [75, 75]
    told = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(2))
    (saved,) = checkpoint_folders(tmp_path / "run/checkpoints")
    assert told.count(f"stopped by SIGTERM; the same command goes on from {saved}") == 1
    assert len((saved / "metrics.jsonl").read_text().split('"loss"')) - 1 == int(saved.name[5:])


@pytest.mark.slow
def test_a_process_that_does_not_see_the_checkpoint_stops_both(saved_run: RunConfig, tmp_path: Path) -> None:
    crashed(replace(saved_run, train=replace(saved_run.train, accumulate=2)))
    here, there = tmp_path, tmp_path / "other machine"
    shutil.copytree(here / "run", there / "run", ignore=shutil.ignore_patterns("checkpoints"))
    options = ("train.n_processes=2", "output=run")
    children = start(
        tmp_path, train_by_command, tmp_path / "config.yaml", options, [here, there], n_processes=2
    )
    assert end(children) == [2, 2]
    told = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(2))
    assert told.count("error: ") == 1
    message = "error: process 1: run/checkpoints/step-4/checkpoint.json does not exist"
    assert message in told and "all machines must see the same output folder" in told


def compare_adapters(value: float) -> None:
    """What a process does that holds this adapter."""
    layout = data_parallel(start_accelerator(2, "cpu"))
    check_same(layout, {"A": nn.Parameter(torch.tensor([1.0]))})
    check_same(layout, {"A": nn.Parameter(torch.tensor([value]))})


@pytest.mark.slow
def test_adapters_that_drifted_apart_stop_all_processes(tmp_path: Path) -> None:
    children = start(tmp_path, compare_adapters, [1.0, 1.0 + 2**-23], n_processes=2)
    assert end(children) == [2, 2]
    told = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(2))
    assert told.count("error: the adapters of processes [1] are not that of process 0") == 1


def wait_for(found: Any) -> Any:
    """The first true value that `found()` gives."""
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.01)
    return value


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    saved_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(saved_run, lora=replace(LORA, dropout=0.0), train=replace(saved_run.train, steps=40))
    write_json(tmp_path / "config.yaml", settings_dict(config))
    train_stage(config)
    whole = load_file(tmp_path / "run/adapter/adapter.safetensors")
    lines = lines_without_times(tmp_path / "run/adapter/metrics.jsonl")
    crashed(config)
    codes, told = two_processes(tmp_path)
    assert codes == [0, 0] and "resumed from step 4" in told, told
    assert_close(tmp_path, whole, lines)
    shutil.rmtree(tmp_path / "run/adapter")
    two = start(tmp_path, train_by_command, tmp_path / "config.yaml", ("train.n_processes=2",), n_processes=2)
    wait_for(lambda: checkpoint_folders(tmp_path / "run/checkpoints"))
    kill(two)
    capsys.readouterr()
    train_stage(config)
    assert "resumed from step" in capsys.readouterr().out
    assert_close(tmp_path, whole, lines)


def assert_close(folder: Path, adapter: dict[str, torch.Tensor], lines: list[dict[str, float]]) -> None:
    found = load_file(folder / "run/adapter/adapter.safetensors")
    for name, value in adapter.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    found_lines = lines_without_times(folder / "run/adapter/metrics.jsonl")
    assert [line["step"] for line in found_lines] == [line["step"] for line in lines]
    for line, expected in zip(found_lines, lines, strict=True):
        assert line == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "n_processes", "changes"), LAYOUTS)
def test_killed_at_random_moments_it_ends_with_the_adapter_of_an_uninterrupted_run(
    saved_run: RunConfig, tmp_path: Path, layout: str, n_processes: int, changes: tuple[str, ...]
) -> None:
    changes = (*changes, f"train.n_processes={n_processes}", "train.steps=60")
    n_kills, n_torn, seed = 0, 0, 0
    arguments = (train_by_command, tmp_path / "config.yaml", changes)
    started = time.monotonic()
    assert end(start(tmp_path, *arguments, n_processes=n_processes)) == [0] * n_processes
    seconds = time.monotonic() - started
    whole = adapter_bytes(tmp_path)
    lines = lines_without_times(tmp_path / "run/adapter/metrics.jsonl")
    while n_kills < N_KILLS // len(LAYOUTS):
        shutil.rmtree(tmp_path / "run/adapter")
        killed, torn = train_with_kills(tmp_path, changes, n_processes, 5, seed, 0.7 * seconds)
        n_kills, n_torn, seed = n_kills + killed, n_torn + torn, seed + 1
        assert adapter_bytes(tmp_path) == whole, f"{layout}, seed {seed}"
        assert lines_without_times(tmp_path / "run/adapter/metrics.jsonl") == lines
    assert n_torn >= n_kills // 5, "kills in the middle of writing a checkpoint"
    print(
        f"{layout}: {n_kills} kills, {n_torn} while a checkpoint was written, {time.monotonic() - started:.0f} s"
    )
