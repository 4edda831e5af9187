"""finetune.moe finds experts and routers of every family by what they carry, and checks what routers say."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_recipes.artefact import UserError
from finetune.moe import MoeLayer, RouterOutput, moe_layers, parameters_per_rank, router_output

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
GROUPED = {"n_routed_experts": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 2}
ONE_GROUP = GROUPED | {"topk_group": 1}
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64, "head_dim": 8}

# Family -> its own config keys, the indices of its MoE layers, the width of one expert.
FAMILIES: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "glm_moe_dsa": (LATENT | ONE_GROUP | INDEXER, [1, 2], 16),
    "deepseek_v3": (LATENT | ONE_GROUP | {"head_dim": 8}, [1, 2], 16),
    "glm4_moe": (ONE_GROUP, [1, 2], 16),
    "qwen3_moe": ({"num_experts": 8, "moe_intermediate_size": 16, "mlp_only_layers": [1]}, [0, 2], 16),
    "mixtral": ({"num_local_experts": 8}, [0, 1, 2], 48),
    "olmoe": ({"num_experts": 8}, [0, 1, 2], 48),
    "gpt_oss": ({"num_local_experts": 8}, [0, 1, 2], 48),
}


def build(family: str) -> nn.Module:
    config = AutoConfig.for_model(family, **(SMALL | FAMILIES[family][0]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_routers_of_a_family_are_found(family: str) -> None:
    model = build(family)
    layers = moe_layers(model)
    assert [layer.index for layer in layers] == FAMILIES[family][1]
    returned: dict[int, RouterOutput] = {}
    used: dict[int, torch.Tensor] = {}

    def watch(layer: MoeLayer) -> None:
        def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
            returned[layer.index] = router_output(layer, output)

        def keep_choice(_module: nn.Module, inputs: Any) -> None:
            used[layer.index] = inputs[1]

        layer.router.register_forward_hook(keep_output)
        layer.experts.register_forward_pre_hook(keep_choice)

    for layer in layers:
        assert (layer.n_experts, layer.top_k) == (8, 2)
        assert layer.block is model.get_submodule(layer.name)
        watch(layer)
    with torch.inference_mode():
        model(input_ids=torch.arange(10).view(2, 5))
    assert list(returned) == FAMILIES[family][1]
    for index, output in returned.items():
        assert output.indices_NK.shape == (10, 2)
        assert torch.equal(output.indices_NK, used[index]), "the experts ran what the router named"


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_per_rank_counts_inputs_and_outputs_of_both_stacks(family: str) -> None:
    hidden, width = 32, FAMILIES[family][2]
    found = {parameters_per_rank(layer) for layer in moe_layers(build(family))}
    assert found == {(hidden + 2 * width) + (width + hidden)}


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
    with pytest.raises(UserError, match=r"outside 0\.\.7.*expert parallelism"):
        router_output(layer, (logits, weights, indices + 1))
