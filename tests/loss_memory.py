"""Take one training step's loss and gradient over GLM's vocabulary in a process of its own; print the peak.

    python tests/loss_memory.py LOSS_CHUNK_TOKENS VOCABULARY TOKENS

Prints one JSON line: the peak resident size over what was there before the step, the loss, the gradient norm.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, GlmMoeDsaConfig

from finetune.adapters.adapter import adapter_parameters, attach
from finetune.batches import Batch
from finetune.benching.bench_worker import PeakMemory
from finetune.config import LoraConfig
from finetune.training.losses import token_losses


def main(setting: str, vocabulary: int, n_tokens: int) -> None:
    """Two rows, all tokens trained."""
    torch.manual_seed(0)
    config = GlmMoeDsaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        mlp_layer_types=["dense", "sparse"],
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=n_tokens,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    attach(model, {"experts": {"1": [0, 1]}}, LoraConfig(rank=2), seed=0, announces=False)
    tokens = torch.randint(vocabulary, (2, n_tokens // 2))
    batch = Batch(["0", "1"], tokens, torch.ones_like(tokens), tokens)
    memory = PeakMemory(torch.device("cpu"))
    chunk = setting if setting in ("auto", "whole") else int(setting)
    loss = token_losses(model, batch, torch.device("cpu"), chunk).mean()
    loss.backward()
    norms = [p.grad.norm() for p in adapter_parameters(model).values() if p.grad is not None]
    found = {"loss": float(loss.detach()), "gradient_norm": float(torch.stack(norms).norm())}
    print(json.dumps({"peak_bytes": memory.over_before(), **found}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
