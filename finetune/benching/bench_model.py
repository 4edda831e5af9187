"""What `local-experts bench` measures on: a GLM of a given size, its plan, and the arithmetic of a step.

Reads and writes nothing: the model is random, and the same one for every contestant.
Legend: N tokens of a step laid end to end, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GlmMoeDsaConfig

from finetune.benching.bench import BenchConfig
from finetune.model import choose_device
from finetune.moe import MoeLayer, moe_layers, router_output

BISECTIONS = 40


def glm_config(config: BenchConfig, n_experts: int) -> GlmMoeDsaConfig:
    """The architecture of GLM-5.2 in the sizes of `config`, its other widths in GLM-5.2's proportions."""
    n_layers = config.dense_layers + config.moe_layers
    return GlmMoeDsaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        moe_intermediate_size=config.expert_width,
        num_hidden_layers=n_layers,
        mlp_layer_types=["dense"] * config.dense_layers + ["sparse"] * config.moe_layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        n_routed_experts=n_experts,
        num_experts_per_tok=config.top_k,
        q_lora_rank=3 * config.hidden // 8,
        kv_lora_rank=config.hidden // 8,
        # Half as wide as GLM-5.2's: a width of 512 then has a few heads and not two.
        qk_nope_head_dim=96,
        qk_rope_head_dim=32,
        v_head_dim=128,
        index_head_dim=64,
        index_n_heads=4,
        index_topk=config.length_tokens,  # it never chooses, as in GLM-5.2 below 2,048 tokens
        indexer_types=["full" if i % 3 == 0 else "shared" for i in range(n_layers)],
        max_position_embeddings=config.length_tokens,
        bos_token_id=None,
        eos_token_id=0,
    )


def build_model(config: BenchConfig, n_experts: int) -> Any:
    """The frozen random model, in training mode, on the device of `config`; the same for the same seed."""
    device = choose_device(config.device)
    # Made where it is used: a copy made on the way would be the largest peak of all.
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(config.seed)
        model: Any = AutoModelForCausalLM.from_config(
            glm_config(config, n_experts), dtype=getattr(torch, config.dtype)
        )
    model.set_experts_implementation(config.experts_implementation)
    return model.requires_grad_(False).train()


def token_ids(config: BenchConfig) -> torch.Tensor:
    """Random token ids of one step: [sequences, tokens of a sequence]."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.tokens // config.length_tokens, config.length_tokens)
    return torch.randint(config.vocabulary, shape, generator=generator).to(choose_device(config.device))


def random_plan(model: Any, n_chosen: int, seed: int) -> dict[str, Any]:
    """A plan with `n_chosen` experts of every MoE layer, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    experts = {
        str(layer.index): sorted(torch.randperm(layer.n_experts, generator=generator)[:n_chosen].tolist())
        for layer in moe_layers(model)
    }
    return {"experts": experts}


@torch.no_grad()
def send_rows(model: Any, plan: Mapping[str, Any], ids: torch.Tensor, share: float) -> dict[int, int]:
    """Make the routers send `share` of the routed rows to chosen experts; returns how many, by layer index.

    The routers' correction bias is moved for the chosen experts. Left to chance, the rows on the same number
    of chosen experts would halve when the number of experts doubles.
    """
    n_rows = {}
    # In order: what a layer does changes what the next one sees.
    for layer in moe_layers(model):
        score_NE = _router_logits(model, layer, ids).sigmoid()
        chosen = plan["experts"][str(layer.index)]
        wanted = round(share * score_NE.shape[0] * layer.top_k)
        low, high = -1.0, 1.0  # scores lie in 0..1: with these no row or every row it can goes to chosen ones
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            few = _rows_on(score_NE, chosen, middle, layer.top_k) < wanted
            low, high = (middle, high) if few else (low, middle)
        layer.router.get_buffer("e_score_correction_bias")[chosen] = high
        n_rows[layer.index] = _rows_on(score_NE, chosen, high, layer.top_k)
    return n_rows


