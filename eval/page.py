"""The page of a report: figures, tables and examples in one HTML file without any outside request.

Reads the template beside it. Indic text stands in the page itself, never in a figure; everything is escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from data_recipes.languages import LANGUAGES
from eval.figures import (
    COLOURS,
    forgetting_figure,
    gain_figure,
    inline_svg,
    loss_figure,
    routing_figure,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MAX_SHOWN_GRAPHEMES = 240

# Name, digits after the point, whether higher is better, and what it is.
METRICS = {
    "exact_match": ("Exact match", 3, True, "share of answers that the task's checker accepts"),
    "chrf": ("chrF++", 1, True, "overlap of character and word n-grams with the expected answer, 0 to 100"),
    "bits_per_byte": ("Bits per byte", 3, False, "bits the model needs for a byte of the expected answers"),
    "script_share": (
        "Right script",
        3,
        True,
        "mean share of an answer's letters in the script of its language",
    ),
}


def render_page(
    report: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    shares: Mapping[str, tuple[np.ndarray, list[int]] | None],
    chosen: Mapping[int, Sequence[int]],
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page as text; the same arguments give the same bytes.

    Args:
        report: the body of report.json with its inputs and versions.
        examples: rows of results.json to show.
        shares: "target" and "general" -> shares [L, E] and their decoder layers, or None without rows.
        chosen: decoder layer -> expert ids.
        metrics: lines of metrics.jsonl.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"language": language_name, "words": _words, "cut": cut_text, "size": _size}
    environment.globals |= {"cells": comparison_cells, "verdict": verdict}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        metrics=METRICS,
        examples=examples,
        figures=_figures(report, shares, chosen, metrics),
        colours=COLOURS,
    )


def comparison_cells(found: Mapping[str, float], metric: str) -> dict[str, str]:
    """A comparison as text: base, tuned, difference with sign, interval, rows."""
    digits = METRICS[metric][1]
    return {
        "base": f"{found['base']:.{digits}f}",
        "tuned": f"{found['tuned']:.{digits}f}",
        "difference": _signed(found["difference"], digits),
        "interval": f"{_signed(found['low'], digits)} to {_signed(found['high'], digits)}",
        "rows": f"{found['n']:,}",
    }


def verdict(found: Mapping[str, float], metric: str) -> str:
    """`better`, `worse`, or `not clear` when the interval holds 0."""
    if found["low"] <= 0 <= found["high"]:
        return "not clear"
    return "better" if (found["low"] > 0) == METRICS[metric][2] else "worse"


def language_name(code: str) -> str:
    """English name of a language, or its code when the project does not know it."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def cut_text(text: str) -> str:
    """At most so many graphemes: cut by code points, a vowel sign would lose its letter."""
    graphemes = regex.findall(r"\X", text)
    return text if len(graphemes) <= MAX_SHOWN_GRAPHEMES else "".join(graphemes[:MAX_SHOWN_GRAPHEMES]) + "…"


def _figures(
    report: Mapping[str, Any],
    shares: Mapping[str, tuple[np.ndarray, list[int]] | None],
    chosen: Mapping[int, Sequence[int]],
    metrics: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Title, caption and SVG of each figure that has something to show."""
    by_task, by_language = report["by_task"]["exact_match"], report["by_language"]["exact_match"]
    figures = []

    def show(name: str, title: str, caption: str, figure: Any) -> None:
        svg = Markup(inline_svg(figure, name, f"{title}. {caption}"))
        figures.append({"title": title, "caption": caption, "svg": svg})

    if by_task.get("target"):
        whisker = (
            "The bar is the 95 % interval of the difference, laid at the base. The tables hold the numbers."
        )
        show("gain", "Gain by task, target rows", whisker, gain_figure(_named(by_task["target"], _words)))
        if len(by_language["target"]) > 1:
            figure = gain_figure(_named(by_language["target"], language_name))
            show("gain-language", "Gain by language, target rows", whisker, figure)
    if report["exact_match"]["general"]:
        found = {"all general rows": report["exact_match"]["general"]}
        found |= _named(by_language["general"], language_name) | _named(by_task["general"], _words)
        caption = "Rows the training was not for. Left of zero is forgotten; a bar over zero is not clear."
        show("forgetting", "Forgetting, general rows", caption, forgetting_figure(found))
    known = {role: found for role, found in shares.items() if found is not None}
    top = max((float(share_LE.max() * share_LE.shape[1]) for share_LE, _ in known.values()), default=None)
    for role, (share_LE, layers) in known.items():
        title = f"Routing of the base, {role} rows"
        caption = "Share of a layer's tokens that each expert got. A dot marks an expert that was tuned."
        show(f"routing-{role}", title, caption, routing_figure(share_LE, layers, chosen, top=top))
    show("loss", "Loss", "Of the answer's tokens only, in nats.", loss_figure(metrics))
    return figures


def _named(found: Mapping[str, Mapping[str, float]], name: Any) -> dict[str, Mapping[str, float]]:
    return {f"{name(key)} ({one['n']:,})": one for key, one in found.items()}


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
