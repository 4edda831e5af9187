"""Losses of batches: each trained prediction's, a step's with its gradients, a validation set's.

Reads and writes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune.adapters.adapter import check_first_backward, record_routing
from finetune.batches import IGNORED_LABEL, Batch, Example, collate, n_trained_tokens
from finetune.batching.packing import Pack, collate_packs
from finetune.layouts.layout import Layout
from finetune.training.expert_load import ExpertLoad
from finetune.training.frozen_prefix import PrefixCache
from finetune.training.vocabulary_loss import chunk_length, chunked_losses
from finetune.training_options import TrainConfig


def token_losses(
    model: Any,
    batch: Batch,
    device: torch.device,
    loss_chunk_tokens: str | int = "auto",
    cache: Any = None,
) -> torch.Tensor:
    """Cross-entropy in nats of every trained prediction of `batch`, one number each, in float32.

    An empty `cache` of transformers keeps what the attention made of the batch; a loss does not depend on it.

    Raises:
        UserError: as `chunked_losses`, when the logits are not made whole.
    """
    inputs = {**batch.inputs(device), "use_cache": cache is not None}
    inputs |= {} if cache is None else {"past_key_values": cache}
    labels = batch.labels[:, 1:].to(device)
    is_trained = labels != IGNORED_LABEL
    n_chunk = chunk_length(model, loss_chunk_tokens, batch.tokens.numel())
    if n_chunk is not None:
        return chunked_losses(model, inputs, is_trained, labels[is_trained], n_chunk)
    # Prompt and padding are dropped before the cast: float32 logits of every position can outweigh the model.
    logits = model(**inputs).logits[:, :-1][is_trained].float()
    return F.cross_entropy(logits, labels[is_trained], reduction="none")


@dataclass(frozen=True)
class Losses:
    """Losses of a run's rows, shared out over its processes; `seed` decides what dropout drops.

    `prefix` gives what it kept of the frozen layers below, in training. `load` counts what experts get.
    """

    model: Any
    layout: Layout
    config: TrainConfig
    seed: int
    pad_token_id: int
    prefix: PrefixCache | None = None
    load: ExpertLoad | None = None

    def step_gradients(self, parts: Sequence[Sequence[Pack]], step: int, is_first: bool) -> torch.Tensor:
        """Add this process's share of the gradients of a step's rows, and return its share of the mean loss.

        `parts` are the forward passes of all processes (`finetune.batching.packing.parts_of_step`). After the
        first backward of a run (`is_first`) it is checked that the adapter, and nothing else, learns.

        Raises:
            UserError: an adapter that does not learn.
        """
        model, layout, prefix = self.model, self.layout, self.prefix
        load = self.load if self.load is not None and self.load.is_due(step) else None
        # Every process knows the whole batch, so nobody has to ask how many tokens the others train.
        n_trained = n_trained_tokens(example for packs in parts for pack in packs for example in pack)
        loss_sum = torch.zeros((), device=layout.device)
        for part, packs in enumerate(layout.own_rows(parts)):
            batch = collate_packs(packs, self.pad_token_id)
            checks = is_first and part == 0
            # Of the part within the step, over all processes: its dropout does not ask who computes it.
            number = layout.data_index * self.config.accumulate + part
            with (
                prefix.replayed(batch, layout.device) if prefix is not None else nullcontext(),
                random_numbers_of(layout.device, self.seed, step, number),
                record_routing(model) if checks or load else nullcontext({}) as routing,
            ):
                loss = self._of(batch).sum() / n_trained
            if load is not None:
                load.add(routing, packs)
            loss.backward()  # Accelerate's own would scale it by what the launcher was told
            if checks:
                check_first_backward(model, layout.hit_by_any(experts_of_trained_tokens(routing, batch)))
            loss_sum += loss.detach()
        return loss_sum

    @torch.no_grad()
    def of_validation(self, examples: Sequence[Example]) -> float:
        """Mean loss in nats per trained token over `examples`."""
        self.model.eval()
        total = torch.zeros((), device=self.layout.device)
        mine, size = self.layout.own_rows(examples), self.config.batch_size
        for number in range(self.layout.n_forwards(len(examples), size)):
            own = mine[number * size : (number + 1) * size]
            # A share may be shorter than the others', which ask this process in each of their forwards.
            losses = self._of(collate(own or examples[:1], self.pad_token_id))
            total += losses.sum() if own else 0.0
        self.model.train()
        return self.layout.sum_over_rows(total) / n_trained_tokens(examples)

    def _of(self, batch: Batch) -> torch.Tensor:
        # Whole where each forward asks other processes, whose rows have other chunks.
        chunk = "whole" if self.layout.in_step else self.config.memory.loss_chunk_tokens
        return token_losses(self.model, batch, self.layout.device, chunk)


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
