"""An exported adapter does in other programs what it did here, or nothing is written.

The second opinion is plain PEFT, transformers' loader, or W + scaling B A by torch.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from tuned_bases import (
    GLM_EXPERTS,
    build_gpt_oss,
    build_mixtral,
    build_qwen3_vl,
    logits,
    plain,
    save_base,
    save_trained,
    tuned_logits,
)

from data_recipes.artefact import UserError, read_artefact, sha256_file
from finetune.config import BaseConfig
from finetune.exporting import export
from finetune.exporting.checkpoint_fingerprint import checkpoint_fingerprint
from finetune.exporting.checkpoint_names import skeleton
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter
from finetune.exporting.layouts import AdapterParts, ExpertPart, LinearPart, to_peft
from finetune.exporting.peft_folder import write_peft_folder
from finetune.model import load_model, model_fingerprint

# peft 0.21.2 still asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("check", ["logits", "deltas"])
def test_plain_peft_loads_the_export_and_gives_the_same_logits(
    base: BaseConfig, adapter: Path, tmp_path: Path, check: str
) -> None:
    export_adapter(adapter, "peft", tmp_path / "peft", base, check)
    expected = tuned_logits(base, adapter)
    loaded = PeftModel.from_pretrained(plain(base), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits(plain(base)), atol=1e-2)
    # And unchosen experts, which no token may have hit, get exactly nothing.
    wrappers = {name: module for name, module in loaded.named_modules() if isinstance(module, ParamWrapper)}
    assert len(wrappers) == 4
    for name, wrapper in wrappers.items():
        changed = wrapper.get_delta_weight("default").flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert changed == GLM_EXPERTS["1" if ".layers.1." in name else "2"]


@pytest.mark.parametrize("build", [build_gpt_oss, build_mixtral])
def test_other_families_reach_plain_peft_and_a_merged_checkpoint(
    build: Callable[[], Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = save_base(build(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"0": [1, 3], "1": [0]}, attention=False, folder=tmp_path / "adapter")
    expected = tuned_logits(base, adapter)
    assert not torch.allclose(expected, logits(plain(base)), atol=1e-2)
    export_adapter(adapter, "peft", tmp_path / "peft", base, "deltas")
    loaded = PeftModel.from_pretrained(plain(base), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    export_adapter(adapter, "merged", tmp_path / "merged", base, "deltas")
    merged = plain(BaseConfig(model=str(tmp_path / "merged")))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)


def test_a_base_that_sees_images_too_is_loaded_and_reaches_plain_peft(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = save_base(build_qwen3_vl(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"0": [1, 3], "1": [0]}, attention=False, folder=tmp_path / "adapter")
    expected = tuned_logits(base, adapter)
    assert not torch.allclose(expected, logits(plain(base)), atol=1e-2)
    export_adapter(adapter, "peft", tmp_path / "peft", base)
    loaded = PeftModel.from_pretrained(plain(base), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    # Its checkpoints hold the stacks turned.
    with pytest.raises(UserError, match=r"cannot write \(Transpose\): export it with --to peft"):
        export_adapter(adapter, "merged", tmp_path / "merged", base, "deltas")


def test_the_vllm_file_has_every_expert_of_a_touched_layer(base: BaseConfig, tmp_path: Path) -> None:
    adapter = save_trained(base, {"2": [2, 7]}, attention=False, folder=tmp_path / "adapter")
    export_adapter(adapter, "vllm", tmp_path / "vllm", base)
    tensors = load_file(tmp_path / "vllm" / "adapter_model.safetensors")
    assert tensors.keys() == {
        f"base_model.model.model.layers.2.mlp.experts.{expert}.{projection}.lora_{side}.weight"
        for expert in range(8)
        for projection in ("gate_proj", "up_proj", "down_proj")
        for side in "AB"
    }
    nonzero = {name.split(".")[7] for name, value in tensors.items() if value.any()}
    assert nonzero == {"2", "7"}
    config = json.loads((tmp_path / "vllm" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6.0)
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]


def test_the_sglang_file_has_the_chosen_experts_only_and_attention_goes_along(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    export_adapter(adapter, "sglang", tmp_path / "sglang", base)
    tensors = load_file(tmp_path / "sglang" / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.model.layers.") for name in tensors}
    experts = {tuple(name.split(".")[:4]) for name in names if "experts" in name}
    assert experts == {(layer, "mlp", "experts", str(e)) for layer, ids in GLM_EXPERTS.items() for e in ids}
    assert {value.shape[0] for name, value in tensors.items() if "lora_A" in name} == {3}
    assert len([name for name in names if "self_attn" in name]) == 3 * 5 * 2
    assert len(names) == 3 * 3 * 2 + 3 * 5 * 2


def test_mixtral_names_are_those_of_its_checkpoints(tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = save_base(build_mixtral(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"1": [3]}, attention=False, folder=tmp_path / "adapter")
    export_adapter(adapter, "sglang", tmp_path / "sglang", base)
    before = "base_model.model.model.layers.1.block_sparse_moe.experts.3"
    assert load_file(tmp_path / "sglang" / "adapter_model.safetensors").keys() == {
        f"{before}.{name}.lora_{side}.weight" for name in ("w1", "w2", "w3") for side in "AB"
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["glm", "glm tied", "mixtral", "gpt_oss"])
def test_the_files_of_a_base_give_the_fingerprint_of_its_weights(
    family: str, dtype: Any, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    builders: dict[str, Callable[[], Any]] = {"mixtral": build_mixtral, "gpt_oss": build_gpt_oss}
    build = builders.get(family, lambda: tiny_model_factory(tie_word_embeddings=family == "glm tied"))
    saved = save_base(build(), tiny_tokenizer, tmp_path / "base")
    base = BaseConfig(model=saved.model, dtype=dtype, device="cpu")
    expected = model_fingerprint(load_model(base)[0])
    assert checkpoint_fingerprint(skeleton(base), Path(base.model)) == expected


@pytest.mark.parametrize("to", ["peft", "vllm", "sglang", "merged"])
def test_another_base_is_refused_without_running_it_too(
    base: BaseConfig, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path, to: str
) -> None:
    adapter = save_trained(base, GLM_EXPERTS, attention=False, folder=tmp_path / "adapter")
    other = save_base(tiny_model_factory(vocab_size=262, seed=1), tiny_tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="was trained on another model"):
        export_adapter(adapter, to, tmp_path / "out", other, "deltas")
    (Path(base.model) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors files"):
        export_adapter(adapter, to, tmp_path / "out", base, "deltas")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("check", ["logits", "deltas"])
@pytest.mark.parametrize("to", ["peft", "sglang", "merged"])
def test_what_is_exported_is_said_in_one_line_whether_a_model_runs_or_not(
    base: BaseConfig, adapter: Path, tmp_path: Path, to: str, check: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    export_adapter(adapter, to, tmp_path / to, base, check)
    n_values = sum(value.numel() for value in load_file(adapter / "adapter.safetensors").values())
    said = f"{n_values:,} trainable parameters, rank 3, on 3 experts of 2 layers and on 15 linear layers"
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "parameters" in line] == [f"adapter default: {said}"]


def test_what_is_imported_is_said_once(
    base: BaseConfig, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_adapter(adapter, "peft", tmp_path / "peft", base, "deltas")
    capsys.readouterr()
    import_adapter(tmp_path / "peft", tmp_path / "back", base)
    assert capsys.readouterr().out.count("trainable parameters") == 1


@pytest.mark.parametrize(
    ("to", "reason"), [("vllm", "vLLM reads.*3-D"), ("sglang", "one tensor for all experts")]
)
def test_a_family_without_names_for_each_expert_is_refused_with_the_way_out(
    to: str, reason: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = save_base(build_gpt_oss(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"1": [3]}, attention=False, folder=tmp_path / "adapter")
    with pytest.raises(UserError, match=f"{reason}.*use --to peft"):
        export_adapter(adapter, to, tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_lora_that_vllm_would_drop_is_refused(base: BaseConfig, adapter: Path, tmp_path: Path) -> None:
    message = r"LoRA on model\.layers\.0\.self_attn\.kv_b_proj and never applies it"
    with pytest.raises(UserError, match=message):
        export_adapter(adapter, "vllm", tmp_path / "out", base)


def test_lora_on_a_shared_expert_reaches_that_one_and_not_the_routed_ones(
    base: BaseConfig, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.shared_experts.gate_proj"
    generator = torch.Generator().manual_seed(1)
    linear = LinearPart(
        torch.randn(2, 32, generator=generator), torch.randn(16, 2, generator=generator), scaling=0.5
    )
    model = plain(base)
    parts = AdapterParts({}, {name: linear})
    tensors = {f"base_model.model.{key}": value for key, value in export._peft_tensors(model, parts)}
    shapes = {key: value.shape for key, value in tensors.items()}
    targets = export._peft_targets(parts)
    write_peft_folder(tmp_path, shapes, tensors.items(), 2, 0.5, base.model, *targets)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged: Any = PeftModel.from_pretrained(model, str(tmp_path))
    after = merged.merge_and_unload().state_dict()
    assert [key for key, value in after.items() if not torch.equal(value, before[key])] == [f"{name}.weight"]
    expected = before[f"{name}.weight"] + 0.5 * linear.B_OR @ linear.A_RI
    torch.testing.assert_close(after[f"{name}.weight"], expected)


def expert_major(part: ExpertPart, n_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mistake that is easily made: B as expert after expert, like A."""
    A, B = to_peft(part, n_experts)
    return A, B.view(len(B), -1, n_experts).mT.flatten(1).contiguous()


