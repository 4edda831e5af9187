"""A tiny run, trained and evaluated once, for tests to copy: base's and tuned's answers are kept."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tiny_model, build_tiny_tokenizer
from test_evaluate import some_rows, with_adapter, write_data
from tuned_bases import give_values, save_base

from data_recipes.artefact import read_artefact, write_artefact
from eval.evaluate import evaluate_stage
from finetune.adapters.adapter import attach, save_adapter
from finetune.config import DataConfig, LoraConfig, RunConfig
from finetune.eval_options import ContestantConfig, EvalConfig
from finetune.model import load_model, model_fingerprint
from finetune.training_options import TrainConfig


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The run that is copied."""
    folder = tmp_path_factory.mktemp("saved")
    model = build_tiny_model(vocab_size=262, initializer_range=0.3, seed=1)
    base = save_base(model, build_tiny_tokenizer(), folder / "base")
    config = RunConfig(
        name="tiny",
        output=str(folder / "run"),
        base=base,
        data=DataConfig(recipe="none.yaml"),
        train=TrainConfig(steps=1, learning_rate=0.1),
        eval=EvalConfig(batch_size=8, max_new_tokens=4, n_bootstrap=20),
    )
    write_data(Path(config.output), some_rows())
    model, _ = load_model(base)
    save(model, with_adapter(model, size=1.0), LoraConfig(rank=4, alpha=8.0), Path(config.output) / "adapter")
    evaluate_stage(config)
    return config


@pytest.fixture
def run(saved_run: RunConfig, tmp_path: Path) -> RunConfig:
    """A copy of the run, of the same base."""
    shutil.copytree(saved_run.output, tmp_path / "run")
    return replace(saved_run, output=str(tmp_path / "run"))


@pytest.fixture
def plain(run: RunConfig) -> dict[str, Any]:
    """The results of the run without any contestant."""
    return read_artefact(Path(run.output) / "results.json", "eval_results")


@pytest.fixture(scope="module")
def train_another(saved_run: RunConfig) -> Callable[..., Path]:
    """`train_another(folder, data=hash)`: an adapter on other experts, as a training leaves it."""
    model, _ = load_model(saved_run.base)
    lora = LoraConfig(rank=3, alpha=9.0, attention=True)
    plan = {"experts": {"1": [0, 2]}, "model_fingerprint": model_fingerprint(model), "seed": 0}
    attach(model, plan, lora, seed=0)

    def train(folder: Path, data: str = "d" * 64, seed: int = 5) -> Path:
        give_values(model, seed)
        return save(model, plan, lora, folder, data)

    return train


def save(model: Any, plan: dict[str, Any], lora: LoraConfig, folder: Path, data: str = "d" * 64) -> Path:
    """Save the active adapter with what says which data it was trained on."""
    save_adapter(model, plan, lora, folder)
    write_artefact(folder / "train.json", "train_result", {"data": data}, {})
    return folder


def with_contestants(config: RunConfig, **contestants: ContestantConfig) -> RunConfig:
    return replace(config, eval=replace(config.eval, contestants=contestants))


def answered(config: RunConfig) -> dict[str, Any]:
    return read_artefact(evaluate_stage(config), "eval_results")


def texts_of(results: dict[str, Any], name: str) -> list[str]:
    return [row["answer"] for row in results["others"][name]["rows"]]
