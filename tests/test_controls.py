"""The table of the README: written from the numbers that were measured, and never apart from them."""

import copy
from pathlib import Path

import pytest

from data_recipes.artefact import UserError, read_artefact
from eval.controls import RESULTS, difference, results_table, with_table

README = Path(__file__).parent.parent / "README.md"


def controls():
    return read_artefact(RESULTS / "quickstart_controls.json", "controls")


def test_the_readme_holds_the_table_of_the_measured_results():
    text = README.read_text(encoding="utf-8")
    assert with_table(text, results_table(controls())) == text


def test_the_controls_are_trained_at_the_same_budget_and_compared_on_the_same_rows():
    found = controls()["plans"]
    chosen, random, every = found.values()
    assert chosen["n_experts"] == random["n_experts"] < every["n_experts"] == every["n_experts_there_are"]
    assert chosen["n_trainable"] == random["n_trainable"] < every["n_trainable"]
    assert (
        len(
            {
                (plan["target"]["n"], plan["target"]["base"], plan["general"]["base"])
                for plan in found.values()
            }
        )
        == 1
    )


def test_the_chosen_experts_gain_as_the_issue_asks():
    chosen = next(iter(controls()["plans"].values()))
    assert chosen["target"]["difference"] >= 0.40 and chosen["target"]["low"] > 0


def test_the_table_changes_with_the_numbers():
    changed = copy.deepcopy(controls())
    next(iter(changed["plans"].values()))["target"]["tuned"] = 0.123
    assert results_table(changed) != results_table(controls()) and "0.123" in results_table(changed)


def test_a_difference_needs_the_same_rows():
    found = difference({"a": 0.0, "b": 1.0}, {"b": 1.0, "a": 1.0}, 100, 0)
    assert found["difference"] == 0.5 and found["n"] == 2
    with pytest.raises(UserError, match="different rows"):
        difference({"a": 0.0}, {"b": 0.0}, 100, 0)


def test_a_readme_without_markers_is_refused():
    with pytest.raises(UserError, match="results:begin"):
        with_table("# title", "| a |")
