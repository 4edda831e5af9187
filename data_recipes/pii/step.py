"""The step that takes personal data out of rows, and the counts that say what it took.

Rows go in, rows come out, in the same order; each carries how many values of each kind were replaced. The
values themselves go nowhere: no output, no message and no log has them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from data_recipes.artefact import UserError
from data_recipes.pii.recognisers import KINDS, find_pii
from data_recipes.pii.surrogates import KEY_BYTES, surrogate
from data_recipes.steps import Row, with_transform

NAME, VERSION = "pii", 1
# What says where a row comes from: it must stay what it is at the source, and holds no text of the row.
_KEPT_FIELDS = {
    "id", "parent", "language", "script", "source", "revision", "row_id", "licence", "licence_from",
    "attribution", "transforms", "task", "kind", "group", "checker", "role",
}  # fmt: skip


@dataclass(frozen=True)
class PiiOptions:
    """Which kinds are taken out, and what takes their place: `<AADHAAR>` or a surrogate.

    Raises:
        UserError: an action or a kind that there is not.
    """

    action: Literal["tag", "surrogate"] = "tag"
    kinds: tuple[str, ...] = KINDS
    presidio: tuple[str, ...] = ()  # more kinds, by the extra `presidio`; these are always tagged

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if self.action not in ("tag", "surrogate") or unknown or not self.kinds:
            raise UserError(
                f"pii: action={self.action!r} (tag or surrogate), kinds={list(self.kinds)!r} "
                f"(some of {', '.join(KINDS)}); to leave personal data in, leave the step out"
            )


def remove_pii(
    rows: Iterable[Row], options: PiiOptions | None = None, key: bytes | None = None
) -> Iterator[Row]:
    """Yield rows with the personal data in all their texts replaced, also in tool calls and nested values.

    A row's id and what names its source are left alone (`_KEPT_FIELDS`).

    Args:
        key: the secret of the surrogates, `surrogates.read_or_make_key`; needed for these alone.

    Raises:
        UserError: surrogates without a key of 32 bytes.
    """
    options = options or PiiOptions()
    if options.action == "surrogate" and len(key or b"") != KEY_BYTES:
        raise UserError(
            "surrogates for personal data need a secret key: pass surrogates.read_or_make_key(FILE), with a "
            "file outside the dataset's folder; or use action=tag"
        )
    return (_cleaned_row(row, options, key) for row in rows)


def clean_text(text: str, options: PiiOptions, key: bytes | None, counts: Counter[str]) -> str:
    """Return a text with its personal data replaced; adds what was found to `counts`, by kind."""
    pieces, end = [], 0
    for finding in find_pii(text, options.kinds, options.presidio):
        counts[finding.kind] += 1
        pieces += [
            text[end : finding.start],
            _replacement(finding.kind, text[finding.start : finding.end], options, key),
        ]
        end = finding.end
    return "".join([*pieces, text[end:]])


def count_pii(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Return how many values were replaced, by kind and language, from what the rows carry."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for entry in row.get("transforms", []):
            if entry["name"] == NAME:
                for kind, n_found in entry["checks"]["found"].items():
                    counts.setdefault(kind, Counter())[row["language"]] += n_found
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def _cleaned_row(row: Row, options: PiiOptions, key: bytes | None) -> Row:
    counts: Counter[str] = Counter()
    # Of a parent that stands on the row the id stays: by it contamination finds the row.
    parent = row.get("parent")
    parent_id = {}
    if isinstance(parent, dict) and "id" in parent:
        parent_id = {"id": parent["id"]}
        row = {**row, "parent": {name: value for name, value in parent.items() if name != "id"}}
    cleaned: Row = {
        name: value
        if name in _KEPT_FIELDS and isinstance(value, str | list | None)
        else _clean(value, options, key, counts)
        for name, value in row.items()
    }
    if parent_id:
        cleaned["parent"] = parent_id | cleaned["parent"]
    return with_transform(
        cleaned, NAME, VERSION, {"action": options.action, "found": dict(sorted(counts.items()))}
    )


def _clean(value: Any, options: PiiOptions, key: bytes | None, counts: Counter[str]) -> Any:
    if isinstance(value, str):
        return clean_text(value, options, key, counts)
    if isinstance(value, int) and not isinstance(value, bool):
        return _clean_number(value, options, key, counts)
    if isinstance(value, list | tuple):
        return [_clean(item, options, key, counts) for item in value]
    if isinstance(value, dict):
        cleaned: dict[str, Any] = {}
        for name, item in value.items():
            inner = _clean_arguments if name == "arguments" and isinstance(item, str) else _clean
            new_name = clean_text(name, options, key, counts)
            while new_name in cleaned:  # two phone numbers as keys give one tag: neither item may be lost
                new_name += "_"
            cleaned[new_name] = item if name == "role" else inner(item, options, key, counts)
        return cleaned
    return value


def _clean_arguments(text: str, options: PiiOptions, key: bytes | None, counts: Counter[str]) -> str:
    """Clean the arguments of a tool call as JSON, so that a bare number gives way to a JSON string."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return clean_text(text, options, key, counts)
    found: Counter[str] = Counter()
    cleaned = _clean(arguments, options, key, found)
    counts += found
    return json.dumps(cleaned, ensure_ascii=False) if found else text


def _clean_number(number: int, options: PiiOptions, key: bytes | None, counts: Counter[str]) -> int | str:
    cleaned = clean_text(str(number), options, key, counts)
    return int(cleaned) if cleaned.lstrip("-").isdigit() else cleaned


def _replacement(kind: str, value: str, options: PiiOptions, key: bytes | None) -> str:
    if options.action == "tag" or kind in options.presidio:
        return f"<{kind}>"
    assert key is not None  # remove_pii refuses surrogates without one
    return surrogate(kind, value, key)
