"""The page of a report: figures, tables and examples in one HTML file without any outside request.

Reads the template beside it. Indic text stands in the page itself, never in a figure; everything is escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from data_recipes.publishing.page_frame import COLOURS, cut_text, page_environment
from eval.figures import forgetting_figure, gain_figure, inline_svg, language_name, loss_figure
from eval.routing_figures import coverage_figure, difference_figure, routing_figure, similarity_figure
from finetune.profiling.profile import Kinds, Profile

TEMPLATE = Path(__file__).with_name("report.html.jinja")

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
    profile: Profile,
    plan: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page as text; the same arguments give the same bytes.

    Args:
        report: the body of report.json with its inputs and versions.
        examples: rows of results.json to show.
        profile: the routing of the base.
        plan: body of plan.json: which experts were tuned.
        metrics: lines of metrics.jsonl.
    """
    environment = page_environment(TEMPLATE.parent)
    environment.filters |= {"language": language_name, "words": _words, "cut": cut_text, "size": _size}
    environment.globals |= {"cells": comparison_cells, "verdict": verdict}
    template = environment.get_template(TEMPLATE.name)
    return template.render(
        report=report,
        metrics=METRICS,
        examples=examples,
        figures=[*_result_figures(report), *figures_of_roles(profile, plan), _loss(metrics)],
        language_figures=figures_of_languages(profile, plan.get("kinds")),
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


def _result_figures(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gain and forgetting, as far as there are rows."""
    by_task, by_language = report["by_task"]["exact_match"], report["by_language"]["exact_match"]
    figures = []
    if by_task.get("target"):
        whisker = (
            "The bar is the 95 % interval of the difference, laid at the base. The tables hold the numbers."
        )
        figure = gain_figure(_named(by_task["target"], _words))
        figures.append(_figure("gain", "Gain by task, target rows", whisker, figure))
        if len(by_language["target"]) > 1:
            figure = gain_figure(_named(by_language["target"], language_name))
            figures.append(_figure("gain-language", "Gain by language, target rows", whisker, figure))
    if report["exact_match"]["general"]:
        found = {"all general rows": report["exact_match"]["general"]}
        found |= _named(by_language["general"], language_name) | _named(by_task["general"], _words)
        caption = "Rows the training was not for. Left of zero is forgotten; a bar over zero is not clear."
        figures.append(_figure("forgetting", "Forgetting, general rows", caption, forgetting_figure(found)))
    return figures


def figures_of_roles(profile: Profile, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Routing of both roles, their difference, the coverage curve and the tree of languages."""
    kinds = plan.get("kinds")
    figures = []
    roles = [role for role in ("target", "general") if profile.languages(role)]
    for role in roles:
        title = f"Routing of the base, {role} rows"
        figure = routing_figure(profile, profile.languages(role), plan, kinds=kinds)
        figures.append(_figure(f"routing-{role}", title, f"{_MAP} {_BORDERLINE}", figure))
    if len(roles) > 1:
        caption = (
            "Lighter: the target uses the expert more than the general languages do. Darker: less. "
            "Mid grey: alike."
        )
        figure = difference_figure(profile, plan, kinds=kinds)
        figures.append(_figure("routing-difference", "Routing, target minus general", caption, figure))
        caption = (
            "Share of tokens on the n experts of a layer that the target uses most: mean over layers, and in "
            "the band from the lowest to the highest layer. General is of the same experts: what training "
            "them touches."
        )
        figure = coverage_figure(profile, plan, kinds=kinds)
        figures.append(_figure("coverage", "How few experts carry how much", caption, figure))
    caption = (
        "The further left two languages join, the more of their tokens go to the same experts. Inside a grey "
        "bar a join may be chance: so far apart are two resamples of one language's own rows."
    )
    figure = similarity_figure(profile, kinds=kinds)
    return [*figures, _figure("languages", "Which languages are routed alike", caption, figure)]


def figures_of_languages(profile: Profile, kinds: Kinds | None) -> list[dict[str, Any]]:
    """Routing of each language whose role has others too; alone it is its role's picture already.

    Unmarked: 22 languages of a large model would fill the page with the same marks.
    """
    figures = []
    for role in ("target", "general"):
        names = profile.languages(role)
        for name in names if len(names) > 1 else ():
            figure = routing_figure(profile, [name], kinds=kinds)
            figures.append(_figure(f"routing-{name}", f"{language_name(name)} ({role})", _MAP, figure))
    return figures


def _loss(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _figure("loss", "Loss", "Of the answer's tokens only, in nats.", loss_figure(metrics))


def _figure(name: str, title: str, caption: str, figure: Figure) -> dict[str, Any]:
    """What the template shows of a figure."""
    return {
        "title": title,
        "caption": caption,
        "svg": Markup(inline_svg(figure, name, f"{title}. {caption}")),
    }


_MAP = (
    "How many times an even share of a layer's tokens each expert got; lighter is more, and all these maps "
    "have one scale."
)
_BORDERLINE = "Whether a borderline expert is chosen depends on which rows were profiled."


def _named(found: Mapping[str, Mapping[str, float]], name: Any) -> dict[str, Mapping[str, float]]:
    return {f"{name(key)} ({one['n']:,})": one for key, one in found.items()}


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
