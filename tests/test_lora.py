"""The expert LoRA layer against the dense reference: W + scaling B A on those experts, by autograd."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from finetune.adapters.adapter import adapter_disabled, adapter_parameters, attach, detach
from finetune.adapters.lora import ExpertLora
from finetune.config import LoraConfig
from finetune.moe import moe_layers

PLAN = {"experts": {"1": [0, 5], "2": [2, 3, 7]}}
CONFIG = LoraConfig(rank=8, alpha=16.0)


def randomise(model: nn.Module, seed: int = 3) -> None:
    """Give A and B values, so that the adapter changes the output and both have gradients."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter_parameters(model).values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)


def token_batch() -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, the second with 5 of padding on the right."""
    tokens = torch.randint(1, 100, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    tokens[1, 7:], mask[1, 7:] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def trained_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Some smooth number that weighs every real position differently."""
    weights = torch.linspace(-1, 1, logits[0].numel()).view(logits[0].shape)
    return (logits.float() * weights * batch["attention_mask"].unsqueeze(-1)).sum()


def dense_gradients(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of A and B when the chosen experts' weights are really W + scaling B A."""
    leaves = {
        name: value.detach().clone().requires_grad_() for name, value in adapter_parameters(model).items()
    }
    names = {id(module): name for name, module in model.named_modules()}
    dense: dict[str, torch.Tensor] = {}
    for layer in moe_layers(model):
        adapter: Any = layer.experts.expert_lora
        prefix = names[id(layer.experts)]
        for part, weight_name in (("up", "gate_up_proj"), ("down", "down_proj")):
            A, B = (leaves[f"{prefix}.expert_lora.{part}.{side}"] for side in "AB")
            update = getattr(adapter, part).scaling * torch.einsum("nor,nri->noi", B, A)
            if layer.experts.is_transposed:
                update = update.transpose(1, 2)
            weight = getattr(layer.experts, weight_name).detach()
            dense[f"{prefix}.{weight_name}"] = weight.index_add(0, torch.tensor(adapter.chosen), update)
    with adapter_disabled(model):
        logits = torch.func.functional_call(model, dense, kwargs={**batch, "use_cache": False}).logits
    trained_loss(logits, batch).backward()
    return logits.detach(), {name: value.grad for name, value in leaves.items() if value.grad is not None}


def assert_equals_dense(model: Any, checkpointing: bool = False) -> None:
    batch = token_batch()
    expected_logits, expected = dense_gradients(model, batch)
    if checkpointing:
        # Not before: the reference's recomputation would run after its dense weights are gone.
        model.train()
        model.activation_checkpointing_enable()
    logits = model(**batch, use_cache=False).logits
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    trained_loss(logits, batch).backward()
    own = adapter_parameters(model)
    assert own.keys() == expected.keys()
    for name, value in own.items():
        assert value.grad is not None, name
        scale = max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(value.grad / scale, expected[name] / scale, rtol=1e-5, atol=1e-5)


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}


def build_gpt_oss() -> GptOssForCausalLM:
    """Transposed stacks, interleaved gate and up, biases, softmax router."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**SIZES, intermediate_size=16, num_local_experts=8))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "proj_bias" in name:
                value.normal_(std=0.1)
    return model.float().eval()


def build_qwen3_moe() -> Qwen3MoeForCausalLM:
    """GLM's layout with a softmax router and no shared expert."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=8))
    return model.float().eval()


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_equal_the_dense_reference(
    tiny_model: Any, implementation: str, checkpointing: bool
) -> None:
    tiny_model.set_experts_implementation(implementation)
    attach(tiny_model, PLAN, CONFIG, seed=0)
    randomise(tiny_model)
    assert_equals_dense(tiny_model, checkpointing)


