"""An adapter of another program does here what it did there, or is refused by what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file, save_file
from tuned_bases import GLM_EXPERTS, build_gpt_oss, logits, plain, save_base, save_trained

from data_recipes.artefact import UserError, read_artefact, write_artefact, write_json
from finetune.adapters.adapter import load_adapter
from finetune.config import BaseConfig
from finetune.exporting.adapter_parts import parts_of_tensors
from finetune.exporting.checkpoint_names import skeleton
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter, import_expert_list, main
from finetune.exporting.layouts import from_per_expert
from finetune.model import load_model, model_fingerprint
from finetune.moe import moe_layers
from finetune.selecting.selection import read_plan

# peft 0.21.2 still asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def peft_adapter(base: BaseConfig, folder: Path, is_old: bool = False, **options: Any) -> Any:
    """Save a LoRA of plain PEFT on all experts, with values in it; returns PEFT's model.

    `is_old`: in the layout of peft <= 0.19.0, which is what PEFT still does for stacks marked as transposed.
    """
    model = plain(base)
    config = PeftLoraConfig(
        **{"r": 2, "lora_alpha": 4, "target_modules": [], "target_parameters": TARGETS} | options
    )
    for layer in moe_layers(model):
        stacks: Any = layer.experts
        stacks.is_transposed = is_old
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if ".lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    for module in wrapped.modules():
        experts: Any = module
        if hasattr(experts, "is_transposed"):
            experts.is_transposed = False
    wrapped.save_pretrained(str(folder))
    return wrapped.eval()


TARGETS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def our_logits(base: BaseConfig, adapter: Path) -> torch.Tensor:
    model = load_model(base)[0]
    load_adapter(model, adapter)
    return logits(model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 3},
        {
            "target_modules": ["q_a_proj", "o_proj"],
            "rank_pattern": {"o_proj": 3},
            "alpha_pattern": {r"layers\.2\.self_attn\.o_proj": 9},
        },
        {"target_parameters": ["mlp.experts.down_proj"]},
    ],
)
def test_an_adapter_of_plain_peft_gives_the_same_logits_here(
    base: BaseConfig, tmp_path: Path, options: dict[str, Any]
) -> None:
    theirs = peft_adapter(base, tmp_path / "theirs", **options)
    import_adapter(tmp_path / "theirs", tmp_path / "ours", base)
    expected = logits(theirs)
    torch.testing.assert_close(our_logits(base, tmp_path / "ours"), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(plain(base)), atol=1e-2)
    plan = read_artefact(tmp_path / "ours" / "plan.json", "expert_plan")
    assert plan["experts"] == {"1": list(range(8)), "2": list(range(8))}


def test_an_adapter_of_all_experts_is_cut_to_a_plan(base: BaseConfig, tmp_path: Path) -> None:
    theirs = peft_adapter(base, tmp_path / "theirs")
    fingerprint = model_fingerprint(load_model(base)[0])
    body = {"model_fingerprint": fingerprint, "n_experts": 8, "experts": GLM_EXPERTS}
    write_artefact(tmp_path / "plan.json", "expert_plan", {}, body)
    import_adapter(tmp_path / "theirs", tmp_path / "ours", base, tmp_path / "plan.json")
    assert read_artefact(tmp_path / "ours" / "plan.json", "expert_plan")["experts"] == GLM_EXPERTS
    wrappers = [(name, module) for name, module in theirs.named_modules() if isinstance(module, ParamWrapper)]
    assert len(wrappers) == 4
    with torch.no_grad():
        for name, wrapper in wrappers:
            kept = GLM_EXPERTS["1" if ".layers.1." in name else "2"]
            weight: Any = wrapper.lora_B["default"].weight
            # The expert is the fastest in the columns of B.
            others = [column for column in range(weight.shape[1]) if column % 8 not in kept]
            weight[:, others] = 0.0
    torch.testing.assert_close(our_logits(base, tmp_path / "ours"), logits(theirs), rtol=1e-5, atol=1e-5)


def test_the_old_peft_layout_is_refused_and_turned_exactly_when_it_is_named(
    base: BaseConfig, tmp_path: Path
) -> None:
    theirs = peft_adapter(base, tmp_path / "old", is_old=True)
    shapes = {name: tuple(value.shape) for name, value in load_file(tmp_path / "old" / TENSORS).items()}
    # down_proj is [8, 32, 16]: its middle axis, the outputs, is taken for the inputs.
    assert shapes["base_model.model.model.layers.1.mlp.experts.lora_A.weight"] == (16, 32)
    with pytest.raises(UserError, match=r"old PEFT layout \(peft <= 0\.19\.0.*--old-peft-layout"):
        import_adapter(tmp_path / "old", tmp_path / "ours", base)
    assert not (tmp_path / "ours").exists()
    import_adapter(tmp_path / "old", tmp_path / "ours", base, is_old=True)
    torch.testing.assert_close(our_logits(base, tmp_path / "ours"), logits(theirs), rtol=1e-5, atol=1e-5)
    peft_adapter(base, tmp_path / "new")
    with pytest.raises(UserError, match="is not of the old PEFT layout"):
        import_adapter(tmp_path / "new", tmp_path / "ours2", base, is_old=True)


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("0.19.0", "equally many"),
        ("0.19.1", None),
        ("0.19.1.dev0", "equally many"),
        (None, "equally many"),
    ],
)
def test_square_experts_are_told_by_the_version_that_wrote_them(
    tiny_model_factory: Any, version: str | None, refused: str | None
) -> None:
    model = tiny_model_factory(moe_intermediate_size=32)
    before = "base_model.model.model.layers.1.mlp.experts.lora_"
    tensors = {f"{before}A.weight": torch.ones(8, 32), f"{before}B.weight": torch.ones(32, 8)}
    config = {"lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"], "peft_version": version}
    if refused is None:
        parts = parts_of_tensors(model, config, tensors)
        assert list(parts.experts) == [("model.layers.1.mlp.experts", "down_proj")]
    else:
        with pytest.raises(UserError, match=refused):
            parts_of_tensors(model, config, tensors)
        assert parts_of_tensors(model, config, tensors, is_old=True).experts


@pytest.mark.parametrize("to", ["peft", "vllm", "sglang"])
def test_an_export_comes_back_bit_for_bit(base: BaseConfig, tmp_path: Path, to: str) -> None:
    adapter = save_trained(base, GLM_EXPERTS, attention=to != "vllm", folder=tmp_path / "adapter")
    export_adapter(adapter, to, tmp_path / to, base, "deltas")
    import_adapter(tmp_path / to, tmp_path / "back", base)
    expected, found = (load_file(folder / "adapter.safetensors") for folder in (adapter, tmp_path / "back"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert read_artefact(tmp_path / "back" / "plan.json", "expert_plan")["experts"] == GLM_EXPERTS


def test_transposed_stacks_with_biases_come_back_bit_for_bit(tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = save_base(build_gpt_oss(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"1": [0, 3]}, attention=False, folder=tmp_path / "adapter")
    export_adapter(adapter, "peft", tmp_path / "peft", base, "deltas")
    import_adapter(tmp_path / "peft", tmp_path / "back", base)
    expected, found = (load_file(folder / "adapter.safetensors") for folder in (adapter, tmp_path / "back"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def per_expert_file(folder: Path, ranks: dict[int, int]) -> None:
    """A file of 2-D pairs as other trainers write it: gate and up have an A each, layer 1 only."""
    generator = torch.Generator().manual_seed(7)
    sizes = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
    tensors = {}
    for expert, rank in ranks.items():
        for projection, (n_in, n_out) in sizes.items():
            name = f"base_model.model.model.layers.1.mlp.experts.{expert}.{projection}.lora_"
            tensors[f"{name}A.weight"] = torch.randn(rank, n_in, generator=generator) * 0.1
            tensors[f"{name}B.weight"] = torch.randn(n_out, rank, generator=generator) * 0.1
    folder.mkdir()
    save_file(tensors, folder / TENSORS)
    config = PeftLoraConfig(r=2, lora_alpha=4, target_modules=["gate_proj", "up_proj", "down_proj"])
    config.save_pretrained(str(folder))


def test_gate_and_up_with_an_a_each_become_one_update_of_twice_the_rank(
    base: BaseConfig, tmp_path: Path
) -> None:
    per_expert_file(tmp_path / "theirs", dict.fromkeys(range(8), 2))
    import_adapter(tmp_path / "theirs", tmp_path / "ours", base)
    tensors = load_file(tmp_path / "theirs" / TENSORS)
    model = plain(base)
    with torch.no_grad():
        experts = model.model.layers[1].mlp.experts
        for expert in range(8):
            before = f"base_model.model.model.layers.1.mlp.experts.{expert}"
            gate, up, down = (
                2.0 * tensors[f"{before}.{name}.lora_B.weight"] @ tensors[f"{before}.{name}.lora_A.weight"]
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            experts.gate_up_proj[expert] += torch.cat([gate, up])
            experts.down_proj[expert] += down
    torch.testing.assert_close(our_logits(base, tmp_path / "ours"), logits(model), rtol=1e-5, atol=1e-5)


def test_experts_of_several_ranks_are_refused_by_expert_and_rank(base: BaseConfig, tmp_path: Path) -> None:
    per_expert_file(tmp_path / "theirs", {0: 2, 3: 4, 5: 2})
    with pytest.raises(
        UserError, match=r"several ranks \(rank 2: expert 0, 5; rank 4: expert 3\), which vLLM"
    ):
        import_adapter(tmp_path / "theirs", tmp_path / "ours", base)


def test_experts_of_several_scalings_are_refused() -> None:
    tensors = {
        f"experts.{expert}.up_proj.lora_{side}.weight": torch.ones(1, 1) for expert in (0, 1) for side in "AB"
    }
    with pytest.raises(UserError, match=r"several scalings \[1\.0, 2\.0\]"):
        from_per_expert(
            tensors, ["experts.*.up_proj"], True, lambda name, rank: 2.0 if ".1." in name else 1.0
        )


def test_an_expert_without_one_of_its_tensors_is_refused_by_name(base: BaseConfig, tmp_path: Path) -> None:
    per_expert_file(tmp_path / "theirs", {0: 2, 3: 2})
    tensors = load_file(tmp_path / "theirs" / TENSORS)
    del tensors["base_model.model.model.layers.1.mlp.experts.3.up_proj.lora_B.weight"]
    save_file(tensors, tmp_path / "theirs" / TENSORS)
    with pytest.raises(UserError, match=r"experts\.3\.up_proj\.lora_B\.weight is missing"):
        import_adapter(tmp_path / "theirs", tmp_path / "ours", base)


@pytest.fixture
def exported(base: BaseConfig, tmp_path: Path) -> Path:
    """A stamped folder in vLLM's layout."""
    adapter = save_trained(base, GLM_EXPERTS, attention=False, folder=tmp_path / "adapter")
    return export_adapter(adapter, "vllm", tmp_path / "vllm", base)


