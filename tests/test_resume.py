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
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted_training import (
    EVERY_TWO,
    LORA,
    Crash,
    Training,
    adapter_bytes,
    after_optimizer_step,
    crash,
    crashed,
    lines_without_times,
    save_run,
    told_by_both,
    train_in_two_processes,
    wait_for,
)
from killed_training import end, kill, start, train_by_command, train_with_kills
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from data_recipes.artefact import UserError, write_json
from data_recipes.settings import settings_dict
from finetune.checkpoints.checkpoint_files import checkpoint_folders
from finetune.checkpoints.checkpoints import put_back
from finetune.config import RunConfig, load_run_config
from finetune.train import train_stage
from finetune.training_options import CheckpointConfig

# Name, processes, changes to the config. Each is killed, and must end with its own uninterrupted adapter.
LAYOUTS: list[tuple[str, int, tuple[str, ...]]] = [
    ("one process", 1, ()),
    ("data parallel", 2, ()),
    ("fsdp", 2, ("train.layout.kind=fsdp",)),
    ("expert_parallel", 2, ("train.layout.kind=expert_parallel", "lora.dropout=0")),
    ("expert_parallel_fsdp", 2, ("train.layout.kind=expert_parallel_fsdp", "lora.dropout=0")),
]
N_KILLS = 50  # over all layouts


@pytest.fixture
def training(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> Training:
    return Training(tiny_model_factory, tiny_tokenizer, tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are killed: the last bits depend on the number of threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def saved_run(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    return save_run(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path)


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


def test_an_adapter_of_other_parameters_takes_nothing_from_a_checkpoint() -> None:
    own = {"a": torch.nn.Parameter(torch.zeros(2, 3))}
    optimizer = torch.optim.AdamW(own.values())
    for other in ({"a": torch.ones(3, 2)}, {"b": torch.ones(2, 3)}, {}):
        with pytest.raises(UserError, match="other parameters than this one.*train.checkpoint.resume=never"):
            put_back(own, optimizer, other, {})
    assert not own["a"].any()


def test_values_that_are_no_numbers_are_not_saved(training: Training) -> None:
    seen: list[torch.nn.Parameter] = []

    def harmed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        seen.append(optimizer.param_groups[0]["params"][0])
        if len(seen) == 4:
            with torch.no_grad():
                seen[-1][0, 0] = torch.inf

    handle = register_optimizer_step_post_hook(harmed)
    message = (
        "after step 4 .* holds values that are no numbers; training stopped after step 4: .*step-2 is whole"
    )
    try:
        with pytest.raises(UserError, match=message):
            training.run()
    finally:
        handle.remove()
    assert [path.name for path in checkpoint_folders(training.folder / "checkpoints")] == ["step-2"]


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
        "train.memory.prefix_cache=memory": "prefix_cache keeps rows was False, is True",  # other draws
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
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data", "plan.json", "adapter", "tokens"}


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


@pytest.mark.slow
@pytest.mark.parametrize("there_is", ["none", "another"])
def test_a_process_that_does_not_see_the_checkpoint_stops_both(
    saved_run: RunConfig, tmp_path: Path, there_is: str
) -> None:
    crashed(replace(saved_run, train=replace(saved_run.train, accumulate=2)))
    here, there = tmp_path, tmp_path / "other machine"
    left_out = ["checkpoints"] if there_is == "none" else []
    shutil.copytree(here / "run", there / "run", ignore=shutil.ignore_patterns(*left_out))
    if there_is == "another":  # of the same step, whole, and not the same
        head = there / "run/checkpoints/step-4/checkpoint.json"
        head.write_text(head.read_text().replace('"seconds": ', '"seconds": 1'))
    options = ("train.n_processes=2", "output=run")
    children = start(
        tmp_path, train_by_command, tmp_path / "config.yaml", options, [here, there], n_processes=2
    )
    assert end(children) == [2, 2]
    told = told_by_both(tmp_path)
    assert told.count("error: ") == 1
    told_of = {
        "none": "/checkpoint.json does not exist",
        "another": " is not the checkpoint that the first process found",
    }
    assert f"error: process 1: run/checkpoints/step-4{told_of[there_is]}" in told
    assert "all machines must see the same output folder" in told


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
    codes, told = train_in_two_processes(tmp_path)
    assert codes == [0, 0] and "resumed from step 4" in told, told
    assert_close(tmp_path, whole, [dict(line) for line in lines])
    shutil.rmtree(tmp_path / "run/adapter")
    two = start(tmp_path, train_by_command, tmp_path / "config.yaml", ("train.n_processes=2",), n_processes=2)
    wait_for(lambda: checkpoint_folders(tmp_path / "run/checkpoints"))
    kill(two)
    capsys.readouterr()
    train_stage(config)
    assert "resumed from step" in capsys.readouterr().out
    assert_close(tmp_path, whole, [dict(line) for line in lines])


def assert_close(folder: Path, adapter: dict[str, torch.Tensor], lines: list[dict[str, float]]) -> None:
    found = load_file(folder / "run/adapter/adapter.safetensors")
    for name, value in adapter.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    found_lines = lines_without_times(folder / "run/adapter/metrics.jsonl")
    assert [line["step"] for line in found_lines] == [line["step"] for line in lines]
    for line, expected in zip(found_lines, lines, strict=True):
        # Other processes cut a step into other forward passes, with other padding.
        assert line.pop("padding_share", None) is not None or "loss" not in line
        expected.pop("padding_share", None)
        assert line == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "n_processes", "changes"), LAYOUTS)
def test_killed_at_random_moments_it_ends_with_the_adapter_of_an_uninterrupted_run(
    saved_run: RunConfig, tmp_path: Path, layout: str, n_processes: int, changes: tuple[str, ...]
) -> None:
    changes = (*changes, f"train.n_processes={n_processes}", "train.steps=40")
    n_kills, n_torn, seed = 0, 0, 0
    arguments = (train_by_command, tmp_path / "config.yaml", changes)
    assert end(start(tmp_path, int)) == [0], "the fork server has imported everything"
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
    # Every second kill waits for a write, and may come just after it: how many did not is told, not asked.
    spent = time.monotonic() - started
    print(f"{layout}: {n_kills} kills, {n_torn} while a checkpoint was written, {spent:.0f} s")
