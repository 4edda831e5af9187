"""Train an adapter on chosen experts: the loop is `train_rows`, one process or several give the same numbers.

Reads data/, plan.json and the base; writes adapter/ (adapter.safetensors, adapter_config.json, plan.json,
metrics.jsonl, train.json).

    local-experts train --config configs/runs/quickstart.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m finetune.train --config FILE
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data_recipes.artefact import UserError, read_artefact, sha256_json, whole_folder, write_artefact
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.dataset import read_split
from data_recipes.settings import settings_dict
from finetune import cli
from finetune.adapters.adapter import adapter_parameters, attach
from finetune.adapters.adapter_folder import write_adapter_files
from finetune.adapters.merge import refuse_merged
from finetune.config import RunConfig, TrainConfig, config_from_arguments
from finetune.layouts.layout import Layout, data_parallel
from finetune.model import load_model, model_fingerprint, tokenizer_fingerprint
from finetune.moe import moe_layers
from finetune.processes import say, start_accelerator
from finetune.selecting.selection import read_plan
from finetune.training.bad_numbers import refuse_nan
from finetune.training.losses import evaluation_loss, step_gradients
from finetune.training.monitor import Monitor, TrainResult
from finetune.training.optimizer import adapter_optimizer, set_learning_rate
from finetune.training.training_rows import TrainingRows, validation_examples


def train_rows(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    config: TrainConfig,
    seed: int = 0,
    validation_rows: Sequence[Mapping[str, Any]] = (),
    metrics_path: Path | None = None,
    accelerator: Accelerator | None = None,
    layout: Layout | None = None,
) -> TrainResult:
    """Train the adapter that is attached to `model`, in place, on the assistant's tokens of `rows`.

    `metrics_path` gets one JSON line a step and one each evaluation, from the first process; trackers of
    `accelerator` get the same numbers. Without a `layout` each process has the whole model.

    Raises:
        UserError: bad rows, a loss that is not a number, an adapter that does not learn or is merged, or a
            lost process.
    """
    refuse_merged(model)
    layout = layout or data_parallel(accelerator or start_accelerator(config.n_processes))
    stop_ids = stop_token_ids(getattr(model, "generation_config", None), tokenizer)
    data = TrainingRows(tokenizer, rows, config, seed, stop_ids)
    validation = validation_examples(tokenizer, validation_rows, config)
    model.to(layout.device).train()
    parameters = list(adapter_parameters(model).values())
    if not parameters:
        raise UserError("the model has no adapter to train: call attach(model, plan, config, seed) first")
    layout.broadcast(parameters)
    optimizer = adapter_optimizer(model, config)
    monitor = Monitor(layout.accelerator, metrics_path, config.steps)
    pad_token_id = tokenizer.pad_token_id

    for step in range(config.steps):
        examples = data.of_step(step)
        monitor.step_begins(examples)
        learning_rate = set_learning_rate(optimizer, step, config)

        own_loss = step_gradients(model, examples, step, config, layout, seed, pad_token_id, step == 0)
        layout.sum_gradients(parameters)
        loss = layout.sum_over_rows(own_loss)
        gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm))
        refuse_nan("gradient norm", gradient_norm, step, [example.row_id for example in examples])
        optimizer.step()
        optimizer.zero_grad()

        monitor.step_ends(step, loss, learning_rate, gradient_norm)
        if validation and ((step + 1) % config.eval_every == 0 or step + 1 == config.steps):
            found = {
                f"eval_loss_{group}": evaluation_loss(model, layout, part, pad_token_id, config)
                for group, part in validation.items()
            }
            monitor.log(step, found)

    model.eval()
    return monitor.result(sum(parameter.numel() for parameter in parameters), seed)


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


def main(argv: Sequence[str] | None = None) -> int:
    """`--config FILE [key=value ...]`: train and print where the adapter is."""
    config = config_from_arguments(argv, "train", "Train LoRA on the chosen experts.")
    say(str(train_stage(config)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
