"""The adapter as a PeftModel: PEFT's own methods, and the numbers of `attach` bit for bit."""

import json
from pathlib import Path
from typing import Any

import peft
import peft.mapping
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTuner
from test_lora import token_batch
from test_train import chat_rows, train_config
from tuned_bases import give_values

from data_recipes.artefact import UserError
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
    set_active,
)
from finetune.adapters.merge import merge
from finetune.adapters.peft_model import (
    TESTED_PEFT,
    ExpertLoraConfig,
    ExpertLoraModel,
    expert_lora_config,
    get_expert_peft_model,
    register,
)
from finetune.config import LoraConfig
from finetune.model import model_fingerprint
from finetune.train import train_rows

PLAN = {"experts": {"1": [0, 5], "2": [2]}}
OTHER_PLAN = {"experts": {"2": [2, 3]}}
CONFIG = LoraConfig(
    rank=4, alpha=6.0, down_rank=3, down_alpha=5.0, rslora=True, attention=True, shared_experts=True
)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**token_batch()).logits


@pytest.fixture
def tuned(tiny_model: Any) -> PeftModel:
    """A PeftModel around `tiny_model` with values in its adapter."""
    model = get_expert_peft_model(tiny_model, PLAN, CONFIG, seed=0)
    give_values(model)
    return model


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_start_numbers_and_gradients_are_those_of_attach(
    tiny_model_factory: Any, implementation: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    attached, base = tiny_model_factory().to(dtype), tiny_model_factory().to(dtype)
    for model in (attached, base):
        model.set_experts_implementation(implementation)
    n_trainable = attach(attached, PLAN, CONFIG, seed=3)
    wrapped = get_expert_peft_model(base, PLAN, CONFIG, seed=3)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and f" {n_trainable:,} trainable parameters" in first
    assert wrapped.get_nb_trainable_parameters()[0] == n_trainable
    expected, found = adapter_state(attached), adapter_state(wrapped)
    assert expected.keys() == found.keys() and len(found) == 2 * 4 + 2 * (15 + 6)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(value.dtype == torch.float32 for value in found.values())
    give_values(attached)
    give_values(wrapped)
    results = []
    for model in (attached, wrapped):
        with record_routing(model) as routing:
            output = model(**token_batch(), use_cache=False).logits
        output.float().square().sum().backward()
        check_first_backward(model, {layer: set(ids.unique().tolist()) for layer, ids in routing.items()})
        results.append((output.detach(), [value.grad for value in adapter_parameters(model).values()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(one, other) for one, other in zip(results[0][1], results[1][1], strict=True))


def test_a_saved_model_comes_back_bit_for_bit_and_frozen(
    tuned: PeftModel, tiny_model_factory: Any, tmp_path: Path
) -> None:
    before = logits(tuned)
    for name in ("one", "two"):
        tuned.save_pretrained(str(tmp_path / name))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["peft_type"] == "EXPERT_LORA"
    assert config["experts"] == {"model.layers.1.mlp.experts": [0, 5], "model.layers.2.mlp.experts": [2]}
    for low in (False, True):
        again = PeftModel.from_pretrained(tiny_model_factory(), str(tmp_path / "one"), low_cpu_mem_usage=low)
        assert torch.equal(logits(again), before)
        assert not any(value.requires_grad for value in again.parameters())
    again = PeftModel.from_pretrained(tiny_model_factory(), str(tmp_path / "one"), is_trainable=True)
    own = adapter_parameters(again)
    assert own.keys() == {name for name, value in again.named_parameters() if value.requires_grad}
    assert torch.equal(logits(again), before)


def test_an_adapter_passes_between_our_folder_and_a_peft_model(
    tuned: PeftModel, tiny_model_factory: Any, tmp_path: Path
) -> None:
    fresh = tiny_model_factory()
    plan = {**PLAN, "model_fingerprint": model_fingerprint(fresh)}
    save_adapter(tuned, plan, CONFIG, tmp_path / "ours")
    load_adapter(fresh, tmp_path / "ours")
    assert torch.equal(logits(fresh), logits(tuned))


def test_the_adapter_is_switched_off_by_either_way(tuned: PeftModel, tiny_model_factory: Any) -> None:
    base, on = logits(tiny_model_factory()), logits(tuned)
    assert not torch.equal(on, base)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), base)
    assert torch.equal(logits(tuned), on)
    with adapter_disabled(tuned):
        assert torch.equal(logits(tuned), base)
    assert torch.equal(logits(tuned), on)


def test_several_adapters_are_set_saved_loaded_and_deleted(
    tuned: PeftModel, tiny_model_factory: Any, tmp_path: Path
) -> None:
    expected = {"default": logits(tuned)}
    # Nothing but experts of one layer: the first adapter's other layers must be silent then.
    tuned.add_adapter("other", expert_lora_config(tuned, OTHER_PLAN, LoraConfig(rank=2), seed=5))
    assert torch.equal(logits(tuned), expected["default"]), "a new adapter waits"
    tuned.set_adapter("other")
    starts = adapter_state(tuned)
    assert len(starts) == 4 and all(bool(starts[name].any()) == name.endswith("A") for name in starts)
    assert {name for name, value in tuned.named_parameters() if value.requires_grad} == set(
        adapter_parameters(tuned)
    )
    give_values(tuned, seed=2)
    expected["other"] = logits(tuned)
    alone = tiny_model_factory()
    attach(alone, OTHER_PLAN, LoraConfig(rank=2), seed=5)
    assert all(torch.equal(value, starts[name]) for name, value in adapter_state(alone).items())
    give_values(alone, seed=2)
    assert torch.equal(logits(alone), expected["other"])
    tuned.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_model_factory(), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), "other")
    for model in (tuned, again):
        for name in ("default", "other"):
            model.set_adapter(name)
            assert torch.equal(logits(model), expected[name])
    with pytest.raises(UserError, match="one adapter at a time can act on experts, not default, other"):
        tuner: Any = tuned.base_model
        tuner.set_adapter(["default", "other"])
    tuned.set_adapter("other")
    tuned.delete_adapter("default")
    assert torch.equal(logits(tuned), expected["other"])
    assert not any(".default." in name for name, _ in tuned.named_parameters())


