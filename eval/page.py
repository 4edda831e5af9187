"""The page of a report: figures, tables and samples in one HTML file without any outside request.

Reads the template beside it. Indic text stands in the page itself, never in a figure; everything is escaped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from data_recipes.publishing.page_frame import COLOURS, language_attributes, page_environment
from eval.figures import (
    change_figure,
    cost_figure,
    forgetting_figure,
    gain_figure,
    inline_svg,
    language_name,
    loss_figure,
)
from eval.metric_facts import METRICS, facts_of
from eval.report_tables import ResultTable, words
from eval.routing_figures import coverage_figure, difference_figure, routing_figure, similarity_figure
from eval.samples import Sample
from eval.significance import worst_first
from finetune.profiling.profile import Kinds, Profile

TEMPLATE = Path(__file__).with_name("report.html.jinja")

VERDICT_CLASSES = {"gain": "better", "loss": "worse"}
NOT_KNOWN = "–"


def render_page(
    report: Mapping[str, Any],
    tables: Sequence[ResultTable],
    samples: Sequence[Sample],
    profile: Profile,
    plan: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The whole page as text; the same arguments give the same bytes.

    Args:
        report: the body of report.json with its inputs and versions.
        tables: all tables of results, by section.
        samples: rows of results.json to show.
        profile: the routing of the base.
        plan: body of plan.json: which experts were tuned.
        metrics: lines of metrics.jsonl.
    """
    environment = page_environment(TEMPLATE.parent)
    environment.filters |= {
        "language": language_name,
        "words": words,
        "size": size,
        "amount": amount,
        "signed": signed,
    }
    environment.globals |= {"cells": comparison_cells, "attributes": language_attributes, "facts": facts_of}
    template = environment.get_template(TEMPLATE.name)
    results = _result_figures(report)
    return template.render(
        report=report,
        metrics=METRICS,
        sections={
            section: [table for table in tables if table.section == section]
            for section in ("languages", "totals", "contestants", "tasks", "details")
        },
        samples=samples,
        change=results.pop("change", None),
        cost_figure=_cost(report.get("cost") or {}),
        figures=[*results.values(), *figures_of_roles(profile, plan), _loss(metrics)],
        language_figures=figures_of_languages(profile, plan.get("kinds")),
        colours=COLOURS,
    )


def comparison_cells(found: Mapping[str, Any], metric: str) -> dict[str, str]:
    """A comparison as text: both scores, difference with sign, interval, p after Holm, verdict, rows."""
    digits = facts_of(metric).digits
    other = found.get("tuned", found["base"] + found["difference"])
    verdict = found.get("verdict", "not judged")
    return {
        "base": f"{found['base']:.{digits}f}",
        "other": f"{other:.{digits}f}",
        "difference": signed(found["difference"], digits),
        "interval": f"{signed(found['low'], digits)} to {signed(found['high'], digits)}",
        "p": p_text(found.get("p_holm")),
        "verdict": verdict,
        "class": VERDICT_CLASSES.get(verdict, "unclear"),
        "rows": f"{found['n']:,}",
    }


def p_text(p: float | None) -> str:
    """A p value as it is usually printed."""
    if p is None:
        return NOT_KNOWN
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def signed(value: float, digits: int) -> str:
    """A number with its sign; what rounds to nothing has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{digits}f}"


def size(value: float | None) -> str:
    """A number at the length a reader needs."""
    if value is None:
        return NOT_KNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def amount(value: float | None, currency: str | None) -> str:
    """Money as text; four digits after the point, for answers cost little."""
    return NOT_KNOWN if value is None else f"{value:,.4f} {currency or ''}".strip()


def _result_figures(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gain and forgetting by name, as far as there are rows."""
    figures = {}
    by_task, by_language = report["by_task"]["exact_match"], report["by_language"]["exact_match"]
    named = {
        group: {f"{language_name(code)} ({one['n']:,})": one for code, one in found.items()}
        for group, found in by_language.items()
    }
    both = {f"{name}, {group}": one for group, found in named.items() for name, one in found.items()}
    if both:
        marks = {f"{group} rows": {f"{name}, {group}" for name in found} for group, found in named.items()}
        marks = dict(sorted(marks.items(), reverse=True))  # target first
        caption = (
            "Tuned minus base, worst first; the bar is the 95 % interval of one language alone. Left of zero "
            "is lost. The verdicts in the table count all languages."
        )
        figure = change_figure(marks, worst_first(both, "exact_match"))
        figures["change"] = _figure("change", "Gain and loss by language", caption, figure)
    if by_task.get("target"):
        caption = (
            "The bar is the 95 % interval of the difference, laid at the base. The tables hold the numbers."
        )
        figure = gain_figure(_tasks(by_task["target"]))
        figures["gain"] = _figure("gain", "Gain by task, target rows", caption, figure)
    if report["exact_match"]["general"]:
        found = {"all general rows": report["exact_match"]["general"], **_tasks(by_task["general"])}
        caption = "Rows the training was not for. Left of zero is forgotten; a bar over zero is not clear."
        figure = forgetting_figure(found)
        figures["forgetting"] = _figure("forgetting", "Forgetting by task, general rows", caption, figure)
    return figures


def _tasks(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {f"{words(task)} ({one['n']:,})": one for task, one in worst_first(found, "exact_match").items()}


def _cost(costs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Money of those that have a price, when it is one currency; else the seconds of all."""
    amounts = {name: one["amount"] for name, one in costs.items() if one.get("amount") is not None}
    currencies = {costs[name].get("currency") for name in amounts}
    seconds = {name: one["seconds"] for name, one in costs.items() if one.get("seconds") is not None}
    if amounts and len(currencies) == 1:
        figure = cost_figure(amounts, f"for all answers, {currencies.pop() or 'no currency said'}")
        return _figure("cost", "Cost of the answers", "Contestants without a price are left out.", figure)
    if seconds:
        figure = cost_figure(seconds, "seconds for all answers")
        caption = "Of answering, with the likelihood of the expected answers, over all runs."
        return _figure("cost", "Time of the answers", caption, figure)
    return None


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
