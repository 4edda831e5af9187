"""The figures of the report: each function returns a matplotlib Figure, for a notebook or as inline SVG.

Labels are English only: glyph outlines do not shape Indic text, so that stays in the page. Every mark can be
told apart without colour. In the page the few colours below become CSS variables, for light and dark.
"""

import base64
import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from data_recipes.languages import LANGUAGES
from data_recipes.publishing.page_frame import COLOURS

INK, MUTED, GRID, BASE, TUNED = (light for light, _ in COLOURS.values())
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "path",  # the same picture whatever fonts the reader has
    "svg.hashsalt": "local-experts",  # the same bytes each time
}
WIDTH_INCHES = 4.3  # narrow, so that letters stay readable when a phone shrinks it to 4 inches or less
N_LOSS_POINTS = 300  # more would not be seen


def gain_figure(found: Mapping[str, Mapping[str, float]], label: str = "exact match") -> Figure:
    """Base and tuned score of each slice; the bar is the 95 % interval of the difference, laid at the base.

    Args:
        found: slice name -> base, tuned, low, high (0 to 1), in the order to draw from the top.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=1.1 + 0.3 * len(found))
        y = np.arange(len(found))
        base, tuned, low, high = (np.array([one[key] for one in found.values()]) for key in _KEYS)
        axes.hlines(y, base + low, base + high, color=TUNED, linewidth=5, alpha=0.35, label="95 % interval")
        axes.plot(
            base, y, "o", color=BASE, markerfacecolor="none", markersize=7, markeredgewidth=1.6, label="base"
        )
        axes.plot(tuned, y, "D", color=TUNED, markersize=5.5, label="tuned")
        _name_rows(axes, list(found))
        axes.set_xlim(-0.04, 1.04)
        axes.set_xlabel(label)
        legend_above(axes)
        return figure


def forgetting_figure(
    found: Mapping[str, Mapping[str, float]], label: str = "change of exact match"
) -> Figure:
    """Tuned minus base of each slice with its 95 % interval; left of the zero line something was forgotten.

    Args:
        found: slice name -> difference, low, high, in the order to draw from the top.
    """
    return change_figure({"tuned minus base": list(found)}, found, label)


def change_figure(
    groups: Mapping[str, Collection[str]],
    found: Mapping[str, Mapping[str, float]],
    label: str = "change of exact match",
) -> Figure:
    """Tuned minus base of each slice with its 95 % interval, each group of slices with a mark of its own.

    Args:
        groups: name of a group (at most two) -> names of its slices.
        found: slice name -> difference, low, high, in the order to draw from the top.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=1.0 + 0.3 * len(found))
        y = np.arange(len(found))
        difference, low, high = (
            np.array([one[k] for one in found.values()]) for k in ("difference", "low", "high")
        )
        axes.axvline(0, color=INK, linewidth=1)
        axes.hlines(y, low, high, color=TUNED, linewidth=5, alpha=0.35, label="95 % interval")
        marks: tuple[dict[str, Any], ...] = (
            {"marker": "D", "color": TUNED, "markersize": 5.5},
            {
                "marker": "o",
                "color": BASE,
                "markersize": 7,
                "markerfacecolor": "none",
                "markeredgewidth": 1.6,
            },
        )
        for (name, members), mark in zip(groups.items(), marks, strict=False):
            of_group = np.array([slice_name in members for slice_name in found])
            axes.plot(difference[of_group], y[of_group], linestyle="none", label=name, **mark)
        _name_rows(axes, list(found))
        reach = max(0.05, 1.15 * float(np.abs([low, high, difference]).max()))
        axes.set_xlim(-reach, reach)
        axes.set_xlabel(label)
        legend_above(axes)
        return figure


def loss_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss, and every `eval_loss...` by name, over the steps, in nats per answer token.

    Args:
        metrics: the lines of metrics.jsonl.

    Raises:
        ValueError: no line holds a loss.
    """
    train = np.array([(line["step"], line["loss"]) for line in metrics if "loss" in line], dtype=float)
    if len(train) == 0:
        raise ValueError("no line of the training metrics holds a loss")
    names = sorted({name for line in metrics for name in line if name.startswith("eval_loss")}, reverse=True)
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=2.6)
        groups = np.array_split(train, min(len(train), N_LOSS_POINTS))
        steps, losses = np.array([group.mean(axis=0) for group in groups]).T
        axes.plot(steps, losses, color=MUTED, linewidth=1, alpha=0.8, label="training")
        for name, marker, colour in zip(names, "Dos^v", (TUNED, BASE, INK, MUTED, GRID), strict=False):
            points = np.array([(line["step"], line[name]) for line in metrics if name in line], dtype=float)
            label = f"held out {name.removeprefix('eval_loss').replace('_', ' ').strip()}".strip()
            axes.plot(*points.T, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        legend_above(axes)
        return figure


def cost_figure(costs: Mapping[str, float], label: str) -> Figure:
    """What each contestant's answers cost: a bar each, with its number.

    Args:
        costs: contestant -> seconds or money, in the order to draw from the top.
        label: the unit.
    """
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=0.8 + 0.3 * len(costs))
        y, values = np.arange(len(costs)), np.array(list(costs.values()), dtype=float)
        axes.barh(y, values, height=0.55, color=TUNED)
        for place, value in zip(y, values, strict=True):
            axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center")
        _name_rows(axes, list(costs))
        axes.set_xlim(0, 1.2 * max(values.max(), 1e-9))
        axes.set_xlabel(label)
        return figure


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for a page: scalable, described, with theme colours and ids of its own.

    Args:
        name: a word that no other figure of the page has; it goes in front of every id.
        description: what a reader who cannot see the figure should know.
    """
    for image in (image for axes in figure.axes for image in axes.images):
        image.set_interpolation("none")  # one pixel a cell: small, and the browser enlarges it without blur
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(
            file, format="svg", bbox_inches="tight", pad_inches=0.04, dpi=150, metadata=_NO_METADATA
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"(?<=base64,)[^\"]+", lambda found: _palette_png(found[0]), svg)
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|^ +", "", svg, flags=re.DOTALL | re.MULTILINE)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable})")
    text = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    # Without its fixed size the page decides the width.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1).strip()


def small_png(figure: Figure, dpi: int = 72, n_colours: int = 32) -> bytes:
    """The figure on white as a PNG of few colours, for `IPython.display.Image`: a third of the usual bytes.

    A figure that no pyplot made is shown by IPython as its name only, unless `%matplotlib inline` was run.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.04, dpi=dpi, facecolor="white")
    with Image.open(file) as drawn:
        picture = drawn.convert("RGB").quantize(n_colours, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def language_name(code: str) -> str:
    """English name of a language by its code or tag (ur, ks-Deva), or that when it is not known."""
    language, _, script = code.partition("-")
    if language not in LANGUAGES:
        return code
    return f"{LANGUAGES[language].name} ({script})" if script else LANGUAGES[language].name


_KEYS = ("base", "tuned", "low", "high")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _palette_png(encoded: str) -> str:
    """A PNG (base64) of at most 256 colours with a palette: the same pixels in a quarter of the bytes."""
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, index = np.unique(rgba.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256:
        return encoded
    image = Image.fromarray(index.reshape(rgba.shape[:2]).astype(np.uint8))
    image.putpalette(colours.tobytes(), "RGBA")
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def new_axes(height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure of the page's width; call it inside `rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def legend_above(axes: Axes) -> None:
    """One line of labels over the axes, out of the data's way."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        borderaxespad=0.2,
        handlelength=1.5,
        handletextpad=0.4,
        columnspacing=1.0,
        fontsize=8,
    )
