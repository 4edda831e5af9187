"""A loss or gradient that is no number, and a loss that explodes, end all processes with one message."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted_training import Training, after_optimizer_step, save_run, train_in_two_processes
from safetensors.torch import load_file
from test_train import chat_rows, train_config

from data_recipes.artefact import UserError
from finetune.batches import Example
from finetune.batching.order import RowStream
from finetune.checkpoints.checkpoint_files import checkpoint_folders
from finetune.layouts.layout import data_parallel
from finetune.processes import start_accelerator
from finetune.training.bad_numbers import BadNumbers


def step_rows(n_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The numbers of the rows of a step (from 0)."""
    stream = RowStream(np.arange(n_rows), [seed])
    return stream.between(step * batch_size, (step + 1) * batch_size).tolist()


@pytest.fixture
def training(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> Training:
    return Training(tiny_model_factory, tiny_tokenizer, tmp_path)


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
        numbers.refuse(2, 1.0, 1.0, float("inf"), [[[example] for example in examples]])


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
    lowered = BadNumbers(
        train_config(explode_ratio=3.0, explode_steps=2), layout, None, [*usual, 11.0, 11.0, 11.0]
    )
    with pytest.raises(UserError, match="explodes: 4 steps in a row"):
        lowered.refuse(13, 12.0, 12.0, 1.0, [])
    never = BadNumbers(train_config(explode_ratio=None), layout, None, [1.0] + [1e9] * 100)
    never.refuse(101, 1e9, 1e9, 1.0, [])


def test_while_the_loss_is_high_nothing_is_saved_and_then_the_run_stops(training: Training) -> None:
    model = training.model_factory(vocab_size=262)

    def harm() -> None:
        with torch.no_grad():
            model.lm_head.weight *= 200

    training.model_factory = lambda **settings: model
    told = (
        r"loss explodes: 2 steps in a row above 1.5 times its usual 5\.\d+, now [\d.]+, at step 5, rows r\d"
    )
    with after_optimizer_step(3, harm), pytest.raises(UserError, match=rf"{told}.*/step-2; lower train"):
        training.run(explode_ratio=1.5, explode_steps=2)


@pytest.mark.slow
def test_a_number_that_goes_bad_in_one_process_of_two_ends_both_with_one_message(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, rows = tiny_model_factory(vocab_size=262), chat_rows(24)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer.encode("~")] = float("nan")
    # In the third step, and in the half of its rows that is the second process's.
    third = step_rows(24, 8, 2, 0)
    rows[third[5]]["messages"][0]["content"] += "~"
    save_run(model, tiny_tokenizer, tmp_path, rows)
    codes, told = train_in_two_processes(tmp_path)
    assert codes == [2, 2], told
    assert told.count("error: ") == 1 and "Traceback" not in told
    named = ", ".join(rows[number]["id"] for number in third[4:])
    assert f"error: the loss is nan at step 3, rows {named}: nothing of this step is kept" in told
    (saved,) = checkpoint_folders(tmp_path / "run/checkpoints")
    assert saved.name == "step-2" and f"the last good checkpoint is {saved}; lower" in told
    assert all(value.isfinite().all() for value in load_file(saved / "adapter.safetensors").values())
