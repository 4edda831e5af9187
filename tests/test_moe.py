"""finetune.moe finds experts and routers of every family by what they carry, and checks what routers say."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from data_recipes.artefact import UserError
from finetune.moe import moe_layers, parameters_per_rank, router_output
from tests.tiny_families import FAMILIES, N_EXPERTS, TOP_K, build_tiny_family


@pytest.mark.parametrize(
    ("family", "indices", "n_parameters"),
    [
        # Inputs + outputs of gate_up_proj and of down_proj: 32 hidden, 24 wide.
        ("glm_moe_dsa", [1, 2], (32 + 48) + (24 + 32)),
        ("gpt_oss", [0, 1, 2], (32 + 48) + (24 + 32)),
        ("nemotron_h", [1, 3], (40 + 24) + (24 + 40)),  # no gate, and it works in 40 latents
    ],
)
def test_layers_are_counted_with_dense_ones_and_parameters_over_both_stacks(
    family: str, indices: list[int], n_parameters: int
) -> None:
    model = build_tiny_family(FAMILIES[family])
    layers = moe_layers(model)
    assert [layer.index for layer in layers] == indices
    assert {parameters_per_rank(layer) for layer in layers} == {n_parameters}
    for layer in layers:
        assert (layer.n_experts, layer.top_k) == (N_EXPERTS, TOP_K)
        assert layer.block is model.get_submodule(layer.name)


def test_a_dense_model_is_refused_by_its_type_and_the_way_out() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=64, intermediate_size=8, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"'llama'.*no routed experts.*base\.model"):
        moe_layers(LlamaForCausalLM(config))


def test_experts_without_a_router_beside_them_are_an_error(tiny_model: nn.Module) -> None:
    del moe_layers(tiny_model)[0].block.gate
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp: no router"):
        moe_layers(tiny_model)


def test_a_router_output_of_another_form_is_an_error(tiny_model: nn.Module) -> None:
    layer = moe_layers(tiny_model)[0]
    logits, weights, indices = torch.zeros(3, 8), torch.ones(3, 2), torch.tensor([[0, 1], [2, 3], [4, 7]])
    assert router_output(layer, (logits, weights, indices)).indices_NK is indices
    with pytest.raises(UserError, match="returned Tensor"):
        router_output(layer, logits)
    with pytest.raises(UserError, match=r"expected \(3, 2\)"):
        router_output(layer, (logits, weights[:, :1], indices))
    with pytest.raises(UserError, match="whole numbers"):
        router_output(layer, (logits, weights, weights))
    with pytest.raises(UserError, match=r"outside 0\.\.7"):
        router_output(layer, (logits, weights, indices + 1))
