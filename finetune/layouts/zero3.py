"""DeepSpeed's ZeRO-3 for the frozen base: a share of each tensor in each process, gathered module by module.

As with fsdp the adapter is attached afterwards, and DeepSpeed knows nothing of it: no optimizer is handed
over, and of DeepSpeed's settings only those that lay out the base matter. Reads the base; writes nothing.
Run in two processes on the CPU with deepspeed 0.19.8, never on another device.
"""

from typing import Any

import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from finetune.config import BaseConfig
from finetune.model import load_model


def load_zero3(base: BaseConfig) -> tuple[Any, Any]:
    """Load the base and its tokenizer; each process keeps its share of what all read."""
    import deepspeed  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": base.dtype == "bfloat16"},
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks for it, and uses it for a data loader
    }
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False)
    while_loading = HfDeepSpeedConfig(settings)  # from_pretrained looks whether one is alive
    model, tokenizer = load_model(base, {"device_map": None})
    del while_loading
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    # Kept alive, and not registered: the engine is a module around this one.
    object.__setattr__(model, "zero3_engine", engine)
    return model, tokenizer
