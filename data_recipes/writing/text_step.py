"""The step that puts the text of rows under a policy, or drops a row that was decoded wrongly.

Reads nothing, writes nothing: rows come in and go out one by one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.steps import Rejected, Row, with_transform
from data_recipes.writing.decoding import mojibake
from data_recipes.writing.normalisation import TextPolicy, apply_outside
from data_recipes.writing.written_forms import WrittenForm, written_form

STEP = "text"
VERSION = 1  # raise it when the same policy gives other text: it stands on every row
Spans = Callable[[str], Iterable[tuple[int, int]]]


def normalise_rows(
    rows: Iterable[Row], policy: TextPolicy, spans: Spans | None = None
) -> Iterator[Row | Rejected]:
    """Give each row with its messages under the policy, which it carries with the counts of what changed.

    A row's `language` and `script` say what its native digits are. A message whose content is no string (a
    tool call, parts) stays as it is. Rejected are rows with text that was UTF-8 and was read as Latin-1
    ("mojibake"), and those of which a message is empty afterwards ("empty").

    Args:
        spans: gives the (start, end) of what must stay byte for byte in a text: code, links, placeholders.

    Raises:
        UserError: native digits are asked for in a row whose written form has none or is not known.
    """
    declared = asdict(policy)
    for row in rows:
        yield _normalised(row, policy, declared, spans)


def _normalised(
    row: Row, policy: TextPolicy, declared: dict[str, Any], spans: Spans | None
) -> Row | Rejected:
    form = _form(row) if policy.digits == "native" else None
    changes: Counter[str] = Counter()
    messages: list[dict[str, Any]] = []
    for message in row["messages"]:
        content = message.get("content")
        if not isinstance(content, str):
            messages.append(message)
            continue
        wrong = mojibake(content)
        if wrong:
            return Rejected(row["id"], STEP, "mojibake", f"{wrong[0]!r} for {wrong[1]!r}")
        done = apply_outside(content, policy, form, spans(content) if spans else ())
        if content and not done.text.strip():
            return Rejected(row["id"], STEP, "empty", f"{ascii(content[:40])} holds nothing that is seen")
        changes.update(done.changes)
        messages.append({**message, "content": done.text})
    checks = {"policy": dict(declared), "changes": dict(sorted(changes.items()))}
    return with_transform({**row, "messages": messages}, STEP, VERSION, checks)


def _form(row: Row) -> WrittenForm:
    try:
        return written_form(f"{row['language']}-{row['script']}")
    except UserError as error:
        raise UserError(f"row {row['id']}: native digits need a known written form: {error}") from error
