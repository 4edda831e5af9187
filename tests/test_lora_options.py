"""Each option of the adapter does what it says: scalings, dropout, shared experts, layers without experts."""

from typing import Any

import pytest
import torch
from test_lora import PLAN, assert_equals_dense, build_qwen3_moe, randomise, token_batch, trained_loss
from torch import nn
from torch.utils.checkpoint import CheckpointError

from data_recipes.artefact import UserError
from finetune.adapters.adapter import adapter_parameters, attach, check_first_backward, detach, record_routing
from finetune.adapters.lora import LowRank
from finetune.config import LoraConfig
from finetune.moe import moe_layers

ALL = LoraConfig(rank=4, down_rank=3, dropout=0.5, rslora=True, attention=True, shared_experts=True)
SHARED = [
    f"model.layers.{layer}.mlp.shared_experts.{projection}"
    for layer in (1, 2)
    for projection in ("gate_proj", "up_proj", "down_proj")
]


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize(
    ("config", "up", "down"),
    [
        (LoraConfig(rank=8, alpha=16.0), 2.0, 2.0),
        (LoraConfig(rank=8, alpha=16.0, down_rank=2), 2.0, 8.0),
        (LoraConfig(rank=8, alpha=16.0, down_rank=3, down_alpha=6.0), 2.0, 2.0),
        (LoraConfig(rank=4, alpha=16.0, down_rank=16, down_alpha=2.0, rslora=True), 8.0, 0.5),
    ],
)
def test_each_projection_has_its_rank_and_scaling(
    tiny_model: Any, implementation: str, config: LoraConfig, up: float, down: float
) -> None:
    tiny_model.set_experts_implementation(implementation)
    n_trainable = attach(tiny_model, PLAN, config, seed=0)
    down_rank = config.down_rank or config.rank
    assert n_trainable == 5 * (config.rank * (32 + 2 * 16) + down_rank * (16 + 32))
    adapter: Any = moe_layers(tiny_model)[0].experts.expert_lora
    assert (adapter.up.rank, adapter.down.rank) == (config.rank, down_rank)
    assert (adapter.up.scaling, adapter.down.scaling) == (up, down)
    randomise(tiny_model)
    assert_equals_dense(tiny_model)


def test_dropout_zeroes_its_share_of_inputs_and_scales_up_the_others_in_training_only(
    tiny_model: Any,
) -> None:
    experts: Any = moe_layers(tiny_model)[0].experts
    low_rank = LowRank(experts, "gate_up_proj", 1, 32, 32.0, LoraConfig(dropout=0.25))
    with torch.no_grad():
        low_rank.A.copy_(torch.eye(32))
        low_rank.B[0, :32].copy_(torch.eye(32))
    rows, ends = torch.ones(300, 32), torch.tensor([300], dtype=torch.int32)
    torch.manual_seed(0)
    out = low_rank(rows, ends)[:, :32]
    zeroed = out == 0
    assert torch.equal(out[~zeroed], torch.full_like(out[~zeroed], 1 / 0.75))
    assert float(zeroed.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(low_rank.eval()(rows, ends)[:, :32], rows)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_dropout_is_off_in_a_model_that_evaluates_and_on_in_one_that_trains(
    tiny_model: Any, implementation: str
) -> None:
    tiny_model.set_experts_implementation(implementation)
    batch, logits = token_batch(), []
    with torch.no_grad():
        for dropout in (0.0, 0.5):
            config = LoraConfig(rank=4, dropout=dropout, attention=True, shared_experts=True)
            attach(tiny_model, PLAN, config, seed=0)
            randomise(tiny_model)
            logits.append(tiny_model(**batch).logits)
            if dropout:
                tiny_model.train()
                logits.append(tiny_model(**batch).logits)
            detach(tiny_model)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_recomputation_sees_the_same_dropout(tiny_model: Any, implementation: str) -> None:
    tiny_model.set_experts_implementation(implementation)
    attach(tiny_model, PLAN, ALL, seed=0)
    randomise(tiny_model)
    tiny_model.train()
    batch = token_batch()

    def gradients() -> dict[str, torch.Tensor]:
        tiny_model.zero_grad()
        torch.manual_seed(7)
        trained_loss(tiny_model(**batch, use_cache=False).logits, batch).backward()
        found = {name: value.grad for name, value in adapter_parameters(tiny_model).items()}
        return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}

    expected = gradients()
    tiny_model.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients()
    assert expected.keys() == found.keys() == adapter_parameters(tiny_model).keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    tiny_model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    # The guard of this test: with other masks before it, a router sends other rows, and torch notices.
    with pytest.raises(CheckpointError):
        gradients()


