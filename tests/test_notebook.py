"""What notebooks share: the folder, tables and links; a slider that changes the plan, and its page."""

import ast
import sys
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import pytest
from small_profiles import of_languages

from data_recipes.artefact import UserError
from eval import share_slider as module
from eval.notebook import enter_project, link, text_table
from eval.share_slider import WIDGET_VIEW, plan_numbers, share_slider
from finetune.config import SelectConfig
from finetune.selecting.plan import build_plan

ROOT = Path(__file__).parents[1]
# Of Tamil, expert 2 has 6 of 8 in the first layer, and expert 1 all in the second.
PROFILE = of_languages({"ta": [[0, 0, 6, 2], [0, 4, 0, 0]], "en": [[2, 1, 1, 0], [1, 1, 1, 1]]})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(module, "display", lambda value, raw=False: found.append(value))
    return found


def test_a_notebook_works_in_the_folder_of_the_project(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT / "notebooks")
    enter_project()
    assert Path.cwd() == ROOT
    enter_project()
    assert Path.cwd() == ROOT


def test_outside_of_the_project_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="is not inside the project: open the notebook in its notebooks/ folder"
    ):
        enter_project()


def test_texts_in_a_table_are_shown_and_never_read_as_html():
    page = text_table([{"question": "a < b?", "rows": 1234}, {"question": "<b>no</b>", "rows": None}]).data
    assert isinstance(page, str)
    assert "a &lt; b?" in page and "&lt;b&gt;no&lt;/b&gt;" in page and "<b>" not in page
    assert ">1,234</td>" in page and "None" not in page


def test_a_link_names_no_folder_of_the_machine():
    assert link(Path("runs/a b/report.html"), "The report").data == (
        'The report: <a href="../runs/a b/report.html" target="_blank">runs/a b/report.html</a>'
    )


def test_numbers_of_a_plan_are_those_worked_out_by_hand():
    plan = build_plan(PROFILE, SelectConfig(share=0.5))
    # One expert a layer: 100 and 1000 parameters a rank. Tamil 6/8 and 1; English 1/4 and 1/4.
    assert plan_numbers(plan, rank=4) == {
        "p": "0.5",
        "experts": "2 of 8",
        "LoRA parameters": "4,400",
        "target": "0.88",
        "general": "0.25",
    }


def test_moving_the_slider_changes_the_plan_below_it(shown: list[Any]):
    slider, page = share_slider(PROFILE, SelectConfig(share=0.5), 4, [0.5, 0.9]).children
    assert isinstance(slider, ipywidgets.SelectionSlider)
    before = page.value
    assert "<b>2 of 8</b>" in before and "<span>3 of 8</span>" in before and "p = 0.5" in before
    slider.value = 0.9
    assert "<b>3 of 8</b>" in page.value and "<span>2 of 8</span>" in page.value and "p = 0.9" in page.value
    (bundle,) = shown
    assert bundle["text/html"] == before  # the page of the first p, for what cannot show a widget
    assert bundle[WIDGET_VIEW]["model_id"]


def test_without_widgets_the_page_of_the_first_p_stands_there(
    shown: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert share_slider(PROFILE, SelectConfig(share=0.9), 4, [0.5]) is None
    (page,) = shown
    assert "<span>2 of 8</span>" in page.data
    assert "<b>3 of 8</b>" in page.data and "data:image/png;base64," in page.data


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_has_one_cell_of_parameters_with_the_model_and_ends_with_its_claims(path: Path):
    notebook: Any = nbformat.read(path, as_version=4)
    first, second, *_, last = notebook.cells
    assert first.cell_type == "markdown"
    assert "**What you will see.**" in first.source and "**How long, on what.**" in first.source
    assignments = ast.parse(second.source).body
    assert all(isinstance(one, ast.Assign) for one in assignments)
    names = [ast.unparse(one).split(" = ")[0] for one in assignments]
    assert names == [name.upper() for name in names] and ast.unparse(assignments[0]) == "MODEL = 'tiny-glm'"
    assert "zai-org/GLM-5.2" in second.source
    assert any(isinstance(one, ast.Assert) for one in ast.walk(ast.parse(last.source)))
    assert "widgets" not in notebook.metadata  # without a kernel they would say nothing, or an error
