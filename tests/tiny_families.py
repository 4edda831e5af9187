"""Every family of models in transformers with fused experts, each small enough to build in a blink.

A family is a folder of `transformers/models`; the model built is its text model, with random weights. A
wrapper that adds vision or audio holds the same text model. Reads nothing and writes nothing.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from finetune.batches import IGNORED_LABEL, Example

# No two of a stack's axes have the same length: 8 experts, 48 = 2 x 24 gate and up, 32 hidden, 40 latent.
HIDDEN, WIDTH, LATENT, N_EXPERTS, TOP_K, N_LAYERS, VOCABULARY = 32, 24, 40, 8, 2, 3, 64

# A size under every name that some config has for it; a config without that name does not get it.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "dense_intermediate_size": WIDTH,
    "shared_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
    "num_hidden_layers": N_LAYERS,
    "num_experts": N_EXPERTS,
    "num_local_experts": N_EXPERTS,
    "n_routed_experts": N_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_heads": 2,
    "linear_head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ONE_DENSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
HALF_ROPE = ROPE | {"partial_rotary_factor": 0.5}
BOTH_ROPES = {"full_attention": HALF_ROPE, "sliding_attention": HALF_ROPE}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
INKLING = {
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "rel_extent": 64,
}
NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "moe_latent_size": LATENT,
    "moe_shared_expert_intermediate_size": WIDTH,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 16,
}
DBRX = {
    "d_model": HIDDEN,
    "n_heads": 2,
    "n_layers": 2,
    "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": N_EXPERTS, "moe_top_k": TOP_K},
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
}
LONGCAT = {"expert_ffn_hidden_size": WIDTH, "ffn_hidden_size": WIDTH, "num_layers": 2, "zero_expert_num": 2}
NLLB = {
    "d_model": HIDDEN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
}
SWITCH = {
    "d_model": HIDDEN,
    "d_ff": WIDTH,
    "d_kv": 16,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}


class Family(NamedTuple):
    """One family: the `model_type` of its text model and what its config needs besides `SIZES`.

    `model_class` names the class of a text model that no auto class knows; `checkpoints` is whether
    transformers can recompute its layers' activations.
    """

    model_type: str
    overrides: dict[str, Any] = {}
    model_class: str | None = None
    checkpoints: bool = True


FAMILIES: dict[str, Family] = {
    "afmoe": Family("afmoe"),
    "aria": Family("aria_text", {"moe_num_experts": N_EXPERTS, "moe_topk": TOP_K}),
    "axk1": Family("axk1"),
    "axk2": Family("axk2"),
    "bailing_hybrid": Family("bailing_hybrid"),
    "beam": Family("beam", ONE_DENSE),
    "cohere2_moe": Family("cohere2_moe", {"num_shared_experts": 1}),
    "deepseek_ocr2": Family("deepseek_ocr2_text", ONE_DENSE, "DeepseekOcr2TextModel"),
    "deepseek_v2": Family("deepseek_v2"),
    "deepseek_v3": Family("deepseek_v3"),
    "deepseek_v32": Family("deepseek_v32", ONE_DENSE),
    "deepseek_v4": Family(
        "deepseek_v4",
        {"mlp_layer_types": ["hash_moe", "moe", "moe"], "o_groups": 2, "o_lora_rank": 16, "index_topk": 16},
    ),
    "diffusion_gemma": Family(
        "diffusion_gemma_text", {"top_k_experts": TOP_K}, "DiffusionGemmaEncoderTextModel", checkpoints=False
    ),
    "dots1": Family("dots1", {"n_shared_experts": 1}),
    "dots3_note": Family(
        "dots3_note_text",
        {
            "shared_experts_intermediate_size": WIDTH,
            "per_layer_config": {},
            "head_dim": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 24,
        },
    ),
    "ernie4_5_moe": Family("ernie4_5_moe"),
    "ernie4_5_vl_moe": Family(
        "ernie4_5_vl_moe_text",
        {"moe_intermediate_size": [WIDTH, WIDTH], "rope_parameters": ROPE | {"mrope_section": [3, 3, 2]}},
        "Ernie4_5_VLMoeTextModel",
    ),
    "exaone_moe": Family("exaone_moe"),
    "flex_olmo": Family("flex_olmo"),
    "flint": Family("flint", {"mlp_only_layers": [0]}),
    "gemma4": Family(
        "gemma4_text",
        {"enable_moe_block": True, "top_k_experts": TOP_K, "hidden_size_per_layer_input": 0},
    ),
    "glm4_moe": Family("glm4_moe"),
    "glm4_moe_lite": Family("glm4_moe_lite"),
    "glm4v_moe": Family(
        "glm4v_moe_text",
        {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}},
    ),
    "glm5_next": Family("glm5_next_text", ONE_DENSE | {"qk_rope_head_dim": 0, "head_dim": 0}),
    "glm_moe_dsa": Family("glm_moe_dsa", ONE_DENSE),
    "gpt_oss": Family("gpt_oss"),
    "granitemoe": Family("granitemoe"),
    "granitemoe_swa": Family("granitemoe_swa"),
    "granitemoehybrid": Family(
        "granitemoehybrid", MAMBA | {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    ),
    "granitemoeshared": Family("granitemoeshared"),
    "hunyuan_v1_moe": Family("hunyuan_v1_moe"),
    "hy_v3": Family("hy_v3"),
    "hy_v4": Family("hy_v4"),
    "inkling": Family("inkling_text", INKLING),
    "inkling2": Family("inkling2_text", INKLING),
    "jamba": Family("jamba"),
    "kimi_linear": Family("kimi_linear"),
    "kolibri1": Family("kolibri1"),
    "laguna": Family("laguna"),
    "lfm2_moe": Family(
        "lfm2_moe", {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]}
    ),
    "mellum": Family("mellum"),
    "mimo_v2_flash": Family("mimo_v2_flash", {"num_attention_heads": 4, "rope_parameters": BOTH_ROPES}),
    "minimax": Family("minimax"),
    "minimax_m2": Family("minimax_m2"),
    "minimax_m3_vl": Family("minimax_m3_vl_text"),
    "mistral4": Family("mistral4", {"head_dim": 32}, "Mistral4ForCausalLM"),
    "mistral_large4": Family("mistral_large4_text"),
    "mixtral": Family("mixtral"),
    "muse_spark": Family("muse_spark_text", {"moe_hidden_size": LATENT, "num_hidden_layers": 2}),
    "nemotron_h": Family("nemotron_h", NEMOTRON),
    "olmoe": Family("olmoe"),
    "openai_privacy_filter": Family("openai_privacy_filter"),
    "phimoe": Family("phimoe"),
    "qwen2_moe": Family("qwen2_moe"),
    "qwen3_5_moe": Family("qwen3_5_moe_text"),
    "qwen3_moe": Family("qwen3_moe"),
    "qwen3_next": Family("qwen3_next"),
    "qwen3_omni_moe": Family("qwen3_omni_moe_text", {}, "Qwen3OmniMoeThinkerTextModel"),
    "qwen3_vl_moe": Family("qwen3_vl_moe_text"),
    "qwen4_exp": Family("qwen4_exp_text"),
    "solar_open": Family("solar_open"),
    "unlimited_ocr": Family("unlimited_ocr_text", ONE_DENSE, "UnlimitedOcrTextModel"),
    "zaya": Family("zaya", {"num_experts_per_tok": 1}),
}

# Mixtures of experts that do not go through transformers' table of experts implementations.
OWN_CODE: dict[str, Family] = {
    "dbrx": Family("dbrx", DBRX),
    "doge": Family("doge", {"is_moe": True, "num_experts": 16}),
    "jetmoe": Family("jetmoe", {"kv_channels": 16}),
    "llama4": Family("llama4_text"),
    "longcat_flash": Family("longcat_flash", LONGCAT),
    "nllb_moe": Family("nllb-moe", NLLB),
    "step3p7": Family("step3p5", ONE_DENSE, "Step3p7TextModel"),
    "switch_transformers": Family("switch_transformers", SWITCH),
}


def tiny_config(family: Family) -> PreTrainedConfig:
    """The config of a family's tiny model."""
    default = AutoConfig.for_model(family.model_type)
    named = {*default.to_dict(), *default.attribute_map}
    known = {name: value for name, value in SIZES.items() if name in named}
    return AutoConfig.for_model(family.model_type, **(known | family.overrides))