@pytest.mark.parametrize("build", [build_gpt_oss, build_qwen3_moe])
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_other_layouts_equal_the_dense_reference(build: Callable[[], Any], implementation: str) -> None:
    model = build()
    model.set_experts_implementation(implementation)
    attach(model, {"experts": {"0": [1], "1": [0, 5], "2": [2, 3, 7]}}, CONFIG, seed=0)
    randomise(model)
    assert_equals_dense(model)


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With one thread experts are multiplied by grouped_mm, with more two at a time (float32, CPU)."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("build", [build_gpt_oss, build_qwen3_moe])
def test_one_thread_and_two_equal_the_dense_reference(build: Callable[[], Any], n_threads: int) -> None:
    model = build()
    attach(model, {"experts": {"0": [1], "1": [0, 5], "2": [2, 3, 7]}}, CONFIG, seed=0)
    randomise(model)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        assert_equals_dense(model)
    names = {event.key for event in profiler.key_averages()}
    assert ("_PairedLinear" in names) == (n_threads == 2)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_rank_that_grouped_mm_cannot_align_and_all_experts_equal_the_dense_reference(
    tiny_model: Any, rank: int
) -> None:
    everything = list(range(8))
    attach(tiny_model, {"experts": {"1": everything, "2": everything}}, LoraConfig(rank=rank), seed=0)
    randomise(tiny_model)
    assert_equals_dense(tiny_model)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("attention", [False, True])
def test_adapter_off_and_b_zero_and_detached_are_the_base_bit_for_bit(
    tiny_model: Any, implementation: str, attention: bool
) -> None:
    tiny_model.set_experts_implementation(implementation)
    batch = token_batch()
    with torch.no_grad():
        base = tiny_model(**batch).logits
        attach(tiny_model, PLAN, LoraConfig(rank=8, attention=attention), seed=0)
        assert torch.equal(tiny_model(**batch).logits, base), "B = 0"
        randomise(tiny_model)
        assert not torch.equal(tiny_model(**batch).logits, base)
        with adapter_disabled(tiny_model):
            assert torch.equal(tiny_model(**batch).logits, base), "off"
        assert not torch.equal(tiny_model(**batch).logits, base), "on again"
        detach(tiny_model)
        assert torch.equal(tiny_model(**batch).logits, base), "detached"
    assert tiny_model.config._experts_implementation == implementation
    assert not adapter_parameters(tiny_model)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_a_token_that_hits_no_chosen_expert_is_unchanged_bit_for_bit(
    tiny_model: Any, implementation: str
) -> None:
    tiny_model.set_experts_implementation(implementation)
    attach(tiny_model, PLAN, CONFIG, seed=0)
    randomise(tiny_model)
    experts: Any = moe_layers(tiny_model)[0].experts
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    index = torch.tensor([[0, 1], [1, 2], [3, 4], [5, 0], [6, 7], [2, 5]])
    weights = torch.full((6, 2), 0.5)
    with torch.no_grad():
        tuned = experts(hidden, index, weights)
        with adapter_disabled(tiny_model):
            base = experts(hidden, index, weights)
    hits_chosen = torch.isin(index, torch.tensor([0, 5])).any(dim=1)
    assert hits_chosen.tolist() == [True, False, False, True, False, True]
    assert torch.equal(tuned[~hits_chosen], base[~hits_chosen])
    assert (tuned[hits_chosen] != base[hits_chosen]).any(dim=1).all()


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_chosen_experts_without_tokens_have_a_gradient_of_zero_not_none(
    tiny_model: Any, implementation: str
) -> None:
    tiny_model.set_experts_implementation(implementation)
    attach(tiny_model, PLAN, CONFIG, seed=0)
    randomise(tiny_model)
    experts: Any = moe_layers(tiny_model)[0].experts
    out = experts(torch.randn(3, 32), torch.tensor([[1, 2], [3, 4], [6, 7]]), torch.rand(3, 2))
    out.square().sum().backward()
    gradients = [value.grad for value in experts.expert_lora.parameters()]
    assert len(gradients) == 4
    for gradient in gradients:
        assert gradient is not None and not gradient.any()


