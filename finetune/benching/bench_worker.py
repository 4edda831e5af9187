"""One contestant of `local-experts bench`, in a process of its own so that its peak memory is its own.

Reads JSON lines on standard input: first what it is ({"config", "contestant", "n_experts"}), then what to do
({"n_steps", "with_rate"}). Answers each with one JSON line. `finetune.benching.bench` starts it by name.
"""

import gc
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model

from data_recipes.artefact import UserError
from finetune.adapters.adapter import attach
from finetune.benching.bench import BenchConfig
from finetune.benching.bench_model import build_model, random_plan, send_rows, step_flops, token_ids
from finetune.benching.bench_report import MEMORY_TITLES
from finetune.benching.memory_contestants import prepare_with_memory
from finetune.config import LoraConfig
from finetune.model import choose_device
from finetune.moe import moe_layers
from finetune.training.memory_use import memory_bytes

LEARNING_RATE = 1e-5  # small: the routers shall choose in the last step as in the first
ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
EXPERT_STACKS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
PROCESS = Path("/proc/self")  # Linux only


class Contestant(NamedTuple):
    """A model with its adapter, ready to train: one call of `step` is forward, backward and optimizer."""

    model: Any
    step: Callable[[], float]  # returns the loss
    optimizer: torch.optim.Optimizer
    chosen_rows: dict[int, int]  # layer index -> routed rows on experts with LoRA
    takes_whole_step: bool = True  # attention LoRA in every layer, nothing computed twice or left out


def prepare(config: BenchConfig, contestant: str, n_experts: int) -> Contestant:
    """Build the model, give it the contestant's adapter and an optimizer."""
    if contestant in MEMORY_TITLES:
        return Contestant(*prepare_with_memory(config, contestant, n_experts, LEARNING_RATE), False)
    model = build_model(config, n_experts)
    ids = token_ids(config)
    layers = moe_layers(model)
    plan = random_plan(model, config.chosen, config.seed)
    # All contestants compute the same: rows are sent by the plan even where every expert has LoRA.
    chosen_rows = send_rows(model, plan, ids, config.rows_share)
    lora = LoraConfig(rank=config.rank, alpha=2.0 * config.rank, attention=True)
    if contestant == "floor":
        chosen_rows = {}
    elif contestant != "selected":
        chosen_rows = {layer.index: config.tokens * config.top_k for layer in layers}
        plan = {"experts": {str(layer.index): list(range(n_experts)) for layer in layers}}

    if contestant == "trl_peft_all":
        return Contestant(*_trl(model, ids, _peft_config(config, EXPERT_STACKS), config), chosen_rows)
    if contestant in ("selected", "all"):
        attach(model, plan, lora, config.seed)
    else:
        stacks = EXPERT_STACKS if contestant == "peft_all" else ()
        inject_adapter_in_model(_peft_config(config, stacks), model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # as get_peft_model does, and our own adapter
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)

    def step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Contestant(model, step, optimizer, chosen_rows)


def facts(config: BenchConfig, found: Contestant, n_experts: int) -> dict[str, Any]:
    """What the contestant is: bytes (of gradients, before they are dropped) and FLOPs.

    FLOPs are None where a step computes more or less than those are counted for.
    """
    trained = [parameter for parameter in found.model.parameters() if parameter.requires_grad]
    state = [value for group in found.optimizer.state.values() for value in group.values()]
    model_config = found.model.config
    assert model_config.n_routed_experts == n_experts
    n_bytes = sum(parameter.nbytes for parameter in trained)
    return {
        "n_trainable": sum(parameter.numel() for parameter in trained),
        "model_bytes": sum(p.nbytes for p in found.model.parameters() if not p.requires_grad),
        "adapter_bytes": n_bytes,
        "gradient_bytes": n_bytes,
        "optimizer_bytes": sum(value.nbytes for value in state if torch.is_tensor(value)),
        "chosen_rows": sum(found.chosen_rows.values()),
        "routed_rows": config.tokens * config.top_k * config.moe_layers,
        "flops": step_flops(model_config, config.tokens, config.length_tokens, config.rank, found.chosen_rows)
        if found.takes_whole_step
        else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(choose_device(config.device)),
    }


