"""Losses of batches: each trained prediction's, a step's with its gradients, a validation set's.

Reads and writes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune.adapters.adapter import check_first_backward, record_routing
from finetune.batches import IGNORED_LABEL, Batch, Example, collate, n_trained_tokens
from finetune.batching.packing import Pack, collate_packs
from finetune.layouts.layout import Layout
from finetune.training.frozen_prefix import PrefixCache
from finetune.training.vocabulary_loss import chunk_length, chunked_losses
from finetune.training_options import TrainConfig


def token_losses(
    model: Any, batch: Batch, device: torch.device, loss_chunk_tokens: str | int = "auto"
) -> torch.Tensor:
    """Cross-entropy in nats of every trained prediction of `batch`, one number each, in float32.

    Raises:
        UserError: as `chunked_losses`, when the logits are not made whole.
    """
    inputs = {**batch.inputs(device), "use_cache": False}
    labels = batch.labels[:, 1:].to(device)
    is_trained = labels != IGNORED_LABEL
    n_chunk = chunk_length(model, loss_chunk_tokens, batch.tokens.numel())
    if n_chunk is not None:
        return chunked_losses(model, inputs, is_trained, labels[is_trained], n_chunk)
    # Prompt and padding are dropped before the cast: float32 logits of every position can outweigh the model.
    logits = model(**inputs).logits[:, :-1][is_trained].float()
    return F.cross_entropy(logits, labels[is_trained], reduction="none")


def step_gradients(
    model: Any, parts: Sequence[Sequence[Pack]], step: int, config: TrainConfig, layout: Layout, seed: int,
    pad_token_id: int, is_first: bool, prefix: PrefixCache | None = None,
) -> torch.Tensor:  # fmt: skip
    """Add this process's share of the gradients of a step's rows, and return its share of the mean loss.

    `parts` are the forward passes of all processes (`finetune.batching.packing.parts_of_step`).

    After the first backward of a run (`is_first`) it is checked that the adapter, and nothing else, learns.
    `prefix` gives what it kept of the frozen layers below.

    Raises:
        UserError: an adapter that does not learn.
    """
    # Every process knows the whole batch, so nobody has to ask how many tokens the others train.
    n_trained = n_trained_tokens(example for packs in parts for pack in packs for example in pack)
    mine, loss_chunk = layout.own_rows(parts), chunk_of(layout, config)
    loss_sum = torch.zeros((), device=layout.device)
    for part, packs in enumerate(mine):
        batch = collate_packs(packs, pad_token_id)
        checks = is_first and part == 0
        # Of the part within the step, over all processes: its dropout does not ask who computes it.
        number = layout.data_index * config.accumulate + part
        with (
            prefix.replayed(batch, layout.device) if prefix is not None else nullcontext(),
            random_numbers_of(layout.device, seed, step, number),
            record_routing(model) if checks else nullcontext({}) as routing,
        ):
            losses = token_losses(model, batch, layout.device, loss_chunk)
            loss = losses.sum() / n_trained
        loss.backward()  # Accelerate's own would scale it by what the launcher was told
        if checks:
            check_first_backward(model, layout.hit_by_any(experts_of_trained_tokens(routing, batch)))
        loss_sum += loss.detach()
    return loss_sum


@torch.no_grad()
def evaluation_loss(
    model: Any, layout: Layout, examples: Sequence[Example], pad_token_id: int, config: TrainConfig
) -> float:
    """Mean loss in nats per trained token over `examples`, shared out over the processes."""
    model.eval()
    total = torch.zeros((), device=layout.device)
    mine, loss_chunk = layout.own_rows(examples), chunk_of(layout, config)
    for number in range(layout.n_forwards(len(examples), config.batch_size)):
        own = mine[number * config.batch_size : (number + 1) * config.batch_size]
        # A share may be shorter than the others', which ask this process in each of their forwards.
        batch = collate(own or examples[:1], pad_token_id)
        losses = token_losses(model, batch, layout.device, loss_chunk)
        total += losses.sum() if own else 0.0
    model.train()
    return layout.sum_over_rows(total) / n_trained_tokens(examples)


def chunk_of(layout: Layout, config: TrainConfig) -> str | int:
    """How the loss is cut: whole where each forward asks other processes, whose rows have other chunks."""
    return "whole" if layout.in_step else config.memory.loss_chunk_tokens


@contextmanager
def random_numbers_of(device: torch.device, *numbers: int) -> Iterator[None]:
    """Inside, torch draws (for dropout) from a start that `numbers` alone decide; outside nothing changes."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
        yield


def experts_of_trained_tokens(routing: Mapping[int, torch.Tensor], batch: Batch) -> dict[int, set[int]]:
    """Layer -> experts that a trained prediction went through; other tokens may reach no loss at all."""
    predicts = torch.zeros_like(batch.labels, dtype=torch.bool)
    predicts[:, :-1] = batch.labels[:, 1:] != IGNORED_LABEL
    return {
        layer: set(indices.cpu()[predicts.flatten()].unique().tolist()) for layer, indices in routing.items()
    }
