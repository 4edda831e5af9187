"""What a bar and a child's log leave in a notebook: one line each, of their last state."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from data_recipes.progress import progress_bar

ROOT = Path(__file__).parents[1]
BAR = """
from data_recipes.progress import progress_bar
for row in progress_bar(range(3), desc="rows"):
    pass
"""
CHILD = """
import os, sys
from finetune.launch import run_and_show
code = "import sys; print('begin'); print('half', end=chr(13)); print('fülle'); sys.exit(7)"
print(run_and_show([sys.executable, "-c", code], dict(os.environ, PYTHONIOENCODING="utf-8")))
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[Any]]:
    """Of each cell, executed in a kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (BAR, CHILD)])
    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.mark.slow
def test_a_bar_in_a_notebook_leaves_its_last_state_as_text(outputs: list[list[Any]]):
    (output,) = outputs[0]
    assert list(output.data) == ["text/plain"]
    assert output.data["text/plain"].startswith("rows: 100%") and " 3/3 [" in output.data["text/plain"]


@pytest.mark.slow
def test_a_childs_log_comes_as_it_is_with_what_overwrites_a_line(outputs: list[list[Any]]):
    assert "".join(output.text for output in outputs[1]) == "begin\nhalf\rfülle\n7\n"


def test_a_bar_in_a_file_is_told_at_its_end_only(capsys: pytest.CaptureFixture[str]):
    for _ in progress_bar(range(1000), desc="rows"):
        pass
    lines = capsys.readouterr().err.split("\r")
    assert len(lines) <= 4 and "1000/1000" in lines[-1]


def test_a_bar_that_is_switched_off_says_nothing(capsys: pytest.CaptureFixture[str]):
    assert list(progress_bar(range(3), desc="rows", disable=True)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
