"""The loop trains the adapter and nothing else, by the numbers it says, and stops loudly."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional as F

from data_recipes.artefact import UserError, read_artefact, write_artefact
from finetune.adapters.adapter import adapter_parameters, adapter_state, attach, load_adapter
from finetune.batches import collate, encode_rows
from finetune.batching.order import RowStream
from finetune.config import BaseConfig, DataConfig, LoraConfig, RunConfig
from finetune.model import load_model, model_fingerprint
from finetune.processes import check_process_count, start_accelerator
from finetune.train import train_rows, train_stage
from finetune.training.losses import token_losses
from finetune.training.optimizer import learning_rate_at
from finetune.training_options import TrainConfig

PLAN = {"experts": {"1": [0, 1, 5], "2": [2, 3, 7]}}
LORA = LoraConfig(rank=4, alpha=8.0)
TRAIN = TrainConfig(
    steps=6, learning_rate=5e-3, batch_size=8, warmup_steps=2, eval_every=3, eval_rows=4, max_length_tokens=64
)


STEP_KEYS = {"step", "loss", "lr", "grad_norm", "tokens_per_s", "step_time_s", "padding_share"}
STEP_KEYS |= {"time_left_s", "memory_bytes"}
LOAD_KEYS = {"chosen_share", "chosen_balance"}


def chat_rows(n_rows: int) -> list[dict[str, Any]]:
    """Rows with answers of unlike lengths, every third of them general."""
    return [
        {
            "id": f"r{number}",
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": "ஆம்" * (1 + number % 3) + str(number)},
            ],
            "group": "general" if number % 3 == 0 else "target",
        }
        for number in range(n_rows)
    ]


def train_config(**changes: Any) -> TrainConfig:
    warmup_steps = min(TRAIN.warmup_steps, changes.get("steps", TRAIN.steps) - 1)
    return TrainConfig(**{**TRAIN.__dict__, "warmup_steps": warmup_steps, **changes})


@pytest.fixture
def chat_model(tiny_model_factory: Any) -> Any:
    """A tiny GLM for the byte tokenizer, with an adapter attached."""
    model = tiny_model_factory(vocab_size=262)
    attach(model, PLAN, LORA, seed=0)
    return model


def write_run_inputs(folder: Path, model: Any, tokenizer: Any, rows: Any = None) -> RunConfig:
    """Lay out what train_stage reads under `folder`; returns the config that names it."""
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = BaseConfig(model=str(folder / "base"), device="cpu")
    loaded, _ = load_model(base)
    rows = rows or chat_rows(24)
    splits: Any = {"train": Dataset.from_list(rows), "validation": Dataset.from_list(rows[:6])}
    DatasetDict(splits).save_to_disk(str(folder / "run" / "data"))
    write_artefact(folder / "run/data/manifest.json", "dataset_manifest", {}, {"content_hash": "c" * 64})
    plan = {**PLAN, "model_fingerprint": model_fingerprint(loaded), "n_experts": 8}
    write_artefact(folder / "run/plan.json", "expert_plan", {}, plan)
    data = DataConfig(recipe="none")
    output = str(folder / "run")
    return RunConfig(name="test", output=output, base=base, data=data, train=TRAIN, lora=LORA)


def test_training_lowers_the_loss_and_changes_only_the_adapter(
    chat_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    frozen = {name: value.clone() for name, value in chat_model.named_parameters() if not value.requires_grad}
    before = adapter_state(chat_model)
    rows = chat_rows(8)
    config = train_config(steps=30, eval_every=10)
    result = train_rows(chat_model, tiny_tokenizer, rows, config, 0, rows, tmp_path / "metrics.jsonl")
    assert result.last_loss < result.first_loss - 0.3
    assert len(frozen) > 20
    for name, value in chat_model.named_parameters():
        assert value.requires_grad or torch.equal(value, frozen[name]), name
    assert all(not torch.equal(before[name], value) for name, value in adapter_state(chat_model).items())
    assert result.n_trainable == sum(value.numel() for value in before.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert all(line.keys() - LOAD_KEYS == STEP_KEYS for line in steps)
    assert [line["step"] for line in steps if line.keys() >= LOAD_KEYS] == [1, 11, 21]
    assert [line["step"] for line in evaluations] == [10, 20, 30]
    assert all(line.keys() == {"step", "eval_loss_target", "eval_loss_general"} for line in evaluations)
    assert evaluations[-1]["eval_loss_target"] < evaluations[0]["eval_loss_target"]


def test_the_loss_is_the_mean_over_all_trained_tokens_whatever_the_accumulation(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    rows = chat_rows(8)
    states, results = [], []
    for accumulate in (1, 4):
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        results.append(train_rows(model, tiny_tokenizer, rows, train_config(accumulate=accumulate)))
        states.append(adapter_state(model))
    batch = collate(encode_rows(tiny_tokenizer, rows, 64), 0)
    base = tiny_model_factory(vocab_size=262)
    with torch.no_grad():
        logits = base(batch.tokens, attention_mask=batch.attention_mask).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    assert results[0].first_loss == pytest.approx(float(expected), abs=1e-6)
    assert results[1].last_loss == pytest.approx(results[0].last_loss, abs=1e-6)
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another_order(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    states, results = [], []
    for seed in (0, 0, 1):
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        results.append(train_rows(model, tiny_tokenizer, chat_rows(24), TRAIN, seed))
        states.append(torch.cat([value.flatten() for value in adapter_state(model).values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert [result.seed for result in results] == [0, 0, 1]
    orders = [result.row_order_sha256 for result in results]
    assert orders[0] == orders[1] != orders[2]


def test_the_row_order_is_a_chain_of_hashes_of_the_ids_of_each_step(
    chat_model: Any, tiny_tokenizer: Any
) -> None:
    rows = chat_rows(24)
    result = train_rows(chat_model, tiny_tokenizer, rows, train_config(steps=4), 3)
    stream = RowStream(np.arange(24), [3])
    steps = [[rows[number]["id"] for number in stream.between(8 * step, 8 * step + 8)] for step in range(4)]
    assert len({row for step in steps[:3] for row in step}) == 24, "the fourth step begins another epoch"
    told = ""
    for step in steps:
        told = hashlib.sha256((told + json.dumps(step)).encode()).hexdigest()
    assert result.row_order_sha256 == told


def test_the_step_time_is_the_median_of_the_steps_told(
    chat_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    result = train_rows(
        chat_model, tiny_tokenizer, chat_rows(24), train_config(steps=5), 0, metrics_path=path
    )
    times = [json.loads(line)["step_time_s"] for line in path.read_text().splitlines()]
    assert len(times) == 5 and result.step_time_s == sorted(times)[2]
    assert sum(times) < result.seconds


def test_padding_does_not_change_a_row_s_losses(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model_factory(vocab_size=262)
    examples = encode_rows(tiny_tokenizer, chat_rows(3), 64)
    device = torch.device("cpu")
    with torch.no_grad():
        together = token_losses(model, collate(examples, 0), device)
        alone = torch.cat([token_losses(model, collate([example], 0), device) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_schedules_warm_up_and_end_where_they_say() -> None:
    cosine = train_config(steps=10, warmup_steps=2, learning_rate=1.0)
    rates = [learning_rate_at(step, cosine) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in zip(rates[2:], rates[3:], strict=False))
    constant = train_config(steps=10, warmup_steps=2, learning_rate=1.0, schedule="constant")
    assert [learning_rate_at(step, constant) for step in (0, 1, 5, 9)] == [0.5, 1.0, 1.0, 1.0]


def test_a_loss_that_is_not_a_number_stops_with_step_and_rows(chat_model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        chat_model.lm_head.weight[7] = math.nan
    with pytest.raises(UserError, match=r"loss is nan at step 1, rows r\d+, r\d+"):
        train_rows(chat_model, tiny_tokenizer, chat_rows(8), TRAIN)


def test_training_without_an_adapter_is_an_error(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no adapter to train"):
        train_rows(tiny_model_factory(vocab_size=262), tiny_tokenizer, chat_rows(8), TRAIN)


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_a_tracker_that_is_unknown_or_not_installed_is_named() -> None:
    for tracker in ("no-such-tracker", "dvclive"):
        with pytest.raises(UserError, match=rf"train\.tracker={tracker}"):
            start_accelerator(1, "cpu", tracker)


def test_what_accelerate_refuses_without_a_tracker_is_not_put_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialized_otherwise(**_: Any) -> None:
        raise ValueError("AcceleratorState has already been initialized")

    monkeypatch.setattr("finetune.processes.Accelerator", initialized_otherwise)
    with pytest.raises(UserError, match="^Accelerate cannot start: AcceleratorState has already"):
        start_accelerator(1, "cpu")


def test_the_stage_writes_a_whole_adapter_that_loads(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    folder = train_stage(config)
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter.safetensors", "adapter_config.json", "plan.json", "metrics.jsonl", "train.json"}
    result = read_artefact(folder / "train.json", "train_result")
    assert result["steps"] == 6 and result["last_loss"] < result["first_loss"]
    model, _ = load_model(config.base)
    assert load_adapter(model, folder)["n_trainable"] == result["n_trainable"]
    assert any(bool(value.any()) for name, value in adapter_parameters(model).items() if name.endswith(".B"))


def test_the_stage_takes_the_place_of_no_other_stage(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    (tmp_path / "run" / "adapter").symlink_to(tmp_path / "run" / "data")
    with pytest.raises(UserError, match="data holds files .* did not write as expert_adapter"):
        train_stage(config)
    assert (tmp_path / "run" / "data" / "manifest.json").exists()


def test_a_failed_stage_leaves_nothing_of_an_adapter_behind(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model_factory(vocab_size=262)
    with torch.no_grad():
        model.lm_head.weight[7] = math.nan
    config = write_run_inputs(tmp_path, model, tiny_tokenizer)
    with pytest.raises(UserError, match="loss is nan"):
        train_stage(config)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data", "plan.json", "tokens"]


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("expected", "running", "environment", "message"),
    [
        (2, 1, {}, r"1 process\(es\) run, but train.n_processes is 2"),
        (1, 2, {"WORLD_SIZE": "2"}, r"2 process\(es\) run, but train.n_processes is 1"),
        (1, 1, LAUNCHED, "asked for several processes and started one"),
        (2, 1, {"WORLD_SIZE": "2"}, "each is alone"),
    ],
)
def test_a_lost_process_is_an_error_that_names_the_right_command(
    expected: int, running: int, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_process_count(expected, running, environment)
    assert "-m finetune.train" in str(caught.value)


def test_the_expected_number_of_processes_is_accepted() -> None:
    check_process_count(1, 1, {})
    check_process_count(1, 1, {"ACCELERATE_MIXED_PRECISION": "no"})
    check_process_count(2, 2, {**LAUNCHED, "WORLD_SIZE": "2"})


def test_lora_plus_moves_b_by_its_ratio_and_a_as_before(tiny_model_factory: Any, tiny_tokenizer: Any) -> None:
    moved = []
    for ratio in (1.0, 4.0):
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LoraConfig(rank=4, attention=True), seed=0)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in adapter_parameters(model).values():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        before = adapter_state(model)
        config = train_config(steps=1, warmup_steps=0, b_learning_rate_ratio=ratio)
        train_rows(model, tiny_tokenizer, chat_rows(8), config)
        moved.append({name: value - before[name] for name, value in adapter_state(model).items()})
    is_B = {name: name.endswith(".B") or ".lora_B." in name for name in moved[0]}
    assert sum(is_B.values()) == len(is_B) / 2 == 2 * 2 + 3 * 5
    for name, value in moved[0].items():
        # Adam's first step is the learning rate in the gradient's direction.
        assert float(value.abs().max()) == pytest.approx(TRAIN.learning_rate, rel=1e-3)
        torch.testing.assert_close(moved[1][name], value * (4.0 if is_B[name] else 1.0), rtol=1e-4, atol=1e-7)


def test_dropout_depends_on_the_seed_alone_and_leaves_torchs_generator_alone(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    states = []
    for torch_seed, dropout in ((1, 0.3), (2, 0.3), (2, 0.0)):
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LoraConfig(rank=4, dropout=dropout), seed=0)
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=2))
        assert torch.equal(torch.get_rng_state(), before)
        states.append(adapter_state(model))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[1].items())


def test_the_launcher_does_not_scale_the_loss(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate divides what its own `backward` gets by a number that it reads from the environment."""
    norms = []
    for n_parts in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", n_parts)
        model = tiny_model_factory(vocab_size=262)
        attach(model, PLAN, LORA, seed=0)
        train_rows(model, tiny_tokenizer, chat_rows(16), train_config(steps=2), metrics_path=tmp_path / "m")
        lines = [json.loads(line) for line in (tmp_path / "m").read_text(encoding="utf-8").splitlines()]
        norms.append([line["grad_norm"] for line in lines])
    assert norms[0] == norms[1]
