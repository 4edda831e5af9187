"""Whatever the layout and the number of processes, training gives the numbers of one process.

Two launches, of two and of four processes on the CPU: `parity_cases.py` runs all cases of each.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_model, build_tiny_tokenizer
from parity_cases import ROWS, STEPS, Case, run_case
from safetensors.torch import load_file
from test_train import chat_rows
from tiny_families import FAMILIES, tiny_config
from transformers import AutoModelForCausalLM

from finetune.adapters.adapter import record_routing
from finetune.batches import collate, contiguous_part, encode_rows
from finetune.batching.order import RowStream
from finetune.config import BaseConfig
from finetune.model import load_model
from finetune.training_options import LayoutKind

pytestmark = pytest.mark.slow
KINDS: list[LayoutKind] = ["data_parallel", "fsdp", "expert_parallel", "expert_parallel_fsdp"]
if find_spec("deepspeed"):
    KINDS.append("zero3")

ROOT = Path(__file__).parents[1]
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
SEED = 5  # of parity_cases.run_case
# Chosen experts, accumulation, checkpointing, eager, LoRA on attention and shared experts: each once or more.
# Of eight experts two processes have four each: [6, 7] leaves the first of two, and three of four, without.
WITHIN: dict[str, dict[str, Any]] = {
    "spread": {"chosen": [0, 1, 5]},
    "one_side": {"chosen": [6, 7], "has_checkpointing": True, "linear": False},
    "accumulated": {"chosen": [2, 6], "accumulate": 2, "has_checkpointing": True},
    "rare": {"chosen": [3], "accumulate": 2, "linear": False},
    "eager": {"chosen": [3, 4, 7], "is_eager": True},
    # Stacks that are transposed, with a bias, gate and up by turns.
    "gpt_oss": {"chosen": [0, 5], "base": "gpt_oss", "linear": False},
}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [{"kind": kind} for kind in KINDS],
    4: [
        {"kind": "data_parallel"},
        {"kind": "fsdp"},
        {"kind": "expert_parallel"},
        {"kind": "expert_parallel_fsdp"},
        {"kind": "expert_parallel_fsdp", "ep_size": 2},
    ],
}
OF_FOUR = ("one_side", "accumulated")  # four processes take more than twice the time of two
RARE = 3  # an expert that few tokens choose


def cases(n_processes: int) -> list[Case]:
    """All cases of a launch."""
    return [
        Case(f"{n_processes}-{layout['kind']}-{layout.get('ep_size', '')}-{name}", **layout, **options)
        for layout in LAYOUTS[n_processes]
        for name, options in WITHIN.items()
        if name in OF_FOUR or (n_processes == 2 and (name != "gpt_oss" or "expert" in layout["kind"]))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A base with one expert that few tokens choose, its tokenizer, and rows."""
    folder = tmp_path_factory.mktemp("parity")
    model = build_tiny_model(vocab_size=262)
    with torch.no_grad():
        for layer in (1, 2):
            block: Any = model.model.layers[layer].mlp
            block.gate.e_score_correction_bias[RARE] -= 0.03
    model.save_pretrained(folder / "base")
    build_tiny_tokenizer().save_pretrained(folder / "base")
    family = FAMILIES["gpt_oss"]
    other = AutoModelForCausalLM.from_config(tiny_config(family))
    other.resize_token_embeddings(262)
    other.save_pretrained(folder / "gpt_oss")
    build_tiny_tokenizer().save_pretrained(folder / "gpt_oss")
    (folder / "rows.json").write_text(json.dumps(chat_rows(24)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def launched(folder: Path) -> Any:
    """A function that runs all cases of a number of processes, once."""

    @cache
    def launch(n_processes: int) -> None:
        asked = json.dumps([case._asdict() for case in cases(n_processes)])
        (folder / "cases.json").write_text(asked, encoding="utf-8")
        line = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
        finished = subprocess.run(
            [sys.executable, *line, "tests/parity_cases.py", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert finished.returncode == 0, finished.stderr[-4000:]

    return launch


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    """A function that gives what one process comes to with the options called `name`."""
    return cache(lambda name: run_case(folder, Case(f"alone-{name}", "auto", **WITHIN[name])))


@pytest.mark.parametrize("case", [*cases(2), *cases(4)], ids=lambda case: case.name)
def test_a_layout_gives_the_numbers_of_one_process(
    case: Case, folder: Path, launched: Any, alone: Any
) -> None:
    launched(int(case.name[0]))
    expected = alone(case.name.rpartition("-")[2])
    found = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6, abs=0)
    assert len(found["losses"]) == STEPS + 4, "each step's, and two validation losses of two groups"
    adapter = load_file(folder / f"{case.name}.safetensors")
    assert adapter.keys() == expected["adapter"].keys()
    for name, value in expected["adapter"].items():
        torch.testing.assert_close(adapter[name], value, rtol=0, atol=1e-6)
    assert any(value.any() for name, value in adapter.items() if name.endswith(".B"))
    assert found["fingerprint"] == expected["fingerprint"]
    assert found["is_checkpointed"] == case.has_checkpointing and not expected["is_checkpointed"]
    # What is whole in each process, against what is shared out.
    if case.kind != "data_parallel":
        assert found["held"] < expected["held"]
    if case.kind == "fsdp":
        assert found["held"] < 1.5 * expected["held"] / int(case.name[0])


def test_some_process_gets_no_token_for_the_chosen_expert_and_another_gets_one(folder: Path) -> None:
    """The cases called rare are what they are called: no statement about a layout, but about this file."""
    model, tokenizer = load_model(BaseConfig(model=str(folder / "base"), device="cpu"))
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    examples = encode_rows(tokenizer, rows, 64)
    is_hit = []
    for example in examples:
        batch = collate([example], 0)
        with torch.no_grad(), record_routing(model) as routing:
            model(input_ids=batch.tokens, attention_mask=batch.attention_mask)
        is_hit.append(any(RARE in indices for indices in routing.values()))
    stream = RowStream(np.arange(len(rows)), [SEED])
    steps = [[is_hit[row] for row in stream.between(step * ROWS, (step + 1) * ROWS)] for step in range(STEPS)]
    halves = [{any(contiguous_part(step, rank, 2)) for rank in range(2)} for step in steps]
    assert {True, False} in halves, "one process of two gets a token"
    assert any(True in half for half in halves)
