"""The base loads frozen and from safetensors alone, bad folders are one message, fingerprints differ."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from data_recipes.artefact import UserError
from finetune.adapters.adapter import attach
from finetune.base import save
from finetune.config import BaseConfig, LoraConfig
from finetune.model import (
    choose_device,
    load_model,
    model_fingerprint,
    resolve_model_path,
    tokenizer_fingerprint,
)
from finetune.moe import moe_layers
from finetune.tokenizer import wrap

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture
def folder(tiny_model_factory, tiny_tokenizer, tmp_path):
    """A tiny model saved as the base is: bf16 safetensors, fp32 correction bias, tokenizer."""
    model = tiny_model_factory(vocab_size=262)
    for number, layer in enumerate(moe_layers(model)):
        bias = layer.router.get_buffer("e_score_correction_bias")
        bias += torch.linspace(0, 0.0123 * (number + 1), len(bias))  # values that bf16 would round
    save(model, tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def base(folder, **changes):
    return BaseConfig(model=str(folder), device="cpu", **changes)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_loaded_model_is_frozen_and_in_evaluation_mode_with_its_tokenizer(folder, tiny_tokenizer):
    model, tokenizer = load_model(base(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert tokenizer("வணக்கம்")["input_ids"] == tiny_tokenizer("வணக்கம்")["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_asked_type_and_the_correction_bias_keeps_every_bit(folder, dtype):
    model, _ = load_model(base(folder, dtype=dtype))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    stored = load_file(folder / "model.safetensors")[BIAS]
    assert stored.dtype == torch.float32
    assert not torch.equal(stored, stored.bfloat16().float())
    assert torch.equal(model.get_buffer(BIAS), stored)


def test_a_folder_with_pickled_weights_alone_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the base model .*safetensors"):
        load_model(base(folder))


def damage(folder, kind):
    weights = folder / "model.safetensors"
    if kind == "no folder":
        return folder.with_name("nowhere")
    if kind == "truncated weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif kind == "not safetensors":
        weights.write_bytes(b"<html>404</html>")
    elif kind == "no weights":
        weights.unlink()
    elif kind == "a missing tensor":
        edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.gate.weight"))
    elif kind == "a tensor of another shape":
        edit_weights(folder, lambda tensors: tensors.update({BIAS: torch.zeros(5)}))
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "broken config":
        (folder / "config.json").write_text('{"model_type": "glm')
    elif kind == "unknown model type":
        edit_config(folder, model_type="glm_of_the_future")
    elif kind == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "no folder",
        "truncated weights",
        "not safetensors",
        "no weights",
        "a missing tensor",
        "a tensor of another shape",
        "no config",
        "broken config",
        "unknown model type",
        "no tokenizer",
    ],
)
def test_a_damaged_model_is_one_message_with_the_way_out(folder, kind):
    path = damage(folder, kind)
    with pytest.raises(UserError, match="cannot load the base model") as raised:
        load_model(base(path))
    message = str(raised.value)
    assert str(path) in message and "give a folder with config.json" in message
    assert "Traceback" not in message and "File " not in message
    assert len(message.splitlines()) == 2


def test_a_misspelt_name_of_the_shipped_model_names_it():
    with pytest.raises(UserError, match="did you mean 'tiny-glm'"):
        load_model(BaseConfig(model="tiny-glmm", device="cpu"))


def test_the_shipped_name_is_a_folder_of_the_package_and_other_names_stay():
    assert resolve_model_path("tiny-glm").endswith("finetune/tiny_glm")
    assert resolve_model_path("zai-org/GLM-5.2") == "zai-org/GLM-5.2"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a machine that has an accelerator")
def test_auto_is_the_cpu_where_there_is_no_accelerator():
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["xpu", "gpu", "mps:7", ""])
def test_a_missing_device_is_one_message(name):
    with pytest.raises(UserError, match="use auto or cpu") as raised:
        choose_device(name)
    assert f"{name!r}" in str(raised.value)


def test_the_fingerprint_is_the_same_in_both_types_and_after_saving_again(folder, tiny_tokenizer, tmp_path):
    model, _ = load_model(base(folder))
    half: Any = load_model(base(folder, dtype="bfloat16"))[0]
    first = model_fingerprint(model)
    assert model_fingerprint(half) == first
    save(half, tiny_tokenizer, tmp_path / "again")
    assert model_fingerprint(load_model(base(tmp_path / "again"))[0]) == first


@pytest.mark.parametrize("attention", [False, True])
def test_an_attached_adapter_does_not_change_the_fingerprint(tiny_model, attention):
    before = model_fingerprint(tiny_model)
    attach(tiny_model, {"experts": {"1": [0, 3], "2": [5]}}, LoraConfig(rank=2, attention=attention), seed=0)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert model_fingerprint(tiny_model) == before


def test_one_changed_tensor_changes_the_fingerprint_whichever_it_is(tiny_model):
    before, n_changed = model_fingerprint(tiny_model), 0
    for tensor in tiny_model.state_dict().values():
        kept = tensor.clone()
        tensor += 0.5
        assert model_fingerprint(tiny_model) != before
        tensor.copy_(kept)
        n_changed += 1
    assert n_changed > 40
    assert model_fingerprint(tiny_model) == before


def test_another_expert_of_a_stack_changes_the_fingerprint(tiny_model):
    before = model_fingerprint(tiny_model)
    stack = tiny_model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    for expert in range(8):
        kept = stack[expert].clone()
        stack[expert] = kept.flip(0)
        assert model_fingerprint(tiny_model) != before
        stack[expert] = kept


@pytest.mark.parametrize("change", [{"num_experts_per_tok": 3}, {"routed_scaling_factor": 1.5}])
def test_another_value_of_the_config_changes_the_fingerprint(tiny_model_factory, change):
    models = tiny_model_factory(), tiny_model_factory(**change)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert model_fingerprint(models[0]) != model_fingerprint(models[1])


def test_where_and_how_a_model_was_loaded_does_not_change_the_fingerprint(tiny_model):
    before = model_fingerprint(tiny_model)
    tiny_model.config._name_or_path = "elsewhere"
    tiny_model.config.use_cache = False
    tiny_model.set_experts_implementation("grouped_mm")
    assert model_fingerprint(tiny_model) == before


def test_the_tokenizers_fingerprint_changes_with_its_template_and_words(folder, tiny_tokenizer):
    loaded = load_model(base(folder))[1]
    before = tokenizer_fingerprint(tiny_tokenizer)
    assert tokenizer_fingerprint(loaded) == before
    loaded.chat_template = f"{loaded.chat_template} "
    assert tokenizer_fingerprint(loaded) != before
    loaded.chat_template = tiny_tokenizer.chat_template
    loaded.add_tokens(["வணக்கம்"])
    assert tokenizer_fingerprint(loaded) != before


def test_the_tokenizers_fingerprint_knows_its_merges_but_not_how_it_was_called(tiny_tokenizer):
    before = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["a", "bb"], padding=True)
    assert tokenizer_fingerprint(tiny_tokenizer) == before
    state = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["ab"] = len(state["model"]["vocab"])
    with_word, with_merge = deepcopy(state), deepcopy(state)
    with_merge["model"]["merges"].append(["a", "b"])
    prints = [
        tokenizer_fingerprint(wrap(Tokenizer.from_str(json.dumps(one)))) for one in (with_word, with_merge)
    ]
    assert prints[0] != prints[1]
