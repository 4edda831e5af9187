"""Every option of the adapter goes through every export format and back: the same updates, the same logits.

What they must be is computed here from the saved tensors, W + alpha / rank B A in float64.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from tuned_bases import SIZES, build_gpt_oss, give_values, logits, plain, save_base

from data_recipes.artefact import read_artefact
from finetune.adapters.adapter import attach, load_adapter, save_adapter
from finetune.config import BaseConfig, LoraConfig
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter
from finetune.model import load_model, model_fingerprint

EXPERTS = {"0": [1, 3], "1": [], "2": [0]}
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"rank": 3, "alpha": 5.0, "rslora": True},
    "another rank for down_proj": {"rank": 4, "alpha": 6.0, "down_rank": 3, "down_alpha": 5.0},
    "attention": {"rank": 3, "alpha": 5.0, "attention": True},
    "shared experts": {"rank": 3, "alpha": 5.0, "shared_experts": True},
    "dropout": {"rank": 3, "alpha": 5.0, "dropout": 0.5},
}
OPTIONS["all of them"] = {name: value for options in OPTIONS.values() for name, value in options.items()}
FIRST = ("another rank for down_proj", "all of them")  # the others are parts of these
CASES = [
    pytest.param(family, name, to, marks=() if name in FIRST else pytest.mark.slow)
    for family, formats, left_out in (
        ("qwen2", ("peft", "vllm", "sglang", "merged"), ()),
        ("gpt_oss", ("peft", "merged"), ("shared experts", "all of them")),
    )
    for name in OPTIONS
    if name not in left_out
    for to in formats
]


def build_qwen2() -> Any:
    """Three layers of routed and shared experts; the embeddings are the head too."""
    sizes: dict[str, Any] = SIZES | {
        "num_hidden_layers": 3,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
    }
    sizes |= {"shared_expert_intermediate_size": 24, "num_experts": 4, "tie_word_embeddings": True}
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes)).float().eval()


def save_one_of_two(base: BaseConfig, config: LoraConfig, experts: dict[str, Any], folder: Path) -> Path:
    """The second adapter of a model that has another one too, with values everywhere."""
    model = load_model(base)[0]
    plan = {"model_fingerprint": model_fingerprint(model), "experts": experts}
    attach(model, {"experts": {"1": [2]}}, LoraConfig(rank=2, attention=True), seed=1, name="other")
    give_values(model, seed=6)
    attach(model, plan, config, seed=0, name="mine")
    give_values(model)
    return save_adapter(model, plan, config, folder)


def updates_of(folder: Path) -> dict[tuple[str, int | None], tuple[torch.Tensor, torch.Tensor]]:
    """(weight, expert) -> what our adapter adds to it [O, I], and scaling |B| |A|; those of zero left out."""
    saved = read_artefact(folder / "adapter_config.json", "expert_adapter")
    experts = read_artefact(folder / "plan.json", "expert_plan")["experts"]
    tensors, updates = load_file(folder / "adapter.safetensors"), {}
    for name, A in tensors.items():
        if name.endswith(".A"):
            before, _, part = name.removesuffix(".A").rpartition(".expert_lora.")
            B, weight = tensors[f"{name[:-1]}B"], "down_proj" if part == "down" else "gate_up_proj"
            chosen = experts[before.split(".layers.")[1].split(".")[0]]
            pairs = {(f"{before}.{weight}", expert): (A[i], B[i]) for i, expert in enumerate(chosen)}
        elif ".lora_A." in name:
            part, B = "linear", tensors[name.replace("lora_A", "lora_B")]
            pairs = {(name.replace(".lora_A.default", ""), None): (A, B)}
        else:
            continue
        down_alpha = saved["down_alpha"] if part == "down" else None
        alpha = saved["alpha"] if down_alpha is None else down_alpha
        rank = A.shape[-2]
        scaling = alpha / (rank**0.5 if saved["rslora"] else rank)
        for key, (A_RI, B_OR) in pairs.items():
            A_RI, B_OR = A_RI.double(), B_OR.double()
            if A_RI.any() and B_OR.any():
                updates[key] = (scaling * B_OR @ A_RI, scaling * B_OR.abs() @ A_RI.abs())
    return updates


def tuned(base: BaseConfig, adapter: Path) -> Any:
    """The base with every update added to its weight."""
    model = plain(base)
    state = model.state_dict()
    with torch.no_grad():
        for (name, expert), (update, _) in updates_of(adapter).items():
            weight = state[name] if expert is None else state[name][expert]
            is_transposed = expert is not None and model.config.model_type == "gpt_oss"
            weight.copy_(weight.double() + (update.T if is_transposed else update))
    return model


def peft_logits(base: BaseConfig, folder: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        # peft 0.21.2 still asks transformers 5.23 for a property by its deprecated name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return logits(PeftModel.from_pretrained(plain(base), str(folder)))


@pytest.mark.parametrize(("family", "options", "to"), CASES)
def test_updates_and_logits_are_the_same_after_an_export_and_an_import(
    family: str, options: str, to: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    build, experts = (build_qwen2, EXPERTS) if family == "qwen2" else (build_gpt_oss, {"0": [], "1": [0, 3]})
    base = save_base(build(), tiny_tokenizer, tmp_path / "base")
    adapter = save_one_of_two(base, LoraConfig(**OPTIONS[options]), experts, tmp_path / "adapter")
    expected = updates_of(adapter)
    n_chosen = sum(map(len, experts.values()))
    assert len([key for key in expected if key[1] is not None]) == 2 * n_chosen
    model = tuned(base, adapter)
    assert not torch.allclose(logits(model), logits(plain(base)), atol=1e-3)

    folder = export_adapter(adapter, to, tmp_path / to, base, "deltas")
    if to == "merged":
        merged = plain(BaseConfig(model=str(folder)))
        state = merged.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)
        return
    if to == "peft":
        torch.testing.assert_close(peft_logits(base, folder), logits(model), rtol=1e-5, atol=1e-5)
    back = import_adapter(folder, tmp_path / "back", base)
    found = updates_of(back)
    assert found.keys() == expected.keys()
    # A format has one scaling: where ours are several, B takes them in and is rounded to float32.
    rounding = 2**-23 if "down_alpha" in OPTIONS[options] else 2**-50
    for key, (update, size) in expected.items():
        assert ((found[key][0] - update).abs() <= rounding * size).all(), key
    model_back = load_model(base)[0]
    load_adapter(model_back, back)
    torch.testing.assert_close(logits(model_back), logits(model), rtol=1e-5, atol=1e-5)
