"""Several adapters on one model: one computes at a time, and none knows of the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import token_batch
from tuned_bases import give_values, restamp

from data_recipes.artefact import UserError, read_artefact
from finetune.adapters.adapter import (
    active_adapter,
    adapter_disabled,
    adapter_names,
    adapter_parameters,
    adapter_state,
    attach,
    check_first_backward,
    detach,
    load_adapter,
    save_adapter,
    set_active,
)
from finetune.config import LoraConfig
from finetune.model import model_fingerprint
from finetune.moe import moe_layers

# They share expert 5 of layer 1; each has a layer or a kind of target that the other has not.
PLANS = {"tamil": {"experts": {"1": [0, 5]}}, "hindi": {"experts": {"1": [5, 6], "2": [2]}}}
CONFIGS = {
    "tamil": LoraConfig(rank=4, attention=True),
    "hindi": LoraConfig(rank=3, down_rank=5, shared_experts=True),
}


def add(model: Any, name: str) -> None:
    """Attach one of the two adapters with values of its own in all its tensors."""
    attach(model, PLANS[name], CONFIGS[name], seed=0, name=name)
    give_values(model, seed=len(PLANS[name]["experts"]))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**token_batch()).logits


def test_the_active_adapter_computes_as_if_it_were_alone(tiny_model_factory: Any) -> None:
    both = tiny_model_factory()
    base = logits(both)
    alone = {}
    for name in PLANS:
        model = tiny_model_factory()
        add(model, name)
        alone[name] = logits(model)
        add(both, name)
    assert adapter_names(both) == ["hindi", "tamil"]
    assert not torch.equal(alone["tamil"], alone["hindi"])
    assert active_adapter(both) == "hindi" and torch.equal(logits(both), alone["hindi"])
    for name in ("tamil", "hindi", "tamil"):
        set_active(both, name)
        assert active_adapter(both) == name and torch.equal(logits(both), alone[name])
        with adapter_disabled(both):
            assert torch.equal(logits(both), base)
    detach(both, "tamil")
    assert torch.equal(logits(both), base), "none is active"
    set_active(both, "hindi")
    assert torch.equal(logits(both), alone["hindi"])
    detach(both)
    assert torch.equal(logits(both), base) and adapter_names(both) == []
    assert not any("lora" in name for name, _ in both.named_modules())


def test_only_the_active_adapter_trains(tiny_model: Any) -> None:
    add(tiny_model, "tamil")
    add(tiny_model, "hindi")
    set_active(tiny_model, "tamil")
    own = adapter_parameters(tiny_model)
    # 15 attention projections, two projections of one layer; A and B of each.
    assert len(own) == 2 * 15 + 2 * 2
    assert own.keys() == {name for name, value in tiny_model.named_parameters() if value.requires_grad}
    tiny_model(**token_batch(), use_cache=False).logits.square().sum().backward()
    check_first_backward(tiny_model, {})
    assert own.keys() == {name for name, value in tiny_model.named_parameters() if value.grad is not None}
    waiting: Any = moe_layers(tiny_model)[1].experts.inactive_expert_lora
    waiting[0].down.A.grad = torch.zeros_like(waiting[0].down.A)
    with pytest.raises(
        UserError, match=r"1 parameter.*outside the adapter.*inactive_expert_lora\.0\.down\.A"
    ):
        check_first_backward(tiny_model, {})


def test_the_active_adapter_is_saved_with_its_options_and_loads_under_another_name(
    tiny_model_factory: Any, tmp_path: Path
) -> None:
    model = tiny_model_factory()
    fingerprint = model_fingerprint(model)
    for name in PLANS:
        add(model, name)
        assert model_fingerprint(model) == fingerprint
    for name in PLANS:
        set_active(model, name)
        plan = {**PLANS[name], "model_fingerprint": fingerprint}
        save_adapter(model, plan, CONFIGS[name], tmp_path / name)
    saved = read_artefact(tmp_path / "hindi" / "adapter_config.json", "expert_adapter")
    assert LoraConfig(**{key: saved[key] for key in CONFIGS["hindi"].__dict__}) == CONFIGS["hindi"]
    again = tiny_model_factory()
    load_adapter(again, tmp_path / "tamil", name="first")
    load_adapter(again, tmp_path / "hindi", name="second")
    for name, other in (("tamil", "first"), ("hindi", "second")):
        set_active(model, name)
        set_active(again, other)
        expected, found = adapter_state(model), adapter_state(again)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert torch.equal(logits(model), logits(again))


def test_an_adapter_is_not_saved_under_options_that_it_was_not_attached_with(
    tiny_model: Any, tmp_path: Path
) -> None:
    add(tiny_model, "tamil")
    with pytest.raises(UserError, match=r"attached with LoraConfig\(rank=4.*not with LoraConfig\(rank=8"):
        save_adapter(tiny_model, PLANS["tamil"], LoraConfig(rank=8), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_loaded_leaves_the_former_adapter_active(tiny_model: Any, tmp_path: Path) -> None:
    add(tiny_model, "hindi")
    before = logits(tiny_model)
    plan = {**PLANS["hindi"], "model_fingerprint": model_fingerprint(tiny_model)}
    folder = save_adapter(tiny_model, plan, CONFIGS["hindi"], tmp_path / "saved")
    tensors = load_file(folder / "adapter.safetensors")
    tensors.popitem()
    save_file(tensors, folder / "adapter.safetensors")
    restamp(folder)
    with pytest.raises(UserError, match="1 tensor"):
        load_adapter(tiny_model, folder, name="broken")
    assert adapter_names(tiny_model) == ["hindi"] and active_adapter(tiny_model) == "hindi"
    assert torch.equal(logits(tiny_model), before)


@pytest.mark.parametrize("name", ["a.b", "", "keys", "a b"])
def test_a_name_that_torch_cannot_take_is_refused(tiny_model: Any, name: str) -> None:
    with pytest.raises(UserError, match="cannot name an adapter"):
        attach(tiny_model, PLANS["tamil"], CONFIGS["tamil"], seed=0, name=name)
    assert adapter_names(tiny_model) == []


def test_an_unknown_name_is_refused_with_the_names_there_are(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="no adapter 'tamil': it has none"):
        set_active(tiny_model, "tamil")
    add(tiny_model, "hindi")
    for act in (set_active, detach):
        with pytest.raises(UserError, match="no adapter 'tamil': it has hindi"):
            act(tiny_model, "tamil")
    assert active_adapter(tiny_model) == "hindi"
