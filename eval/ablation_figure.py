"""The figure of an ablation: what each plan gained against what it forgot, for a notebook or as an SVG file.

Reads the entries of ablation.json; `write_svg` writes one file. Every plan has a mark of its own, so that it
can be told without colour.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from data_recipes.artefact import write_text
from eval.ablation_table import plan_order
from eval.figures import BASE, GRID, INK, MUTED, STYLE, TUNED, WIDTH_INCHES

# Mark, colour, and whether it is filled.
MARKS: dict[str, tuple[str, str, bool]] = {
    "none": ("X", INK, True),
    "selected": ("D", TUNED, True),
    "random": ("o", MUTED, False),
    "all": ("s", BASE, True),
    "attention_only": ("^", INK, False),
}


def ablation_figure(plans: Mapping[str, Mapping[str, Any]], label: str = "exact match") -> Figure:
    """Target gain of each plan over its change on general rows; lines are the 95 % intervals over rows.

    Args:
        plans: name -> label, target and general (difference, low, high), as in ablation.json.

    Raises:
        ValueError: there are no general rows, so that nothing could be forgotten.
    """
    if any(plan["general"] is None for plan in plans.values()):
        raise ValueError("a plan has no general rows: there is no forgetting to draw the gain against")
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=GRID, linewidth=1)
        axes.axhline(0, color=GRID, linewidth=1)
        for name in plan_order(plans):
            plan, kind = plans[name], "random" if name.startswith("random_") else name
            marker, colour, is_filled = MARKS[kind]
            x, y = plan["general"], plan["target"]
            # Not errorbar: it refuses an interval that rounding put a hair beside its point.
            look: Any = {"color": colour, "linewidth": 1.1, "linestyle": ":" if kind == "random" else "-"}
            axes.hlines(y["difference"], x["low"], x["high"], **look)
            axes.vlines(x["difference"], y["low"], y["high"], **look)
            axes.plot(
                x["difference"],
                y["difference"],
                marker,
                color=colour,
                markerfacecolor=colour if is_filled else "white",
                markeredgewidth=1.4,
                markersize=7,
                label=plan["label"].partition(", draw")[0] if name in ("random_0", kind) else None,
            )
        axes.set_xlabel(f"change of {label} on general rows (left: forgotten)")
        axes.set_ylabel(f"gain of {label} on target rows")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, fontsize=8)
        return figure


def write_svg(path: Path, figure: Figure) -> None:
    """Write a figure as an SVG file on white, with the same bytes each time."""
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(
            file,
            format="svg",
            bbox_inches="tight",
            facecolor="white",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    write_text(path, file.getvalue())
