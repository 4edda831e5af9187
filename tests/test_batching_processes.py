"""Packs, a mixture and more processes than rows: three processes see the rows of one and give its numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from test_train import chat_rows, write_run_inputs

from data_recipes.artefact import read_artefact, write_artefact, write_json
from data_recipes.settings import settings_dict
from finetune.config import load_run_config
from finetune.train import train_stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHANGES = {
    "train.batch_size": "6",
    "train.pack_length_tokens": "128",
    "train.mixture": "{target: 2, general: 1}",
    "train.steps": "5",
}


def test_three_processes_on_three_rows_are_one_process(
    tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = write_run_inputs(tmp_path, tiny_model_factory(vocab_size=262), tiny_tokenizer)
    data, rows = tmp_path / "run" / "data", chat_rows(3)
    splits: Any = {"train": Dataset.from_list(rows), "validation": Dataset.from_list(rows[:1])}
    DatasetDict(splits).save_to_disk(str(data))
    write_artefact(data / "manifest.json", "dataset_manifest", {}, {"content_hash": "2" * 64})
    write_json(tmp_path / "config.yaml", settings_dict(config))
    changes = [f"{key}={value}" for key, value in CHANGES.items()]
    folder = train_stage(load_run_config(tmp_path / "config.yaml", changes))
    one = (read_artefact(folder / "train.json", "train_result"), metrics(folder))
    adapter = load_file(folder / "adapter.safetensors")

    for path in (tmp_path / "run" / "tokens").rglob("*.bin"):
        path.unlink()  # so that the three meet at the lock
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    line += [
        "-m",
        "finetune.train",
        "--config",
        str(tmp_path / "config.yaml"),
        *changes,
        "train.n_processes=3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr

    three = (read_artefact(folder / "train.json", "train_result"), metrics(folder))
    for key in ("row_order_sha256", "rows_by_group", "tokens_by_group", "tokens"):
        assert three[0][key] == one[0][key], key
    assert one[0]["rows_by_group"] == {"general": 10, "target": 20}
    assert [sorted(line) for line in three[1]] == [sorted(line) for line in one[1]]
    for key in ("loss", "eval_loss_general"):
        losses, expected = ([line[key] for line in lines if key in line] for lines in (three[1], one[1]))
        assert len(expected) >= 2 and losses == pytest.approx(expected, abs=1e-6), key
    found = load_file(folder / "adapter.safetensors")
    assert any(bool(value.any()) for name, value in found.items() if name.endswith(".B"))
    for name, value in adapter.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
