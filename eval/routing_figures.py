"""Pictures of routing, each a function from a `Profile` (and a plan) to a matplotlib Figure.

Heat maps of experts by layer, the difference between target and general languages, how few experts carry how
much, and which languages are routed alike. Everything can be read in grey: both colour scales get lighter
throughout, so sign and size show without hue. The measures behind them are in `eval/language_routing.py`.

Legend: N languages, L MoE layers, E experts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from data_recipes.artefact import UserError
from eval.figures import (
    BASE,
    GRID,
    INK,
    MUTED,
    STYLE,
    TUNED,
    WIDTH_INCHES,
    language_name,
    legend_above,
    new_axes,
)
from eval.language_routing import (
    average_linkage,
    carried_by_hottest,
    experts_of,
    language_similarity,
    resample_distance,
    routed_shares,
)
from finetune.profiling.profile import Kinds, Profile

N_COLOURS = 15  # odd: zero has a colour of its own; below 16 a pixel takes half a byte in the page
SHARES: Colormap = colormaps["cividis"].resampled(N_COLOURS)
# Dark blue is less, mid grey none, light yellow more: lightness rises all the way, so grey keeps the sign.
DIFFERENCES = LinearSegmentedColormap.from_list("less_more", ["#00306f", "#848484", "#ffe36b"], N=N_COLOURS)
SCALE_PERCENTILE = 99.5  # of all values; a few hot experts would leave the rest in the dark
MIN_LANGUAGES = 3  # of a tree
# Each mark has black and white, so it is seen on every colour of the maps and on paper.
MARK_CELL = 7  # pixels of a cell's height: five of the mark and a margin
MARKS = {
    "chosen": (" bbb ", "bwwwb", "bwwwb", "bwwwb", " bbb "),
    "chosen, borderline": (" bbb ", "bwwwb", "bwbwb", "bwwwb", " bbb "),
    "left out, borderline": (" www ", "wbbbw", "wbbbw", "wbbbw", " www "),
}
TIGHT: dict[str, Any] = {
    "handlelength": 1.2,
    "handletextpad": 0.3,
    "columnspacing": 1.0,
    "borderaxespad": 0.2,
}
_PIXELS = {" ": (0, 0, 0, 0), "b": (0, 0, 0, 255), "w": (255, 255, 255, 255)}


def routing_figure(
    profile: Profile,
    languages: Sequence[str],
    plan: Mapping[str, Any] | None = None,
    title: str = "",
    kinds: Kinds | None = None,
) -> Figure:
    """Heat map of how routers spread the tokens of `languages` over experts, in multiples of an even share.

    Layers run to the right, experts down. A plan's chosen and borderline experts are marked. All maps of one
    profile have one colour scale. A layer that no token reached is hatched.

    Raises:
        UserError: the profile has no such language or kind of token.
    """
    n_experts = profile.head["n_experts"]
    each = [routed_shares(profile, [name], kinds) * n_experts for name in profile.languages()]
    top = float(np.nanpercentile(each, SCALE_PERCENTILE))
    value_LE = routed_shares(profile, languages, kinds) * n_experts
    label = "times an even share"
    return _heat_map(value_LE, profile, plan, title, SHARES, (0.0, top), label)


def languages_figure(profile: Profile, n_layers: int = 5, kinds: Kinds | None = None) -> Figure:
    """Which language uses which expert: a strip of languages by experts for each of a few layers.

    Values and colours are those of `routing_figure`; `n_layers` layers at most are spread
    evenly over the model.
    """
    names, n_experts = profile.languages(), profile.head["n_experts"]
    value_NLE = np.stack([routed_shares(profile, [name], kinds) * n_experts for name in names])
    top = float(np.nanpercentile(value_NLE, SCALE_PERCENTILE))
    n_shown = min(n_layers, len(profile.layers))
    rows = np.linspace(0, len(profile.layers) - 1, n_shown).round().astype(int).tolist()
    with rc_context(STYLE):
        height_inches = 0.8 + n_shown * (0.25 + 0.17 * len(names))
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        panels = figure.subplots(n_shown, sharex=True, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            image = axes.imshow(value_NLE[:, row], cmap=SHARES, aspect="auto", vmin=0.0, vmax=top)
            axes.set_yticks(range(len(names)), [language_name(name) for name in names])
            axes.tick_params(axis="y", length=0)
            axes.set_title(f"layer {profile.layers[row]}", loc="left", fontsize=8)
        panels[-1].set_xlabel("expert")
        bar = figure.colorbar(image, ax=panels, pad=0.02, extend="max", extendfrac=0.02)
        bar.set_label("times an even share")
        return figure


def difference_figure(
    profile: Profile, plan: Mapping[str, Any] | None = None, title: str = "", kinds: Kinds | None = None
) -> Figure:
    """Heat map of the target's share minus the general languages', in multiples of an even share.

    Zero is mid grey and the scale is symmetric; lighter is used more by the target, darker less.

    Raises:
        UserError: the profile has no target or no general language.
    """
    target_LE, general_LE = _both_roles(profile, kinds)
    value_LE = (target_LE - general_LE) * profile.head["n_experts"]
    reach = float(np.nanpercentile(np.abs(value_LE), SCALE_PERCENTILE)) or 1.0
    label = "target minus general, times an even share"
    return _heat_map(value_LE, profile, plan, title, DIFFERENCES, (-reach, reach), label)


def update_figure(
    size_LE: np.ndarray, profile: Profile, plan: Mapping[str, Any] | None = None, title: str = ""
) -> Figure:
    """Heat map of how much training added to each expert, as an L2 norm; a plan's experts are marked."""
    top = float(size_LE.max()) or 1.0
    return _heat_map(size_LE, profile, plan, title, SHARES, (0.0, top), "size of the update (L2 norm)")


