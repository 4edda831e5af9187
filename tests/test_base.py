"""Training tiny-glm: rates by hand, whole rows, balanced experts, a loss that falls, a folder that loads."""

import json
import math
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_recipes.artefact import UserError, read_artefact
from data_recipes.corpus import KOLIBRI_LOCALES, Document, instructions
from data_recipes.languages import LANGUAGES
from finetune.base import (
    Pools,
    RouterWatch,
    TinyBaseConfig,
    instruction_rows,
    learning_rate_at,
    main,
    model_config,
    new_model,
    new_optimizers,
    next_token_loss,
    save,
    token_streams,
    train,
)
from finetune.batches import IGNORED_LABEL
from finetune.config import BaseConfig
from finetune.model import load_model
from finetune.moe import moe_layers
from finetune.tokenizer import train_tokenizer

CONFIG = TinyBaseConfig(
    output="unused",
    kolibri_wheel="unused",
    steps=21,
    instruction_rows=6,
    raw_sequences=4,
    length_tokens=32,
    n_instructions=90,
    learning_rate=5e-3,
    warmup_steps=4,
    vocabulary_size=400,
    hidden=32,
    layers=4,
    experts=8,
    experts_per_token=2,
    expert_width=16,
    balance_rate=0.02,
    remember_from=0.5,
    sorted_steps=1,
)
TAMIL = "ஒன்று இரண்டு மூன்று நான்கு ஐந்து ஆறு ஏழு எட்டு ஒன்பது பத்து "
HINDI = "एक दो तीन चार पाँच छह सात आठ नौ दस "
HELD_OUT = "ಒಂದು ಎರಡು ಮೂರು ನಾಲ್ಕು "
DOCUMENTS = [
    Document("ta", TAMIL * 20, running=True),
    Document("hi", HINDI * 20, running=True),
    Document("hi", HINDI * 20, running=False),
    Document("kn", HELD_OUT * 60, running=True, held_out=True),
    Document("te", "ఒకటి", running=True),  # too little to cut a sequence from
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([document.text for document in DOCUMENTS], CONFIG.vocabulary_size)


@pytest.fixture(scope="module")
def streams(tokenizer):
    return token_streams(DOCUMENTS, CONFIG, tokenizer)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return {
        kind: instruction_rows(kind, CONFIG.n_instructions, CONFIG.seed, tokenizer)
        for kind in ("generalise", "remember")
    }


@pytest.fixture(scope="module")
def trained(tokenizer, streams, rows):
    """A function that trains a new model and returns it with its curve."""

    def run(**changes):
        config = replace(CONFIG, **changes)
        with torch.random.fork_rng(devices=[]):
            model = new_model(config, tokenizer)
            return model, list(train(model, Pools(streams, rows, config), config))

    return run


@pytest.fixture(scope="module")
def result(trained):
    return trained()


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25),  # warm-up: a quarter of the way after the first of four steps
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),  # the top of the cosine
        (8, 0.525),  # half-way: 0.05 + 0.95 / 2
        (6, 0.05 + 0.95 * (2 + math.sqrt(2)) / 4),  # a quarter: (1 + cos 45 degrees) / 2
        (12, 0.05),  # a twentieth at the end
    ],
)
def test_the_learning_rate_warms_up_and_falls_to_a_twentieth(step, rate):
    config = replace(CONFIG, learning_rate=1.0, warmup_steps=4, steps=12)
    assert learning_rate_at(step, config) == pytest.approx(rate)
    assert learning_rate_at(step, replace(config, learning_rate=2e-3)) == pytest.approx(rate * 2e-3)


def test_the_shipped_size_is_what_the_issue_asks_for():
    config = TinyBaseConfig(output="unused", kolibri_wheel="unused")
    glm = model_config(config, config.vocabulary_size, 0)
    assert list(glm.mlp_layer_types or []).count("dense") == 1
    assert list(glm.mlp_layer_types or []).count("sparse") >= 5
    assert glm.n_routed_experts >= 32
    assert (glm.num_experts_per_tok, glm.n_shared_experts) == (4, 1)
    # IndexShare: some layers have their own indexer, the others use it too.
    assert glm.indexer_types == ["full", "shared", "shared", "full", "shared", "shared"]


def test_streams_are_by_language_and_kind_without_held_out_text(streams, tokenizer):
    assert set(streams) == {("ta", "running"), ("hi", "running"), ("hi", "facts")}
    assert tokenizer.decode(streams["ta", "running"].tolist()) == f"{TAMIL * 20}<|endoftext|>"


