"""What an ablation shows: written from numbers, never a mean alone, told apart without colour."""

import copy
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError, read_artefact
from eval.ablate import RESULTS, ablation_figure, write_svg
from eval.ablation_table import plan_order, results_table, with_table
from finetune.config import BaseConfig
from finetune.model import load_model, model_fingerprint

TRAINED = ["selected", "random_0", "random_1", "random_2", "all", "attention_only"]


def score(difference: float, n: int) -> dict[str, Any]:
    base = 0.1
    interval = {"low": difference - 0.1, "high": difference + 0.05}
    return {"base": base, "tuned": base + difference, "difference": difference, "n": n, **interval}


def made_up() -> dict[str, Any]:
    """The body of an ablation with numbers that are told apart."""
    plans = {
        name: {
            "label": name.replace("random_", "random, draw "),
            "n_experts": 50,
            "n_experts_there_are": 160,
            "parameters": 1234,
            "bytes": 5_200_000,
            "step_time_s": 0.1234,
            "target": score(0.1 * number, 200),
            "general": score(-0.01 * number, 100),
        }
        for number, name in enumerate(TRAINED, start=1)
    }
    nothing = {"difference": 0.0, "low": 0.0, "high": 0.0, "tuned": 0.1}
    plans["none"] = {
        **plans["selected"],
        "label": "nothing (the base)",
        "step_time_s": None,
        "target": score(0.1, 200) | nothing,
        "general": score(0.1, 100) | nothing,
    }
    compared = {"other": 0.1, "selected": 0.2, "difference": 0.03, "low": -0.01, "high": 0.07, "n": 200}
    return {
        "run": "micro",
        "languages": {"target": ["ta"], "general": ["en", "hi"]},
        "model": {"model": "tiny-glm", "n_parameters": 12_000_000},
        "lora": {"rank": 16, "attention": True, "shared_experts": False},
        "training": {"steps": 600},
        "plans": plans,
        "comparisons": {
            group: dict.fromkeys(("random", *TRAINED[1:]), compared) for group in ("target", "general")
        },
    }


def test_every_score_stands_with_its_interval_and_its_number_of_rows() -> None:
    table = results_table(made_up())
    assert "held-out rows, Tamil, base `tiny-glm` (12.0 M parameters), 600 steps on the same rows" in table
    assert "n = 200 target rows, 100 general rows (English, Hindi: what must not be forgotten)" in table
    assert "LoRA on attention is trained with each of them." in table
    assert "| nothing (the base) | 0 | 0 | - | - | 0.100 | 0.100 |" in table
    cells = "0.200 (+0.100, +0.000 to +0.150) | 0.090 (-0.010, -0.110 to +0.040)"
    assert f"| selected | 50 of 160 | 1,234 | 5.2 MB | 123 ms | {cells} |" in table
    compared = "+0.030 (-0.010 to +0.070)"
    assert f"| random, mean of 3 draws | {compared} | {compared} |" in table
    assert f"| attention_only: what the experts add | {compared} | {compared} |" in table
    # The draws are the second to the fourth plan: 0.1 + 0.2, 0.3 and 0.4.
    assert "3 draws scored 0.300 to 0.500 on the target rows" in table
    assert "A small model proves the mechanics" in table


def test_the_table_says_nothing_that_is_not_so() -> None:
    plain = made_up() | {"lora": {"rank": 16, "attention": False, "shared_experts": False}}
    assert "is trained with each" not in results_table(plain)
    assert "what the experts add" not in results_table(plain)
    large = made_up() | {"model": {"model": "x", "n_parameters": 2_000_000_000}}
    assert "A small model" not in results_table(large)
    alone = copy.deepcopy(made_up())
    for plan in alone["plans"].values():
        plan["general"] = None
    del alone["comparisons"]["general"]
    table = results_table(alone)
    assert "| nothing (the base) | 0 | 0 | - | - | 0.100 | - |" in table and "general rows" not in table


def test_the_figure_marks_every_plan_by_its_shape_and_draws_its_intervals(tmp_path: Path) -> None:
    plans = made_up()["plans"]
    figure = ablation_figure(plans)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert len(marks) == 7
    points = [tuple(np.ravel(line.get_xydata())) for line in marks]
    names = plan_order(plans)
    assert points == [(plans[n]["general"]["difference"], plans[n]["target"]["difference"]) for n in names]
    assert names == ["none", *TRAINED]
    shapes = {str(line.get_marker()) for line in marks}
    assert len(shapes) == 5, "only the three draws share a mark"
    assert len(axes.collections) == 2 * 7
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "nothing (the base)",
        "selected",
        "random",
        "all",
        "attention_only",
    ]
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    write_svg(first, figure)
    write_svg(second, ablation_figure(plans))
    assert first.read_bytes() == second.read_bytes()
    assert ET.parse(first).getroot().tag.endswith("svg")


def test_a_figure_of_forgetting_needs_general_rows() -> None:
    plans = {name: plan | {"general": None} for name, plan in made_up()["plans"].items()}
    with pytest.raises(ValueError, match="no general rows"):
        ablation_figure(plans)


def test_the_table_takes_the_place_between_the_markers_and_nothing_else() -> None:
    readme = "# title\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n"
    assert with_table(readme, "new") == "# title\n<!-- results:begin -->\nnew\n<!-- results:end -->\nrest\n"


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(UserError, match="results:begin"):
        with_table("# title", "| a |")


def test_the_readme_shows_the_table_of_the_kept_results_and_these_are_of_the_base_that_ships() -> None:
    ablation = read_artefact(RESULTS / "quickstart_ablation.json", "ablation")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, results_table(ablation)) == readme
    model, _ = load_model(BaseConfig(model="tiny-glm", device="cpu"))
    assert ablation["base_fingerprint"] == model_fingerprint(model)
