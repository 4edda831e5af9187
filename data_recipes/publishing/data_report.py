"""The report of a dataset: one HTML file that says what is in it and what was done to it.

Reads the dicts of the manifest and of the samples, and the templates beside this file; writes report.html.
Every number is the manifest's. No script, no outside request, the same bytes each time.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_recipes.artefact import write_text
from data_recipes.publishing import manifest_facts as facts
from data_recipes.publishing.card import options_text
from data_recipes.publishing.page_frame import COLOURS, cut_text, language_attributes, page_environment
from data_recipes.publishing.text_difference import text_difference

TEMPLATE = Path(__file__).with_name("data_report.html.jinja")
MAX_MESSAGES = 4  # shown of a row


def write_data_report(folder: str | Path, manifest: Mapping[str, Any], samples: Mapping[str, Any]) -> Path:
    """Write report.html and return its path.

    Raises: UserError when the disk is full or the place cannot be written.
    """
    path = Path(folder) / "report.html"
    write_text(path, render_data_report(manifest, samples))
    return path


def render_data_report(manifest: Mapping[str, Any], samples: Mapping[str, Any]) -> str:
    """Return the page as text."""
    environment = page_environment(TEMPLATE.parent)
    environment.filters |= {
        "form": facts.form_name,
        "options": options_text,
        "cut": cut_text,
        "value": _value,
        "number": _number,
    }
    environment.globals |= {"attributes": language_attributes}
    return environment.get_template(TEMPLATE.name).render(
        manifest=facts.with_all_keys(manifest),
        title=facts.title(manifest),
        colours=COLOURS,
        splits=facts.splits(manifest),
        forms=form_rows(manifest),
        flow=flow_rows(manifest),
        rejected=rejected_rows(manifest),
        sources=facts.source_facts(manifest),
        licences=facts.licences(manifest),
        left_out=facts.left_out(manifest),
        personal=personal_rows(manifest),
        step_samples={
            name: [_compared(name, one) for one in found] for name, found in samples["steps"].items()
        },
        row_samples=[_shown(row) for row in samples["rows"]],
    )


def form_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers of each written form; `width` is its tokens per word beside the largest."""
    forms = manifest.get("languages") or {}
    largest = max((one.get("tokens_per_word") or 0 for one in forms.values()), default=0)
    return [
        {"tag": tag, **one, "width": 100 * (one.get("tokens_per_word") or 0) / largest if largest else 0}
        for tag, one in sorted(forms.items())
    ]


def flow_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each step of the manifest; `width` is the rows that went on, beside the largest step."""
    steps = manifest.get("steps") or []
    largest = max((max(step["n_in"], step["n_out"]) for step in steps), default=0)
    return [{**step, "width": 100 * step["n_out"] / largest if largest else 0} for step in steps]


def rejected_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return stage, reason and rows of all that was dropped, the most first in each stage."""
    stages = dict(manifest.get("rejected") or {})
    if manifest.get("dropped"):
        stages["locale tasks"] = manifest["dropped"]
    return [
        (stage, reason, n)
        for stage, reasons in stages.items()
        for reason, n in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def personal_rows(manifest: Mapping[str, Any]) -> list[tuple[str, int, list[tuple[str, int]]]] | None:
    """Return each kind of personal data with its count and the counts by language; None if nobody looked."""
    found = facts.personal_data(manifest)
    if found is None:
        return None
    by_count = {kind: sorted(by.items(), key=lambda pair: (-pair[1], pair[0])) for kind, by in found.items()}
    return [(kind, sum(by.values()), by_count[kind]) for kind, by in sorted(found.items())]


def _compared(step: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A row before and after a step, message by message; what stood before the removal of personal data is
    never shown.
    """
    before, after = None if step == "pii" else sample.get("before"), sample.get("after") or []
    pairs = []
    for old, new in list(zip_longest(before or [], after))[:MAX_MESSAGES]:
        old_text, new_text = message_text(old), message_text(new)
        if before is not None and old_text == new_text:
            continue
        pair: dict[str, Any] = {"role": str((new or old or {}).get("role", "")), "after": cut_text(new_text)}
        if before is not None:
            left, right = text_difference(old_text, new_text)
            pair |= {"before": cut_text(old_text), "old": left, "new": right}
        pairs.append(pair)
    return {
        "row_id": str(sample["row_id"]),
        "tag": _tag(sample),
        "pairs": pairs,
        "n_hidden": max(0, max(len(before or []), len(after)) - MAX_MESSAGES),
    }


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    messages: Sequence[Mapping[str, Any]] = row["messages"]
    named = ("source", "licence", "form", "split", "task")
    return {
        "row_id": str(row.get("id") or row.get("row_id") or ""),
        "tag": _tag(row),
        "facts": {name: row[name] for name in named if row.get(name)},
        "messages": [
            {"role": str(one.get("role", "")), "text": cut_text(message_text(one))}
            for one in messages[:MAX_MESSAGES]
        ],
        "n_hidden": max(0, len(messages) - MAX_MESSAGES),
    }


def message_text(message: Mapping[str, Any] | None) -> str:
    """Return the text of a message; what it carries beside (tool calls, reasoning) follows as JSON."""
    if message is None:
        return ""
    content = message.get("content")
    more = {key: one for key, one in message.items() if key not in ("role", "content") and one}
    if content is not None and not isinstance(content, str):
        more["content"] = content
    text = content if isinstance(content, str) else ""
    if not more:
        return text
    return f"{text}\n{json.dumps(more, ensure_ascii=False, sort_keys=True, indent=1)}".strip()


def _tag(row: Mapping[str, Any]) -> str:
    """The form of a row; `language` may be one already ("hi-Deva")."""
    language, script = str(row.get("language") or ""), row.get("script")
    return f"{language}-{script}" if script and "-" not in language else language


def _value(value: object) -> str:
    """A value of the manifest for a person."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