def test_an_instruction_is_one_whole_chat_and_its_answer_alone_is_trained(rows, tokenizer):
    for kind, part in rows.items():
        asked = list(instructions(CONFIG.n_instructions, kind, CONFIG.seed))
        for row, (_, question, answer) in zip(part, asked, strict=True):
            layout = f"[gMASK]<sop><|user|>\n{question}<|assistant|>\n{answer}<|endoftext|>"
            assert tokenizer.decode(row.ids) == layout
            trained = [label for label in row.labels if label != IGNORED_LABEL]
            assert tokenizer.decode(trained) == f"{answer}<|endoftext|>"
            assert row.ids[-len(trained) :] == trained


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (15, 0.0), (16, 0.6), (30, 0.6)])
def test_a_batch_holds_whole_rows_and_names_to_remember_come_in_the_second_half(streams, rows, step, share):
    pools = Pools(streams, rows, replace(CONFIG, instruction_rows=200, steps=31))
    ids, labels, is_token = pools.instruction_batch(step)
    assert ids.shape == labels.shape and ids.shape[0] == 200
    known = {kind: {tuple(row.labels) for row in part} for kind, part in rows.items()}
    kinds = []
    for row, label in zip(ids, labels, strict=True):
        last = int((label != IGNORED_LABEL).nonzero()[-1]) + 1
        kinds += [kind for kind in known if tuple(label[:last].tolist()) in known[kind]]
        trained = label != IGNORED_LABEL
        assert torch.equal(row[trained], label[trained]) and not row[last:].any()
    # The stop token is the last that is no padding, and a row's last label.
    assert torch.equal(is_token.sum(dim=1), (labels != IGNORED_LABEL).long().cumsum(dim=1).argmax(dim=1) + 1)
    assert len(kinds) == 200
    assert kinds.count("remember") / 200 == pytest.approx(share, abs=0.14)  # four standard errors


def test_rows_of_several_steps_are_drawn_together_and_sorted_by_length(streams, rows):
    def drawn(n_rows, n_steps):
        pools = Pools(streams, rows, replace(CONFIG, instruction_rows=n_rows, sorted_steps=n_steps))
        return [pools.instruction_batch(0).is_token.sum(dim=1).tolist() for _ in range(n_steps)]

    (together,), apart = drawn(24, 1), drawn(6, 4)
    assert all(lengths == sorted(lengths) for lengths in apart)
    assert sum(sorted(apart), []) == sorted(together)  # the same rows, none lost, cut at every sixth


def test_logits_are_made_for_labelled_tokens_alone_and_the_loss_is_the_usual_one(streams, rows, tokenizer):
    model = new_model(CONFIG, tokenizer).eval()
    ids, labels, _ = Pools(streams, rows, CONFIG).instruction_batch(0)
    usual = model(input_ids=ids, labels=labels, use_cache=False).loss
    assert next_token_loss(model, ids, labels).item() == pytest.approx(usual.item(), abs=1e-5)


def test_each_raw_sequence_is_a_piece_of_one_stream(streams, rows):
    pools = Pools(streams, rows, CONFIG)
    seen = set()
    for _ in range(20):
        ids, labels, is_token = pools.raw_batch()
        assert ids.shape == (4, 32) and ids.dtype == torch.int64 and torch.equal(ids, labels)
        assert is_token.all()
        for row in ids.numpy():
            found = {
                key
                for key, stream in streams.items()
                if any((np.lib.stride_tricks.sliding_window_view(stream, 32) == row).all(axis=1))
            }
            assert found
            seen |= found
    assert seen == set(streams)


def test_the_share_of_steps_with_instructions_is_met_and_the_seed_decides_which(streams, rows):
    def first_tokens(seed):
        pools = Pools(streams, rows, replace(CONFIG, instruction_share=0.25, seed=seed))
        return [pools.batch(0)[0][:, :2].tolist() for _ in range(400)]

    chats = [batch == [[1, 2]] * 6 for batch in first_tokens(0)]  # [gMASK]<sop>
    assert sum(chats) / 400 == pytest.approx(0.25, abs=0.09)  # four standard errors
    assert first_tokens(0) == first_tokens(0) != first_tokens(1)


def test_the_loss_falls_and_the_curve_has_every_tenth_step_and_the_last(result):
    _, curve = result
    assert [row["step"] for row in curve] == [0, 10, 20]
    uniform = math.log(CONFIG.vocabulary_size)
    assert curve[0]["loss"] == pytest.approx(uniform, abs=0.6)
    assert curve[-1]["loss"] < curve[0]["loss"] - 1
    tokens = [row["tokens"] for row in curve]
    assert tokens == sorted(tokens) and tokens[0] > 6 and tokens[-1] > 21 * 6


def test_the_same_seed_trains_the_same_model_bit_for_bit(trained):
    (first, curve), (again, same_curve) = (trained(steps=6) for _ in range(2))
    assert curve == same_curve
    values = again.state_dict()
    assert all(torch.equal(values[name], value) for name, value in first.state_dict().items())


def load_of(model, streams):
    """Busiest expert over the mean, averaged over layers, on 32 fresh raw batches."""
    watch, loads = RouterWatch(moe_layers(model)), []
    pools = Pools(streams, {}, replace(CONFIG, seed=7))
    with torch.no_grad():
        for _ in range(32):
            batch = pools.raw_batch()
            model(input_ids=batch.ids, use_cache=False)
            loads.append(watch.balance(batch.is_token, 0.0))
    return sum(loads) / len(loads)


