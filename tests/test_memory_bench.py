"""What the options of train.memory cost and save is measured on steps that learn the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_recipes.artefact import read_artefact
from data_recipes.settings import load_settings
from finetune.adapters.adapter import adapter_parameters
from finetune.adapters.lora import ExpertLora
from finetune.benching.bench import BenchConfig, preset_path
from finetune.benching.bench_report import MEMORY_TITLES, summarise, table
from finetune.benching.bench_worker import facts, prepare
from finetune.benching.memory_contestants import memory_options
from finetune.cli import main
from finetune.training_options import MemoryConfig
from tests.test_bench import BYTES, TINY, turn

# GLM's indexer chooses in layers 0 and 3: hidden states are all that layer 3 needs of those below.
LAYERS: dict[str, Any] = {"dense_layers": 0, "moe_layers": 6, "adapted_layers": 3}
CONFIG = BenchConfig(**TINY | LAYERS, loss_chunk_tokens=16, contestants=("plain",))


def test_each_contestant_has_one_option_and_the_last_has_all() -> None:
    options = {name: memory_options(CONFIG, name) for name in MEMORY_TITLES}
    whole = MemoryConfig(loss_chunk_tokens="whole")
    assert options["plain"] == options["bfloat16"] == whole
    assert options["checkpointing"] == MemoryConfig(gradient_checkpointing=True, loss_chunk_tokens="whole")
    assert options["chunked_loss"] == MemoryConfig(loss_chunk_tokens=16)
    assert options["prefix_cache"] == MemoryConfig(prefix_cache="memory", loss_chunk_tokens="whole")
    assert options["together"] == MemoryConfig(
        gradient_checkpointing=True, loss_chunk_tokens=16, prefix_cache="memory"
    )


def test_they_learn_the_same_and_one_leaves_the_frozen_layers_out() -> None:
    losses, n_forwards = {}, {}
    for name in ("plain", "checkpointing", "chunked_loss", "prefix_cache"):
        found = prepare(CONFIG, name, CONFIG.experts)
        calls: list[int] = []
        for number, layer in enumerate(found.model.model.layers):
            layer.self_attn.register_forward_pre_hook(lambda *_, n=number, calls=calls: calls.append(n))
            has_lora = any(isinstance(module, ExpertLora) for module in layer.modules())
            assert has_lora == (number >= 3), "the upper half"
        losses[name] = [found.step() for _ in range(2)]
        calls.clear()
        losses[name].append(found.step())
        n_forwards[name] = [calls.count(number) for number in range(6)]
        assert facts(CONFIG, found, CONFIG.experts)["flops"] is None
        assert len(adapter_parameters(found.model)) == 3 * 4
    for found_losses in losses.values():
        assert found_losses == pytest.approx(losses["plain"], abs=1e-5)
    assert n_forwards["plain"] == n_forwards["chunked_loss"] == [1] * 6
    # Frozen layers are in no graph, so nobody asks to compute them again.
    assert n_forwards["checkpointing"] == [1, 1, 1, 2, 2, 2]
    assert n_forwards["prefix_cache"] == [0, 0, 0, 1, 1, 1]


def test_all_together_is_in_bfloat16_with_a_float32_adapter() -> None:
    found = prepare(CONFIG, "together", CONFIG.experts)
    own = {id(value) for value in adapter_parameters(found.model).values()}
    dtypes = {(id(value) in own, value.dtype) for value in found.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert found.model.is_activation_checkpointing
    plain = prepare(CONFIG, "plain", CONFIG.experts)
    assert found.step() == pytest.approx(plain.step(), abs=0.05)


def test_each_is_compared_with_the_plain_step_and_no_share_of_a_product_is_told() -> None:
    names = [*MEMORY_TITLES]
    rounds = [{name: turn([1.0 + number], 100 - number) for number, name in enumerate(names)}] * 2
    found = summarise(
        {name: {**BYTES, "flops": None, "threads": 1, "device": "cpu"} for name in names}, rounds, {}
    )
    assert found["time"] == {
        f"{name}_over_plain": 1.0 + number for number, name in enumerate(names) if number
    }
    assert found["memory"] == {
        f"{name}_over_plain": (100 - number) / 100 for number, name in enumerate(names) if number
    }
    machine = {"processor": "one", "load_before": 0.0, "load_after": 0.0}
    settings = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    lines = table({"settings": settings, "machine": machine, "left_out": {}, **found}).splitlines()
    assert lines[1].startswith("4 chosen in each of 3 layers")
    assert [line.split()[-1] for line in lines if "MB" in line] == ["-"] * len(names)


def test_the_preset_has_frozen_layers_and_a_vocabulary_worth_cutting() -> None:
    config = load_settings(BenchConfig, preset_path("memory"))
    assert list(config.contestants) == list(MEMORY_TITLES)
    assert (config.dense_layers, config.moe_layers, config.adapted_layers) == (0, 6, 3), "see LAYERS"
    assert config.loss_chunk_tokens * 8 <= config.tokens


def test_more_layers_with_an_adapter_than_layers_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY), encoding="utf-8")
    assert main(["bench", "--config", str(path), "adapted_layers=3", "loss_chunk_tokens=0"]) == 2
    said = capsys.readouterr().err
    assert "adapted_layers = 3: must be at most moe_layers (2)" in said
    assert "loss_chunk_tokens = 0: must be at least 1" in said


@pytest.mark.slow
def test_a_tiny_memory_bench_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, numbers = tmp_path / "tiny.yaml", tmp_path / "memory.json"
    path.write_text(json.dumps(TINY | LAYERS | {"contestants": ["plain", "together"]}), encoding="utf-8")
    assert main(["bench", "--config", str(path), "--json", str(numbers)]) == 0
    report = read_artefact(numbers, "bench")
    assert table(report) in capsys.readouterr().out
    assert report["time"]["together_over_plain"] > 0 and report["matmul_share"] is None
    assert numbers.with_suffix(".svg").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak")
def test_the_logits_of_glms_vocabulary_are_never_whole() -> None:
    """154,880 words and 1,024 tokens: 634 MB of float32 logits, of which the backward needs three."""
    found: dict[str, Any] = {}
    root = Path(__file__).parents[1]
    for setting in ("whole", "auto"):
        line = [sys.executable, "tests/loss_memory.py", setting, "154880", "1024"]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=True)
        found[setting] = json.loads(done.stdout.splitlines()[-1])
    logits_bytes = 4 * 154_880 * 1024
    assert found["whole"]["peak_bytes"] > 2.5 * logits_bytes
    assert found["auto"]["peak_bytes"] < 0.8 * logits_bytes
    for name in ("loss", "gradient_norm"):
        assert found["auto"][name] == pytest.approx(found["whole"][name], rel=1e-6)
