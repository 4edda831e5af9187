"""finetune.routing counts what the routers chose for real tokens, exactly, whatever the padding."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from data_recipes.artefact import UserError, read_artefact, write_artefact
from finetune.calibration import encode_row
from finetune.config import BaseConfig, DataConfig, ProfileConfig, RunConfig, TrainConfig
from finetune.moe import moe_layers
from finetune.profile import MASS_UNIT
from finetune.router_recorder import RouterRecorder
from finetune.routing import main, profile_rows, profile_stage

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


def test_a_token_mask_splits_the_counts_exactly(model) -> None:
    ids_BT, attention_BT = padded(token_rows(), "right")
    first_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT) < 4
    first, rest = (
        record(model, ids_BT, attention_BT, first_BT),
        record(model, ids_BT, attention_BT, ~first_BT),
    )
    whole = record(model, ids_BT, attention_BT)
    assert first.n_tokens == 4 * len(LENGTHS)
    assert torch.equal(first.counts_LE + rest.counts_LE, whole.counts_LE)


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


def test_the_profile_does_not_depend_on_the_batch_size(model, tiny_tokenizer) -> None:
    one, four = (
        profile_rows(model, tiny_tokenizer, ROWS_BY_GROUP, ProfileConfig(batch_size=size)) for size in (1, 4)
    )
    assert (one["layers"], one["n_experts"], one["top_k"], one["router"]) == (
        [1, 2],
        8,
        2,
        "GlmMoeDsaTopkRouter",
    )
    assert one["parameters_per_rank"] == [(32 + 32) + (16 + 32)] * 2
    assert list(one["groups"]) == ["en", "ta"]
    for name, role in (("ta", "target"), ("en", "general")):
        group = one["groups"][name]
        n_tokens = sum(len(encode_row(tiny_tokenizer, row, "all").ids) for row in ROWS_BY_GROUP[name])
        assert (group["role"], group["n_rows"], group["n_tokens"]) == (
            role,
            len(ROWS_BY_GROUP[name]),
            n_tokens,
        )
        assert group["counts"] == four["groups"][name]["counts"]
        assert torch.allclose(
            torch.tensor(group["gate_mass"]), torch.tensor(four["groups"][name]["gate_mass"])
        )


def test_prompt_and_answer_tokens_add_up_to_all(model, tiny_tokenizer) -> None:
    kinds = {
        kind: profile_rows(model, tiny_tokenizer, ROWS_BY_GROUP, ProfileConfig(kinds=kind))["groups"]["ta"]
        for kind in ("prompt", "answer", "all")
    }
    n_answer_bytes = sum(len(row["messages"][1]["content"].encode()) + 1 for row in ROWS_BY_GROUP["ta"])
    assert kinds["answer"]["n_tokens"] == n_answer_bytes, "the answer's bytes and its stop token"
    summed = torch.tensor(kinds["prompt"]["counts"]) + torch.tensor(kinds["answer"]["counts"])
    assert summed.tolist() == kinds["all"]["counts"]


def test_rows_are_read_up_to_the_token_budget_in_the_seeds_order(model, tiny_tokenizer) -> None:
    lengths = [len(encode_row(tiny_tokenizer, row, "all").ids) for row in ROWS_BY_GROUP["ta"]]
    config = ProfileConfig(max_tokens=sum(lengths) // 2)
    few, again, other = (
        profile_rows(model, tiny_tokenizer, ROWS_BY_GROUP, config, seed)["groups"]["ta"] for seed in (0, 0, 3)
    )
    assert config.max_tokens - max(lengths) < few["n_tokens"] <= config.max_tokens
    assert few == again
    assert few["counts"] != other["counts"]


def test_groups_that_cannot_be_profiled_are_named(model, tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="no rows to profile"):
        profile_rows(model, tiny_tokenizer, {}, ProfileConfig())
    with pytest.raises(UserError, match="'ta' has rows of role"):
        profile_rows(model, tiny_tokenizer, {"ta": []}, ProfileConfig())
    mixed = [chat("a", "b"), chat("a", "b", group="general")]
    with pytest.raises(UserError, match="'general', 'target'"):
        profile_rows(model, tiny_tokenizer, {"ta": mixed}, ProfileConfig())


def test_kinds_need_a_template_that_marks_the_answer(tiny_tokenizer) -> None:
    row = {"messages": [{"role": "user", "content": "no answer here"}]}
    assert all(encode_row(tiny_tokenizer, row, "all").is_counted)
    with pytest.raises(UserError, match=r"profile\.kinds=prompt.*\{% generation %\}"):
        encode_row(tiny_tokenizer, row, "prompt")


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
    profile, first_bytes = read_artefact(path, "routing_profile"), path.read_bytes()
    assert path == Path(run_config.output) / "profile.json"
    assert set(profile["groups"]) == {"ta", "en"}
    assert profile["inputs"]["dataset"] == "d" * 64
    assert profile["inputs"]["model"] == profile["model_fingerprint"]
    assert profile["inputs"]["tokenizer"] == profile["tokenizer_fingerprint"]
    assert profile_stage(run_config).read_bytes() == first_bytes
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
    assert read_artefact(Path(run_config.output) / "profile.json", "routing_profile")["kinds"] == "answer"


def test_a_missing_or_broken_training_split_is_one_clear_error(run_config) -> None:
    data = Path(run_config.output) / "data"
    (data / "train" / "state.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train.*local-experts data"):
        profile_stage(run_config)
    (data / "manifest.json").unlink()
    with pytest.raises(UserError, match="local-experts data"):
        profile_stage(run_config)
    assert not (Path(run_config.output) / "profile.json").exists()
