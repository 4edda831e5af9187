"""The table of the controls: written from numbers, never a mean alone, put between the README's markers."""

from pathlib import Path

import pytest

from data_recipes.artefact import UserError, read_artefact
from eval.controls import RESULTS, difference, results_table, with_table
from finetune.config import BaseConfig
from finetune.model import load_model, model_fingerprint

SCORE = {"base": 0.1, "tuned": 0.6, "difference": 0.5, "low": 0.4, "high": 0.55, "n": 200}
PLAN = {
    "n_experts": 50,
    "n_experts_there_are": 160,
    "n_trainable": 1234,
    "steps": 250,
    "target": SCORE,
    "general": SCORE,
}
CONTROLS = {
    "languages": ["ta"],
    "trains_attention": True,
    "model": {"model": "tiny-glm", "n_parameters": 12_000_000},
    "plans": {"chosen for the language": PLAN, "all experts": {**PLAN, "n_experts": 160}},
    "chosen_minus_random": {"difference": 0.03, "low": -0.01, "high": 0.07},
}


def test_every_score_stands_with_its_interval_and_its_number_of_rows():
    table = results_table(CONTROLS)
    assert "LoRA on attention is trained with each of them" in table
    assert "attention" not in results_table({**CONTROLS, "trains_attention": False})
    assert "Tamil" in table and "n = 200 target rows" in table
    cell = "0.600 (+0.500, +0.400 to +0.550)"
    assert f"| chosen for the language | 50 of 160 | 1,234 | {cell} | {cell} |" in table
    assert "| nothing (the base) | 0 | 0 | 0.100 | 0.100 |" in table
    assert "+0.030 (-0.010 to +0.070)" in table


def test_the_readme_shows_the_table_of_the_kept_results_and_these_are_of_the_base_that_ships():
    path = RESULTS / "quickstart_controls.json"
    controls = read_artefact(path, "controls")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, results_table(controls)) == readme
    model, _ = load_model(BaseConfig(model="tiny-glm", device="cpu"))
    assert controls["base_fingerprint"] == model_fingerprint(model)


def test_a_difference_needs_the_same_rows():
    found = difference({"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 1.0}, 100, 0)
    assert found["difference"] == 0.5 and found["n"] == 2
    with pytest.raises(UserError, match="different rows"):
        difference({"a": 0.0}, {"b": 0.0}, 100, 0)


def test_the_table_takes_the_place_between_the_markers_and_nothing_else():
    readme = "# title\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n"
    assert with_table(readme, "new") == "# title\n<!-- results:begin -->\nnew\n<!-- results:end -->\nrest\n"


def test_a_readme_without_markers_is_refused():
    with pytest.raises(UserError, match="results:begin"):
        with_table("# title", "| a |")