def step_flops(
    model: GlmMoeDsaConfig, tokens: int, length_tokens: int, rank: int, chosen_rows: Mapping[int, int]
) -> int:
    """Floating-point operations of the matrix products that one training step needs; the rest is not counted.

    Forward: every projection, attention over all pairs of tokens (as computed here, also those the causal
    mask drops), router, indexer, head. Backward: the gradient of each product's inputs where something
    trained lies before it, and of LoRA's weights. Frozen weights have no gradient. `chosen_rows`: layer
    index -> rows on experts with LoRA; empty when attention alone has one.
    """
    hidden, width = model.hidden_size, model.moe_intermediate_size
    flops = 2 * _product(tokens, hidden, model.vocab_size)
    for index, kind in enumerate(model.mlp_layer_types or ()):
        flops += _attention_flops(model, index, tokens, length_tokens, rank)
        if kind == "dense":
            flops += 2 * 3 * _product(tokens, hidden, model.intermediate_size)
            continue
        router = _product(tokens, hidden, model.n_routed_experts)
        shared = 3 * _product(tokens, hidden, width * model.n_shared_experts)
        routed = 3 * _product(tokens * model.num_experts_per_tok, hidden, width)
        flops += 2 * (router + shared + routed)
        rows = chosen_rows.get(index, 0)
        flops += 3 * (_low_rank(rows, rank, hidden, 2 * width) + _low_rank(rows, rank, width, hidden))
    return flops


def _attention_flops(model: GlmMoeDsaConfig, index: int, tokens: int, length_tokens: int, rank: int) -> int:
    n_heads, hidden = model.num_attention_heads, model.hidden_size
    score_width = model.qk_nope_head_dim + model.qk_rope_head_dim
    from_hidden = (
        (hidden, model.q_lora_rank),
        (hidden, model.kv_lora_rank + model.qk_rope_head_dim),
    )
    others = (
        (model.q_lora_rank, n_heads * score_width),
        (model.kv_lora_rank, n_heads * (model.qk_nope_head_dim + model.v_head_dim)),
        (n_heads * model.v_head_dim, hidden),
    )
    flops = 3 * _product(tokens, length_tokens, n_heads * (score_width + model.v_head_dim))
    for n_in, n_out in (*from_hidden, *others):
        flops += 2 * _product(tokens, n_in, n_out) + 3 * _low_rank(tokens, rank, n_in, n_out)
    if index == 0:  # nothing is trained before the first layer: no gradient of its inputs
        flops -= sum(_product(tokens, n_in, n_out + rank) for n_in, n_out in from_hidden)
    if (model.indexer_types or ())[index] == "full":  # forward only: it runs under no_grad
        index_width = model.index_n_heads * model.index_head_dim
        flops += _product(tokens, model.q_lora_rank, index_width)
        flops += _product(tokens, hidden, model.index_head_dim + model.index_n_heads)
        flops += _product(tokens, length_tokens, index_width + model.index_n_heads)
    return flops


def _product(rows: int, n_in: int, n_out: int) -> int:
    return 2 * rows * n_in * n_out


def _low_rank(rows: int, rank: int, n_in: int, n_out: int) -> int:
    return _product(rows, n_in, rank) + _product(rows, rank, n_out)


def _router_logits(model: Any, layer: MoeLayer, ids: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        kept.append(router_output(layer, output).logits_NE)

    handle = layer.router.register_forward_hook(keep)
    try:
        model.base_model(input_ids=ids, use_cache=False)  # the head is nothing to a router
    finally:
        handle.remove()
    return kept[0]


def _rows_on(score_NE: torch.Tensor, chosen: Sequence[int], bias: float, top_k: int) -> int:
    """Routed rows on chosen experts when `bias` is added to their scores."""
    is_chosen_E = torch.zeros(score_NE.shape[1], dtype=torch.bool, device=score_NE.device)
    is_chosen_E[list(chosen)] = True
    indices_NK = (score_NE + bias * is_chosen_E).topk(top_k, dim=-1).indices
    return int(is_chosen_E[indices_NK].sum())
