"""The optimizer of an adapter and its learning rate. Reads and writes nothing."""

import math
import re
from typing import Any

import torch

from finetune.adapters.adapter import adapter_parameters
from finetune.training_options import TrainConfig

ADAM_BETAS = (0.9, 0.95)


def adapter_optimizer(model: Any, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the adapter in two groups, A and B; a group's "ratio" multiplies the learning rate."""
    own, is_B = adapter_parameters(model), re.compile(r"\.B$|\.lora_B\.").search
    B = [value for name, value in own.items() if is_B(name)]
    A = [value for name, value in own.items() if not is_B(name)]
    groups = [{"params": A, "ratio": 1.0}, {"params": B, "ratio": config.b_learning_rate_ratio}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=ADAM_BETAS, weight_decay=config.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Set each group's learning rate for `step` (from 0); returns A's."""
    learning_rate = learning_rate_at(step, config)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]
    return learning_rate


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant or a cosine that ends at zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
