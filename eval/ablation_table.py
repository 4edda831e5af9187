"""The table of an ablation as Markdown, and its place in a README. Reads the body of ablation.json."""

from collections.abc import Mapping
from typing import Any

from data_recipes.artefact import UserError
from eval.page import language_name
from eval.plan_comparison import GROUPS
from eval.report import SMALL_MODEL_PARAMETERS

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def plan_order(plans: Mapping[str, Any]) -> list[str]:
    """Names of plans as they are shown: nothing, the choice, then what it is compared with."""
    draws = sorted(name for name in plans if name.startswith("random_"))
    return [name for name in ("none", "selected", *draws, "all", "attention_only") if name in plans]


def results_table(ablation: Mapping[str, Any]) -> str:
    """Return what each plan trained, cost and gained, and selected minus the others; never a mean alone."""
    plans = ablation["plans"]
    lines = [
        _head(ablation),
        "",
        "| trained | experts | parameters | adapter | a step | target | general |",
        "|---|---|---|---|---|---|---|",
        *(_plan_line(name, plans[name]) for name in plan_order(plans)),
        "",
        "| chosen minus | target | general |",
        "|---|---|---|",
        *_comparison_lines(ablation),
        "",
        _foot(ablation),
    ]
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """Return a README with the table between its markers.

    Raises:
        UserError: the markers are not there.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the README has no place for the table: put {BEGIN} and {END} on lines of their own")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def _head(ablation: Mapping[str, Any]) -> str:
    languages = {
        group: ", ".join(language_name(code) for code in ablation["languages"][group]) for group in GROUPS
    }
    model, base, lora = ablation["model"], ablation["plans"]["none"], ablation["lora"]
    general = base["general"]
    rows = f"n = {base['target']['n']} target rows"
    if general is not None:
        rows += f", {general['n']} general rows ({languages['general']}: what must not be forgotten)"
    dense = [part for part in ("attention", "shared_experts") if lora[part]]
    beside = (
        f" LoRA on {' and '.join(dense).replace('_', ' ')} is trained with each of them." if dense else ""
    )
    return (
        f"Exact match on held-out rows, {languages['target']}, base `{model['model']}` "
        f"({model['n_parameters'] / 1e6:.1f} M parameters), {ablation['training']['steps']} steps on the "
        "same rows in the same order from the same start. Difference to the base with its 95 % "
        f"paired-bootstrap interval; {rows}. Each random plan has as many experts a layer as the chosen one; "
        f"all experts has the same rank ({lora['rank']}), so more parameters.{beside}"
    )


def _plan_line(name: str, plan: Mapping[str, Any]) -> str:
    if name == "none":
        scores = [f"{plan[group]['base']:.3f}" if plan[group] else "-" for group in GROUPS]
        return f"| {plan['label']} | 0 | 0 | - | - | {scores[0]} | {scores[1]} |"
    scores = [
        f"{plan[group]['tuned']:.3f} ({plan[group]['difference']:+.3f}, {_interval(plan[group])})"
        if plan[group]
        else "-"
        for group in GROUPS
    ]
    cells = (
        plan["label"],
        f"{plan['n_experts']} of {plan['n_experts_there_are']}",
        f"{plan['parameters']:,}",
        f"{plan['bytes'] / 1e6:.1f} MB",
        f"{plan['step_time_s'] * 1e3:.0f} ms",
        *scores,
    )
    return f"| {' | '.join(cells)} |"


def _comparison_lines(ablation: Mapping[str, Any]) -> list[str]:
    comparisons, plans = ablation["comparisons"], ablation["plans"]
    draws = [name for name in plan_order(plans) if name.startswith("random_")]
    does_add = ablation["lora"]["attention"] or ablation["lora"]["shared_experts"]
    names = {
        "random": f"random, mean of {len(draws)} draws",
        **{name: plans[name]["label"] for name in draws},
        "attention_only": plans["attention_only"]["label"] + (": what the experts add" if does_add else ""),
        "all": plans["all"]["label"],
    }
    return [
        f"| {shown} | "
        + " | ".join(_compared(comparisons[group][name]) if group in comparisons else "-" for group in GROUPS)
        + " |"
        for name, shown in names.items()
    ]


def _foot(ablation: Mapping[str, Any]) -> str:
    of_draws = [
        plan["target"]["tuned"] for name, plan in ablation["plans"].items() if name.startswith("random_")
    ]
    small = " A small model proves the mechanics, not the quality at 744 B parameters."
    return (
        "An interval is over rows: what other questions of these kinds would give. It does not cover the "
        f"draw of random experts ({len(of_draws)} draws scored {min(of_draws):.3f} to {max(of_draws):.3f} on "
        "the target rows) or the seed of the training, of which there is one. A step is the median time of a "
        "step; the plans were trained one after the other."
        + (small if ablation["model"]["n_parameters"] < SMALL_MODEL_PARAMETERS else "")
    )


def _compared(found: Mapping[str, float]) -> str:
    return f"{found['difference']:+.3f} ({_interval(found)})"


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['low']:+.3f} to {found['high']:+.3f}"
