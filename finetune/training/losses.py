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
from finetune.batches import IGNORED_LABEL, Batch, Example, collate, contiguous_part, n_trained_tokens
from finetune.config import TrainConfig
from finetune.layouts.layout import Layout
from finetune.training.bad_numbers import refuse_nan


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


def step_gradients(
    model: Any, examples: Sequence[Example], step: int, config: TrainConfig, layout: Layout, seed: int,
    pad_token_id: int, is_first: bool,
) -> torch.Tensor:  # fmt: skip
    """Add this process's share of the gradients of a step's rows, and return its share of the mean loss.

    After the first backward of a run (`is_first`) it is checked that the adapter, and nothing else, learns.

    Raises:
        UserError: a loss that is not a number, an adapter that does not learn.
    """
    # Every process knows the whole batch, so nobody has to ask how many tokens the others train.
    n_trained = n_trained_tokens(examples)
    mine = layout.own_rows(examples)
    loss_sum = torch.zeros((), device=layout.device)
    for part in range(config.accumulate):
        batch = collate(contiguous_part(mine, part, config.accumulate), pad_token_id)
        checks = is_first and part == 0
        # Of the part within the step, over all processes: its dropout does not ask who computes it.
        number = layout.data_index * config.accumulate + part
        with (
            random_numbers_of(layout.device, seed, step, number),
            record_routing(model) if checks else nullcontext({}) as routing,
        ):
            loss = token_losses(model, batch, layout.device).sum() / n_trained
        refuse_nan("loss", float(loss.detach()), step, batch.row_ids)
        layout.accelerator.backward(loss)
        if checks:
            check_first_backward(model, experts_of_trained_tokens(routing, batch))
        loss_sum += loss.detach()
    return loss_sum


@torch.no_grad()
def evaluation_loss(
    model: Any, layout: Layout, examples: Sequence[Example], pad_token_id: int, config: TrainConfig
) -> float:
    """Mean loss in nats per trained token over `examples`, shared out over the processes."""
    model.eval()
    total = torch.zeros((), device=layout.device)
    mine = layout.own_rows(examples)
    for start in range(0, len(mine), config.batch_size):
        batch = collate(mine[start : start + config.batch_size], pad_token_id)
        total += token_losses(model, batch, layout.device).sum()
    model.train()
    return layout.sum_over_rows(total) / n_trained_tokens(examples)


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
