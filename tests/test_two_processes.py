"""Two processes on the CPU give the numbers of one; a launch that silently runs one process is stopped."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train import write_run_inputs

from data_recipes.artefact import write_json
from data_recipes.settings import settings_dict
from finetune.config import RunConfig
from finetune.train import train_stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
MULTI_CPU_CONFIG = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_CPU",
    "num_machines": 1,
    "num_processes": 2,
    "use_cpu": True,
    "mixed_precision": "no",
}


@pytest.fixture
def run_config(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> RunConfig:
    """The config of a run whose base, dataset and plan are in `tmp_path`, with a copy in config.yaml."""
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    write_json(tmp_path / "config.yaml", settings_dict(config))  # JSON is YAML
    return config


def train(
    folder: Path, launcher: list[str], *changes: str, **environment: str
) -> subprocess.CompletedProcess:
    line = [
        sys.executable,
        *launcher,
        "-m",
        "finetune.train",
        "--config",
        str(folder / "config.yaml"),
        *changes,
    ]
    return subprocess.run(
        line,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def adapter_and_losses(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    lines = [json.loads(line) for line in (folder / "run/adapter/metrics.jsonl").read_text().splitlines()]
    losses = [line.get("loss", line.get("eval_loss_target")) for line in lines]
    return load_file(folder / "run/adapter/adapter.safetensors"), losses


def expert_load(folder: Path) -> list[float]:
    """Of the first step: whole numbers of all processes, so that nothing is rounded."""
    line = json.loads((folder / "run/adapter/metrics.jsonl").read_text().splitlines()[0])
    return [line["chosen_share"], line["chosen_balance"]]


def test_two_processes_give_the_numbers_of_one(run_config: RunConfig, tmp_path: Path) -> None:
    train_stage(run_config)
    one, one_losses = adapter_and_losses(tmp_path)
    one_load = expert_load(tmp_path)
    assert any(bool(value.any()) for name, value in one.items() if name.endswith(".B"))
    launchers = {
        "torchrun": (TORCHRUN, ""),
        "accelerate launch": ([*ACCELERATE, "--config_file", "configs/accelerate/cpu.yaml"], ""),
        "expert parallel": (TORCHRUN, "train.layout.kind=expert_parallel"),
        "expert parallel with fsdp": (TORCHRUN, "train.layout.kind=expert_parallel_fsdp"),
    }
    for name, (launcher, change) in launchers.items():
        finished = train(tmp_path, launcher, "train.n_processes=2", *filter(None, [change]))
        assert finished.returncode == 0, f"{name}: {finished.stderr}"
        for said in ("trainable parameters", "\nadapter    ", "\nnext "):
            assert finished.stdout.count(said) == 1, f"{name}: only the first process speaks"
        two, two_losses = adapter_and_losses(tmp_path)
        assert two_losses == pytest.approx(one_losses, abs=1e-6), name
        assert expert_load(tmp_path) == one_load, name
        for tensor_name, value in one.items():
            torch.testing.assert_close(two[tensor_name], value, rtol=0, atol=1e-6)


def test_with_dropout_two_processes_give_the_numbers_of_one_that_accumulates_twice(
    run_config: RunConfig, tmp_path: Path
) -> None:
    lora = replace(run_config.lora, dropout=0.3)
    train_stage(replace(run_config, lora=lora, train=replace(run_config.train, accumulate=2)))
    one, one_losses = adapter_and_losses(tmp_path)
    changes = ("train.n_processes=2", "lora.dropout=0.3")
    finished = train(tmp_path, TORCHRUN, *changes, ACCELERATE_USE_CPU="true")
    assert finished.returncode == 0, finished.stderr
    two, two_losses = adapter_and_losses(tmp_path)
    assert two_losses == pytest.approx(one_losses, abs=1e-6)
    for tensor_name, value in one.items():
        torch.testing.assert_close(two[tensor_name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by_config_file", [False, True])
@pytest.mark.usefixtures("run_config")
def test_accelerate_launch_that_lost_a_process_is_stopped(tmp_path: Path, by_config_file: bool) -> None:
    launcher = [*ACCELERATE, "--cpu", "--num_processes", "2"]
    if by_config_file:
        write_json(tmp_path / "accelerate.yaml", MULTI_CPU_CONFIG)
        launcher = [*ACCELERATE, "--config_file", str(tmp_path / "accelerate.yaml")]
    finished = train(tmp_path, launcher, f"train.n_processes={2 if by_config_file else 1}")
    assert finished.returncode != 0
    assert "asked for several processes and started one" in finished.stderr
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in finished.stderr
    assert not (tmp_path / "run" / "adapter").exists()