def test_merged_computes_the_same_and_unmerged_is_as_before_bit_for_bit(
    tuned: PeftModel, tiny_model_factory: Any
) -> None:
    base, on = logits(tiny_model_factory()), logits(tuned)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    for take_out in ("unmerge_adapter", "disable", "set_adapter"):
        tuned.merge_adapter()
        torch.testing.assert_close(logits(tuned), on, rtol=1e-5, atol=1e-6)
        assert any(not torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
        if take_out == "unmerge_adapter":
            tuned.unmerge_adapter()
        elif take_out == "set_adapter":
            tuned.set_adapter("default")
        else:
            with tuned.disable_adapter():
                assert torch.equal(logits(tuned), base)
        assert torch.equal(logits(tuned), on), take_out
        assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


@pytest.mark.parametrize("merged", [True, False])
def test_an_unloaded_model_is_a_plain_one(tuned: PeftModel, tiny_model_factory: Any, merged: bool) -> None:
    on, plain = logits(tuned), tiny_model_factory()
    base = logits(plain)
    model = tuned.merge_and_unload() if merged else tuned.unload()
    assert type(model) is type(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.config._experts_implementation == plain.config._experts_implementation
    torch.testing.assert_close(logits(model), on if merged else base, rtol=1e-5, atol=1e-6)
    if not merged:
        assert torch.equal(logits(model), base)


def test_our_loop_trains_it_as_it_trains_an_attached_one(
    tiny_model_factory: Any, tiny_tokenizer: Any
) -> None:
    config = LoraConfig(rank=4, alpha=8.0, dropout=0.2, attention=True)
    attached = tiny_model_factory(vocab_size=262)
    attach(attached, PLAN, config, seed=0)
    wrapped = get_expert_peft_model(tiny_model_factory(vocab_size=262), PLAN, config, seed=0)
    for model in (attached, wrapped):
        train_rows(model, tiny_tokenizer, chat_rows(8), train_config(steps=3, b_learning_rate_ratio=4.0))
    expected, found = adapter_state(attached), adapter_state(wrapped)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_generates_what_the_attached_model_generates(tuned: PeftModel, tiny_model_factory: Any) -> None:
    attached = tiny_model_factory()
    attach(attached, PLAN, CONFIG, seed=0)
    give_values(attached)
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(tuned.generate(**prompt, **options), attached.generate(**prompt, **options))


def test_another_base_or_plan_is_refused(tuned: PeftModel, tiny_model_factory: Any, tmp_path: Path) -> None:
    tuned.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"the adapter is for another model \(fingerprint"):
        PeftModel.from_pretrained(tiny_model_factory(seed=1), str(tmp_path))
    with pytest.raises(UserError, match=r"the plan is for another model \(fingerprint 0000"):
        get_expert_peft_model(tiny_model_factory(), {**PLAN, "model_fingerprint": "0" * 64}, CONFIG, seed=0)
    with pytest.raises(UserError, match=r"different ids in 0\.\.7, not \[8\]"):
        get_expert_peft_model(tiny_model_factory(), {"experts": {"1": [8]}}, CONFIG, seed=0)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}]
)
def test_an_option_of_peft_that_experts_would_ignore_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"option {next(iter(options))} is not supported on chosen experts"):
        ExpertLoraConfig(target_modules=["experts"], **options)


