"""Fixtures for every test: no network, one thread, a random tiny GLM and a byte-level chat tokenizer."""

import os

# Before transformers or datasets is imported: both read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM, PreTrainedTokenizerFast
from tuned_bases import GLM_EXPERTS, save_base, save_trained

from finetune.config import BaseConfig

# A second thread only costs time on tensors this small.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

SPECIAL_TOKENS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|endoftext|>{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build_tiny_model(**overrides: Any) -> GlmMoeDsaForCausalLM:
    """Random GLM of three layers (one dense, two MoE; 8 experts, top-2), fp32, eval mode; seeded."""
    settings: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 512,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    seed = overrides.pop("seed", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**(settings | overrides)))
    return model.float().eval()


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a UTF-8 byte, and GLM's special tokens first: any script, 262 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture
def tiny_model_factory() -> Callable[..., GlmMoeDsaForCausalLM]:
    """`tiny_model_factory(vocab_size=262, seed=1)`: a tiny GLM with other config values or another seed."""
    return build_tiny_model


@pytest.fixture
def tiny_model() -> GlmMoeDsaForCausalLM:
    """A fresh tiny GLM (vocabulary 128), safe to change inside one test."""
    return build_tiny_model()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level chat tokenizer (262 tokens): pair it with `tiny_model_factory(vocab_size=262)`."""
    return build_tiny_tokenizer()


@pytest.fixture
def base(tiny_tokenizer: Any, tmp_path: Path) -> BaseConfig:
    """A saved tiny GLM: one tensor an expert, as GLM's own checkpoints."""
    return save_base(build_tiny_model(vocab_size=262), tiny_tokenizer, tmp_path / "base")


@pytest.fixture
def adapter(base: BaseConfig, tmp_path: Path) -> Path:
    """A trained adapter of `base`, on three experts and on attention."""
    return save_trained(base, GLM_EXPERTS, attention=True, folder=tmp_path / "adapter")
