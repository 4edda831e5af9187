"""Merging adds the adapter to the chosen experts' weights and to no others; unmerging gives the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_lora import PLAN, build_gpt_oss, build_qwen3_moe, randomise, token_batch
from torch.profiler import ProfilerActivity, profile

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_disabled, adapter_parameters, attach, detach, set_active
from finetune.adapters.merge import is_merged, merge, unmerge
from finetune.config import LoraConfig
from finetune.moe import moe_layers
from finetune.train import train_rows
from finetune.training_options import TrainConfig

CONFIG = LoraConfig(rank=4, down_rank=3, rslora=True)


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of all that is not an adapter, by the name without PEFT's wrapper."""
    state = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    return {name: value.clone() for name, value in state.items() if "lora" not in name}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**token_batch()).logits


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("build", [None, build_gpt_oss, build_qwen3_moe])
def test_merged_computes_the_same_and_unmerged_is_as_before_bit_for_bit(
    tiny_model: Any, build: Callable[[], Any] | None, implementation: str
) -> None:
    model = tiny_model if build is None else build()
    model.set_experts_implementation(implementation)
    config = CONFIG if build else LoraConfig(rank=4, attention=True, shared_experts=True)
    attach(model, PLAN, config, seed=0)
    randomise(model)
    weights, tuned = base_weights(model), logits(model)
    with adapter_disabled(model):
        base = logits(model)
    assert float((tuned - base).abs().max()) > 1e-3
    merge(model)
    assert is_merged(model)
    scale = float(tuned.abs().max())
    torch.testing.assert_close(logits(model) / scale, tuned / scale, rtol=1e-6, atol=1e-6)
    unmerge(model)
    assert not is_merged(model) and torch.equal(logits(model), tuned)
    after = base_weights(model)
    assert weights.keys() == after.keys() and len(after) > 20
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_only_the_chosen_experts_weights_change_by_scaling_b_a(tiny_model: Any) -> None:
    attach(tiny_model, PLAN, LoraConfig(rank=4, alpha=12.0, down_rank=2), seed=0)
    randomise(tiny_model)
    before = base_weights(tiny_model)
    merge(tiny_model)
    changed = {
        name for name, value in base_weights(tiny_model).items() if not torch.equal(value, before[name])
    }
    stacks = ("gate_up_proj", "down_proj")
    assert changed == {f"model.layers.{layer}.mlp.experts.{stack}" for layer in (1, 2) for stack in stacks}
    for layer in moe_layers(tiny_model):
        chosen = PLAN["experts"][str(layer.index)]
        adapter: Any = layer.experts.expert_lora
        for part, stack, scaling in ((adapter.up, stacks[0], 3.0), (adapter.down, stacks[1], 6.0)):
            moved = getattr(layer.experts, stack).detach() - before[f"{layer.name}.experts.{stack}"]
            update = scaling * torch.einsum("nor,nri->noi", part.B, part.A).detach()
            torch.testing.assert_close(moved[chosen], update, rtol=1e-5, atol=1e-6)
            others = [expert for expert in range(8) if expert not in chosen]
            assert not moved[others].any()


def test_nothing_of_the_size_of_a_stack_is_built_to_merge(tiny_model_factory: Any) -> None:
    model = tiny_model_factory(n_routed_experts=64, hidden_size=64, moe_intermediate_size=64)
    attach(model, PLAN, CONFIG, seed=0)
    experts: Any = moe_layers(model)[0].experts
    stack_bytes = experts.down_proj.nbytes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        merge(model)
        unmerge(model)
        counted = torch.empty(stack_bytes, dtype=torch.uint8)
    kineto: Any = profiler.profiler
    sizes = [event.nbytes() for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    assert max(sizes) == counted.nbytes and sum(size >= stack_bytes // 8 for size in sizes) == 1


def test_bfloat16_is_merged_in_float32_and_comes_back_bit_for_bit(tiny_model: Any) -> None:
    tiny_model.bfloat16()
    attach(tiny_model, PLAN, LoraConfig(rank=4, attention=True), seed=0)
    randomise(tiny_model)
    before = base_weights(tiny_model)
    merge(tiny_model)
    experts: Any = moe_layers(tiny_model)[0].experts
    low_rank = experts.expert_lora.up
    old = before["model.layers.1.mlp.experts.gate_up_proj"][5]
    expected = (old.float() + 4.0 * low_rank.B[1] @ low_rank.A[1]).bfloat16()
    assert torch.equal(experts.gate_up_proj[5], expected)
    unmerge(tiny_model)
    assert all(torch.equal(value, before[name]) for name, value in base_weights(tiny_model).items())


def test_with_two_adapters_the_active_one_is_merged(tiny_model: Any) -> None:
    attach(tiny_model, {"experts": {"1": [0, 5]}}, LoraConfig(rank=4, attention=True), 0, "first")
    randomise(tiny_model)
    attach(tiny_model, {"experts": {"2": [1]}}, LoraConfig(rank=4, shared_experts=True), 0, "second")
    randomise(tiny_model)
    for name in ("first", "second"):
        set_active(tiny_model, name)
        before, tuned = base_weights(tiny_model), logits(tiny_model)
        merge(tiny_model)
        torch.testing.assert_close(logits(tiny_model), tuned, rtol=1e-5, atol=1e-5)
        unmerge(tiny_model)
        assert all(torch.equal(value, before[key]) for key, value in base_weights(tiny_model).items())


def test_what_needs_the_base_is_refused_while_an_adapter_is_merged(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    base = logits(tiny_model)
    attach(tiny_model, PLAN, CONFIG, seed=0)
    randomise(tiny_model)
    merge(tiny_model)
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}
    ]
    acts: list[Callable[[], Any]] = [
        lambda: merge(tiny_model),
        lambda: set_active(tiny_model, "default"),
        lambda: attach(tiny_model, PLAN, CONFIG, seed=0, name="other"),
        lambda: train_rows(tiny_model, tiny_tokenizer, rows, TrainConfig(steps=1, learning_rate=1e-3)),
        lambda: adapter_disabled(tiny_model).__enter__(),
    ]
    for act in acts:
        with pytest.raises(UserError, match=r"merged into the model's weights: call unmerge\(model\) first"):
            act()
    detach(tiny_model)
    assert torch.equal(logits(tiny_model), base), "detached means as before attach"


def test_what_cannot_be_merged_is_named_and_changes_nothing(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="no active adapter to merge"):
        merge(tiny_model)
    with pytest.raises(UserError, match="nothing to take out"):
        unmerge(tiny_model)
    attach(tiny_model, PLAN, CONFIG, seed=0)
    before = base_weights(tiny_model)
    value = list(adapter_parameters(tiny_model).values())[-1]
    value.data[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="'default' holds values that are not finite"):
        merge(tiny_model)
    value.data[0, 0, 0] = 0.0
    assert all(torch.equal(value, before[name]) for name, value in base_weights(tiny_model).items())
    experts: Any = moe_layers(tiny_model)[1].experts
    experts.down_proj.data = experts.down_proj.data.to(torch.float8_e4m3fn)
    with pytest.raises(UserError, match=r"down_proj is kept in torch\.float8_e4m3fn.*base\.dtype=float32"):
        merge(tiny_model)
    assert not is_merged(tiny_model)