def coverage_figure(profile: Profile, plan: Mapping[str, Any], kinds: Kinds | None = None) -> Figure:
    """Share of routed tokens on the n experts of a layer that the target uses most, and the plan's points.

    Lines are means over layers, bands reach from the lowest to the highest layer. The general line is of the
    same experts: what training them touches. The plan's points are its mean number of experts a layer and
    what these carry.

    Raises:
        UserError: the profile has no target or no general language.
    """
    target_LE, general_LE = _both_roles(profile, kinds)
    chosen = experts_of(plan, "experts", profile)
    reached = [row for row in range(len(chosen)) if np.isfinite(target_LE[row] + general_LE[row]).all()]
    n_experts = profile.head["n_experts"]
    n_chosen = float(np.mean([len(chosen[row]) for row in reached]))
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=3.2)
        n = np.arange(n_experts + 1)
        axes.plot(n, n / n_experts, ":", color=MUTED, linewidth=1, label="even routing")
        for name, share_LE, colour, style, marker in (
            ("target", target_LE, TUNED, "-", "D"),
            ("general", general_LE, BASE, "--", "o"),
        ):
            carried = carried_by_hottest(target_LE[reached], share_LE[reached])
            axes.fill_between(
                n, carried.min(axis=0), carried.max(axis=0), color=colour, alpha=0.18, linewidth=0
            )
            axes.plot(n, carried.mean(axis=0), style, color=colour, linewidth=1.6, label=name)
            covered = float(np.mean([share_LE[row, chosen[row]].sum() for row in reached]))
            axes.plot(
                [n_chosen],
                [covered],
                marker,
                color=colour,
                markersize=7,
                markeredgecolor=INK,
                linestyle="none",
                label=f"plan, {name}: {covered:.2f}",
            )
        axes.set_xlim(0, n_experts)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"hottest experts of a layer (the plan: {n_chosen:.1f} of {n_experts})")
        axes.set_ylabel("share of routed tokens")
        axes.grid(color=GRID, linewidth=0.8)
        axes.legend(loc="lower right", fontsize=8)
        return figure


def similarity_figure(profile: Profile, kinds: Kinds | None = None) -> Figure:
    """Tree of languages by routing: two branches join where their mean total variation over layers stands.

    The bar at a language reaches as far as two resamples of its own rows are apart, so what joins inside it
    may be noise. Under three languages there is no tree: the figure says so and gives the distance.

    Raises:
        UserError: no layer was reached by all languages.
    """
    names, similarity_NN = language_similarity(profile, kinds)
    distance_NN = 1 - similarity_NN
    if len(names) < MIN_LANGUAGES:
        return _too_few(names, distance_NN)
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=1.0 + 0.2 * len(names))
        leaves = _draw_tree(axes, average_linkage(distance_NN))
        shown = [names[leaf] for leaf in leaves]
        if kinds in (None, profile.head["kinds"]):
            noise = [resample_distance(profile, name) or 0.0 for name in shown]
            label = "two resamples of its own rows"
            axes.barh(range(len(shown)), noise, height=0.5, color=MUTED, alpha=0.45, label=label, zorder=1)
            legend_above(axes)
        targets = profile.languages("target")
        labels = [language_name(name) + (" (target)" if name in targets else "") for name in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("total variation, mean over layers (0 same, 1 disjoint)")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        return figure


def _draw_tree(axes: Axes, merges: np.ndarray) -> list[int]:
    """Draw the brackets of `average_linkage`, distance to the right; the leaves from top to bottom."""
    n = len(merges) + 1
    leaves: dict[int, list[int]] = {i: [i] for i in range(n)}
    for row, (a, b) in enumerate(merges[:, :2].astype(int).tolist()):
        leaves[n + row] = leaves[a] + leaves[b]
    order = leaves[2 * n - 2]
    place = {leaf: (0.0, float(order.index(leaf))) for leaf in order}
    for row, (a, b, distance, _) in enumerate(merges.tolist()):
        (x_a, y_a), (x_b, y_b) = place[int(a)], place[int(b)]
        axes.plot([x_a, distance, distance, x_b], [y_a, y_a, y_b, y_b], color=INK, linewidth=1.3, zorder=3)
        place[n + row] = (distance, (y_a + y_b) / 2)
    return order


def _too_few(names: Sequence[str], distance_NN: np.ndarray) -> Figure:
    found = " and ".join(language_name(name) for name in names)
    text = f"No tree: the profile holds {found} only, a tree needs {MIN_LANGUAGES} languages."
    if len(names) > 1:
        text += f"\nTheir mean total variation of routing is {distance_NN[0, 1]:.2f}."
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches=0.6)
        axes.set_axis_off()
        axes.text(0, 0.5, text, va="center", wrap=True)
        return figure


