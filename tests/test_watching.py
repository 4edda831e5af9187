"""What is told while training runs and at its end: expert load, memory, time left, a summary."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_training import save_run
from test_train import LORA, PLAN, chat_rows, train_config

from finetune import cli
from finetune.adapters.adapter import attach
from finetune.batches import Example, collate
from finetune.layouts.layout import data_parallel
from finetune.moe import moe_layers
from finetune.processes import start_accelerator
from finetune.profiling.router_recorder import RouterRecorder
from finetune.train import train_rows
from finetune.training.expert_load import ExpertLoad
from finetune.training.memory_use import memory_bytes
from finetune.training.monitor import TrainResult
from finetune.training.summary import duration, summary
from finetune.training.training_rows import training_rows

CPU = torch.device("cpu")


@pytest.fixture
def chat_model(tiny_model_factory: Any) -> Any:
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    return model


def lines_of(metrics: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_the_load_is_counted_over_tokens_and_not_over_padding(chat_model: Any) -> None:
    load = ExpertLoad(chat_model, data_parallel(start_accelerator(1, "cpu")))
    assert load.n_chosen == 6
    # Chosen are 0, 1, 5 of layer 1 and 2, 3, 7 of layer 2. Two rows of two tokens and of one.
    rows = [[Example("a", [1, 2], [1, 2])], [Example("b", [3], [3])]]
    padding = [5, 5]
    first = torch.tensor([[0, 1], [0, 6], [0, 7], padding])
    second = torch.tensor([[4, 6], [4, 2], [6, 4], padding])
    load.add({1: first, 2: second}, rows)
    # Layer 1: 3, 1, 0 of six choices, layer 2: 1, 0, 0 of six.
    expected = {"chosen_share": 5 / 12, "chosen_balance": ((4 / 3) / 3 + (1 / 3) / 1) / 2}
    assert load.told(10) == pytest.approx(expected)
    # "No expert", the id behind the last one, is no choice.
    load.add({1: torch.tensor([[8, 1]]), 2: torch.tensor([[8, 8]])}, [[Example("a", [1], [1])]])
    assert load.told(20) == pytest.approx({"chosen_share": 1.0, "chosen_balance": 1 / 3})
    load.add({layer: torch.tensor([[4, 6]]) for layer in (1, 2)}, [[Example("a", [1], [1])]])
    assert load.told(0) == {"chosen_share": 0.0, "chosen_balance": 0.0}
    assert load.told(9) == {}


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"pack_length_tokens": 128}])
def test_the_load_told_is_what_the_profile_counts_of_the_same_rows(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path, changes: dict[str, int]
) -> None:
    model, config = tiny_model_factory(vocab_size=262), train_config(steps=1, **changes)
    rows = training_rows(model, tiny_tokenizer, chat_rows(8), config, 0)
    batch = collate(rows.of_step(0), 0)
    assert batch.attention_mask is not None
    with torch.no_grad(), RouterRecorder(moe_layers(model)) as recorder:
        recorder.expect(batch.attention_mask)
        model(**batch.inputs(CPU))
    chosen = [PLAN["experts"]["1"], PLAN["experts"]["2"]]
    counts = [row_E[ids].double() for row_E, ids in zip(recorder.counts_LE, chosen, strict=True)]
    expected = {
        "chosen_share": float(sum(row_C.sum() for row_C in counts)) / int(recorder.counts_LE.sum()),
        "chosen_balance": sum(float(row_C.mean() / row_C.max()) for row_C in counts) / 2,
    }
    attach(model, PLAN, LORA, seed=0)
    train_rows(model, tiny_tokenizer, rows, config, 0, metrics_path=tmp_path / "m")
    (line,) = lines_of(tmp_path / "m")
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_an_adapter_on_no_expert_has_no_load(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model_factory(vocab_size=262)
    attach(model, {"experts": {}, "method": "none"}, replace(LORA, attention=True), seed=0)
    train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=1), metrics_path=tmp_path / "m")
    assert "chosen_share" not in lines_of(tmp_path / "m")[0]


def test_memory_is_what_the_process_holds_now_and_held_at_most() -> None:
    before, _ = memory_bytes(CPU)
    held = torch.ones(50_000_000)
    during, peak = memory_bytes(CPU)
    assert during - before == pytest.approx(held.nbytes, rel=0.1) and peak >= during
    del held
    after, peak_after = memory_bytes(CPU)
    assert after < during - 150_000_000
    # The kernel adds up what each thread counted, some pages late.
    assert peak_after > peak - 5_000_000


def test_time_left_is_the_mean_of_the_steps_so_far_for_those_to_come(
    chat_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    result = train_rows(
        chat_model, tiny_tokenizer, chat_rows(8), train_config(steps=4), 0, metrics_path=tmp_path / "m"
    )
    lines = lines_of(tmp_path / "m")
    elapsed = 0.0
    for done, line in enumerate(lines, start=1):
        elapsed += line["step_time_s"]
        # The clock also runs between two steps, and until the first.
        assert elapsed / done * (4 - done) <= line["time_left_s"] <= result.seconds / done * (4 - done)
    assert lines[-1]["time_left_s"] == 0.0
    assert all(1e7 < line["memory_bytes"] <= result.peak_memory_bytes for line in lines)


RESULT = TrainResult(
    steps=300, seconds=4000.0, tokens=1234567, first_loss=2.5, last_loss=0.75, n_trainable=817152,
    tokens_per_s=308.6, step_time_s=0.2, row_order_sha256="", seed=0, padding_share=0.1, rows_by_group={},
    tokens_by_group={}, peak_memory_bytes=2_140_000_000,
    lowest_eval_loss={"target": 0.8125, "general": 0.25}, lowest_eval_step={"target": 200, "general": 100},
    adapter_step=200, stopped_early=True,
)  # fmt: skip


def test_the_summary_says_what_a_run_came_to() -> None:
    config = train_config(steps=600, keep_best="target")
    assert summary(RESULT, config, {"3": [1, 2], "4": [], "5": [7]}, "runs/a/adapter").splitlines() == [
        "steps      300 of 600, stopped early",
        "tokens     1,234,567 in 1 h 6 min, 309 a second",
        "memory     2.14 GB at most",
        "loss       2.5000 at first, 0.7500 at last",
        "validation lowest loss target 0.8125 after step 200, general 0.2500 after step 100",
        "trained    3 experts of 2 layers, 817,152 parameters",
        "adapter    runs/a/adapter, of step 200, the best for target rows",
    ]
    last = replace(RESULT, lowest_eval_loss={}, stopped_early=False, adapter_step=300)
    told = summary(last, train_config(steps=300, n_processes=2), {}, "a").splitlines()
    assert told[0] == "steps      300 of 300"
    assert told[2] == "memory     2.14 GB at most in one of 2 processes"
    assert told[4:] == [
        "validation no rows",
        "trained    no experts, 817,152 parameters",
        "adapter    a, of the last step",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.52, "41.5 s"), (59.99, "60.0 s"), (125.4, "2 min 5 s"), (12000, "3 h 20 min")]
)
def test_a_duration_is_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_ends_with_the_summary_and_what_to_run_next(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path)
    arguments = ["--config", str(tmp_path / "config.yaml"), "train.steps=3", "name=a"]
    assert cli.main(["train", *arguments]) == 0
    *_, trained, adapter, following = capsys.readouterr().out.splitlines()
    assert trained.startswith("trained    6 experts of 2 layers, ")
    assert adapter == f"adapter    {tmp_path}/run/adapter, of the last step"
    assert following == f"next       local-experts eval {shlex.join(arguments)}"