def test_damaged_and_foreign_files_are_refused_by_name(
    exported: Path, base: BaseConfig, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def refused(message: str, of_base: BaseConfig = base) -> None:
        with pytest.raises(UserError, match=message):
            import_adapter(exported, tmp_path / "ours", of_base)
        assert not (tmp_path / "ours").exists()

    other = save_base(tiny_model_factory(vocab_size=262, seed=1), tiny_tokenizer, tmp_path / "other")
    refused("was exported for another model", other)
    path = exported / TENSORS
    whole = path.read_bytes()
    (exported / "more.safetensors").write_bytes(whole)
    refused(r"more\.safetensors is not of this export")
    (exported / "more.safetensors").unlink()
    path.write_bytes(whole[:-4] + b"\x00\x00\x00\x01")
    refused(r"adapter_model\.safetensors is damaged or truncated")
    path.unlink()
    refused(r"cannot read .*adapter_model\.safetensors")
    stamp = json.loads((exported / "export.json").read_text())
    write_json(exported / "export.json", stamp | {"layout_version": 2})
    refused("has layout version 2, this version reads 1")
    (exported / "export.json").unlink()  # from here on somebody else's
    path.write_bytes(whole[:200])
    refused(r"adapter_model\.safetensors is damaged, or no safetensors file")
    config = json.loads((exported / CONFIG).read_text())
    path.write_bytes(whole)
    write_json(exported / CONFIG, config | {"use_dora": True, "modules_to_save": ["lm_head"]})
    refused(r"sets use_dora=True, modules_to_save=\['lm_head'\], which is not computed here")
    write_json(exported / CONFIG, config | {"init_lora_weights": "pissa_niter_4"})
    refused("sets init_lora_weights='pissa_niter_4'")
    write_json(exported / CONFIG, config | {"peft_type": "LOKR"})
    refused("is of type 'LOKR', but a PEFT config of type 'LORA' is needed")
    (exported / CONFIG).write_text("{")
    refused(r"adapter_config\.json is not whole JSON")


def test_tensors_without_a_place_in_the_base_are_refused_by_name(
    exported: Path, base: BaseConfig, tmp_path: Path
) -> None:
    model = skeleton(base)
    config = json.loads((exported / CONFIG).read_text())
    tensors = load_file(exported / TENSORS)
    name = "base_model.model.model.layers.1.mlp.experts.{}.up_proj.lora_{}.weight"
    stranger = {"base_model.model.model.layers.9.mlp.gate.lora_A.weight": torch.ones(1, 1)}
    with pytest.raises(UserError, match=r"1 tensor.*'model\.layers\.9\.mlp\.gate\.lora_A\.weight'"):
        parts_of_tensors(model, config, tensors | stranger)
    ninth = {
        key.replace(".experts.0.", ".experts.8."): value
        for key, value in tensors.items()
        if ".experts.0." in key
    }
    with pytest.raises(UserError, match=r"has experts 0\.\.7, the adapter has 8"):
        parts_of_tensors(model, config, tensors | ninth)
    wide = {name.format(expert, "A"): torch.ones(3, 48) for expert in range(8)}
    wide |= {name.format(expert, "A").replace("up_", "gate_"): torch.ones(3, 48) for expert in range(8)}
    with pytest.raises(UserError, match=r"gate_up_proj: the adapter has \(inputs, outputs\) \(48, 32\)"):
        parts_of_tensors(model, config, tensors | wide)
    with pytest.raises(UserError, match="do not hold one rank for each of 8 experts"):
        stack = {"model.layers.1.mlp.experts.lora_A.weight": torch.ones(9, 16)}
        stack["model.layers.1.mlp.experts.lora_B.weight"] = torch.ones(32, 9)
        parts_of_tensors(model, config | {"target_parameters": ["mlp.experts.down_proj"]}, stack)
    with pytest.raises(UserError, match=r"0 tensor\(s\) have no place"):
        parts_of_tensors(model, config, {})


def test_what_our_adapter_has_no_lora_for_is_refused_by_name(base: BaseConfig, tmp_path: Path) -> None:
    peft_adapter(base, tmp_path / "theirs", target_modules=["indexer.wk"])
    message = r"also changes model\.layers\.0\.self_attn\.indexer\.wk, which ours has no LoRA for"
    with pytest.raises(UserError, match=message):
        import_adapter(tmp_path / "theirs", tmp_path / "ours", base)
    peft_adapter(base, tmp_path / "attention", target_modules=["o_proj"], target_parameters=None)
    with pytest.raises(UserError, match="changes no routed expert"):
        import_adapter(tmp_path / "attention", tmp_path / "ours", base)
    assert not (tmp_path / "ours").exists()


def test_an_esft_list_becomes_a_plan(
    base: BaseConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "expert_cfg.json"
    # ESFT lists experts by falling score.
    listed = {"experts": {"1": [5, 0], "2": [2]}, "shared_experts": True, "non_expert_modules": False}
    source.write_text(json.dumps(listed))
    assert main([str(source), "--base", base.model, "--output", str(tmp_path / "plan.json")]) == 0
    model = load_model(base)[0]
    plan = read_plan(tmp_path / "plan.json", model_fingerprint(model), moe_layers(model))
    assert plan["experts"] == GLM_EXPERTS
    said = capsys.readouterr().out
    assert "3 experts of 2 layers" in said and "shared_experts is set" in said
    assert "non_expert_modules" not in said


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"experts": {"1": [0, 8]}}, r"experts of layer 1 must be different ids in 0\.\.7, not \[0, 8\]"),
        ({"experts": {"1": [3, 3]}}, r"must be different ids in 0\.\.7, not \[3, 3\]"),
        ({"experts": {"0": [1]}}, r"names layer 0, but the layers with experts are \[1, 2\]"),
        ({"experts": {"1": [], "2": []}}, "chooses no expert"),
        ({"experts": {"1": ["a"]}}, "is no ESFT list of experts"),
        ({"kind": "expert_plan"}, "is no ESFT list of experts"),
        (None, "is not whole JSON"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    base: BaseConfig, tmp_path: Path, listed: Any, message: str
) -> None:
    source = tmp_path / "list.json"
    source.write_text(json.dumps(listed) if listed else "{")
    with pytest.raises(UserError, match=message):
        import_expert_list(source, tmp_path / "plan.json", base)
    assert not (tmp_path / "plan.json").exists()
    with pytest.raises(UserError, match="cannot read"):
        import_expert_list(tmp_path / "nothing.json", tmp_path / "plan.json", base)


def test_the_vllm_file_is_read_by_plain_peft_as_well(exported: Path, base: BaseConfig) -> None:
    # PEFT stacks gate and up, doubles their rank by a rank_pattern, and warns that it was ignored.
    with pytest.warns(RuntimeWarning, match="_pattern keys did not match any targeted module"):
        theirs = PeftModel.from_pretrained(plain(base), str(exported))
    torch.testing.assert_close(
        logits(theirs), our_logits(base, exported.parent / "adapter"), rtol=1e-5, atol=1e-5
    )
