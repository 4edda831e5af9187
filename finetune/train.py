"""Train an adapter on chosen experts: the loop is `train_rows`, one process or several give the same numbers.

Reads data/, plan.json and the base; writes adapter/ (adapter.safetensors, adapter_config.json, plan.json,
metrics.jsonl, train.json).

    local-experts train --config configs/runs/quickstart.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m finetune.train --config FILE
"""

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from tqdm import tqdm

from data_recipes.artefact import UserError, read_artefact, sha256_json, whole_folder, write_artefact
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.dataset import read_split
from data_recipes.settings import settings_dict
from finetune import cli
from finetune.adapters.adapter import (
    adapter_parameters,
    attach,
    check_first_backward,
    record_routing,
)
from finetune.adapters.adapter_folder import write_adapter_files
from finetune.adapters.merge import refuse_merged
from finetune.batches import (
    IGNORED_LABEL,
    Batch,
    Example,
    collate,
    contiguous_part,
    encode_rows,
    n_trained_tokens,
    step_rows,
)
from finetune.config import RunConfig, TrainConfig, config_from_arguments
from finetune.model import load_model, model_fingerprint, tokenizer_fingerprint
from finetune.moe import moe_layers
from finetune.processes import broadcast_parameters, say, start_accelerator, sum_gradients
from finetune.selecting.selection import read_plan

