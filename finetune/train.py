"""Train an adapter on chosen experts: the loop is `train_rows`, one process or several give the same numbers.

Reads data/, plan.json and the base; writes adapter/ (adapter.safetensors, adapter_config.json, plan.json,
metrics.jsonl, train.json), and tokens/ for the next run of these rows.

    local-experts train --config configs/runs/quickstart.yaml
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m finetune.train --config FILE
"""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data_recipes.artefact import (
    UserError,
    discard_unfinished,
    read_artefact,
    sha256_json,
    whole_folder,
    write_artefact,
)
from data_recipes.dataset import read_split
from data_recipes.settings import settings_dict
from finetune import cli
from finetune.adapters.adapter import adapter_parameters, attach
from finetune.adapters.adapter_folder import write_adapter_files
from finetune.adapters.merge import refuse_merged
from finetune.batching.packing import n_positions, parts_of_step, refuse_unpackable
from finetune.checkpoints.checkpoint_files import remove_checkpoints
from finetune.checkpoints.checkpoints import Checkpoints
from finetune.checkpoints.same_run import run_identity
from finetune.checkpoints.stop_signals import stop_requests
from finetune.config import RunConfig, config_from_arguments
from finetune.launch import LAUNCHED
from finetune.layouts.layout import Layout, data_parallel
from finetune.layouts.placement import choose_layout, load_base
from finetune.model import model_fingerprint, tokenizer_fingerprint
from finetune.moe import moe_layers
from finetune.processes import check_process_count, one_message, say, start_accelerator
from finetune.selecting.selection import read_plan
from finetune.training.bad_numbers import BadNumbers
from finetune.training.expert_load import ExpertLoad
from finetune.training.losses import Losses
from finetune.training.memory import prepare_memory
from finetune.training.monitor import Monitor, TrainResult
from finetune.training.optimizer import adapter_optimizer, set_learning_rate
from finetune.training.summary import summary
from finetune.training.trackers import start_trackers
from finetune.training.training_rows import (
    TrainingRows,
    questions_kept_out,
    replay_input,
    training_rows,
    validation_examples,
)
from finetune.training.validation import Validation
from finetune.training_options import TrainConfig