def seconds_of(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """(seconds, processor seconds of this process) of one call; an accelerator has a timer of its own."""
    processor_started = time.process_time()
    if device.type == "cpu":
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    else:  # written by the documentation: no accelerator was at hand to run it on
        begin, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1000
    return seconds, time.process_time() - processor_started


class MatmulRate:
    """The rate of one large product of square matrices on this machine, in this process."""

    def __init__(self, config: BenchConfig) -> None:
        self.size, self.device = config.matmul_size, choose_device(config.device)
        dtype = getattr(torch, config.dtype)
        ones = torch.ones(self.size, self.size, dtype=dtype, device=self.device)
        self.first, self.second, self.out = ones, ones.clone(), ones.clone()

    def flops_per_s(self) -> float:
        """FLOPs per second of the fastest of three products: what the machine can do, not what it did."""
        seconds = min(seconds_of(self._product, self.device)[0] for _ in range(3))
        return 2 * self.size**3 / seconds

    def _product(self) -> None:
        torch.mm(self.first, self.second, out=self.out)


class PeakMemory:
    """Peak memory in bytes over what was there when this was made, before there was a model.

    Of an accelerator it is what its allocator gave out; of a process it is the resident size, which on Linux
    can be reset. Elsewhere it is the largest since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.can_reset = device.type != "cpu" or (PROCESS / "clear_refs").exists()
        if device.type != "cpu":
            self.method = "torch.accelerator.max_memory_allocated, reset before each round"
        elif self.can_reset:
            self.method = "peak resident size (VmHWM), reset before each round"
        else:
            self.method = "peak resident size (ru_maxrss) since the process began"
        gc.collect()
        self.reset()
        self.before = self._peak()

    def reset(self) -> None:
        """Start again from the present use."""
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
        elif self.can_reset:
            (PROCESS / "clear_refs").write_text("5")

    def over_before(self) -> int:
        """The peak since the last reset."""
        return self._peak() - self.before

    def _peak(self) -> int:
        if self.device.type != "cpu":
            return torch.accelerator.max_memory_allocated(self.device)
        return memory_bytes(self.device)[1]


def _peft_config(config: BenchConfig, stacks: tuple[str, ...]) -> PeftLoraConfig:
    alpha: Any = 2.0 * config.rank  # PEFT annotates an int and divides it
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        target_modules=list(ATTENTION),
        target_parameters=list(stacks) or None,
    )


def _trl(
    model: Any, ids: torch.Tensor, peft_config: PeftLoraConfig, config: BenchConfig
) -> tuple[Any, Callable[[], float], torch.optim.Optimizer]:
    """TRL's trainer over PEFT: its own training step, without what its loop adds (data loading, logging)."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    trl: Any = importlib.import_module("trl")  # an extra: not everybody has it
    rows = ids.tolist()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>")), eos_token="<end>"
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=tempfile.gettempdir(),  # nothing is saved
            per_device_train_batch_size=len(rows),
            learning_rate=LEARNING_RATE,
            optim="adamw_torch",
            gradient_checkpointing=False,  # TRL's default is True; no other contestant computes twice
            bf16=False,
            use_cpu=ids.device.type == "cpu",
            max_length=None,
            report_to="none",
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.current_gradient_accumulation_steps = 1  # its loop sets it
    optimizer = trainer.create_optimizer()
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}

    def step() -> float:
        loss = trainer.training_step(trainer.model, dict(batch))
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return trainer.model, step, optimizer


def serve(setting: Mapping[str, Any], lines: Any, answer: Callable[[dict[str, Any]], None]) -> None:
    """Build the contestant and answer with its facts, then take steps and answer with what they took."""
    config, contestant = BenchConfig(**setting["config"]), setting["contestant"]
    torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    if contestant == "trl_peft_all":
        importlib.import_module("trl")  # before the memory is looked at: a library is not the contestant's
    rate = MatmulRate(config)
    rate.flops_per_s()
    memory = PeakMemory(device)
    found = prepare(config, contestant, setting["n_experts"])
    losses = [found.step() for _ in range(config.warmup_steps)]
    answer(
        {
            **facts(config, found, setting["n_experts"]),
            "first_loss": losses[0],
            "before_model_bytes": memory.before,
            "memory_method": memory.method,
        }
    )
    for line in lines:
        asked = json.loads(line)
        memory.reset()
        taken = [seconds_of(found.step, device) for _ in range(asked["n_steps"])]
        answer(
            {
                "step_s": [seconds for seconds, _ in taken],
                "processor_s": [seconds for _, seconds in taken],
                "peak_bytes": memory.over_before(),
                "matmul_flops_per_s": rate.flops_per_s() if asked["with_rate"] else None,
            }
        )


def main() -> int:
    """Serve until the input ends: exit code 0, or 1 after an error that was the last answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer

    def answer(body: dict[str, Any]) -> None:
        print(json.dumps(body), file=answers, flush=True)

    try:
        serve(json.loads(sys.stdin.readline()), sys.stdin, answer)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        answer({"error": f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