ADAM_BETAS = (0.9, 0.95)
SECONDS_BETWEEN_LINES = 10  # of a progress bar that goes to a file or a notebook, where every update stays


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to; losses are nats per trained token."""

    steps: int
    seconds: float
    tokens: int  # read, padding left out
    first_loss: float
    last_loss: float
    n_trainable: int
    tokens_per_s: float
    step_time_s: float  # median over the optimizer steps, without evaluation
    row_order_sha256: str  # of the row ids of each step, in order: equal for runs that trained on the same
    seed: int


def train_rows(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    config: TrainConfig,
    seed: int = 0,
    validation_rows: Sequence[Mapping[str, Any]] = (),
    metrics_path: Path | None = None,
    accelerator: Accelerator | None = None,
) -> TrainResult:
    """Train the adapter that is attached to `model`, in place, on the assistant's tokens of `rows`.

    `metrics_path` gets one JSON line a step and one each evaluation, from the first process; trackers of
    `accelerator` get the same numbers.

    Raises:
        UserError: bad rows, a loss that is not a number, an adapter that does not learn or is merged, or a
            lost process.
    """
    refuse_merged(model)
    accelerator = accelerator or start_accelerator(config.n_processes)
    stop_ids = stop_token_ids(getattr(model, "generation_config", None), tokenizer)
    examples = encode_rows(tokenizer, rows, config.max_length_tokens, stop_ids)
    validation = _encode_validation(tokenizer, validation_rows, config)
    model.to(accelerator.device).train()
    parameters = list(adapter_parameters(model).values())
    if not parameters:
        raise UserError("the model has no adapter to train: call attach(model, plan, config, seed) first")
    if metrics_path is not None:
        metrics_path.unlink(missing_ok=True)
    broadcast_parameters(accelerator, parameters)
    optimizer = adapter_optimizer(model, config)
    losses, step_times = [], []
    n_tokens, started, row_order = 0, time.perf_counter(), hashlib.sha256()
    progress = tqdm(
        total=config.steps,
        desc="train",
        disable=not accelerator.is_main_process,
        mininterval=SECONDS_BETWEEN_LINES if not sys.stderr.isatty() else 0.1,
    )

    for step in range(config.steps):
        step_started = time.perf_counter()
        learning_rate = learning_rate_at(step, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        numbers = step_rows(len(examples), config.batch_size, step, seed)
        step_examples = [examples[number] for number in numbers]
        row_order.update(json.dumps([example.row_id for example in step_examples]).encode())
        # Every process knows the whole batch, so nobody has to ask how many tokens the others train.
        n_trained = n_trained_tokens(step_examples)
        mine = contiguous_part(step_examples, accelerator.process_index, accelerator.num_processes)

        loss_sum = torch.zeros((), device=accelerator.device)
        for part in range(config.accumulate):
            part_examples = contiguous_part(mine, part, config.accumulate)
            batch = collate(part_examples, tokenizer.pad_token_id)
            is_first = step == 0 and part == 0
            # Of the part within the step, over all processes: its dropout does not ask who computes it.
            number = accelerator.process_index * config.accumulate + part
            with (
                random_numbers_of(accelerator.device, seed, step, number),
                record_routing(model) if is_first else nullcontext({}) as routing,
            ):
                loss = token_losses(model, batch, accelerator.device).sum() / n_trained
            _refuse_nan("loss", float(loss.detach()), step, batch.row_ids)
            accelerator.backward(loss)
            if is_first:
                check_first_backward(model, _experts_of_trained_tokens(routing, batch))
            loss_sum += loss.detach()

        sum_gradients(accelerator, parameters)
        step_loss = float(torch.as_tensor(accelerator.reduce(loss_sum, reduction="sum")))
        gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm))
        _refuse_nan("gradient norm", gradient_norm, step, [example.row_id for example in step_examples])
        optimizer.step()
        optimizer.zero_grad()

        losses.append(step_loss)
        step_tokens = sum(len(example.tokens) for example in step_examples)
        n_tokens += step_tokens
        step_times.append(time.perf_counter() - step_started)
        tokens_per_s = step_tokens / step_times[-1]
        progress.set_postfix(loss=f"{step_loss:.3f}", tokens_per_s=f"{tokens_per_s:,.0f}", refresh=False)
        progress.update()
        metrics = {
            "step": step + 1,
            "loss": step_loss,
            "lr": learning_rate,
            "grad_norm": gradient_norm,
            "tokens_per_s": tokens_per_s,
            "step_time_s": step_times[-1],
        }
        _log(accelerator, metrics_path, metrics)
        if validation and ((step + 1) % config.eval_every == 0 or step + 1 == config.steps):
            found = {
                f"eval_loss_{group}": evaluation_loss(
                    model, accelerator, part, tokenizer.pad_token_id, config
                )
                for group, part in validation.items()
            }
            _log(accelerator, metrics_path, {"step": step + 1, **found})

    progress.close()
    model.eval()
    seconds = time.perf_counter() - started
    return TrainResult(
        steps=config.steps,
        seconds=seconds,
        tokens=n_tokens,
        first_loss=losses[0],
        last_loss=losses[-1],
        n_trainable=sum(parameter.numel() for parameter in parameters),
        tokens_per_s=n_tokens / seconds,
        step_time_s=median(step_times),
        row_order_sha256=row_order.hexdigest(),
        seed=seed,
    )


def adapter_optimizer(model: Any, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the adapter in two groups, A and B; a group's "ratio" multiplies the learning rate."""
    own, is_B = adapter_parameters(model), re.compile(r"\.B$|\.lora_B\.").search
    B = [value for name, value in own.items() if is_B(name)]
    A = [value for name, value in own.items() if not is_B(name)]
    groups = [{"params": A, "ratio": 1.0}, {"params": B, "ratio": config.b_learning_rate_ratio}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=ADAM_BETAS, weight_decay=config.weight_decay
    )


@contextmanager
def random_numbers_of(device: torch.device, *numbers: int) -> Iterator[None]:
    """Inside, torch draws (for dropout) from a start that `numbers` alone decide; outside nothing changes."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
        yield


def token_losses(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Cross-entropy in nats of every trained prediction of `batch`, one number each, in float32."""
    output = model(
        input_ids=batch.tokens.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    )
    labels = batch.labels[:, 1:].to(device)
    is_trained = labels != IGNORED_LABEL
    # Prompt and padding are dropped before the cast: float32 logits of every position can outweigh the model.
    logits = output.logits[:, :-1][is_trained].float()
    return F.cross_entropy(logits, labels[is_trained], reduction="none")


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant or a cosine that ends at zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@torch.no_grad()
def evaluation_loss(
    model: Any, accelerator: Accelerator, examples: Sequence[Example], pad_token_id: int, config: TrainConfig
) -> float:
    """Mean loss in nats per trained token over `examples`, shared out over the processes."""
    model.eval()
    total = torch.zeros((), device=accelerator.device)
    mine = contiguous_part(examples, accelerator.process_index, accelerator.num_processes)
    for start in range(0, len(mine), config.batch_size):
        batch = collate(mine[start : start + config.batch_size], pad_token_id)
        total += token_losses(model, batch, accelerator.device).sum()
    model.train()
    everyone: Any = accelerator.reduce(total, reduction="sum")
    return float(everyone) / n_trained_tokens(examples)