def lora_targets(model: nn.Module) -> list[str]:
    return [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]


@pytest.mark.parametrize("attention", [False, True])
def test_shared_experts_get_a_lora_and_the_unchosen_routed_ones_do_not(
    tiny_model: Any, attention: bool
) -> None:
    config = LoraConfig(rank=4, attention=attention, shared_experts=True)
    n_trainable = attach(tiny_model, PLAN, config, seed=0)
    targets = lora_targets(tiny_model)
    assert [name for name in targets if ".self_attn." not in name] == SHARED
    assert len(targets) == len(SHARED) + 15 * attention
    linear = {name for name in adapter_parameters(tiny_model) if ".lora_" in name}
    assert len(linear) == 2 * len(targets)
    experts = [name for name in adapter_parameters(tiny_model) if name not in linear]
    assert len(experts) == 2 * 4 and all(".mlp.experts.expert_lora." in name for name in experts)
    if not attention:
        # Shared experts are 16 wide like the routed ones; 5 chosen experts, 2 layers.
        assert n_trainable == 4 * (5 * ((32 + 2 * 16) + (16 + 32)) + 2 * 3 * (32 + 16))


def test_a_model_without_shared_experts_says_so_and_stays_as_it_was() -> None:
    model = build_qwen3_moe()
    with pytest.raises(UserError, match=r"lora\.shared_experts is set.*set lora\.shared_experts=false"):
        attach(model, PLAN, LoraConfig(shared_experts=True), seed=0)
    assert not adapter_parameters(model) and all(value.requires_grad for value in model.parameters())


def test_a_layer_may_have_no_chosen_expert(tiny_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    n_trainable = attach(tiny_model, {"experts": {"1": [], "2": [4]}}, LoraConfig(rank=2), seed=0)
    assert n_trainable == 2 * ((32 + 2 * 16) + (16 + 32))
    assert capsys.readouterr().out.endswith(
        f"adapter default: {n_trainable} trainable parameters, rank 2, on 1 experts of 1 layers\n"
    )
    assert [hasattr(layer.experts, "expert_lora") for layer in moe_layers(tiny_model)] == [False, True]
    randomise(tiny_model)
    tiny_model(**token_batch(), use_cache=False).logits.square().sum().backward()
    assert all(value.grad is not None for value in adapter_parameters(tiny_model).values())


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_with_every_option_on_the_first_backward_reaches_the_adapter_and_nothing_else(
    tiny_model: Any, implementation: str
) -> None:
    tiny_model.set_experts_implementation(implementation)
    n_trainable = attach(tiny_model, PLAN, ALL, seed=0)
    assert n_trainable == sum(value.numel() for value in tiny_model.parameters() if value.requires_grad)
    tiny_model.train()
    batch = token_batch()
    with record_routing(tiny_model) as routing:
        tiny_model(**batch, use_cache=False).logits.square().sum().backward()
    hit = {layer: set(indices.unique().tolist()) for layer, indices in routing.items()}
    assert all(set(chosen) & hit[int(layer)] for layer, chosen in PLAN["experts"].items())
    check_first_backward(tiny_model, hit)
    shared = tiny_model.get_submodule(SHARED[2])
    shared.lora_B["default"].weight.grad.zero_()
    with pytest.raises(UserError, match=f"1 part.*no gradient: {SHARED[2]}"):
        check_first_backward(tiny_model, hit)
