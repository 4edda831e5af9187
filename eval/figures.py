"""The figures of the report: each function returns a matplotlib Figure, for a notebook or as inline SVG.

Labels are English only: glyph outlines do not shape Indic text, so that stays in the page. Every mark can be
told apart without colour. In the page the few colours below become CSS variables, for light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# In a notebook and on a light page, and on a dark page. No two may be equal: they are found by value.
COLOURS = {
    "ink": ("#1d2733", "#e8edf2"),
    "muted": ("#5c6874", "#a3b0bd"),
    "grid": ("#dde2e7", "#35414d"),
    "base": ("#b4530a", "#f0a868"),
    "tuned": ("#0e64b0", "#74b9f5"),
}
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
MAX_VECTOR_MARKS = 3000  # more chosen experts are drawn as pixels: the page must stay small


def gain_figure(found: Mapping[str, Mapping[str, float]], label: str = "exact match") -> Figure:
    """Base and tuned score of each slice; the bar is the 95 % interval of the difference, laid at the base.

    Args:
        found: slice name -> base, tuned, low, high (0 to 1), in the order to draw from the top.
    """
    with rc_context(STYLE):
        figure, axes = _axes(height_inches=1.1 + 0.3 * len(found))
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
        _legend_above(axes)
        return figure


def forgetting_figure(
    found: Mapping[str, Mapping[str, float]], label: str = "change of exact match"
) -> Figure:
    """Tuned minus base of each slice with its 95 % interval; left of the zero line something was forgotten.

    Args:
        found: slice name -> difference, low, high, in the order to draw from the top.
    """
    with rc_context(STYLE):
        figure, axes = _axes(height_inches=1.0 + 0.3 * len(found))
        y = np.arange(len(found))
        difference, low, high = (
            np.array([one[k] for one in found.values()]) for k in ("difference", "low", "high")
        )
        axes.axvline(0, color=INK, linewidth=1)
        axes.hlines(y, low, high, color=TUNED, linewidth=5, alpha=0.35, label="95 % interval")
        axes.plot(difference, y, "D", color=TUNED, markersize=5.5, label="tuned minus base")
        _name_rows(axes, list(found))
        reach = max(0.05, 1.15 * float(np.abs([low, high, difference]).max()))
        axes.set_xlim(-reach, reach)
        axes.set_xlabel(label)
        _legend_above(axes)
        return figure


def routing_figure(
    share_LE: np.ndarray,
    layers: Sequence[int],
    chosen: Mapping[int, Sequence[int]],
    title: str = "",
    top: float | None = None,
) -> Figure:
    """Heat map of how routers spread a group's tokens over experts; a ringed dot marks each chosen one.

    Args:
        share_LE: share of a layer's routed tokens that each expert got, [L, E]; every row sums to 1.
        layers: the decoder layer of each row, [L].
        chosen: decoder layer -> chosen expert ids.
        top: end of the colour scale, in multiples of an even share; None takes the largest value.

    Raises:
        ValueError: a row does not sum to 1, so it is no share over experts.
    """
    n_layers, n_experts = share_LE.shape
    if not np.allclose(share_LE.sum(axis=1), 1):
        raise ValueError(f"shares must sum to 1 over a layer's experts, not {share_LE.sum(axis=1)}")
    with rc_context(STYLE):
        figure, axes = _axes(height_inches=min(1.6 + 0.24 * n_layers, 9.0))
        image = axes.imshow(
            share_LE * n_experts, cmap="cividis", aspect="auto", vmin=0, vmax=top, interpolation="nearest"
        )
        marks = [(expert, row) for row, layer in enumerate(layers) for expert in chosen.get(layer, ())]
        x, y = np.array(marks, dtype=float).reshape(-1, 2).T
        # White in a black ring: seen on every colour of the map, and on paper.
        size = float(np.clip(700 / n_experts, 1.5, 16))
        axes.scatter(
            x,
            y,
            s=size,
            c="white",
            edgecolors="black",
            linewidths=0.7,
            rasterized=len(marks) > MAX_VECTOR_MARKS,
        )
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("expert")
        axes.set_ylabel("layer")
        shown = np.unique(np.linspace(0, n_layers - 1, min(n_layers, 12)).astype(int))
        axes.set_yticks(shown, [str(layers[row]) for row in shown])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.set_label("times an even share")
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
        figure, axes = _axes(height_inches=2.6)
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
        _legend_above(axes)
        return figure


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element for a page: scalable, described, with theme colours and ids of its own.

    Args:
        name: a word that no other figure of the page has; it goes in front of every id.
        description: what a reader who cannot see the figure should know.
    """
    file = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(
            file, format="svg", bbox_inches="tight", pad_inches=0.04, dpi=150, metadata=_NO_METADATA
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    for variable, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable})")
    text = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    # Without its fixed size the page decides the width.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1).strip()


_KEYS = ("base", "tuned", "low", "high")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots()


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend_above(axes: Axes) -> None:
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