def train_rows(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]] | TrainingRows,
    config: TrainConfig,
    seed: int = 0,
    validation_rows: Iterable[Mapping[str, Any]] = (),
    metrics_path: Path | None = None,
    accelerator: Accelerator | None = None,
    layout: Layout | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train the adapter that is attached to `model`, in place, on the assistant's tokens of `rows`.

    Rows that `training_rows` has encoded already are taken as they are.
    `metrics_path` gets one JSON line a step and one each evaluation, from the first process; trackers of
    `accelerator` get the same numbers. Without a `layout` each process has the whole model. With
    `checkpoints` it goes on from the newest one.

    Raises:
        UserError: options that no run can use, bad rows, a loss that explodes or is no number, an adapter
            that does not learn or is merged, a lost process, or a checkpoint of another run.
        Stopped: a signal asked for it.
    """
    refuse_merged(model)
    if problems := config.problems():
        raise UserError("\n  ".join(["these options of training cannot be used", *problems]))
    layout = layout or data_parallel(accelerator or start_accelerator(config.n_processes))
    check_process_count(config.n_processes, layout.accelerator.num_processes, os.environ)
    data = rows if isinstance(rows, TrainingRows) else training_rows(model, tokenizer, rows, config, seed)
    held_out = validation_examples(tokenizer, validation_rows, config)
    layout.place(model).train()
    adapter = adapter_parameters(model)
    parameters = list(adapter.values())
    if not parameters:
        raise UserError("the model has no adapter to train: call attach(model, plan, config, seed) first")
    layout.broadcast(parameters)
    first_rows = data.of_step(0)
    layout.check_rows(first_rows)  # before any forward, which may ask the others
    if config.pack_length_tokens is not None:
        refuse_unpackable(model, first_rows, config.pack_length_tokens)
    prefix = prepare_memory(model, config.memory, layout.in_step)
    load = ExpertLoad(model, layout)
    losses = Losses(model, layout, config, seed, tokenizer.pad_token_id, prefix, load)
    optimizer = adapter_optimizer(model, config)
    monitor = Monitor(layout.accelerator, metrics_path, config.steps)
    validation = Validation(held_out, losses, monitor, config, adapter)

    first_step = checkpoints.restore(model, optimizer, monitor, layout, validation) if checkpoints else 0
    numbers = BadNumbers(config, layout, checkpoints, monitor.losses)

    for step in range(first_step, config.steps):
        if validation.is_over:  # at the top: a run may go on from the checkpoint of the step that decided it
            break
        examples = data.of_step(step)
        parts = parts_of_step(examples, layout.n_data * config.accumulate, config.pack_length_tokens)
        monitor.step_begins(examples, n_positions(parts))
        learning_rate = set_learning_rate(optimizer, step, config)

        own_loss = losses.step_gradients(parts, step, is_first=step == first_step)
        layout.sum_gradients(adapter)
        loss = layout.sum_over_rows(own_loss)
        gradient_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm))
        numbers.refuse(step, float(own_loss), loss, gradient_norm, parts)
        optimizer.step()
        optimizer.zero_grad()

        monitor.step_ends(step, loss, learning_rate, gradient_norm, load.told(step))
        validation.step_ends(step)
        if checkpoints:
            checkpoints.step_ends(step, config.steps, numbers.is_calm)

    layout.check_same(parameters)
    layout.check_same_inputs({"rows": monitor.row_order_sha256})
    validation.put_best_back()
    model.eval()
    n_trainable = sum(parameter.numel() for parameter in parameters)
    return monitor.result(n_trainable, seed, validation.outcome(len(monitor.losses)))


def train_stage(config: RunConfig) -> Path:
    """Train the run's adapter from its dataset, plan and base; returns the adapter's folder.

    Killed, the same call goes on from the newest whole checkpoint in <output>/checkpoints/.

    Raises:
        UserError: an input is missing or made for another model, or training fails as in `train_rows`.
        Stopped: a signal asked for it.
    """
    if config.train.n_threads is not None:
        torch.set_num_threads(config.train.n_threads)
    output = Path(config.output)
    accelerator = start_accelerator(
        config.train.n_processes, config.base.device, config.train.tracker, str(output / "tracker"),
        time_limit_s=config.train.layout.time_limit_s,
    )  # fmt: skip
    layout, model, tokenizer, plan, inputs = _load(config, accelerator)
    n_trainable = attach(model, plan, config.lora, config.seed)
    folder, writes = output / "adapter", accelerator.is_main_process
    train: Any = read_split(output / "data", "train")
    validation: Any = read_split(output / "data", "validation")
    kept_out = questions_kept_out(output / "data") if config.train.replay else frozenset()
    tokens = output / "tokens"
    rows = training_rows(model, tokenizer, train, config.train, config.seed, inputs["data"], tokens, kept_out)
    if writes:
        discard_unfinished(folder)  # of runs that were killed
    # Metrics grow inside the unfinished folder, which an error removes.
    with (
        stop_requests() as request,
        whole_folder(folder, "expert_adapter") if writes else nullcontext() as partial,
    ):
        checkpoints = Checkpoints(
            output / "checkpoints", config.train.checkpoint, run_identity(config, plan, inputs), request
        )
        if config.train.tracker:
            options = {"train": json.dumps(settings_dict(config.train))}
            start_trackers(accelerator, config.name, options, *checkpoints.find(layout))
        metrics = partial / "metrics.jsonl" if partial else None
        result = train_rows(
            model, tokenizer, rows, config.train, config.seed, validation, metrics,
            layout=layout, checkpoints=checkpoints,
        )  # fmt: skip
        assert result.n_trainable == n_trainable
        if partial:
            write_adapter_files(model, plan, config.lora, partial)
            write_artefact(partial / "train.json", "train_result", inputs, asdict(result))
    if writes:
        # Done: they are three times the adapter's size each, and would stand in the way of another run.
        remove_checkpoints(output / "checkpoints")
    accelerator.end_training()
    say(summary(result, config.train, plan["experts"], folder))
    return folder


def _load(
    config: RunConfig, accelerator: Accelerator
) -> tuple[Layout, Any, Any, dict[str, Any], dict[str, str]]:
    """Layout, base, tokenizer and plan, and the hashes of what is trained on; the same in all processes."""
    output = Path(config.output)
    manifest = read_artefact(output / "data" / "manifest.json", "dataset_manifest")
    layout, sharing = choose_layout(config.base, config.train, accelerator)
    options = sha256_json([config.seed, settings_dict(config.lora), settings_dict(config.train)])
    layout.check_same_inputs({"data": manifest["content_hash"], "options": options})
    model, tokenizer = load_base(config.base, layout, sharing, config.train.layout.time_limit_s)
    plan = read_plan(
        output / "plan.json", model_fingerprint(model), moe_layers(model), tokenizer_fingerprint(tokenizer)
    )
    inputs = {"data": manifest["content_hash"], "plan": sha256_json(plan["experts"])}
    inputs |= replay_input(config.train)
    layout.check_same_inputs({"plan": inputs["plan"]})
    return layout, model, tokenizer, plan, inputs


def main(argv: Sequence[str] | None = None) -> int:
    """`--config FILE [key=value ...]`: train and print what it came to, and what to run next."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = config_from_arguments(arguments, "train", "Train LoRA on the chosen experts.")
    with one_message(config.train.layout.time_limit_s):
        train_stage(config)
        if LAUNCHED not in os.environ:  # else whoever launched these processes knows what comes next
            say(f"{'next':<11}local-experts eval {shlex.join(arguments)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
