"""A merged checkpoint is the base's own, with the update added to what was tuned and to nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tuned_bases import GLM_EXPERTS, logits, plain, save_trained, tuned_logits

from data_recipes.artefact import UserError, read_artefact, write_json
from finetune.config import BaseConfig
from finetune.exporting.adapter_parts import read_adapter
from finetune.exporting.checkpoint_files import read_places
from finetune.exporting.export import export_adapter
from finetune.exporting.layouts import AdapterParts
from finetune.exporting.merged_checkpoint import planned_changes
from finetune.model import load_model


def with_mtp_layer(base: BaseConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Store the base in two shards of `dtype`, with tensors of a layer that transformers does not load."""
    folder = Path(base.model)
    tensors = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(2)
    for expert in range(8):
        name = f"model.layers.3.mlp.experts.{expert}.up_proj.weight"
        tensors[name] = torch.randn(16, 32, generator=generator).to(dtype)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:50], "model-00002-of-00002.safetensors": names[50:]}
    for file, of_file in shards.items():
        save_file({name: tensors[name] for name in of_file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    places = {name: file for file, of_file in shards.items() for name in of_file}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return tensors


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize(
    ("stored", "loaded"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_the_merged_checkpoint_keeps_what_transformers_drops_and_changes_only_what_was_tuned(
    base: BaseConfig, tmp_path: Path, stored: str, loaded: Any
) -> None:
    dtype = getattr(torch, stored)
    source = with_mtp_layer(base, dtype)
    base = BaseConfig(model=base.model, dtype=loaded, device="cpu")
    adapter = save_trained(base, GLM_EXPERTS, attention=True, folder=tmp_path / "adapter")
    export_adapter(adapter, "merged", tmp_path / "merged", base)
    merged = read_folder(tmp_path / "merged")
    assert merged.keys() == source.keys() and {value.dtype for value in merged.values()} == {dtype}
    changed = {name for name in source if not torch.equal(merged[name], source[name])}
    assert len([name for name in source if ".layers.3." in name]) == 8
    assert changed == {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight"
        for layer, experts in GLM_EXPERTS.items()
        for expert in experts
        for projection in ("gate_proj", "up_proj", "down_proj")
    } | {
        f"model.layers.{layer}.self_attn.{projection}.weight"
        for layer in range(3)
        for projection in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    }
    saved = load_file(adapter / "adapter.safetensors")
    before = "model.layers.1.mlp.experts.expert_lora.up."
    update = 2.0 * saved[f"{before}B"][1] @ saved[f"{before}A"][1]  # expert 5 is the second of layer 1
    for half, projection in enumerate(("gate_proj", "up_proj")):
        name = f"model.layers.1.mlp.experts.5.{projection}.weight"
        expected = source[name].float() + update.chunk(2)[half]
        torch.testing.assert_close(merged[name], expected.to(merged[name].dtype))
    assert (tmp_path / "merged" / "tokenizer.json").exists()
    stamp = read_artefact(tmp_path / "merged" / "export.json", "adapter_export")
    assert stamp["check"]["kept_and_not_loaded"] == 8
    assert stamp["check"]["merged_tensors"] == len(changed)
    assert stamp["check"]["kept_tensors"] == len(source) - len(changed)


def test_the_merged_checkpoint_gives_the_tuned_logits(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    export_adapter(adapter, "merged", tmp_path / "merged", base)
    merged = plain(BaseConfig(model=str(tmp_path / "merged")))
    torch.testing.assert_close(logits(merged), tuned_logits(base, adapter), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors, name: tensors.pop(name), r"no tensor 'model.layers.1.mlp.experts.5.up_proj.weight'"),
        (lambda tensors, name: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}), "is F8_E4M3"),
        (lambda tensors, name: tensors.update({name: tensors[name][:8].clone()}), r"has shape \[8, 32\]"),
    ],
)
def test_a_checkpoint_that_cannot_take_the_update_is_refused_by_the_tensor(
    base: BaseConfig, adapter: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    path = Path(base.model) / "model.safetensors"
    tensors = load_file(path)
    damage(tensors, "model.layers.1.mlp.experts.5.up_proj.weight")
    save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        export_adapter(adapter, "merged", tmp_path / "merged", base, "deltas")
    assert not (tmp_path / "merged").exists()


def test_a_base_without_safetensors_or_with_a_truncated_file_is_refused(
    base: BaseConfig, tmp_path: Path
) -> None:
    path = Path(base.model) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated"):
        read_places(Path(base.model))
    path.write_bytes(b"PK\x03\x04 a pickle, not safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_places(Path(base.model))
    path.unlink()
    with pytest.raises(UserError, match="no \\*.safetensors files"):
        read_places(Path(base.model))


def test_changes_are_planned_for_a_checkpoint_that_keeps_its_stacks(base: BaseConfig, adapter: Path) -> None:
    model = load_model(base)[0]
    _, parts = read_adapter(model, adapter)
    path = Path(base.model) / "model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    changes = planned_changes(model, AdapterParts(parts.experts, {}), read_places(path.parent))
    assert [(change.name, change.expert) for change in changes[:2]] == [
        ("model.layers.1.mlp.experts.gate_up_proj", 0),
        ("model.layers.1.mlp.experts.gate_up_proj", 5),
    ]
    assert len(changes) == 2 * 3
