"""profiling.offload counts, to the bit, what the model in memory counts, and reads each weight once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

from data_recipes.artefact import UserError, write_artefact
from finetune.config import BaseConfig, ProfileConfig, load_run_config
from finetune.model import load_model, load_tokenizer, model_fingerprint
from finetune.moe import moe_layers
from finetune.profiling.hidden_states import HiddenStates
from finetune.profiling.layer_weights import LayerWeights, load_part, open_weights
from finetune.profiling.offload import largest_layer_bytes, run_layer_by_layer
from finetune.profiling.planner import free_memory_bytes, glm_5_2, offload_needs, offload_text
from finetune.profiling.profile_offload import profile_rows_offloaded, uses_offload
from finetune.profiling.router_recorder import RouterRecorder
from finetune.profiling.routing import profile_rows, profile_stage
from tests import offload_memory
from tests.tiny_families import FAMILIES, build_tiny_family

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SHARED_INDEXERS = {
    "num_hidden_layers": 6,
    "index_topk": 4,
    "index_topk_freq": 3,
    "index_skip_topk_offset": 2,
}
# What AutoModelForCausalLM, with which the stages load, does not know.
NOT_LOADED = ("deepseek_ocr2", "diffusion_gemma", "ernie4_5_vl_moe", "glm4v_moe", "glm5_next", "mistral4",
              "mistral_large4", "muse_spark", "openai_privacy_filter", "qwen3_omni_moe", "qwen3_vl_moe",
              "unlimited_ocr")  # fmt: skip
# transformers 5.23 sets the last of Zaya's balancing biases to -1 again after it has loaded them.
NOT_SAME = ("inkling2", "zaya")


def saved(model: Any, tokenizer: Any, folder: Path, **options: Any) -> BaseConfig:
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return BaseConfig(model=str(folder), device="cpu")


def padded_batches(n: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(n):
        mask_BT = torch.ones(3, 10, dtype=torch.int64)
        mask_BT[0, 6:], mask_BT[1, 9 - number :] = 0, 0
        ids_BT = torch.randint(3, 64, (3, 10), generator=generator)
        batches.append({"input_ids": ids_BT, "attention_mask": mask_BT})
    return batches


def counted_in_memory(model: Any, batches: list[dict[str, torch.Tensor]]) -> RouterRecorder:
    with RouterRecorder(moe_layers(model)) as recorder, torch.inference_mode():
        for batch in batches:
            recorder.expect(batch["attention_mask"])
            model.base_model(**batch, use_cache=False)
    return recorder


def counted_by_offload(
    weights: LayerWeights, batches: list[dict[str, torch.Tensor]], folder: Path | None = None
) -> tuple[RouterRecorder, str]:
    with RouterRecorder(moe_layers(weights.model)) as recorder:
        fingerprint = run_layer_by_layer(
            weights, batches, lambda _, batch: recorder.expect(batches[batch]["attention_mask"]), folder
        )
    return recorder, fingerprint


def assert_same(base: BaseConfig) -> None:
    model, batches = load_model(base)[0], padded_batches()
    in_memory = counted_in_memory(model, batches)
    by_offload, fingerprint = counted_by_offload(open_weights(base, CPU), batches)
    assert in_memory.counts_LE.sum() > 0
    assert torch.equal(by_offload.counts_LE, in_memory.counts_LE)
    assert torch.equal(by_offload.mass_LE, in_memory.mass_LE)
    assert fingerprint == model_fingerprint(model)


@pytest.mark.parametrize("family", ["glm_moe_dsa", "qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3"])
def test_each_family_counts_what_it_counts_in_memory(family: str, tiny_tokenizer, tmp_path: Path) -> None:
    assert_same(saved(build_tiny_family(FAMILIES[family]), tiny_tokenizer, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*NOT_LOADED, *NOT_SAME}))
def test_every_family_counts_what_it_counts_in_memory(family: str, tiny_tokenizer, tmp_path: Path) -> None:
    assert_same(saved(build_tiny_family(FAMILIES[family]), tiny_tokenizer, tmp_path))


def test_layers_that_share_an_indexer_get_its_choice(tiny_model_factory, tiny_tokenizer, tmp_path) -> None:
    model = tiny_model_factory(**SHARED_INDEXERS)
    assert model.config.indexer_types.count("shared") == 3
    assert_same(saved(model, tiny_tokenizer, tmp_path))


def test_an_fp8_checkpoint_is_taken_apart_as_in_memory(tiny_model_factory, tiny_tokenizer, tmp_path) -> None:
    base = saved(tiny_model_factory(), tiny_tokenizer, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".mlp.experts." in name]:
        scale = tensors[name].abs().max() / 448  # the largest value of float8_e4m3fn
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    assert sum("scale_inv" in name for name in tensors) == 2 * 8 * 3
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same(base)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_profile_of_tiny_glm_is_the_one_in_memory(dtype: Any, tmp_path: Path) -> None:
    base = BaseConfig(dtype=dtype, device="cpu")
    rows = {
        "ta": [{"messages": chat(f"தேதி {i}", "நாள் " * (1 + i % 3)), "group": "target"} for i in range(5)],
        "en": [{"messages": chat(f"date {i}", "day " * (1 + i % 4)), "group": "general"} for i in range(4)],
    }
    config = ProfileConfig(batch_size=2, check_tokens=40)
    model, tokenizer = load_model(base)
    in_memory = profile_rows(model, tokenizer, rows, config)
    by_offload = profile_rows_offloaded(
        open_weights(base, CPU), load_tokenizer(base), rows, config, folder=tmp_path / "hidden_states"
    )
    assert by_offload.head == in_memory.head
    assert by_offload.cells == in_memory.cells
    assert (by_offload.counts_CLE == in_memory.counts_CLE).all()
    assert (by_offload.mass_CLE == in_memory.mass_CLE).all()
    for name in ("ta", "en"):
        assert (by_offload.replicate_counts[name] == in_memory.replicate_counts[name]).all()
        assert (by_offload.replicate_mass[name] == in_memory.replicate_mass[name]).all()
    assert list(tmp_path.iterdir()) == [], "the hidden states are gone"


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def base(tiny_model_factory, tiny_tokenizer, tmp_path: Path) -> BaseConfig:
    """A tiny GLM in several shards."""
    model = tiny_model_factory(vocab_size=262)
    return saved(model, tiny_tokenizer, tmp_path / "base", max_shard_size="40KB")


def test_each_weight_is_read_once_for_all_batches_and_not_kept(base: BaseConfig) -> None:
    weights = open_weights(base, CPU)
    assert len({place.file for place in weights.places.values()}) > 2
    counted_by_offload(weights, padded_batches(4))
    assert sum(weights.n_read_bytes.values()) == sum(
        place.end - place.start for place in weights.places.values()
    )
    loaded = [name for name, value in weights.model.named_parameters() if not value.is_meta]
    assert loaded == ["model.norm.weight"]
    assert not any("forward" in vars(module) for module in weights.model.modules())


def test_hidden_states_on_disk_give_the_same_counts(base: BaseConfig, tmp_path: Path) -> None:
    in_memory, _ = counted_by_offload(open_weights(base, CPU), padded_batches())
    on_disk, _ = counted_by_offload(open_weights(base, CPU), padded_batches(), tmp_path / "hidden")
    assert torch.equal(on_disk.mass_LE, in_memory.mass_LE)
    assert not (tmp_path / "hidden").exists()


def test_a_tensor_in_memory_lies_where_torch_would_put_it(base: BaseConfig) -> None:
    model, _ = load_model(base)
    assert [name for name, value in model.named_parameters() if value.data_ptr() % 64] == []


def test_a_family_that_mixes_what_layers_gave_is_refused_by_name(tiny_tokenizer, tmp_path: Path) -> None:
    base = saved(build_tiny_family(FAMILIES["inkling2"]), tiny_tokenizer, tmp_path)
    with pytest.raises(
        UserError, match=r"inkling2_text cannot be run layer by layer: its layer 1.*offload=false"
    ):
        counted_by_offload(open_weights(base, CPU), padded_batches())


def test_a_layer_that_leaves_something_in_an_argument_is_refused(tiny_tokenizer, tmp_path: Path) -> None:
    weights = open_weights(saved(build_tiny_family(FAMILIES["zaya"]), tiny_tokenizer, tmp_path), CPU)
    run = weights.layers[0].forward

    def leaving(*arguments: Any, **named: Any) -> Any:
        named["attention_mask"]["seen"] = arguments[0]
        return run(*arguments, **named)

    weights.layers[0].forward = leaving
    with pytest.raises(UserError, match="zaya cannot .* its layer 0 leaves something .* in attention_mask;"):
        counted_by_offload(weights, padded_batches())


def test_a_folder_without_safetensors_is_refused(base: BaseConfig) -> None:
    for file in Path(base.model).glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no \*\.safetensors files.*save_pretrained"):
        open_weights(base, CPU)


def test_a_missing_shard_is_named(base: BaseConfig) -> None:
    shards = sorted(Path(base.model).glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"names {shards[1].name}, which is not there: copy"):
        open_weights(base, CPU)


def rewrite(base: BaseConfig, name: str, tensor: torch.Tensor | None) -> None:
    index = Path(base.model) / "model.safetensors.index.json"
    file = Path(base.model) / json.loads(index.read_text(encoding="utf-8"))["weight_map"][name]
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {name: tensor}), file, {"format": "pt"})


def test_a_missing_tensor_and_one_of_another_shape_are_named(base: BaseConfig) -> None:
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    rewrite(base, name, torch.zeros(32, 8))
    with pytest.raises(UserError, match="experts.down_proj has shape .*do not belong together|stack"):
        load_part(open_weights(base, CPU), 1)
    rewrite(base, "model.layers.2.input_layernorm.weight", torch.zeros(31))
    with pytest.raises(UserError, match=r"layers\.2\.input_layernorm\.weight has shape \[31\].*\[32\]"):
        load_part(open_weights(base, CPU), 2)
    rewrite(base, "model.layers.2.input_layernorm.weight", None)
    with pytest.raises(
        UserError, match=r"lacks 1 tensor\(s\) of glm_moe_dsa, first model\.layers\.2\.input_layern"
    ):
        open_weights(base, CPU)


def test_a_missing_expert_is_an_error(base: BaseConfig) -> None:
    rewrite(base, "model.layers.1.mlp.experts.3.down_proj.weight", None)
    with pytest.raises(
        UserError, match=r"layers\.1\.mlp\.experts\.down_proj has shape \[7, 32, 16\].*\[8, 32, 16\]"
    ):
        load_part(open_weights(base, CPU), 1)


def test_a_disk_too_small_for_the_hidden_states_is_seen_after_the_first_batch(
    base: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 10))
    with pytest.raises(UserError, match=r"hidden states need .* GB more .*profile\.max_tokens"):
        counted_by_offload(open_weights(base, CPU), padded_batches(), tmp_path / "hidden")
    assert not (tmp_path / "hidden").exists()


def test_a_layer_or_hidden_states_that_do_not_fit_into_memory_are_refused(
    base: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    weights = open_weights(base, CPU)
    layer_bytes = largest_layer_bytes(weights)
    monkeypatch.setattr("finetune.profiling.offload.free_memory_bytes", lambda _: layer_bytes)
    with pytest.raises(UserError, match=r"largest layer in float32 .* are free: take a machine .*bfloat16"):
        counted_by_offload(weights, padded_batches())
    assert weights.n_read_bytes == {}, "seen before anything is read"
    monkeypatch.setattr("finetune.profiling.offload.free_memory_bytes", lambda _: 1.31 * layer_bytes)
    with pytest.raises(UserError, match=r"hidden states \(.* GB\) need .*profile\.hidden_states=disk"):
        counted_by_offload(weights, padded_batches(20))
    counted_by_offload(weights, padded_batches(20), tmp_path / "hidden")
    assert "GB to read once, about" in capsys.readouterr().out


def test_what_a_layer_returned_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    states_BTD, chosen_BTK = torch.randn(2, 3, 4), torch.tensor([[[1, 0]], [[2, 1]]], dtype=torch.int32)
    output = (states_BTD, {"topk": chosen_BTK, "same": states_BTD, "turned": states_BTD.mT}, None, 7)
    hidden = HiddenStates(1, tmp_path)
    hidden.put(0, output)
    states, more, nothing, seven = hidden.get(0, CPU)
    assert torch.equal(states, states_BTD) and torch.equal(more["topk"], chosen_BTK)
    assert torch.equal(more["same"], states_BTD) and torch.equal(more["turned"], states_BTD.mT)
    assert more["topk"].dtype == torch.int32 and (nothing, seven) == (None, 7)
    assert [file.name for file in tmp_path.iterdir()] == ["0.safetensors"]


def test_hidden_states_that_cannot_be_written_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*0.safetensors"):
        HiddenStates(1, tmp_path / "file").put(0, torch.zeros(2))


def test_a_profile_that_stops_when_stable_is_refused(base: BaseConfig, tiny_tokenizer) -> None:
    config = ProfileConfig(stable_jaccard=0.9)
    with pytest.raises(UserError, match=r"stable_jaccard=0\.9.*stable_jaccard=null"):
        profile_rows_offloaded(open_weights(base, CPU), tiny_tokenizer, {}, config)


def test_auto_offloads_what_is_larger_than_free_memory(
    base: BaseConfig, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert free_memory_bytes(CPU) > 1 << 20
    assert not uses_offload(base, ProfileConfig(), CPU)
    assert uses_offload(base, ProfileConfig(offload="true"), CPU)
    monkeypatch.setattr("finetune.profiling.profile_offload.free_memory_bytes", lambda _: 1 << 10)
    assert uses_offload(base, ProfileConfig(), CPU)
    assert "GB are free: it is profiled layer by layer" in capsys.readouterr().out
    assert not uses_offload(base, ProfileConfig(offload="false"), CPU)


def test_the_stage_writes_the_same_profile_either_way(base: BaseConfig, tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "messages": chat(f"{i}", "7" * i), "language": "ta", "group": "target", "source": "s"}
        for i in range(1, 6)
    ]
    data = tmp_path / "run" / "data"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(data)
    write_artefact(data / "manifest.json", "dataset_manifest", {}, {"content_hash": "d" * 64})
    changes = [f"output={tmp_path / 'run'}", f"base.model={base.model}", "base.device=cpu"]
    files = []
    for offload in ("false", "true"):
        own = [*changes, f"profile.offload={offload}", "profile.hidden_states=disk", "profile.batch_size=2"]
        path = profile_stage(load_run_config(ROOT / "configs" / "runs" / "quickstart.yaml", own))
        files.append((path.read_bytes(), path.with_suffix(".safetensors").read_bytes()))
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "data",
        "profile.json",
        "profile.safetensors",
    ]


def test_the_options_are_read_from_the_command_line() -> None:
    changes = ["profile.offload=true", "profile.hidden_states=disk"]
    config = load_run_config(ROOT / "configs" / "runs" / "quickstart.yaml", changes)
    assert (config.profile.offload, config.profile.hidden_states) == ("true", "disk")


def test_the_needs_of_glm_5_2_are_those_of_its_published_sizes() -> None:
    needs = offload_needs(glm_5_2(), torch.bfloat16, length_tokens=4096)
    assert needs.n_parameters / 1e9 == pytest.approx(743.4, abs=0.05)
    assert needs.state_bytes_per_token == 2 * 6144 + 4 * 2048
    stacks = 2 * 256 * (4096 * 6144 + 6144 * 2048)
    assert stacks < needs.largest_layer_bytes < 1.03 * stacks
    assert needs.seconds(0, disk_rate=needs.disk_bytes, operation_rate=1) == 1
    assert (ROOT / "finetune" / "profiling" / "offload.md").read_text(encoding="utf-8") == offload_text()


@pytest.mark.slow
def test_a_model_of_four_times_the_memory_counts_the_same_within_1_3_layers_and_hidden_states(
    tiny_tokenizer, tmp_path: Path
) -> None:
    config = GlmMoeDsaConfig(
        vocab_size=offload_memory.VOCABULARY, hidden_size=offload_memory.WIDTH, intermediate_size=1024,
        moe_intermediate_size=512, num_hidden_layers=7, first_k_dense_replace=1, n_routed_experts=64,
        num_experts_per_tok=4, n_shared_experts=1, num_attention_heads=4, num_key_value_heads=4,
        q_lora_rank=128, kv_lora_rank=128, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=64,
        index_n_heads=4, index_head_dim=64, index_topk=128, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GlmMoeDsaForCausalLM(config)
    model_bytes = sum(value.nbytes for value in model.state_dict().values())
    saved(model, tiny_tokenizer, tmp_path, max_shard_size="100MB")
    del model
    in_memory = run_memory(tmp_path, "memory", 0)
    by_offload = run_memory(tmp_path, "offload", model_bytes // 4)
    report = {name: round(value / 1e6) for name, value in by_offload.items() if name.endswith("bytes")}
    print(
        f"MB: model {model_bytes / 1e6:.0f}, in memory {in_memory['peak_bytes'] / 1e6:.0f}, offload {report}"
    )
    assert in_memory["peak_bytes"] > 0.9 * model_bytes, "the limit is a quarter of what the model takes"
    assert by_offload["counted"] == in_memory["counted"]
    assert by_offload["n_choices"] > 0
    assert by_offload["peak_bytes"] <= by_offload["allowed_bytes"]
    failed = subprocess.run(
        command(tmp_path, "memory", model_bytes // 4), cwd=ROOT, capture_output=True, check=False
    )
    assert failed.returncode != 0, "the model itself does not fit: the limit is a real one"


def command(folder: Path, way: str, limit: int) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "offload_memory.py"), str(folder), way, str(limit)]


def run_memory(folder: Path, way: str, limit: int) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(folder, way, limit), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
