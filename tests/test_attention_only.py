"""An adapter on no expert: attention or shared experts alone train, and are saved, merged and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from test_lora import token_batch
from tuned_bases import logits as logits_of_tokens
from tuned_bases import plain, save_base, tuned_logits

from data_recipes.artefact import UserError, write_artefact
from finetune.adapters.adapter import (
    adapter_disabled,
    adapter_parameters,
    adapter_state,
    attach,
    check_first_backward,
    detach,
    load_adapter,
    save_adapter,
    set_active,
)
from finetune.adapters.merge import is_merged, merge, unmerge
from finetune.adapters.peft_model import get_expert_peft_model
from finetune.config import BaseConfig, LoraConfig, SelectConfig
from finetune.exporting.export import export_adapter
from finetune.model import load_model, model_fingerprint
from finetune.moe import moe_layers
from finetune.selecting.selection import read_plan

# peft 0.21.2 still asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NONE = {"method": "none", "experts": {}}
CONFIG = LoraConfig(rank=4, alpha=8.0, attention=True)
# Rank times (inputs + outputs) of GLM's five projections, in a layer of the tiny model.
PER_LAYER = 4 * ((32 + 16) + (16 + 32) + (32 + 24) + (16 + 48) + (32 + 32))


def give_values(model: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**token_batch()).logits


@pytest.fixture
def tuned(tiny_model: Any) -> Any:
    """A model with values in its adapter on attention."""
    attach(tiny_model, NONE, CONFIG, seed=0)
    give_values(tiny_model)
    return tiny_model


def test_attention_alone_trains_and_the_line_says_so(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attach(tiny_model, NONE, CONFIG, seed=0) == 3 * PER_LAYER
    said = f"adapter default: {3 * PER_LAYER:,} trainable parameters, rank 4, on 15 linear layers\n"
    assert capsys.readouterr().out == said
    assert all(".self_attn." in name for name in adapter_parameters(tiny_model))


def test_shared_experts_alone_train(tiny_model: Any) -> None:
    attach(tiny_model, NONE, LoraConfig(rank=2, shared_experts=True), seed=0)
    names = adapter_parameters(tiny_model)
    assert len(names) == 2 * 2 * 3 and all(".shared_experts." in name for name in names)


@pytest.mark.parametrize(
    "attaching", [attach, get_expert_peft_model], ids=["attach", "get_expert_peft_model"]
)
def test_nothing_to_train_is_refused_with_the_way_out(tiny_model: Any, attaching: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"select\.method=none.*set lora\.attention=true or lora\.shared"):
        attaching(tiny_model, NONE, LoraConfig(rank=2), seed=0)
    assert not adapter_parameters(tiny_model)


def test_a_plan_that_lost_its_experts_is_not_one_of_none(tiny_model: Any, tmp_path: Path) -> None:
    for plan in ({"experts": {}}, {"experts": {"1": []}, "method": "token_share"}):
        with pytest.raises(UserError, match="chooses no expert"):
            attach(tiny_model, plan, CONFIG, seed=0)
    body = {"model_fingerprint": "f", "n_experts": 8, "experts": {}}
    write_artefact(tmp_path / "plan.json", "expert_plan", {}, {**body, "method": "none"})
    assert read_plan(tmp_path / "plan.json", "f", moe_layers(tiny_model))["experts"] == {}
    write_artefact(tmp_path / "plan.json", "expert_plan", {}, {**body, "method": SelectConfig().method})
    with pytest.raises(UserError, match="chooses no expert"):
        read_plan(tmp_path / "plan.json")


def test_the_first_backward_asks_every_projection_for_a_gradient(tiny_model: Any) -> None:
    attach(tiny_model, NONE, CONFIG, seed=0)
    tiny_model(**token_batch()).logits.square().sum().backward()
    check_first_backward(tiny_model, {1: {0, 1}, 2: {2}})
    name, B = next(item for item in adapter_parameters(tiny_model).items() if ".lora_B." in item[0])
    B.grad = torch.zeros_like(B)
    with pytest.raises(UserError, match=f"1 part.*{name}"):
        check_first_backward(tiny_model, {})


def test_off_it_computes_the_base_and_saved_it_comes_back_bit_for_bit(
    tuned: Any, tiny_model_factory: Any, tmp_path: Path
) -> None:
    with adapter_disabled(tuned):
        assert torch.equal(logits(tuned), logits(tiny_model_factory()))
    plan = {**NONE, "model_fingerprint": model_fingerprint(tuned)}
    folder = save_adapter(tuned, plan, CONFIG, tmp_path / "adapter")
    again = tiny_model_factory()
    assert load_adapter(again, folder)["n_trainable"] == 3 * PER_LAYER
    assert torch.equal(logits(again), logits(tuned))
    assert not torch.equal(logits(again), logits(tiny_model_factory()))
    detach(again)
    assert torch.equal(logits(again), logits(tiny_model_factory())) and not adapter_parameters(again)


@pytest.mark.parametrize(
    "changes",
    [{"rank": 2}, {"alpha": 4.0}, {"rslora": True}, {"dropout": 0.1}, {"shared_experts": True}],
)
def test_other_options_than_it_was_attached_with_are_not_saved(
    tuned: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = {**NONE, "model_fingerprint": "f"}
    with pytest.raises(UserError, match="attached with other options, not with"):
        save_adapter(tuned, plan, LoraConfig(**{**CONFIG.__dict__, **changes}), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_it_is_merged_and_taken_out_bit_for_bit(tuned: Any) -> None:
    before = logits(tuned)
    merge(tuned)
    assert is_merged(tuned)
    torch.testing.assert_close(logits(tuned), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="call unmerge"):
        merge(tuned)
    unmerge(tuned)
    assert not is_merged(tuned) and torch.equal(logits(tuned), before)


def test_beside_an_adapter_of_experts_the_named_one_computes(tuned: Any, tiny_model_factory: Any) -> None:
    attention = logits(tuned)
    attach(tuned, {"experts": {"1": [0, 5]}}, LoraConfig(rank=4), seed=0, name="experts")
    give_values(tuned)
    assert all(".expert_lora." in name for name in adapter_parameters(tuned))
    both = tiny_model_factory()
    attach(both, {"experts": {"1": [0, 5]}}, LoraConfig(rank=4), seed=0)
    give_values(both)
    assert torch.equal(logits(tuned), logits(both))
    set_active(tuned, "default")
    assert torch.equal(logits(tuned), attention)
    detach(tuned, "default")
    assert not adapter_parameters(tuned)
    set_active(tuned, "experts")
    assert torch.equal(logits(tuned), logits(both))


def test_as_a_peft_model_it_starts_computes_and_comes_back_the_same(
    tiny_model_factory: Any, tmp_path: Path
) -> None:
    attached = tiny_model_factory()
    attach(attached, NONE, CONFIG, seed=3)
    wrapped = get_expert_peft_model(tiny_model_factory(), NONE, CONFIG, seed=3)
    start, expected = adapter_state(wrapped), adapter_state(attached)
    assert start.keys() == expected.keys() and len(start) == 2 * 15
    assert all(torch.equal(start[name], value) for name, value in expected.items())
    give_values(wrapped)
    give_values(attached)
    assert torch.equal(logits(wrapped), logits(attached))
    wrapped.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_model_factory(), str(tmp_path))
    assert torch.equal(logits(again), logits(attached))


@pytest.fixture
def saved(tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path) -> tuple[BaseConfig, Path]:
    """A saved base and an adapter of its attention."""
    base = save_base(tiny_model_factory(vocab_size=262), tiny_tokenizer, tmp_path / "base")
    model = load_model(base)[0]
    attach(model, NONE, CONFIG, seed=0)
    give_values(model)
    plan = {**NONE, "model_fingerprint": model_fingerprint(model)}
    return base, save_adapter(model, plan, CONFIG, tmp_path / "adapter")


def test_plain_peft_and_a_merged_checkpoint_give_its_logits(
    saved: tuple[BaseConfig, Path], tmp_path: Path
) -> None:
    base, adapter = saved
    expected = tuned_logits(base, adapter)
    export_adapter(adapter, "peft", tmp_path / "peft", base)
    by_peft = PeftModel.from_pretrained(plain(base), str(tmp_path / "peft"))
    torch.testing.assert_close(logits_of_tokens(by_peft), expected, rtol=1e-5, atol=1e-5)
    export_adapter(adapter, "merged", tmp_path / "merged", base)
    merged = plain(BaseConfig(model=str(tmp_path / "merged")))
    torch.testing.assert_close(logits_of_tokens(merged), expected, rtol=1e-5, atol=1e-5)


def test_sglang_gets_its_linear_layers_and_vllm_refuses_the_one_it_would_drop(
    saved: tuple[BaseConfig, Path], tmp_path: Path
) -> None:
    base, adapter = saved
    assert export_adapter(adapter, "sglang", tmp_path / "sglang", base) == tmp_path / "sglang"
    with pytest.raises(UserError, match="vLLM loads LoRA on .*kv_b_proj and never applies it"):
        export_adapter(adapter, "vllm", tmp_path / "vllm", base)
    assert not (tmp_path / "vllm").exists()
