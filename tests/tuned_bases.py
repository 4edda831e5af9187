"""Saved tiny bases with a trained adapter and the logits it should give, for tests of export and import."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from data_recipes.artefact import sha256_file, sha256_json, write_json
from finetune.adapters.adapter import adapter_parameters, attach, save_adapter
from finetune.config import BaseConfig, LoraConfig
from finetune.exporting.adapter_parts import read_adapter
from finetune.model import auto_class, load_model, model_fingerprint

TOKENS = torch.randint(1, 120, (2, 40), generator=torch.Generator().manual_seed(4))
GLM_EXPERTS = {"1": [0, 5], "2": [2]}
SIZES: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def build_gpt_oss() -> Any:
    """Transposed stacks, interleaved gate and up, biases; its checkpoints keep the stacks."""
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(**SIZES, intermediate_size=16, num_local_experts=4)).float().eval()


def build_mixtral() -> Any:
    """Its checkpoints say block_sparse_moe.experts.3.w1 for what is a part of mlp.experts.gate_up_proj."""
    torch.manual_seed(0)
    return (
        MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=4)).float().eval()
    )


def build_qwen3_vl() -> Any:
    """A model that sees images too: no causal language model to transformers."""
    torch.manual_seed(0)
    text = SIZES | {"intermediate_size": 16, "moe_intermediate_size": 16, "num_experts": 4}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return Qwen3VLMoeForConditionalGeneration(config).float().eval()


def give_values(model: Any, seed: int = 5) -> None:
    """Values in all tensors of the active adapter, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def save_base(model: Any, tokenizer: Any, folder: Path) -> BaseConfig:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseConfig(model=str(folder), device="cpu")


def save_trained(base: BaseConfig, experts: dict[str, list[int]], attention: bool, folder: Path) -> Path:
    """An adapter of `base` with values in all its tensors."""
    model = load_model(base)[0]
    config = LoraConfig(rank=3, alpha=6.0, attention=attention)
    plan = {"model_fingerprint": model_fingerprint(model), "experts": experts}
    attach(model, plan, config, seed=0)
    give_values(model)
    return save_adapter(model, plan, config, folder)


def restamp(folder: Path) -> None:
    """Give an edited adapter the hashes of one that was saved like that."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["sha256"] = sha256_file(folder / "adapter.safetensors")
    config["inputs"] = {"plan": sha256_file(folder / "plan.json")}
    unstamped = ("kind", "schema", "versions", "config_sha256")
    config["config_sha256"] = sha256_json({key: config[key] for key in config if key not in unstamped})
    write_json(folder / "adapter_config.json", config)


def plain(base: BaseConfig) -> Any:
    """The base as transformers loads it, without anything of ours."""
    path = base.model
    auto: Any = auto_class(AutoConfig.from_pretrained(path))
    return auto.from_pretrained(path).eval()


def tuned_logits(base: BaseConfig, adapter: Path) -> torch.Tensor:
    """Logits with the updates added to the weights themselves: W + scaling B A by torch, expert by expert."""
    model = plain(base)
    _, parts = read_adapter(model, adapter)
    with torch.no_grad():
        for (name, parameter), part in parts.experts.items():
            experts: Any = model.get_submodule(name)
            for number, expert in enumerate(part.chosen):
                update = part.scaling * part.B_NOR[number] @ part.A_NRI[number]
                getattr(experts, parameter)[expert] += update.T if experts.is_transposed else update
        for name, linear in parts.linears.items():
            model.get_submodule(name).weight += linear.scaling * linear.B_OR @ linear.A_RI
        return model(TOKENS).logits


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits
