"""A tiny model whose adapter changes its answers, and what stands for the two models that it is."""

from typing import Any

import torch

from finetune.adapters.adapter import adapter_parameters, attach
from finetune.config import LoraConfig
from finetune.model import model_fingerprint

# Of base and tuned, where nothing else is in the cache.
OFF_AND_ON = {"adapter": "off"}, {"adapter": "on"}


def with_drawn_adapter(model: Any) -> Any:
    """The model with LoRA on four experts of layer 1, its B drawn and not zero."""
    plan = {"experts": {"1": [0, 1, 2, 3]}, "model_fingerprint": model_fingerprint(model), "seed": 0}
    attach(model, plan, LoraConfig(rank=4, alpha=8.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, value in adapter_parameters(model).items():
        if name.endswith(".B"):
            value.data.copy_(torch.randn(value.shape, generator=generator))
    return model
