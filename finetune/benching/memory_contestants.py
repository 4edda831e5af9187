"""Contestants of `local-experts bench --preset memory`: an option of `train.memory` each, then all of them.

Reads and writes nothing. They train LoRA on chosen experts of the upper layers, with the loss of the training
loop; the layers below are the frozen ones whose outputs can be kept. A step is one of a later epoch: the rows
are the same in each.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from finetune.adapters.adapter import attach
from finetune.batches import Batch
from finetune.benching.bench import BenchConfig
from finetune.benching.bench_model import build_model, random_plan, send_rows, token_ids
from finetune.config import LoraConfig
from finetune.moe import moe_layers
from finetune.training.losses import token_losses
from finetune.training.memory import prepare_memory
from finetune.training_options import MemoryConfig


def memory_options(config: BenchConfig, contestant: str) -> MemoryConfig:
    """What of `train.memory` a contestant uses."""
    every = contestant == "together"
    chunked = every or contestant == "chunked_loss"
    return MemoryConfig(
        gradient_checkpointing=every or contestant == "checkpointing",
        loss_chunk_tokens=config.loss_chunk_tokens if chunked else "whole",
        prefix_cache="memory" if every or contestant == "prefix_cache" else "none",
    )


def prepare_with_memory(
    config: BenchConfig, contestant: str, n_experts: int, learning_rate: float
) -> tuple[Any, Callable[[], float], torch.optim.Optimizer, dict[int, int]]:
    """Model, step, optimizer, and routed rows on experts with LoRA by layer index."""
    if contestant in ("bfloat16", "together"):
        config = replace(config, dtype="bfloat16")
    model, ids = build_model(config, n_experts), token_ids(config)
    plan = random_plan(model, config.chosen, config.seed)
    rows = send_rows(model, plan, ids, config.rows_share)
    upper = [layer.index for layer in moe_layers(model)][-(config.adapted_layers or config.moe_layers) :]
    plan["experts"] = {str(index): plan["experts"][str(index)] for index in upper}
    attach(model, plan, LoraConfig(rank=config.rank, alpha=2.0 * config.rank), config.seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    options = memory_options(config, contestant)
    prefix = prepare_memory(model, options)
    batch = Batch([str(row) for row in range(len(ids))], ids.cpu(), torch.ones_like(ids).cpu(), ids.cpu())

    def step() -> float:
        with prefix.replayed(batch, ids.device) if prefix else nullcontext():
            loss = token_losses(model, batch, ids.device, options.loss_chunk_tokens).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return model, step, optimizer, {index: rows[index] for index in upper}
