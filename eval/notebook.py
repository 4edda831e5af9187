"""What the cells of the notebooks share: the folder they work in, small pictures, links, and tables of text.

Reads and writes no file.
"""

import html
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from data_recipes.artefact import UserError
from eval.figures import small_png
from eval.page import comparison_cells


def enter_project() -> None:
    """Make the project's folder the working folder: paths in configs and recipes are relative to it.

    Raises:
        UserError: no folder above this one holds the project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "configs" / "runs").is_dir() and (folder / "notebooks").is_dir():
            os.chdir(folder)
            return
    raise UserError(f"{here} is not inside the project: open the notebook in its notebooks/ folder")


def show(figure: Figure) -> None:
    """Display a figure as a small picture on white, which a dark page does not swallow."""
    display(Image(small_png(figure)))


def link(path: Path | str, text: str) -> HTML:
    """A relative link to a file of the project: no path of the machine stands in the notebook."""
    place = html.escape(Path(path).as_posix())
    return HTML(f'{html.escape(text)}: <a href="../{place}" target="_blank">{place}</a>')


def text_table(rows: Iterable[Mapping[str, Any]]) -> HTML:
    """Rows of one set of columns as a table whose texts wrap and begin at the left."""
    rows = list(rows)
    columns = list(rows[0]) if rows else []
    head = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in columns)
    lines = "".join(f"<tr>{''.join(_cell(row[name]) for name in columns)}</tr>" for row in rows)
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>")


def comparison_row(found: Mapping[str, Any], metric: str) -> dict[str, str]:
    """A comparison of base and tuned as the cells of a line, as the report shows it."""
    cells = comparison_cells(found, metric)
    return {"base": cells["base"], "tuned": cells["other"]} | {
        name: cells[name] for name in ("difference", "interval", "p", "verdict", "rows")
    }


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
    return f'<td style="text-align:left; white-space:pre-wrap; max-width:26em">{html.escape(text)}</td>'
