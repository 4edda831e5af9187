"""What export and import must catch: one wrong number, a damaged file, an output that is an input."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tuned_bases import GLM_EXPERTS, build_gpt_oss, restamp, save_base, save_trained

from data_recipes.artefact import UserError, read_artefact, write_json
from finetune.adapters.adapter import load_adapter
from finetune.config import BaseConfig
from finetune.exporting import export
from finetune.exporting.adapter_parts import parts_of_tensors, read_adapter
from finetune.exporting.checkpoint_files import read_places
from finetune.exporting.checkpoint_names import skeleton
from finetune.exporting.export import export_adapter
from finetune.exporting.import_adapter import import_adapter
from finetune.exporting.layouts import AdapterParts, largest_difference
from finetune.exporting.merged_checkpoint import check_merged, planned_changes, write_merged
from finetune.model import load_model

TENSORS = {"peft": "adapter_model.safetensors", "vllm": "adapter_model.safetensors"}
TENSORS |= {"sglang": "adapter_model.safetensors", "merged": "model.safetensors"}


@pytest.fixture
def adapter(base: BaseConfig, tmp_path: Path) -> Path:
    """A trained adapter of `base`, on three experts."""
    return save_trained(base, GLM_EXPERTS, attention=False, folder=tmp_path / "adapter")


def change_one_value(path: Path, name: str, value: float | None) -> None:
    """Set the largest value of one tensor of a file to another: to `value`, or to half of it."""
    tensors = load_file(path)
    flat = tensors[name].view(-1)
    place = flat.abs().argmax()
    flat[place] = flat[place] / 2 if value is None else value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("peft", "base_model.model.model.layers.1.mlp.experts.lora_B.weight"),
        ("vllm", "base_model.model.model.layers.2.mlp.experts.2.up_proj.lora_A.weight"),
        ("sglang", "base_model.model.model.layers.1.mlp.experts.5.down_proj.lora_B.weight"),
        ("merged", "model.layers.1.mlp.experts.5.down_proj.weight"),
        ("merged", "model.layers.1.mlp.experts.4.down_proj.weight"),
        ("merged", "model.embed_tokens.weight"),
    ],
)
def test_one_wrong_value_in_what_was_written_is_refused(
    base: BaseConfig,
    adapter: Path,
    tmp_path: Path,
    to: str,
    name: str,
    value: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = "write_merged" if to == "merged" else "write_peft_folder"
    write: Callable[..., None] = getattr(export, writer)

    def write_wrongly(*arguments: Any) -> None:
        write(*arguments)
        folder = next(path for path in arguments if isinstance(path, Path) and ".partial-" in path.name)
        change_one_value(folder / TENSORS[to], name, value)

    monkeypatch.setattr(export, writer, write_wrongly)
    with pytest.raises(UserError, match="nothing is written|not finite"):
        export_adapter(adapter, to, tmp_path / "out", base, "deltas")
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_in_an_expert_that_shares_its_tensor_with_a_tuned_one_is_refused(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = save_base(build_gpt_oss(), tiny_tokenizer, tmp_path / "base")
    adapter = save_trained(base, {"1": [0, 3]}, attention=False, folder=tmp_path / "adapter")
    source, target = Path(base.model), tmp_path / "merged"
    target.mkdir()
    model = load_model(base)[0]
    places = read_places(source)
    changes = planned_changes(model, read_adapter(model, adapter)[1], places)
    write_merged(source, target, changes, places)
    check_merged(source, target, changes, places)
    tensors = load_file(target / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"][2, 0, 0] += 1.0
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.experts\.down_proj.*changed while others"):
        check_merged(source, target, changes, places)


def test_a_value_that_is_not_a_number_is_a_difference(base: BaseConfig, adapter: Path) -> None:
    parts = read_adapter(load_model(base)[0], adapter)[1]
    experts = dict(parts.experts)
    key = next(iter(experts))
    broken = experts[key].B_NOR.clone()
    broken[0, 0, 0] = float("nan")
    experts[key] = experts[key]._replace(B_NOR=broken)
    assert largest_difference(parts, AdapterParts(experts, {})) == float("inf")


def test_an_adapter_that_is_not_finite_is_refused_by_the_tensor(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    path = adapter / "adapter.safetensors"
    name = next(iter(load_file(path)))
    change_one_value(path, name, float("nan"))
    restamp(adapter)
    with pytest.raises(UserError, match=r"adapter\.safetensors: .*not finite"):
        export_adapter(adapter, "sglang", tmp_path / "out", base)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_config.json", {"sha256": None}, "was changed after it was saved"),
        ("adapter_config.json", {"rank": "three"}, "was changed after it was saved"),
        ("adapter_config.json", {"alpha": -1.0}, "was changed after it was saved"),
        ("plan.json", {"experts": [1]}, "is not the plan this adapter was trained with"),
    ],
)
def test_a_config_of_ours_that_was_edited_is_refused_by_what_is_wrong(
    base: BaseConfig, adapter: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    found = json.loads((adapter / file).read_text())
    write_json(adapter / file, found | change)
    with pytest.raises(UserError, match=message):
        export_adapter(adapter, "sglang", tmp_path / "out", base)
    with pytest.raises(UserError, match=message):
        load_adapter(load_model(base)[0], adapter)
    del found[next(iter(change))]
    write_json(adapter / file, found)
    with pytest.raises(UserError, match=f"lacks '{next(iter(change))}'"):
        export_adapter(adapter, "sglang", tmp_path / "out", base)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("export.json", {"tensors": ["adapter_model.safetensors"]}, "tensors"),
        ("export.json", {"tensors": {"../base/model.safetensors": "0"}}, "outside"),
        ("adapter_config.json", {"lora_alpha": None}, "lora_alpha"),
        ("adapter_config.json", {"lora_alpha": -2}, "lora_alpha"),
        ("adapter_config.json", {"alpha_pattern": {"(": 2}}, "alpha_pattern"),
        ("adapter_config.json", {"alpha_pattern": [1]}, "alpha_pattern"),
        ("adapter_config.json", {"target_parameters": 3}, "target_parameters"),
    ],
)
def test_a_config_of_another_program_that_was_edited_is_refused_by_what_is_wrong(
    base: BaseConfig, adapter: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    folder = export_adapter(adapter, "sglang", tmp_path / "sglang", base)
    found = json.loads((folder / file).read_text())
    write_json(folder / file, found | change)
    with pytest.raises(UserError, match=message):
        import_adapter(folder, tmp_path / "ours", base)


def test_tensors_that_are_no_lora_are_refused_by_name(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    model = skeleton(base)
    name = "base_model.model.model.layers.1.mlp.experts.lora_{}.weight"
    config = {"lora_alpha": 2, "target_parameters": ["mlp.experts.down_proj"], "peft_version": "0.21.2"}
    few = {name.format("A"): torch.ones(4, 16), name.format("B"): torch.ones(32, 4)}
    with pytest.raises(UserError, match="do not hold one rank for each of 8 experts"):
        parts_of_tensors(model, config, few)
    none = {name.format("A"): torch.ones(0, 16), name.format("B"): torch.ones(32, 0)}
    with pytest.raises(UserError, match="do not hold one rank for each of 8 experts"):
        parts_of_tensors(model, config, none)
    flat = {name.format("A"): torch.ones(16), name.format("B"): torch.ones(32, 8)}
    with pytest.raises(UserError, match=r"lora_A\.weight has shape \(16,\)"):
        parts_of_tensors(model, config, flat)
    folder = export_adapter(adapter, "sglang", tmp_path / "sglang", base)
    (folder / "export.json").unlink()
    first = next(iter(load_file(folder / TENSORS["sglang"])))
    change_one_value(folder / TENSORS["sglang"], first, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        import_adapter(folder, tmp_path / "ours", base)


def test_an_export_never_takes_the_place_of_what_it_reads_or_of_another_result(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    before = (adapter / "adapter.safetensors").read_bytes()
    with pytest.raises(UserError, match="choose another output"):
        export_adapter(adapter, "peft", adapter, base, "deltas")
    assert (adapter / "adapter.safetensors").read_bytes() == before
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    write_json(run / "profile.json", {"kind": "routing_profile", "schema": 1})
    with pytest.raises(UserError, match="choose another output"):
        export_adapter(run / "adapter", "peft", run, base, "deltas")
    with pytest.raises(UserError, match="choose another output"):
        import_adapter(export_adapter(adapter, "peft", tmp_path / "p", base, "deltas"), tmp_path / "p", base)
    merged = export_adapter(adapter, "merged", tmp_path / "merged", base, "deltas")
    again = BaseConfig(model=str(merged), device="cpu")
    of_merged = save_trained(again, GLM_EXPERTS, attention=False, folder=tmp_path / "second")
    with pytest.raises(UserError, match="is the base's own folder"):
        export_adapter(of_merged, "merged", merged, again, "deltas")
    assert (merged / "model.safetensors").exists()
    # What ours is, and of the same kind, is replaced.
    export_adapter(adapter, "peft", tmp_path / "p", base, "deltas")
    read_artefact(tmp_path / "p" / "export.json", "adapter_export")


def test_weights_beside_those_of_the_checkpoint_are_not_copied_unmerged(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    # As Mistral does: the same weights once more, in its own names and not in the index.
    save_file({"tok_embeddings.weight": torch.ones(2, 2)}, Path(base.model) / "consolidated.safetensors")
    export_adapter(adapter, "merged", tmp_path / "merged", base)
    assert [path.name for path in (tmp_path / "merged").glob("*.safetensors")] == ["model.safetensors"]


def test_a_checkpoint_that_contradicts_its_index_is_refused(
    base: BaseConfig, adapter: Path, tmp_path: Path
) -> None:
    folder = Path(base.model)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = folder / "model.safetensors.index.json"
    write_json(index, {"metadata": {}, "weight_map": dict.fromkeys(tensors, names[0]) | {"lm": names[1]}})
    save_file(tensors, folder / names[0])
    with pytest.raises(UserError, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        read_places(folder)
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, folder / names[1])
    with pytest.raises(UserError, match=r"lm_head\.weight is in .*00001.* and in .*00002"):
        read_places(folder)
    index.write_text("[]")
    with pytest.raises(UserError, match=r"index\.json .*weight_map"):
        read_places(folder)
    save_file(tensors, folder / "model.safetensors")  # it goes before an index, as in transformers
    assert read_places(folder).keys() == tensors.keys()
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        read_places(folder)


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_a_padded_export_holds_one_layer_of_the_file_at_a_time(
    tiny_model_factory: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    to: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = save_base(
        tiny_model_factory(vocab_size=262, num_hidden_layers=9), tiny_tokenizer, tmp_path / "base"
    )
    experts = {str(layer): [3] for layer in range(1, 9)}
    adapter = save_trained(base, experts, attention=False, folder=tmp_path / "adapter")
    alive: dict[int, int] = {}
    peaks = {"written": 0, "read": 0}
    writer = "_peft_tensors" if to == "peft" else "_per_expert_tensors"
    make, read = getattr(export, writer), export.parts_of_tensors

    def watched(*arguments: Any) -> Any:
        for name, value in make(*arguments):
            if not value.is_meta:
                alive[id(value)] = value.nbytes
                weakref.finalize(value, alive.pop, id(value))
                peaks["written"] = max(peaks["written"], sum(alive.values()))
            yield name, value

    def watched_read(model: Any, config: Any, tensors: dict[str, torch.Tensor]) -> AdapterParts:
        peaks["read"] = max(peaks["read"], sum(value.nbytes for value in tensors.values()))
        return read(model, config, tensors)

    monkeypatch.setattr(export, writer, watched)
    monkeypatch.setattr(export, "parts_of_tensors", watched_read)
    export_adapter(adapter, to, tmp_path / "out", base, "deltas")
    layer_bytes = sum(value.nbytes for value in load_file(tmp_path / "out" / TENSORS[to]).values()) // 8
    assert 0 < peaks["written"] <= layer_bytes and peaks["read"] == layer_bytes
