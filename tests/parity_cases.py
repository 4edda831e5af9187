"""Train the same adapter in several layouts, in the processes that torchrun started; used by test_parity.py.

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 tests/parity_cases.py FOLDER

FOLDER holds base/, rows.json and cases.json; the first process writes NAME.safetensors (the adapter) and
NAME.json (losses, fingerprint) of each case. The processes of all cases are one group.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from finetune.adapters.adapter import adapter_state, attach
from finetune.config import BaseConfig, LoraConfig
from finetune.layouts.placement import choose_layout, load_base
from finetune.model import model_fingerprint
from finetune.processes import start_accelerator
from finetune.train import train_rows
from finetune.training_options import LayoutConfig, LayoutKind, MemoryConfig, TrainConfig

STEPS, ROWS = 20, 8


class Case(NamedTuple):
    """A layout, with what goes on in it."""

    name: str
    kind: LayoutKind
    chosen: list[int]  # experts of each MoE layer
    ep_size: int | None = None
    accumulate: int = 1
    has_checkpointing: bool = False
    is_eager: bool = False  # experts one after the other, as on devices without a good grouped_mm
    linear: bool = True  # LoRA on attention and shared experts too
    base: str = "base"  # folder of the model

    @property
    def lora(self) -> LoraConfig:
        """Options of the adapter."""
        return LoraConfig(rank=4, alpha=8.0, attention=self.linear, shared_experts=self.linear)

    def train(self, n_processes: int) -> TrainConfig:
        """Options of the loop."""
        return TrainConfig(
            steps=STEPS, learning_rate=2e-3, batch_size=ROWS, max_length_tokens=64, warmup_steps=4,
            accumulate=self.accumulate, eval_every=10, eval_rows=7, n_processes=n_processes,
            layout=LayoutConfig(kind=self.kind, ep_size=self.ep_size, time_limit_s=60),
            memory=MemoryConfig(gradient_checkpointing=self.has_checkpointing),
        )  # fmt: skip


def run_case(folder: Path, case: Case, accelerator: Accelerator | None = None) -> dict[str, Any]:
    """Train `case`: losses by step and of validation, fingerprint of the base, and the adapter's values.

    Without an `accelerator` it is trained in this process alone, on a base that is whole, and remembers all
    activations.
    """
    base = BaseConfig(model=str(folder / case.base), device="cpu")
    options = case.train(accelerator.num_processes if accelerator else 1)
    if accelerator is None:
        options = case._replace(kind="auto", ep_size=None, has_checkpointing=False).train(1)
    layout, sharing = choose_layout(base, options, accelerator or start_accelerator(1, "cpu"))
    model, tokenizer = load_base(base, layout, sharing, 60)
    fingerprint = model_fingerprint(model)
    if case.is_eager:
        model.set_experts_implementation("eager")
    plan = {"experts": {str(layer): case.chosen for layer in (1, 2)}}
    attach(model, plan, case.lora, seed=3, announces=False)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    metrics = folder / f"{case.name}.jsonl"
    result = train_rows(model, tokenizer, rows, options, 5, rows[:7], metrics, layout=layout)
    losses = []
    if accelerator is None or accelerator.is_main_process:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        losses = [value for line in lines for key, value in line.items() if "loss" in key]
    return {
        "losses": losses,
        "fingerprint": fingerprint,
        "n_trainable": result.n_trainable,
        "is_checkpointed": model.is_activation_checkpointing,
        "adapter": adapter_state(model),
        "held": sum(held(value) for value in model.parameters() if not value.requires_grad),
    }


def held(parameter: Any) -> int:
    """How many values of a parameter this process has."""
    own = getattr(parameter, "ds_tensor", parameter)  # DeepSpeed's
    return (own.to_local() if isinstance(own, DTensor) else own).numel()


def main(folder: Path) -> None:
    """Run all cases of `folder`, and write what each came to."""
    torch.set_num_threads(1)
    cases = [Case(**case) for case in json.loads((folder / "cases.json").read_text(encoding="utf-8"))]
    n_processes = PartialState(cpu=True).num_processes
    accelerator = start_accelerator(n_processes, "cpu", time_limit_s=60)
    for case in cases:
        found = run_case(folder, case, accelerator)
        if accelerator.is_main_process:
            save_file(found.pop("adapter"), folder / f"{case.name}.safetensors")
            (folder / f"{case.name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