def train_stage(config: RunConfig) -> Path:
    """Train the run's adapter from its dataset, plan and base; returns the adapter's folder.

    Raises:
        UserError: an input is missing or made for another model, or training fails as in `train_rows`.
    """
    if config.train.n_threads is not None:
        torch.set_num_threads(config.train.n_threads)
    output = Path(config.output)
    accelerator = start_accelerator(
        config.train.n_processes, config.base.device, config.train.tracker, str(output / "tracker")
    )
    manifest = read_artefact(output / "data" / "manifest.json", "dataset_manifest")
    train, validation = (read_split(output / "data", split) for split in ("train", "validation"))
    model, tokenizer = load_model(config.base)
    plan = read_plan(
        output / "plan.json", model_fingerprint(model), moe_layers(model), tokenizer_fingerprint(tokenizer)
    )
    n_trainable = attach(model, plan, config.lora, config.seed)
    if config.train.tracker:
        accelerator.init_trackers(config.name, {"train": json.dumps(settings_dict(config.train))})

    folder = output / "adapter"
    # Only the first process writes. Metrics grow inside the unfinished folder, which an error removes.
    with whole_folder(folder, "expert_adapter") if accelerator.is_main_process else nullcontext() as partial:
        metrics_path = partial / "metrics.jsonl" if partial else None
        result = train_rows(
            model,
            tokenizer,
            train.to_list(),
            config.train,
            config.seed,
            validation.to_list(),
            metrics_path,
            accelerator,
        )
        assert result.n_trainable == n_trainable
        if partial:
            write_adapter_files(model, plan, config.lora, partial)
            inputs = {"data": manifest["content_hash"], "plan": sha256_json(plan["experts"])}
            write_artefact(partial / "train.json", "train_result", inputs, asdict(result))
    accelerator.end_training()
    return folder


def _encode_validation(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], config: TrainConfig
) -> dict[str, list[Example]]:
    """Group ("target", "general") -> its first `config.eval_rows` examples; an empty group is left out."""
    groups = {
        group: [row for row in rows if row["group"] == group][: config.eval_rows]
        for group in ("target", "general")
    }
    return {
        group: encode_rows(tokenizer, part, config.max_length_tokens)
        for group, part in groups.items()
        if part
    }


def _experts_of_trained_tokens(routing: Mapping[int, torch.Tensor], batch: Batch) -> dict[int, set[int]]:
    """Layer -> experts that a trained prediction went through; other tokens may reach no loss at all."""
    predicts = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicts[:, :-1] = batch.labels[:, 1:] != IGNORED_LABEL
    return {
        layer: set(indices.cpu()[predicts.flatten()].unique().tolist()) for layer, indices in routing.items()
    }


def _refuse_nan(name: str, value: float, step: int, row_ids: Sequence[str]) -> None:
    if not math.isfinite(value):
        raise UserError(
            f"the {name} is {value} at step {step + 1}, rows {', '.join(row_ids[:8])}: "
            "lower train.learning_rate, or look at these rows"
        )


def _log(accelerator: Accelerator, path: Path | None, metrics: dict[str, float]) -> None:
    """Append one line to metrics.jsonl and hand the numbers to the tracker, from the first process."""
    if path is not None and accelerator.is_main_process:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
    accelerator.log(metrics, step=int(metrics["step"]))


def main(argv: Sequence[str] | None = None) -> int:
    """`--config FILE [key=value ...]`: train and print where the adapter is."""
    config = config_from_arguments(argv, "train", "Train LoRA on the chosen experts.")
    say(str(train_stage(config)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
