"""Two processes with every option of train.memory give the numbers of one without any."""

from pathlib import Path

import pytest
import torch
from test_two_processes import TORCHRUN, adapter_and_losses, train
from test_two_processes import run_config as run_config

from finetune.config import RunConfig
from finetune.train import train_stage

pytestmark = pytest.mark.slow


def test_every_option_on_two_processes_gives_the_numbers_of_one_without(
    run_config: RunConfig, tmp_path: Path
) -> None:
    train_stage(run_config)
    plain, plain_losses = adapter_and_losses(tmp_path)
    options = {"prefix_cache": "disk", "prefix_cache_folder": tmp_path, "loss_chunk_tokens": 16}
    options["gradient_checkpointing"] = "true"
    changes = [f"train.memory.{name}={value}" for name, value in options.items()]
    finished = train(tmp_path, TORCHRUN, "train.n_processes=2", *changes, ACCELERATE_USE_CPU="true")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("the outputs of the first 1 of 3 layers are kept on disk") == 1
    found, losses = adapter_and_losses(tmp_path)
    assert losses == pytest.approx(plain_losses, abs=1e-6)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