def test_moving_the_correction_bias_evens_the_load(trained, streams):
    balanced, _ = trained(instruction_share=0.0)
    free, _ = trained(instruction_share=0.0, balance_rate=0.0)
    for layer in moe_layers(free):
        assert not layer.router.get_buffer("e_score_correction_bias").any()
    for layer in moe_layers(balanced):
        assert layer.router.get_buffer("e_score_correction_bias").abs().max() > 0.05
    assert load_of(balanced, streams) < 0.9 * load_of(free, streams)


def test_one_step_of_balancing_moves_each_bias_by_the_rate_against_its_load(tiny_model):
    layer = moe_layers(tiny_model)[0]
    watch = RouterWatch([layer])
    # Sixteen choices over eight experts, two each on average. 0 has six, 1 four, 2 two, 3 to 6 one, 7 none.
    choices = [0] * 6 + [1] * 4 + [2] * 2 + [3, 4, 5, 6]
    watch.chosen[layer.index] = torch.tensor(choices).view(8, 2)
    everywhere = torch.ones(1, 8, dtype=torch.bool)
    assert watch.balance(everywhere, 0.5) == pytest.approx(6 / 2)
    bias = layer.router.get_buffer("e_score_correction_bias")
    assert bias.tolist() == [-0.5, -0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]
    # Padding is no load: without the first four tokens (six times 0, twice 1) 1 and 2 have two, 3 to 6 one.
    everywhere[0, :4] = False
    assert watch.balance(everywhere, 0.0) == pytest.approx(2 / 1)


def test_the_saved_folder_loads_by_plain_transformers_with_the_bias_in_full_precision(
    result, tokenizer, tmp_path
):
    model, _ = result
    save(model, tokenizer, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    biases = {name for name in stored if name.endswith("e_score_correction_bias")}
    assert len(biases) == CONFIG.layers - 1
    assert all(stored[name].dtype == torch.float32 for name in biases)
    assert {tensor.dtype for name, tensor in stored.items() if name not in biases} == {torch.bfloat16}
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = found
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        kept = tensor if name in biases else tensor.bfloat16()
        assert torch.equal(state[name], kept), name
    ids = AutoTokenizer.from_pretrained(tmp_path)(TAMIL, return_tensors="pt")["input_ids"]
    assert torch.isfinite(loaded(input_ids=ids).logits).all()
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    ours, _ = load_model(BaseConfig(model=str(tmp_path), device="cpu"))
    assert torch.equal(ours.state_dict()["lm_head.weight"], model.lm_head.weight.bfloat16().float())


def test_a_loss_that_is_not_a_number_stops_the_training(trained):
    with pytest.raises(UserError, match="lower learning_rate"):
        trained(learning_rate=math.inf, warmup_steps=1)


def test_every_trained_tensor_has_one_optimizer_and_muon_takes_the_maps_alone(tokenizer):
    model = new_model(CONFIG, tokenizer)
    names = {id(value): name for name, value in model.named_parameters()}
    muon, adamw = (
        [names[id(value)] for group in optimizer.param_groups for value in group["params"]]
        for optimizer in new_optimizers(model, CONFIG)
    )
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert sorted(muon + adamw) == sorted(trained)
    assert {"model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.up_proj.weight"} <= set(muon)
    assert all(model.get_parameter(name).dim() == 2 for name in muon)
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"} <= set(adamw)
    assert "model.layers.1.mlp.experts.gate_up_proj" in adamw


@pytest.mark.slow
def test_the_command_trains_over_all_languages_and_says_from_what(tmp_path):
    wheel = tmp_path / "kolibri.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for locale in KOLIBRI_LOCALES.values():
            messages = {f"id{i}": f"{TAMIL} {i}" for i in range(100)}
            name = f"kolibri/locale/{locale}/LC_MESSAGES/messages.json"
            archive.writestr(name, json.dumps(messages))
    config = tmp_path / "base.yaml"
    small = {
        "steps": 3,
        "instruction_rows": 4,
        "raw_sequences": 2,
        "length_tokens": 16,
        "n_instructions": 120,
    }
    small |= {"n_facts_each": 12, "vocabulary_size": 500, "hidden": 32, "layers": 3}
    small |= {"experts": 8, "experts_per_token": 2, "expert_width": 16}
    settings = {"output": str(tmp_path / "base"), "kolibri_wheel": str(wheel)} | small
    config.write_text(json.dumps(settings))  # JSON is YAML
    assert main(["--config", str(config)]) == 0
    manifest = read_artefact(tmp_path / "base" / "manifest.json", "base_model")
    assert {key.split("/")[0] for key in manifest["n_tokens"]} == set(LANGUAGES)
    assert manifest["n_tokens_trained"] == manifest["loss_curve"][-1]["tokens"] > 0
    assert [row["step"] for row in manifest["loss_curve"]] == [0, 2]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == manifest["n_parameters"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.yaml", "kolibri.whl"]