def test_attach_and_its_kin_leave_a_peft_model_to_peft(tuned: PeftModel) -> None:
    for act in (
        lambda: attach(tuned, PLAN, CONFIG, seed=0, name="x"),
        lambda: attach(tuned.get_base_model(), PLAN, CONFIG, seed=0, name="x"),
        lambda: detach(tuned),
        lambda: set_active(tuned, "default"),
        lambda: merge(tuned),
    ):
        with pytest.raises(UserError, match="this is a PeftModel: use its own add_adapter"):
            act()


def test_a_peft_without_the_hooks_is_refused_by_both_versions(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft, "__version__", "9.9.9")
    way_out = rf"needs: it was tested with PEFT {TESTED_PEFT}\. Install peft=={TESTED_PEFT}, or use attach"
    with monkeypatch.context() as patch:
        patch.delattr(BaseTuner, "inject_adapter")
        patch.delattr(peft.mapping, "PEFT_TYPE_TO_PREFIX_MAPPING")
        lacking = r"peft\.mapping\.PEFT_TYPE_TO_PREFIX_MAPPING, LoraModel\.inject_adapter"
        for act in (register, lambda: get_expert_peft_model(tiny_model, PLAN, CONFIG, seed=0)):
            with pytest.raises(UserError, match=rf"PEFT 9\.9\.9 has no {lacking}, .*{way_out}"):
                act()
        attach(tiny_model, PLAN, LoraConfig(rank=4), seed=0)
        detach(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "_create_and_replace", lambda self, config, target: None)
        with pytest.raises(UserError, match=rf"current_key in LoraModel\._create_and_replace, .*{way_out}"):
            register()
    with monkeypatch.context() as patch:
        # A PEFT that goes another way and leaves the old one standing.
        patch.setattr(ExpertLoraModel, "_create_and_replace", lambda *arguments, **options: None)
        with pytest.raises(UserError, match=f"for the experts, .*{way_out}"):
            get_expert_peft_model(tiny_model, PLAN, CONFIG, seed=0)


def test_an_adapter_is_not_called_as_a_module_is(tiny_model: Any) -> None:
    with pytest.raises(UserError, match="a module of the model is called 'experts'"):
        get_expert_peft_model(tiny_model, PLAN, CONFIG, seed=0, adapter_name="experts")


def test_the_tested_version_is_the_pinned_one() -> None:
    root = Path(__file__).parents[1]
    assert f"peft=={TESTED_PEFT}" in (root / "constraints.txt").read_text().splitlines()