@pytest.mark.parametrize("chosen", [[0, 5], list(range(8))])
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_the_expert_parallel_sentinel_adds_nothing(
    tiny_model: Any, implementation: str, chosen: list[int]
) -> None:
    tiny_model.set_experts_implementation(implementation)
    attach(tiny_model, {"experts": {"1": chosen}}, CONFIG, seed=0)
    randomise(tiny_model)
    experts: Any = moe_layers(tiny_model)[0].experts
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    index = torch.tensor([[0, 8], [8, 8], [5, 1], [8, 2]])
    weights = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    alone = experts(hidden[2:3], index[2:3], weights[2:3]).detach()
    experts._is_expert_parallel = True
    out = experts(hidden, index, weights)
    out.square().sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
    assert not out[1].any() and not hidden.grad[1].any()
    torch.testing.assert_close(out[2:3], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_the_size_of_the_stack_is_allocated(
    tiny_model_factory: Any, implementation: str, checkpointing: bool
) -> None:
    model = tiny_model_factory(n_routed_experts=64, hidden_size=64, moe_intermediate_size=64)
    model.set_experts_implementation(implementation)
    attach(model, PLAN, CONFIG, seed=0)
    if checkpointing:
        model.train()
        model.activation_checkpointing_enable()
    stacks: list[Any] = [layer.experts.down_proj for layer in moe_layers(model)]
    stack_bytes = min(stack.nbytes for stack in stacks)
    batch = token_batch()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trained_loss(model(**batch, use_cache=False).logits, batch).backward()
        counted = torch.empty(stack_bytes, dtype=torch.uint8)
    kineto: Any = profiler.profiler
    sizes = [event.nbytes() for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    assert len(sizes) > 100
    assert max(sizes) == counted.nbytes, "the profiler sees allocations of this size"
    assert sum(size >= stack_bytes for size in sizes) == 1, "and no other one is as large"


def test_bfloat16_keeps_the_adapter_in_float32_and_trains_it(tiny_model: Any) -> None:
    tiny_model.bfloat16()
    attach(tiny_model, PLAN, LoraConfig(rank=6, attention=True), seed=0)
    randomise(tiny_model)
    batch = token_batch()
    for implementation in ("grouped_mm", "eager"):
        logits = tiny_model(**batch, use_cache=False).logits
        assert logits.dtype == torch.bfloat16
        trained_loss(logits, batch).backward()
        for name, value in adapter_parameters(tiny_model).items():
            assert value.dtype == torch.float32
            assert value.grad is not None and torch.isfinite(value.grad).all(), (implementation, name)


def test_the_same_seed_gives_the_same_start_and_leaves_the_global_generator_of_experts_alone(
    tiny_model_factory: Any,
) -> None:
    starts = []
    for seed in (0, 0, 1):
        model = tiny_model_factory()
        attach(model, PLAN, CONFIG, seed)
        starts.append({name: value.detach() for name, value in adapter_parameters(model).items()})
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert all(torch.equal(starts[0][name], starts[2][name]) == name.endswith(".B") for name in starts[0])
    assert all((value.abs().max() > 0) == name.endswith(".A") for name, value in starts[0].items())


def test_the_adapter_has_exactly_the_parameters_of_the_chosen_experts(tiny_model: Any) -> None:
    n_trainable = attach(tiny_model, PLAN, CONFIG, seed=0)
    per_expert = 8 * (32 + 2 * 16) + 8 * (16 + 32)
    assert n_trainable == 5 * per_expert
    assert n_trainable == sum(value.numel() for value in tiny_model.parameters() if value.requires_grad)
    adapters = [module for module in tiny_model.modules() if isinstance(module, ExpertLora)]
    assert [adapter.chosen for adapter in adapters] == [[0, 5], [2, 3, 7]]
