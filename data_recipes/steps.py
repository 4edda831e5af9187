"""What every step of a recipe takes and gives: a row, or the reason why there is none.

A step is a plain function `step(rows: Iterable[Row], options) -> Iterator[Row | Rejected]`. It gives one
thing for each row it took, in the same order, and adds its check to the row's `transforms`:
`{"name": ..., "version": ..., "checks": {...}}`, plain JSON. Reads nothing, writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# id, language, script, messages, source, licence, transforms, ...; a row made from another names it in
# `parent`: its id, or {"id", "messages"}.
Row = dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A row that a step dropped, and why. `reason` is counted, so it holds no value of the row."""

    row_id: str
    step: str
    reason: str  # short and the same for all rows with this fault, as "numbers"
    detail: str = ""  # for a person: what was found in this row


def with_transform(row: Row, name: str, version: int, checks: dict[str, Any]) -> Row:
    """Return a copy of the row with one more entry in `transforms`."""
    entry = {"name": name, "version": version, "checks": checks}
    return {**row, "transforms": [*row.get("transforms", []), entry]}
