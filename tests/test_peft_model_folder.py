"""The folder that our PeftModel saves is an adapter like ours: imported, exported and loaded bit for bit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tuned_bases import GLM_EXPERTS, logits

from data_recipes.artefact import UserError, read_artefact, write_artefact, write_json
from finetune.adapters.active_adapter import adapter_parameters, file_name
from finetune.adapters.adapter import attach, load_adapter, save_adapter
from finetune.adapters.peft_model import get_expert_peft_model
from finetune.config import BaseConfig, LoraConfig
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter
from finetune.model import load_model, model_fingerprint

CONFIG = LoraConfig(
    rank=4,
    alpha=6.0,
    down_rank=3,
    down_alpha=5.0,
    rslora=True,
    dropout=0.25,
    attention=True,
    shared_experts=True,
)
UP_A = "base_model.model.model.layers.1.mlp.experts.peft.expert_lora.up.A"
OURS, THEIRS = "adapter.safetensors", "adapter_model.safetensors"


@pytest.fixture
def ours(base: BaseConfig, tmp_path: Path) -> Path:
    """Our folder of an adapter with values everywhere but in one expert, which learnt nothing."""
    model = load_model(base)[0]
    plan = {"model_fingerprint": model_fingerprint(model), "n_experts": 8, "experts": GLM_EXPERTS}
    attach(model, plan, CONFIG, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in adapter_parameters(model).items():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            if name.endswith(".B") and ".layers.1." in name:
                value[0] = 0.0
    return save_adapter(model, plan, CONFIG, tmp_path / "ours")


@pytest.fixture
def theirs(base: BaseConfig, ours: Path, tmp_path: Path) -> Path:
    """The same adapter, as the folder that a PeftModel of ours saved."""
    saved, plan = load_file(ours / OURS), read_artefact(ours / "plan.json", "expert_plan")
    wrapped = get_expert_peft_model(load_model(base)[0], plan, CONFIG, seed=1)
    with torch.no_grad():
        for name, value in adapter_parameters(wrapped).items():
            value.copy_(saved[file_name(name)])
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def options_of(folder: Path) -> dict[str, Any]:
    saved = read_artefact(folder / "adapter_config.json", "expert_adapter")
    return {name: saved[name] for name in (*CONFIG.__dict__, "n_trainable", "model_fingerprint")}


def test_an_import_of_a_peft_model_is_the_same_adapter_bit_for_bit(
    base: BaseConfig, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    back = import_adapter(theirs, tmp_path / "back", base)
    expected, found = load_file(ours / OURS), load_file(back / OURS)
    assert expected.keys() == found.keys() and len(found) == 2 * 4 + 2 * (15 + 6)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert options_of(back) == options_of(ours)
    assert read_artefact(back / "plan.json", "expert_plan")["experts"] == GLM_EXPERTS
    # And PEFT loads what was imported as it loads what it saved itself.
    model = load_model(base)[0]
    load_adapter(model, back)
    again = PeftModel.from_pretrained(load_model(base)[0], str(theirs))
    assert torch.equal(logits(again), logits(model))


def test_an_import_of_a_peft_model_is_cut_to_a_plan(base: BaseConfig, theirs: Path, tmp_path: Path) -> None:
    fingerprint = options_of(import_adapter(theirs, tmp_path / "whole", base))["model_fingerprint"]
    body = {"model_fingerprint": fingerprint, "n_experts": 8, "experts": {"1": [5]}}
    write_artefact(tmp_path / "plan.json", "expert_plan", {}, body)
    cut = load_file(import_adapter(theirs, tmp_path / "cut", base, tmp_path / "plan.json") / OURS)
    whole = load_file(tmp_path / "whole" / OURS)
    kept = {name for name in whole if ".experts.expert_lora." not in name or ".layers.1." in name}
    assert cut.keys() == kept
    for name, value in cut.items():
        expected = whole[name][1:] if ".experts.expert_lora." in name else whole[name]
        assert torch.equal(value, expected), name


def test_a_peft_model_is_loaded_and_exported_without_an_import(
    base: BaseConfig, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    models = [load_model(base)[0] for _ in range(2)]
    for model, folder in zip(models, (ours, theirs), strict=True):
        load_adapter(model, folder)
    assert torch.equal(logits(models[0]), logits(models[1]))
    for to, file in (("peft", THEIRS), ("sglang", THEIRS), ("merged", "model.safetensors")):
        written = [
            (export_adapter(folder, to, tmp_path / f"{to}-{folder.name}", base, "deltas") / file).read_bytes()
            for folder in (ours, theirs)
        ]
        assert written[0] == written[1], to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": "four"}, "r = 'four': must be int"),
        ({"r": 5}, "tensor(s) do not fit"),
        ({"lora_alpha": None}, "lora_alpha = None: must be a number above 0"),
        ({"lora_dropout": 2.0}, "dropout: must be at least 0 and below 1"),
        ({"down_alpha": float("inf")}, "down_alpha = inf: must be float | None"),
        ({"down_rank": True}, "down_rank = True: must be int | None"),
        ({"attention": "yes"}, "attention = 'yes': must be bool"),
        ({"attention": False}, "tensor(s) do not fit"),
        ({"model_fingerprint": None}, "model_fingerprint = None: must be that of the base"),
        ({"model_fingerprint": "0" * 64}, "was trained on another model (fingerprint 000000000000"),
        ({"experts": None}, "experts = None: must map names of modules to lists of expert ids"),
        ({"experts": {"model.layers.1.mlp.experts": ["0"]}}, "must map names of modules to lists"),
        ({"experts": {"model.layers.0.mlp.experts": [0]}}, "names experts 'model.layers.0.mlp.experts', but"),
        ({"experts": {"model.layers.1.mlp.experts": [0, 8]}}, "different ids in 0..7, not [8]"),
        ({"experts": {"model.layers.1.mlp.experts": [0, 5]}}, "tensor(s) do not fit"),
        ({"rank_pattern": {"o_proj": 3}}, "sets rank_pattern={'o_proj': 3}, which is not computed here"),
        ({"use_dora": True}, "sets use_dora=True, which is not computed here"),
        ({"peft_type": "LORA"}, "have no place in this base"),
        ({"peft_type": "LOKR"}, "is of type 'LOKR', but a PEFT config of type 'LORA' is needed"),
    ],
)
def test_a_config_that_no_peft_model_of_ours_wrote_is_refused_by_what_is_wrong(
    base: BaseConfig, theirs: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=re.escape(message)):
        import_adapter(theirs, tmp_path / "back", base)
    assert not (tmp_path / "back").exists()


def test_files_that_are_damaged_are_refused_by_name(base: BaseConfig, theirs: Path, tmp_path: Path) -> None:
    def refused(message: str, is_old: bool = False) -> None:
        with pytest.raises(UserError, match=message):
            import_adapter(theirs, tmp_path / "back", base, is_old=is_old)
        assert not (tmp_path / "back").exists()

    refused("is not of the old PEFT layout: import it without --old-peft-layout", is_old=True)
    path, tensors = theirs / THEIRS, load_file(theirs / THEIRS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    refused(r"adapter_model\.safetensors is damaged, or no safetensors file")
    save_file({name: value for name, value in tensors.items() if name != UP_A}, path)
    refused(r"1 tensor\(s\) do not fit .*model\.layers\.1\.mlp\.experts\.expert_lora\.up\.A")
    save_file(tensors | {"base_model.model.score.lora_A.weight": torch.ones(1, 1)}, path)
    refused(r"1 tensor\(s\) do not fit .*score\.lora_A\.default\.weight")
    save_file(tensors | {UP_A: torch.full_like(tensors[UP_A], float("nan"))}, path)
    refused(r"expert_lora\.up\.A holds values that are not finite")
    path.unlink()
    refused(r"cannot read .*adapter_model\.safetensors")
    path.write_bytes(whole)
    config = json.loads((theirs / "adapter_config.json").read_text())
    write_json(theirs / "adapter_config.json", {key: config[key] for key in config if key != "down_rank"})
    refused("lacks down_rank: copy it again")
    (theirs / "adapter_config.json").write_text("{")
    refused("is not whole JSON")


def test_an_adapter_of_another_program_is_exported_after_an_import_only(
    base: BaseConfig, ours: Path, tmp_path: Path
) -> None:
    folder = export_adapter(ours, "peft", tmp_path / "peft", base, "deltas")
    with pytest.raises(UserError, match="is an adapter of PEFT's type 'LORA': take it in with `local-exp"):
        export_adapter(folder, "sglang", tmp_path / "sglang", base)
    with pytest.raises(UserError, match="is an adapter of PEFT's type 'LORA'"):
        load_adapter(load_model(base)[0], folder)
