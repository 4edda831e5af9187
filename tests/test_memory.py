"""Less memory changes nothing that is learnt: losses and gradients are those of the plain way."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_parameters, adapter_state, attach
from finetune.batches import IGNORED_LABEL, Batch
from finetune.config import LoraConfig, MemoryConfig
from finetune.moe import moe_layers
from finetune.train import train_rows
from finetune.training.losses import token_losses
from finetune.training.vocabulary_loss import (
    CHUNK_LOGITS_BYTES,
    WHOLE_LOGITS_BYTES,
    chunk_length,
)
from tests.test_train import chat_rows, train_config
from tests.tiny_families import FAMILIES, build_tiny_family

CPU = torch.device("cpu")
# What they do between hidden states and logits: nothing, a cap, a scale, a division, a cast, a shorter vocabulary.
HEADS = ("glm_moe_dsa", "gpt_oss", "beam", "gemma4", "cohere2_moe", "granitemoe", "hy_v4", "inkling2")
TOLERANCE = 1e-6  # in float32, of the largest value


def padded_batch(n_rows: int = 3, width: int = 12, seed: int = 1, vocabulary: int = 64) -> Batch:
    """Rows of unlike lengths; the first two tokens of each, and padding, are not trained."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocabulary, (n_rows, width), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(1, n_rows):
        mask[row, width - 3 * row :] = 0
    tokens[mask == 0] = 0
    labels = tokens.masked_fill(mask == 0, IGNORED_LABEL)
    labels[:, :2] = IGNORED_LABEL
    return Batch([str(row) for row in range(n_rows)], tokens, mask, labels)


def tuned(family: str, layers: slice = slice(None)) -> Any:
    """A family's tiny model with a LoRA that already does something, on two experts of some MoE layers."""
    model = build_tiny_family(FAMILIES[family])
    plan = {str(layer.index): [0, 3] for layer in moe_layers(model)[layers]}
    attach(model, {"experts": plan}, LoraConfig(rank=2, alpha=4.0), seed=0, announces=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model


def losses_and_gradients(model: Any, batch: Batch, setting: str | int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [N] and the gradient of their weighted mean, laid flat."""
    model.zero_grad()
    losses = token_losses(model, batch, CPU, setting)
    (losses * torch.linspace(1, 2, len(losses))).mean().backward()
    parameters = adapter_parameters(model).values()
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    return losses.detach(), torch.cat(flat)


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.abs().max() > 1e-4, "the answer is not zero"
    return float((found - expected).abs().max() / expected.abs().max())