def build_tiny_family(family: Family, seed: int = 0) -> Any:
    """Random model of a family, float32, eval mode; seeded.

    Weights are large and biases are not zero, as in a trained model: with transformers' own start the experts
    hardly change the output, and half of the routers have nothing to choose by.
    """
    config = tiny_config(family)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _build(family, config).float().eval()
        for name, weight in model.named_parameters():
            # Tokens must differ more than layers add to all of them alike, or all are routed alike.
            std = 1.0 if "embed_tokens" in name else 0.02 if "bias" in name and weight.ndim > 1 else 0.2
            weight.copy_(torch.randn(weight.shape) * std + (weight if weight.ndim == 1 else 0.0))
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] == "tid2eid":  # DeepSeek-V4 looks a token's experts up in a table
                buffer.copy_(torch.rand(VOCABULARY, N_EXPERTS).argsort(dim=1)[:, :TOP_K])
            elif "bias" in name:
                buffer.add_(torch.randn(buffer.shape) * 0.1)
    return model


def _build(family: Family, config: PreTrainedConfig) -> nn.Module:
    if family.model_class is not None:
        folder = type(config).__module__.split(".")[-2]
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        return getattr(module, family.model_class)(config)
    if family.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM.from_config(config)
    assert family.model_type in MODEL_MAPPING_NAMES
    return AutoModel.from_config(config)


def random_rows(lengths: Sequence[int], vocabulary: int = VOCABULARY) -> list[Example]:
    """Rows of random tokens whose second half is trained."""
    rows = []
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        rows.append(Example(f"r{number}", tokens, [IGNORED_LABEL] * (length // 2) + tokens[length // 2 :]))
    return rows