@pytest.mark.parametrize("check", ["logits", "deltas"])
def test_an_export_that_differs_is_refused_and_leaves_nothing(
    base: BaseConfig, adapter: Path, tmp_path: Path, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "to_peft", expert_major)
    if check == "logits":  # the comparison of updates would see it first
        monkeypatch.setattr(export, "largest_difference", lambda ours, theirs: 0.0)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="differ.*nothing is written"):
        export_adapter(adapter, "peft", tmp_path / "peft", base, check)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_damaged_adapter_and_another_base_are_refused(
    base: BaseConfig, adapter: Path, tiny_model_factory: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = save_base(tiny_model_factory(vocab_size=262, seed=1), tiny_tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="another model"):
        export_adapter(adapter, "peft", tmp_path / "out", other)
    smaller = save_base(
        tiny_model_factory(vocab_size=262, hidden_size=16), tiny_tokenizer, tmp_path / "smaller"
    )
    with pytest.raises(UserError, match="do not fit the base, first"):
        export_adapter(adapter, "sglang", tmp_path / "out", smaller)
    with pytest.raises(UserError, match="cannot read the config of the base"):
        export_adapter(adapter, "sglang", tmp_path / "out", BaseConfig(model=str(tmp_path / "nowhere")))
    path = adapter / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"adapter\.safetensors is damaged or truncated"):
        export_adapter(adapter, "sglang", tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_the_stamp_names_every_tensor_file_and_the_same_inputs_give_the_same_bytes(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    folders = [export_adapter(adapter, "peft", tmp_path / name, base, "deltas") for name in "ab"]
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and len(first) == 3
    stamp = read_artefact(folders[0] / "export.json", "adapter_export")
    assert stamp["tensors"] == {
        "adapter_model.safetensors": sha256_file(folders[0] / "adapter_model.safetensors")
    }
    assert (stamp["format"], stamp["layout_version"]) == ("peft", 1)
    assert stamp["inputs"]["adapter"] == sha256_file(adapter / "adapter.safetensors")
    assert stamp["model_fingerprint"] == model_fingerprint(load_model(base)[0])
    assert "peft" in stamp["versions"]


def test_the_command_line_exports_and_names_what_it_compared(
    base: BaseConfig, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ["--adapter", str(adapter), "--to", "sglang", "--base", base.model, "--output", str(output)]
    assert export.main(arguments) == 0
    assert f"export    sglang: delta_difference 0, rank 3 -> {output}" in capsys.readouterr().out
    # An export of ours may be replaced; somebody's own files may not.
    assert export.main(arguments) == 0
    shutil.rmtree(output)
    output.mkdir()
    (output / "thesis.txt").write_text("draft")
    with pytest.raises(UserError, match="did not write"):
        export.main(arguments)
