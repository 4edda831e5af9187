"""finetune.profiling.routing counts what the routers chose for real tokens, exactly, whatever the padding."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tiny_families import FAMILIES, build_tiny_family

from data_recipes.artefact import UserError, read_artefact, write_artefact
from finetune.config import BaseConfig, DataConfig, ProfileConfig, RunConfig
from finetune.model import model_fingerprint, tokenizer_fingerprint
from finetune.moe import moe_layers
from finetune.profiling.calibration import encode_row
from finetune.profiling.profile import MASS_UNIT, Profile, read_profile
from finetune.profiling.replicates import row_weights
from finetune.profiling.router_recorder import RouterRecorder
from finetune.profiling.routing import main, profile_rows, profile_stage
from finetune.selecting.choices import token_share
from finetune.selecting.routing_measures import jaccard
from finetune.training_options import TrainConfig

LENGTHS = (5, 12, 8)


def chat(question: str, answer: str, language: str = "ta", group: str = "target") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "language": language, "group": group}


ROWS_BY_GROUP = {
    "ta": [chat(f"தேதி {i}", "நாள் " * (1 + i % 3)) for i in range(7)],
    "en": [chat(f"date {i}", "day " * (1 + i % 4), "en", "general") for i in range(5)],
}


@pytest.fixture
def model(tiny_model_factory):
    """A tiny GLM whose correction bias changes the choice, as in a trained one."""
    model = tiny_model_factory(vocab_size=262)
    for layer in moe_layers(model):
        router: Any = layer.router
        router.e_score_correction_bias.copy_(torch.linspace(-0.03, 0.03, 8))
    return model


def token_rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(6, 262, (length,), generator=generator) for length in LENGTHS]


def record(model, ids_BT, attention_BT, token_mask_BT=None) -> RouterRecorder:
    with RouterRecorder(moe_layers(model)) as recorder, torch.inference_mode():
        recorder.expect(attention_BT, token_mask_BT)
        model(input_ids=ids_BT, attention_mask=attention_BT)
    return recorder


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side)


def n_hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_counts_and_gate_mass_equal_a_loop_over_the_routers_own_output(model) -> None:
    ids_BT, attention_BT = padded(token_rows(), "right")
    outputs: dict[int, tuple] = {}
    for layer in moe_layers(model):
        layer.router.register_forward_hook(
            lambda _m, _i, out, index=layer.index: outputs.update({index: out})
        )
    recorder = record(model, ids_BT, attention_BT)
    for row, layer in enumerate(recorder.layers):
        logits, weights, indices = outputs[layer.index]
        count, mass, by_logits = Counter(), Counter(), Counter()
        for token in attention_BT.flatten().nonzero().flatten().tolist():
            by_logits.update(logits[token].topk(2).indices.tolist())
            for place in range(2):
                expert = indices[token, place].item()
                count[expert] += 1
                mass[expert] += weights[token, place].item() / weights[token].double().sum().item()
        assert recorder.counts_LE[row].tolist() == [count[expert] for expert in range(8)]
        mass_E = recorder.mass_LE[row].double() * MASS_UNIT
        assert mass_E.tolist() == pytest.approx([mass[expert] for expert in range(8)])
        assert count != by_logits, "the bias must matter, or this test cannot tell indices from logits"


def test_counts_sum_to_tokens_times_top_k_and_gate_mass_to_tokens(model) -> None:
    recorder = record(model, *padded(token_rows(), "right"))
    assert recorder.n_tokens == sum(LENGTHS)
    assert recorder.counts_LE.dtype == recorder.mass_LE.dtype == torch.int64
    assert recorder.counts_LE.sum(dim=1).tolist() == [2 * sum(LENGTHS)] * 2
    mass_L = recorder.mass_LE.sum(dim=1).double() * MASS_UNIT
    assert mass_L.tolist() == pytest.approx([sum(LENGTHS)] * 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_does_not_change_the_counts(model, side: str) -> None:
    batched = record(model, *padded(token_rows(), side))
    alone = [record(model, row[None], torch.ones_like(row[None])) for row in token_rows()]
    assert torch.equal(batched.counts_LE, torch.stack([one.counts_LE for one in alone]).sum(dim=0))
    summed_LE = torch.stack([one.mass_LE for one in alone]).sum(dim=0)
    assert torch.allclose(batched.mass_LE.double(), summed_LE.double(), rtol=1e-5)


def test_slots_split_the_counts_exactly(model) -> None:
    ids_BT, attention_BT = padded(token_rows(), "right")
    slot_BT = (torch.arange(ids_BT.shape[1]).expand_as(ids_BT) < 4).long()
    sums: dict[int, torch.Tensor] = {}
    recorder = RouterRecorder(moe_layers(model), sums.__setitem__)
    with recorder, torch.inference_mode():
        recorder.expect(attention_BT, slot_BT, 2)
        model(input_ids=ids_BT, attention_mask=attention_BT)
    whole = record(model, ids_BT, attention_BT)
    assert sums[0][0, 1].sum() == 2 * 4 * len(LENGTHS), "four tokens of each row, two experts each"
    assert torch.equal(torch.stack([sums[0][0].sum(0), sums[1][0].sum(0)]), whole.counts_LE)


def test_recording_changes_no_number_and_leaves_no_hook(model) -> None:
    ids_BT, attention_BT = padded(token_rows(), "right")
    before = n_hooks(model)
    with torch.inference_mode():
        free = model(input_ids=ids_BT, attention_mask=attention_BT).logits
        with RouterRecorder(moe_layers(model)) as recorder:
            assert n_hooks(model) == before + 2
            recorder.expect(attention_BT)
            assert torch.equal(model(input_ids=ids_BT, attention_mask=attention_BT).logits, free)
    assert n_hooks(model) == before
    with pytest.raises(KeyError), RouterRecorder(moe_layers(model)):
        raise KeyError
    assert n_hooks(model) == before


def test_nan_gates_of_a_real_token_are_an_error_and_of_padding_are_not(model) -> None:
    layer = moe_layers(model)[0]
    hidden_BTD = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    hidden_BTD[0, 2] = torch.nan
    with RouterRecorder([layer]) as recorder, torch.inference_mode():
        recorder.expect(torch.tensor([[1, 1, 0]]))
        layer.block(hidden_BTD)
        assert recorder.counts_LE.sum() == 4
        recorder.expect(torch.tensor([[1, 1, 1]]))
        with pytest.raises(UserError, match=r"layers\.1\.mlp.*not finite for 1 of 3"):
            layer.block(hidden_BTD)


def test_a_mask_serves_one_forward_only(model) -> None:
    ids_BT, attention_BT = padded(token_rows(), "right")
    with RouterRecorder(moe_layers(model)) as recorder, torch.inference_mode():
        recorder.expect(attention_BT)
        model(input_ids=ids_BT, attention_mask=attention_BT)
        with pytest.raises(RuntimeError, match=r"call expect\(\)"):
            model(input_ids=ids_BT, attention_mask=attention_BT)
        recorder.expect(attention_BT[:, :-1])
        with pytest.raises(RuntimeError, match=r"call expect\(\)"):
            model(input_ids=ids_BT, attention_mask=attention_BT)


def profile(model, tokenizer, seed: int = 0, rows=ROWS_BY_GROUP, **options: Any) -> Profile:
    return profile_rows(model, tokenizer, rows, ProfileConfig(**options), seed)


def n_tokens_of(tokenizer, language: str) -> int:
    return sum(len(encode_row(tokenizer, row).ids) for row in ROWS_BY_GROUP[language])


def same_arrays(first: Profile, second: Profile) -> bool:
    """Whether cells, counts, mass and replicates are equal to the last bit."""
    return (
        first.cells == second.cells
        and np.array_equal(first.counts_CLE, second.counts_CLE)
        and np.array_equal(first.mass_CLE, second.mass_CLE)
        and all(
            np.array_equal(found[language], other[language])
            for found, other in (
                (first.replicate_counts, second.replicate_counts),
                (first.replicate_mass, second.replicate_mass),
            )
            for language in first.head["roles"]
        )
    )


def test_the_head_says_what_was_counted(model, tiny_tokenizer) -> None:
    found = profile(model, tiny_tokenizer)
    facts = {
        "layers": [1, 2],
        "n_experts": 8,
        "top_k": 2,
        "router": "GlmMoeDsaTopkRouter",
        "parameters_per_rank": [(32 + 32) + (16 + 32)] * 2,
        "expert_bytes": [4 * (32 * 32 + 16 * 32)] * 2,
        "model_fingerprint": model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(tiny_tokenizer),
        "dtype": "float32",
        "roles": {"ta": "target", "en": "general"},
        "n_rows": {"ta": 7, "en": 5},
        "n_tokens": {language: n_tokens_of(tiny_tokenizer, language) for language in ("ta", "en")},
        "unseen_layers": [],
        "shards": [],
    }
    assert {name: found.head[name] for name in facts} == facts
    assert found.languages("target") == ["ta"]
    assert found.counts(["ta"]).sum(axis=1).tolist() == [2 * facts["n_tokens"]["ta"]] * 2
    assert found.gate_mass(["en"]).sum(axis=1).tolist() == pytest.approx([facts["n_tokens"]["en"]] * 2)


def test_the_counts_do_not_depend_on_the_batch_size(model, tiny_tokenizer) -> None:
    one, four = (profile(model, tiny_tokenizer, batch_size=size) for size in (1, 4))
    assert np.array_equal(one.counts_CLE, four.counts_CLE)
    assert np.array_equal(one.replicate_counts["ta"], four.replicate_counts["ta"])
    assert np.allclose(one.mass_CLE, four.mass_CLE, rtol=1e-5)


def test_prompt_and_answer_are_kept_apart_and_the_replicates_count_one_kind(model, tiny_tokenizer) -> None:
    whole, answer = (profile(model, tiny_tokenizer, kinds=kinds) for kinds in ("all", "answer"))
    assert np.array_equal(whole.counts_CLE, answer.counts_CLE), "the cells count every kind"
    n_answer = sum(len(row["messages"][1]["content"].encode()) + 1 for row in ROWS_BY_GROUP["ta"])
    assert answer.head["n_tokens"]["ta"] == n_answer, "the answer's bytes and its stop token"
    assert answer.counts(["ta"], "answer").sum(axis=1).tolist() == [2 * n_answer] * 2
    parts = [whole.counts(["ta"], kinds) for kinds in ("prompt", "answer", "all")]
    assert np.array_equal(parts[0] + parts[1], parts[2])
    assert (answer.replicate_counts["ta"].sum() < whole.replicate_counts["ta"].sum()) and n_answer > 0


def test_replicates_are_resamples_of_the_rows(model, tiny_tokenizer) -> None:
    found = profile(model, tiny_tokenizer, batch_size=3, replicates=2000)
    alone = [profile(model, tiny_tokenizer, rows={"ta": [row]}, replicates=0) for row in ROWS_BY_GROUP["ta"]]
    ids = [encode_row(tiny_tokenizer, row).row_id for row in ROWS_BY_GROUP["ta"]]
    rows_BLE = np.stack([one.counts(["ta"]) for one in alone])
    expected_RLE = np.einsum("rb,ble->rle", row_weights(ids, 0, 2000), rows_BLE)
    assert np.array_equal(found.replicate_counts["ta"], expected_RLE)
    counts_LE = found.counts(["ta"])
    # The mean of R draws of variance sum(row^2) lies within five of its standard errors.
    error_LE = np.sqrt((rows_BLE**2).sum(axis=0) / 2000)
    assert (np.abs(found.replicate_counts["ta"].mean(axis=0) - counts_LE) <= 5 * error_LE).all()
    mass_LE = found.mass_CLE[[cell.language == "ta" for cell in found.cells]].sum(axis=0)
    assert found.replicate_mass["ta"].mean(axis=0).sum() == pytest.approx(mass_LE.sum(), rel=0.1)


def test_sources_are_kept_apart(model, tiny_tokenizer) -> None:
    rows = [row | {"source": "ab"[i % 2]} for i, row in enumerate(ROWS_BY_GROUP["ta"])]
    mixed = profile(model, tiny_tokenizer, rows={"ta": rows})
    only_b = profile(model, tiny_tokenizer, rows={"ta": rows[1::2]})
    assert sorted({cell.source for cell in mixed.cells}) == ["a", "b"]
    assert np.array_equal(mixed.counts(["ta"], sources=["b"]), only_b.counts(["ta"]))


def test_rows_are_read_up_to_the_token_budget_in_the_seeds_order(model, tiny_tokenizer) -> None:
    lengths = [len(encode_row(tiny_tokenizer, row).ids) for row in ROWS_BY_GROUP["ta"]]
    budget = sum(lengths) // 2
    few, again, other = (profile(model, tiny_tokenizer, seed, max_tokens=budget) for seed in (0, 0, 3))
    assert budget - max(lengths) < few.head["n_tokens"]["ta"] <= budget
    assert few.head["stopped"]["ta"]["why"] == "max_tokens"
    assert same_arrays(few, again) and not same_arrays(few, other)


def test_a_language_ends_when_its_replicates_agree(model, tiny_tokenizer) -> None:
    options: dict[str, Any] = {"check_tokens": 1, "replicates": 8, "stable_share": 0.5}
    lengths = [len(row.ids) for row in (encode_row(tiny_tokenizer, row) for row in ROWS_BY_GROUP["ta"])]
    whole = profile(model, tiny_tokenizer, **options)
    ended = whole.head["stopped"]["ta"]
    assert (ended["why"], ended["tokens"]) == ("rows", sum(lengths))
    drawn_RLE = whole.replicate_counts["ta"]
    assert drawn_RLE.any(axis=-1).all()
    agree_RL = jaccard(token_share(whole.counts(["ta"]), 0.5), token_share(drawn_RLE, 0.5))
    assert ended["jaccard"] == pytest.approx(agree_RL.mean(), abs=1e-4)
    # One row is its own multiple: each replicate that draws it agrees, the others have drawn nothing.
    early = profile(model, tiny_tokenizer, stable_jaccard=0.01, **options)
    assert (early.head["stopped"]["ta"]["why"], early.head["n_rows"]["ta"]) == ("stable", 1)
    late = profile(model, tiny_tokenizer, stable_jaccard=1.0, **options)
    assert late.head["n_rows"]["ta"] > 1


def test_a_stream_gives_the_profile_of_its_rows(model, tiny_tokenizer) -> None:
    rows = ROWS_BY_GROUP["ta"]
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    assert same_arrays(
        profile(model, tiny_tokenizer, rows={"ta": streamed}, batch_size=9),
        profile(model, tiny_tokenizer, rows={"ta": iter(rows)}, batch_size=9),
    )


def test_a_gpt_oss_is_profiled_too(tiny_tokenizer) -> None:
    model = build_tiny_family(FAMILIES["gpt_oss"]._replace(overrides={"vocab_size": 262}))
    found = profile(model, tiny_tokenizer)
    assert found.counts(["ta"]).sum(axis=1).tolist() == [
        found.head["top_k"] * n_tokens_of(tiny_tokenizer, "ta")
    ] * len(found.layers)


def test_languages_that_cannot_be_profiled_are_named(model, tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="no rows to profile"):
        profile(model, tiny_tokenizer, rows={})
    with pytest.raises(UserError, match="'ta' has no rows"):
        profile(model, tiny_tokenizer, rows={"ta": []})
    question = {"messages": [{"role": "user", "content": "no answer here"}], "group": "target"}
    with pytest.raises(UserError, match=r"'ta' has no token of kind 'answer'.*profile\.kinds=all"):
        profile(model, tiny_tokenizer, rows={"ta": [question]}, kinds="answer")


def test_a_layer_that_no_token_reaches_is_named(model, tiny_tokenizer, monkeypatch) -> None:
    last = moe_layers(model)[-1].block
    monkeypatch.setattr(last, "forward", torch.zeros_like)
    assert profile(model, tiny_tokenizer).head["unseen_layers"] == [2]


@pytest.fixture
def run_config(model, tiny_tokenizer, tmp_path: Path) -> RunConfig:
    """A run with base and dataset on disk; validation and test hold a language that train has not."""
    base, output = tmp_path / "base", tmp_path / "run"
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    rows = [row for group in ROWS_BY_GROUP.values() for row in group]
    held_out = [chat("கேள்வி", "பதில்", language="hi")]
    splits = {"train": rows, "validation": held_out, "test": held_out}
    DatasetDict({name: Dataset.from_list(part) for name, part in splits.items()}).save_to_disk(
        output / "data"
    )
    write_artefact(output / "data" / "manifest.json", "dataset_manifest", {}, {"content_hash": "d" * 64})
    return RunConfig(
        name="tiny",
        output=str(output),
        base=BaseConfig(model=str(base), device="cpu"),
        data=DataConfig(recipe="unused.yaml"),
        train=TrainConfig(steps=1, learning_rate=1e-3),
    )


def test_the_stage_reads_the_training_split_alone_and_writes_the_same_bytes_twice(run_config, capsys) -> None:
    path = profile_stage(run_config)
    files = (path, path.with_suffix(".safetensors"))
    found, first_bytes = read_profile(path), [file.read_bytes() for file in files]
    assert path == Path(run_config.output) / "profile.json"
    assert found.languages() == ["en", "ta"]
    assert read_artefact(path, "routing_profile")["inputs"] == {
        "dataset": "d" * 64,
        "model": found.head["model_fingerprint"],
        "tokenizer": found.head["tokenizer_fingerprint"],
    }
    assert found.head["dataset"] == "d" * 64
    profile_stage(run_config)
    assert [file.read_bytes() for file in files] == first_bytes
    assert capsys.readouterr().out.count("profile   tokens: en ") == 2


def test_the_command_fills_the_stage_from_its_config_file(run_config, tmp_path: Path) -> None:
    config_file = tmp_path / "run.yaml"
    fields = {
        "name": "tiny",
        "output": run_config.output,
        "base": {"model": run_config.base.model},
        "data": {"recipe": "unused.yaml"},
        "train": {"steps": 1, "learning_rate": 0.001},
    }
    config_file.write_text(json.dumps(fields), encoding="utf-8")
    main(["--config", str(config_file), "profile.kinds=answer"])
    assert read_profile(Path(run_config.output) / "profile.json").head["kinds"] == "answer"


def test_a_missing_or_broken_training_split_is_one_clear_error(run_config) -> None:
    data = Path(run_config.output) / "data"
    (data / "train" / "state.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train.*local-experts data"):
        profile_stage(run_config)
    (data / "manifest.json").unlink()
    with pytest.raises(UserError, match="local-experts data"):
        profile_stage(run_config)
    assert not (Path(run_config.output) / "profile.json").exists()
