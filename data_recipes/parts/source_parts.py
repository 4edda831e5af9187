"""The first stage: the rows of each source, and of the locale tasks, cut into parts.

A task reads one source from its start and writes its parts one by one; those that are whole already are left
as they are. A last file says how many there are, so that a source that was read is not read again.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.artefact import write_json
from data_recipes.locale_rows import locale_rows
from data_recipes.parts.part_files import Part, finish_part, read_summary, write_part
from data_recipes.recipe import RecipeConfig
from data_recipes.records import json_text
from data_recipes.row_sources.source import SourceConfig, open_source
from data_recipes.steps import Rejected, Row
from data_recipes.tasks import SPLITS

STAGE = "sources"


@dataclass(frozen=True)
class SourceTask:
    """One source: what it is, and the first of the parts to write."""

    config: SourceConfig
    folder: Path
    allowed: tuple[Path, ...]
    first: Part
    rows_per_part: int


@dataclass(frozen=True)
class LocaleTask:
    """The locale tasks of a recipe, called `name` in messages."""

    recipe: RecipeConfig
    name: str
    first: Part


def read_stream(task: SourceTask | LocaleTask) -> int:
    """Write the parts of a stream and return how many of them were made now."""
    return make_locale_parts(task) if isinstance(task, LocaleTask) else read_source(task)


def read_source(task: SourceTask) -> int:
    """Write the parts of a source and return how many of them were made now."""
    rows = (_storable(row) for row in open_source(task.config, task.folder, task.allowed))
    return _write_parts(rows, task.first, task.rows_per_part, {})


def make_locale_parts(task: LocaleTask) -> int:
    """Write the parts of the locale tasks and return how many of them were made now."""
    dropped: Counter[str] = Counter()
    rows = locale_rows(task.recipe, task.name, dropped)
    in_order = (row for split in SPLITS for row in rows[split])
    return _write_parts(in_order, task.first, task.recipe.rows_per_part, {"dropped": dropped})


def parts_of(first: Part) -> tuple[list[Part], dict[str, Any]] | None:
    """Return the parts of a stream and what else is known of it; None when it was not read to its end."""
    try:
        found = json.loads(_end_file(first).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = [_numbered(first, number) for number in range(found["n_parts"])]
    return (parts, found) if all(read_summary(part) for part in parts) else None


def _write_parts(rows: Iterable[Row | Rejected], first: Part, n: int, more: dict[str, Any]) -> int:
    rows, n_made = iter(rows), 0
    for number in itertools.count():
        batch = list(itertools.islice(rows, n))
        if not batch:
            break
        part = _numbered(first, number)
        if read_summary(part) is None:
            finish_part(part, write_part(part, batch))
            n_made += 1
    write_json(_end_file(first), {"n_parts": number, **more})
    return n_made


def _numbered(first: Part, number: int) -> Part:
    return Part(first.folder, first.stage, first.stream, number, first.key)


def _end_file(first: Part) -> Path:
    return Path(first.folder) / STAGE / f"{first.stream}-{first.key[:24]}.json"


def _storable(row: Row | Rejected) -> Row | Rejected:
    """The row, or its rejection: an Arrow file may hold NaN, dates and bytes, which no record can."""
    if isinstance(row, Rejected):
        return row
    try:
        json_text(row).encode("utf-8")
        return row
    except (ValueError, TypeError) as error:
        return Rejected(ascii(row["id"]).strip("'"), STAGE, "not plain JSON", str(error))


def numbered_streams(recipe: RecipeConfig) -> Iterator[tuple[str, SourceConfig]]:
    """Yield the name of each source's stream, and the source."""
    for number, config in enumerate(recipe.sources):
        yield f"source-{number}", config
