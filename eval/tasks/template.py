"""Prompts with named columns: "Translate: {english}". Reads nothing, writes nothing.

Python's own format language without its reach into objects: a column's name in braces, and nothing else.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Any


def columns_of(template: str) -> list[str]:
    """Return the columns a template names, in their order.

    Raises:
        ValueError: an open brace, an unnamed column, or more than a name inside the braces.
    """
    columns = []
    for _, name, specification, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or specification or conversion:
            raise ValueError(f"{{{name}}} is no column's name")
        columns.append(name)
    return columns


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Return the template with a row's texts and numbers in the places of their names.

    Raises:
        ValueError: the row lacks a column, or it holds neither text nor number.
    """
    values = {}
    for name in columns_of(template):
        if name not in row:
            raise ValueError(f"it has no column {name!r}; its columns are {', '.join(map(str, row))}")
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"its column {name!r} holds {value!r}, and a prompt takes text or a number")
        values[name] = value
    return template.format_map(values)
