"""Records of the dataset: how rows become them, and how they come back. Reads nothing, writes nothing.

What a message carries beside role and content (tool calls, thinking, parts) is JSON text in its `extra`, so
that one schema fits all rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_recipes.steps import Row

TEXT_COLUMNS = (
    "id", "language", "script", "task", "kind", "group", "value", "checker", "source", "revision", "row_id",
    "licence", "licence_from", "attribution", "parent", "form", "transforms", "tools",
)  # fmt: skip
_JSON_COLUMNS = ("transforms", "tools")
COLUMNS = ("messages", "phrasing", "may_commit", *TEXT_COLUMNS)


def as_record(row: Row) -> dict[str, Any]:
    """Return a row in the columns of the dataset; what has no column is left out."""
    parent = row.get("parent")
    values = row | {"parent": parent.get("id") if isinstance(parent, dict) else parent}
    values |= {name: json_text(row[name]) for name in _JSON_COLUMNS if row.get(name) is not None}
    values["messages"] = [_as_record(message) for message in row["messages"]]
    return {name: values.get(name) for name in COLUMNS}


def _as_record(message: Mapping[str, Any]) -> dict[str, str | None]:
    content = message.get("content")
    is_plain = content is None or isinstance(content, str)
    kept = ("role", "content") if is_plain else ("role",)
    extra = {name: value for name, value in message.items() if name not in kept}
    return {
        "role": message["role"],
        "content": content if is_plain else None,
        "extra": json_text(extra) if extra else None,
    }


def plain_message(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message that a record of the column `messages` stands for."""
    message = {"role": record["role"], "content": record["content"]}
    return message | (json.loads(record["extra"]) if record.get("extra") else {})


def plain_rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a batch of records with messages and tools as a chat template wants them."""
    if "messages" in batch:
        batch["messages"] = [[plain_message(record) for record in row] for row in batch["messages"]]
    if "tools" in batch:
        batch["tools"] = [json.loads(text) if text else None for text in batch["tools"]]
    return batch


def json_text(value: Any) -> str:
    """Canonical JSON, the form in which columns of text hold anything else."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
