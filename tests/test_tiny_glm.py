"""The base that ships is what its card says: architecture, size, scores, languages in its routing."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data_recipes.artefact import read_artefact, sha256_file
from data_recipes.corpus import INSTRUCTED
from data_recipes.languages import LANGUAGES
from eval.base_check import card, exact_match, expert_shares_by_language, routing_trace
from finetune.config import SHIPPED_MODELS, BaseConfig
from finetune.model import load_model
from finetune.moe import moe_layers

FOLDER = SHIPPED_MODELS["tiny-glm"]


def evaluation():
    return read_artefact(FOLDER / "evaluation.json", "base_evaluation")


def test_it_is_glm_in_small_and_at_most_20_m_parameters_and_40_mb():
    config = AutoConfig.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert config.model_type == "glm_moe_dsa"
    assert config.mlp_layer_types.count("dense") == 1 and config.mlp_layer_types.count("sparse") >= 5
    assert config.n_routed_experts >= 32 and config.num_experts_per_tok == 4 and config.n_shared_experts == 1
    assert {"full", "shared"} == set(config.indexer_types)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 20_000_000
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40_000_000


def test_its_tokenizer_keeps_the_text_of_every_language():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == 8192
    for language in LANGUAGES.values():
        text = f"{language.native_name}, 14 ९ ௧ ১"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_its_scores_are_of_this_very_model_and_its_card_is_written_from_them():
    found = evaluation()
    assert found["inputs"]["model"] == sha256_file(FOLDER / "model.safetensors")
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == card(manifest, found)
    assert manifest["loss_curve"][-1]["step"] == manifest["config"]["steps"] - 1


def test_it_knows_the_tasks_in_english_and_hindi():
    languages = evaluation()["languages"]
    assert all(languages[code]["all"]["exact_match"] >= 0.80 for code in ("en", "hi"))


def test_it_does_not_know_the_tasks_where_it_saw_no_instruction():
    languages = evaluation()["languages"]
    untaught = [code for code in languages if code not in INSTRUCTED]
    assert len(untaught) >= 4
    assert all(languages[code]["own_words"]["exact_match"] <= 0.20 for code in untaught)


def test_languages_leave_a_trace_in_at_least_two_layers():
    trace = evaluation()["routing_trace"]
    assert sum(layer["least"] >= 0.25 for layer in trace.values()) >= 2


@pytest.mark.slow
def test_the_recorded_scores_and_trace_can_be_measured_again():
    model, tokenizer = load_model(BaseConfig(model="tiny-glm", device="cpu"))
    for code in ("en", "ta"):
        again, recorded = (
            exact_match(model, tokenizer, code, 30)["all"],
            evaluation()["languages"][code]["all"],
        )
        assert again["n"] == recorded["n"]
        # Greedy answers may turn on the last bit of a sum, and that on the machine.
        assert abs(again["exact_match"] - recorded["exact_match"]) <= 0.01
    # Without the Kolibri wheel: Django's held-out sentences only, which come with the installation.
    shares = expert_shares_by_language(model, tokenizer, None)
    trace = routing_trace(shares, [layer.index for layer in moe_layers(model)])
    assert sum(layer["least"] >= 0.25 for layer in trace.values()) >= 2