def _both_roles(profile: Profile, kinds: Kinds | None) -> tuple[np.ndarray, np.ndarray]:
    for role in ("target", "general"):
        if not profile.languages(role):
            found = ", ".join(f"{name} ({other})" for name, other in profile.head["roles"].items())
            raise UserError(f"the profile has no {role} language (it has {found}): add {role} rows")
    target, general = (profile.languages(role) for role in ("target", "general"))
    return routed_shares(profile, target, kinds), routed_shares(profile, general, kinds)


def _heat_map(
    value_LE: np.ndarray,
    profile: Profile,
    plan: Mapping[str, Any] | None,
    title: str,
    colours: Colormap,
    ends: tuple[float, float],
    label: str,
) -> Figure:
    """Experts run down: a model has more experts than layers, and a page is higher than wide."""
    n_layers, n_experts = value_LE.shape
    height_inches = float(np.clip(1.2 + 0.09 * n_experts, 2.4, 9.0))
    with rc_context(STYLE):
        figure, axes = new_axes(height_inches)
        image = axes.imshow(value_LE.T, cmap=colours, aspect="auto", vmin=ends[0], vmax=ends[1])
        if not np.isfinite(value_LE).all():
            axes.patch.set(hatch="////", edgecolor=MUTED)
        shown = range(0, n_layers, math.ceil(n_layers / 12))
        axes.set_xticks(shown, [str(profile.layers[row]) for row in shown])
        axes.set_yticks(range(0, n_experts, max(1, n_experts // 8)))
        axes.set_xlabel("layer")
        axes.set_ylabel("expert")
        low, high = np.nanmin(value_LE) < ends[0], np.nanmax(value_LE) > ends[1]
        extend = ("neither", "min", "max", "both")[int(low) + 2 * int(high)]
        bar = figure.colorbar(
            image, ax=axes, pad=0.02, aspect=6 * height_inches, extend=extend, extendfrac=0.02
        )
        bar.set_label(label)
        axes.set_title(title, loc="left", fontsize=9)
        if plan is not None:
            _mark(axes, profile, plan)
        return figure


def _mark(axes: Axes, profile: Profile, plan: Mapping[str, Any]) -> None:
    """Lay a mark over the cells of chosen and borderline experts, and name the marks below the map.

    They are one picture of a few pixels a cell: thousands of drawn shapes would make a large page.
    """
    n_layers, n_experts = len(profile.layers), profile.head["n_experts"]
    chosen, borderline = (
        {(expert, row) for row, ids in enumerate(experts_of(plan, key, profile)) for expert in ids}
        for key in ("experts", "borderline")
    )
    found = (chosen - borderline, chosen & borderline, borderline - chosen)
    if not any(found):
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    aspect = 0.7 * figure.get_figwidth() / n_layers / ((figure.get_figheight() - 1) / n_experts)
    wide = max(MARK_CELL, round(MARK_CELL * aspect))  # so that the pixels are about square on the page
    left = (wide - 5) // 2
    pixels = np.zeros((n_experts, MARK_CELL, n_layers, wide, 4), dtype=np.uint8)
    for cells, drawn in zip(found, MARKS.values(), strict=True):
        mark = [[_PIXELS[letter] for letter in line] for line in drawn]
        for expert, row in cells:
            pixels[expert, 1:6, row, left : left + 5] = mark
    axes.imshow(
        pixels.reshape(n_experts * MARK_CELL, n_layers * wide, 4),
        extent=(-0.5, n_layers - 0.5, n_experts - 0.5, -0.5),
        aspect="auto",
    )
    dot = {"ls": "none", "marker": "o", "markersize": 6, "markeredgecolor": "black"}
    white = Line2D([], [], markerfacecolor="white", **dot)
    black = Line2D([], [], markerfacecolor="black", **dot)
    centre = Line2D([], [], ls="none", marker="o", markersize=2, color="black")
    named = [
        (handle, name)
        for handle, name, cells in zip((white, (white, centre), black), MARKS, found, strict=True)
        if cells
    ]
    figure.legend(*zip(*named, strict=True), loc="outside lower left", ncols=3, fontsize=8, **TIGHT)
