"""The report as Markdown, for a pull request, a card or a terminal: the same tables and samples, no figures.

Reads what the page is made from, writes nothing; whatever an answer holds, it is shown as text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data_recipes.publishing.card import escape_markdown
from eval.page import amount, comparison_cells, size
from eval.report_tables import ResultTable, words
from eval.samples import Sample

HEADINGS = {
    "languages": "Gain and forgetting",
    "totals": "All metrics",
    "contestants": "Other contestants, on the same rows",
    "tasks": "Tasks",
    "details": "Every task and language",
}
READING = (
    "Difference: the second column minus the first, on the same rows. Interval: 95 %, paired "
    "bootstrap. p: after Holm's correction over the slices that stand together. Place: JSON pointer into "
    "`results.json`."
)


def render_markdown(
    report: Mapping[str, Any], tables: Sequence[ResultTable], samples: Sequence[Sample]
) -> str:
    """The whole report as Markdown; the arguments are those of the page."""
    md = escape_markdown
    blocks = [f"# {md(report['name'])}: base and tuned on the same held-out rows"]
    blocks += [md(report["finding"][group]) for group in ("target", "general")]
    blocks += _gate(report["gate"])
    blocks += [md(report["model"]["note"]), READING]
    for section, heading in HEADINGS.items():
        of_section = [table for table in tables if table.section == section]
        blocks += [f"## {heading}"] if of_section else []
        blocks += [block for table in of_section for block in _result_table(table)]
    blocks += _cost(report["cost"])
    blocks += _trained(report)
    blocks += ["## Sample answers\n\nDrawn by the seed, not by outcome."] if samples else []
    blocks += [_sample(sample) for sample in samples]
    inputs = [(f"`{name}`", f"`{sha256}`") for name, sha256 in report["inputs"].items()]
    blocks += ["## Where it comes from", _table(("file", "SHA-256"), inputs)]
    return "\n\n".join(blocks) + "\n"


def _result_table(table: ResultTable) -> list[str]:
    head = (
        table.first,
        table.base,
        table.other,
        "difference",
        "95 % interval",
        "p",
        "verdict",
        "rows",
        "place",
    )
    names = ("base", "other", "difference", "interval", "p", "verdict", "rows")
    lines = []
    for line in table.lines:
        cells = comparison_cells(line.found, line.metric)
        lines.append((escape_markdown(line.name), *(cells[name] for name in names), _place(line.place)))
    return [f"### {escape_markdown(table.title)}", _table([escape_markdown(cell) for cell in head], lines)]


def _place(place: str) -> str:
    """A place as code, which a name with a sign of Markdown's tables or code would break."""
    return escape_markdown(place) if set(place) & set("|`") else f"`{place}`"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _gate(gate: Mapping[str, Any] | None) -> list[str]:
    if gate is None:
        return []
    passed = "passed" if gate["passed"] else "**not passed**"
    head = ("language", "lost", "95 % interval", "rows", "too much", "place")
    lines = [
        (
            escape_markdown(one["name"]),
            f"{one['loss']:.4f}",
            f"{one['low']:+.4f} to {one['high']:+.4f}",
            f"{one['n']:,}",
            "yes" if one["is_too_much"] else "no",
            _place(one["place"]),
        )
        for one in gate["losses"]
    ]
    limit = f"at most {gate['max_loss']:g} of {words(gate['metric'])} may be lost, by {gate['by']}"
    return [f"Forgetting gate {passed}: {limit}.", _table(head, lines)]


def _cost(costs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not costs:
        return []
    lines = [
        (
            escape_markdown(name),
            *(_tokens(one, key) for key in ("prompt_tokens", "answer_tokens")),
            size(one.get("seconds")),
            escape_markdown(amount(one.get("amount"), one.get("currency"))),
        )
        for name, one in costs.items()
    ]
    head = ("contestant", "prompt tokens", "answer tokens", "seconds", "amount")
    return ["## Cost of the answers", _table(head, lines)]


def _tokens(cost: Mapping[str, Any], key: str) -> str:
    return ("about " if cost.get("is_counted") is False else "") + size(cost.get(key))


def _trained(report: Mapping[str, Any]) -> list[str]:
    plan, training = report["plan"], report["training"]
    lines = [
        f"- Experts: {plan['n_chosen']} of {plan['n_experts']}, method {escape_markdown(plan['method'])}",
        f"- Adapter: rank {training['rank']}, {training['n_trainable']:,} trainable parameters",
        f"- Training: {training['steps']:,} steps, {training['tokens']:,} tokens, loss "
        f"{training['first_loss']:.3f} to {training['last_loss']:.3f}",
        *(f"- Warning: {escape_markdown(warning)}" for warning in plan["warnings"]),
    ]
    return ["## What was trained", "\n".join(lines)]


def _sample(sample: Sample) -> str:
    said = {True: "right", False: "wrong", None: "not judged"}
    lines = [
        f"- prompt: {escape_markdown(sample.prompt)}",
        f"- expected: {escape_markdown(sample.expected)}",
    ]
    lines += [
        f"- {escape_markdown(one.system)} ({said[one.is_right]}): {escape_markdown(one.text) or '(empty)'}"
        for one in sample.answers
    ]
    head = f"**{escape_markdown(sample.title)}** ({escape_markdown(sample.row_id)}, {_place(sample.place)})"
    return head + "\n\n" + "\n".join(lines)
