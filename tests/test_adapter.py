"""An adapter attaches to what the plan names or not at all, and comes back from disk bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tuned_bases import give_values, restamp

from data_recipes.artefact import UserError, read_artefact, write_artefact, write_json
from finetune.adapters.adapter import (
    adapter_disabled,
    adapter_parameters,
    adapter_state,
    attach,
    check_first_backward,
    detach,
    load_adapter,
    record_routing,
    save_adapter,
)
from finetune.config import LoraConfig
from finetune.model import model_fingerprint
from finetune.moe import moe_layers

CONFIG = LoraConfig(rank=4, alpha=8.0, attention=True)
EXPERTS = {"1": [0, 5], "2": [2]}
TOKENS = torch.arange(1, 21).view(2, 10)


def trained_adapter(model: Any) -> dict[str, Any]:
    """Attach an adapter with values in all its tensors; returns its plan."""
    plan = {"model_fingerprint": model_fingerprint(model), "experts": EXPERTS}
    attach(model, plan, CONFIG, seed=0)
    give_values(model)
    return plan


@pytest.fixture
def saved(tiny_model: Any, tmp_path: Path) -> Path:
    """The folder of a saved adapter of `tiny_model`, which is left without one."""
    plan = trained_adapter(tiny_model)
    folder = save_adapter(tiny_model, plan, CONFIG, tmp_path / "adapter")
    detach(tiny_model)
    return folder


def test_a_saved_adapter_comes_back_bit_for_bit(
    tiny_model: Any, tiny_model_factory: Any, tmp_path: Path
) -> None:
    plan = trained_adapter(tiny_model)
    folder = save_adapter(tiny_model, plan, CONFIG, tmp_path / "adapter")
    again = tiny_model_factory()
    saved = load_adapter(again, folder)
    expected, found = adapter_state(tiny_model), adapter_state(again)
    assert expected.keys() == found.keys() and len(found) == 2 * 4 + 2 * 3 * 5
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(tiny_model(TOKENS).logits, again(TOKENS).logits)
    assert saved["n_trainable"] == sum(value.numel() for value in expected.values())
    assert (saved["rank"], saved["alpha"], saved["attention"]) == (4, 8.0, True)
    assert read_artefact(folder / "plan.json", "expert_plan")["experts"] == EXPERTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_the_fingerprint_of_a_model_does_not_see_its_adapter(tiny_model: Any) -> None:
    before = model_fingerprint(tiny_model)
    trained_adapter(tiny_model)
    assert model_fingerprint(tiny_model) == before


def test_a_truncated_tensors_file_is_refused_by_name(tiny_model: Any, saved: Path) -> None:
    path = saved / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"adapter\.safetensors is damaged or truncated"):
        load_adapter(tiny_model, saved)
    path.unlink()
    with pytest.raises(UserError, match=r"adapter\.safetensors"):
        load_adapter(tiny_model, saved)
    assert not adapter_parameters(tiny_model)


def test_an_adapter_of_another_model_is_refused(tiny_model_factory: Any, saved: Path) -> None:
    with pytest.raises(UserError, match="another model"):
        load_adapter(tiny_model_factory(seed=1), saved)


def test_another_plan_than_the_trained_one_is_refused(tiny_model: Any, saved: Path) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    write_json(saved / "plan.json", {**plan, "experts": {"1": [0, 4], "2": [2]}})
    with pytest.raises(UserError, match=r"plan\.json is not the plan"):
        load_adapter(tiny_model, saved)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_config.json", {"alpha": 9.0}, r"adapter_config\.json was changed after it was saved"),
        ("adapter_config.json", {"alpha": float("nan")}, r"adapter_config\.json was changed after"),
        ("adapter_config.json", {"rank": 5}, r"adapter_config\.json was changed after"),
        ("adapter_config.json", {"rslora": True}, r"adapter_config\.json was changed after"),
        ("adapter_config.json", {"inputs": {}}, r"adapter_config\.json was changed after"),
        ("adapter_config.json", {"note": "mine"}, r"adapter_config\.json was changed after"),
        (
            "plan.json",
            {"model_fingerprint": "0" * 64},
            r"plan\.json is not the plan this adapter was trained",
        ),
    ],
)
def test_a_number_edited_after_saving_is_refused_by_the_file(
    tiny_model: Any, saved: Path, file: str, change: dict[str, Any], message: str
) -> None:
    text = (saved / file).read_text()
    (saved / file).write_text(json.dumps(json.loads(text) | change))
    with pytest.raises(UserError, match=message):
        load_adapter(tiny_model, saved)
    assert not adapter_parameters(tiny_model)
    (saved / file).write_text(text)
    load_adapter(tiny_model, saved)


def test_an_adapter_without_an_option_or_its_own_hash_is_refused(tiny_model: Any, saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    for key in ("config_sha256", "dropout"):
        write_json(saved / "adapter_config.json", {name: config[name] for name in config if name != key})
        with pytest.raises(UserError, match=f"adapter_config.json lacks '{key}'; make it again with"):
            load_adapter(tiny_model, saved)


def test_tensors_that_do_not_fit_are_named_and_nothing_stays_attached(tiny_model: Any, saved: Path) -> None:
    path = saved / "adapter.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("down.B"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path)
    restamp(saved)
    with pytest.raises(UserError, match=f"1 tensor.*{name}"):
        load_adapter(tiny_model, saved)
    assert not adapter_parameters(tiny_model)


def test_a_folder_with_somebodys_files_is_not_replaced(tiny_model: Any, tmp_path: Path) -> None:
    plan = trained_adapter(tiny_model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("draft")
    with pytest.raises(UserError, match="did not write"):
        save_adapter(tiny_model, plan, CONFIG, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "draft"


def test_only_an_adapter_gives_its_place_to_an_adapter(tiny_model: Any, tmp_path: Path) -> None:
    plan = trained_adapter(tiny_model)
    write_artefact(tmp_path / "data" / "manifest.json", "dataset_manifest", {}, {})
    with pytest.raises(UserError, match="data holds files .* did not write as expert_adapter"):
        save_adapter(tiny_model, plan, CONFIG, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["manifest.json"]
    for _ in range(2):
        save_adapter(tiny_model, plan, CONFIG, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({}, "chooses no expert"),
        ({"1": [], "2": []}, "chooses no expert"),
        ({"0": [1]}, r"names layer 0, but the layers with experts are \[1, 2\]"),
        ({"1": [3, 8]}, r"different ids in 0\.\.7, not \[8\]"),
        ({"1": [3, 3]}, r"different ids in 0\.\.7, not \[3, 3\]"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_attaches_nothing(
    tiny_model: Any, experts: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attach(tiny_model, {"experts": experts}, CONFIG, seed=0)
    assert not adapter_parameters(tiny_model)


def test_attention_lora_is_on_every_projection_and_not_on_the_indexer(tiny_model: Any) -> None:
    attach(tiny_model, {"experts": EXPERTS}, CONFIG, seed=0)
    projections = {
        name.rpartition(".lora_A.")[0] for name in adapter_parameters(tiny_model) if ".lora_A." in name
    }
    expected = {
        f"model.layers.{layer}.self_attn.{projection}"
        for layer in range(3)
        for projection in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    }
    assert projections == expected


def test_an_adapter_is_attached_once_and_switched_off_only_when_there_is_one(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="no adapter"), adapter_disabled(tiny_model):
        pass
    attach(tiny_model, {"experts": EXPERTS}, CONFIG, seed=0)
    with pytest.raises(UserError, match="already has an adapter"):
        attach(tiny_model, {"experts": EXPERTS}, CONFIG, seed=0)


def test_the_first_backward_passes_when_only_the_adapter_learns(tiny_model: Any) -> None:
    attach(tiny_model, {"experts": EXPERTS}, CONFIG, seed=0)
    with record_routing(tiny_model) as routing:
        tiny_model(TOKENS).logits.square().sum().backward()
    assert {layer: tuple(indices.shape) for layer, indices in routing.items()} == {1: (20, 2), 2: (20, 2)}
    hit = {layer: set(indices.unique().tolist()) for layer, indices in routing.items()}
    assert hit[1] & {0, 5} and hit[2] & {2}, "the test would check nothing"
    check_first_backward(tiny_model, hit)


def test_a_chosen_expert_that_got_tokens_and_no_gradient_is_an_error(tiny_model: Any) -> None:
    attach(tiny_model, {"experts": EXPERTS}, LoraConfig(rank=4), seed=0)
    tiny_model(TOKENS).logits.square().sum().backward()
    experts: Any = moe_layers(tiny_model)[0].experts
    experts.expert_lora.down.B.grad[1] = 0.0
    with pytest.raises(UserError, match=r"1 part.*model\.layers\.1\.mlp: expert 5"):
        check_first_backward(tiny_model, {1: {5}, 2: {2}})
    check_first_backward(tiny_model, {1: {0}, 2: {2}})


def test_a_gradient_outside_the_adapter_is_an_error(tiny_model: Any) -> None:
    attach(tiny_model, {"experts": EXPERTS}, LoraConfig(rank=4), seed=0)
    tiny_model.lm_head.weight.requires_grad_(True)
    tiny_model(TOKENS).logits.square().sum().backward()
    with pytest.raises(UserError, match=r"1 parameter.*outside the adapter.*lm_head\.weight"):
        check_first_backward(tiny_model, {})
