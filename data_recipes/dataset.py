"""The Arrow dataset of a recipe: its columns, how rows become records and come back, and its files.

Writes the splits of a dataset as a stream, the same bytes for the same rows; reads them back. What a message
carries beside role and content (tool calls, thinking, parts) is JSON text in its `extra`, so that one schema
fits all rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Value
from datasets.arrow_writer import ArrowWriter

from data_recipes.artefact import UserError, sha256_json
from data_recipes.steps import Row
from data_recipes.tasks import Split

_TEXT_COLUMNS = (
    "id", "language", "script", "task", "kind", "group", "value", "checker", "source", "revision", "row_id",
    "licence", "licence_from", "attribution", "parent", "form", "transforms", "tools",
)  # fmt: skip
_JSON_COLUMNS = ("transforms", "tools")
FEATURES = Features(
    {
        "messages": datasets.List({name: Value("string") for name in ("role", "content", "extra")}),
        "phrasing": Value("int32"),
        "may_commit": Value("bool"),
        **{name: Value("string") for name in _TEXT_COLUMNS},
    }
)
_BATCH_ROWS = 1000


def as_record(row: Row) -> dict[str, Any]:
    """Return a row in the columns of the dataset; what has no column is left out."""
    parent = row.get("parent")
    values = row | {"parent": parent.get("id") if isinstance(parent, dict) else parent}
    values |= {name: json_text(row[name]) for name in _JSON_COLUMNS if row.get(name) is not None}
    values["messages"] = [_as_record(message) for message in row["messages"]]
    return {name: values.get(name) for name in FEATURES}


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


class ContentHash:
    """SHA-256 of the canonical JSON of [records of each split], a record at a time."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256(b"[")
        self._is_first = True

    def split(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the records of the next split; its end counts when they are all read."""
        self._sha256.update(b"[" if self._is_first else b",[")
        self._is_first = False
        for number, record in enumerate(records):
            self._sha256.update((b"," if number else b"") + json_text(record).encode("utf-8"))
            yield record
        self._sha256.update(b"]")

    def hexdigest(self) -> str:
        """The hash, when all splits are read."""
        self._sha256.update(b"]")
        return self._sha256.hexdigest()


def write_arrow(records: Iterable[dict[str, Any]], path: Path) -> int:
    """Write records to an Arrow file as they come and return how many; memory stays flat."""
    n_rows = 0
    with ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=_BATCH_ROWS) as writer:
        for record in records:
            writer.write(record)
            n_rows += 1
        writer.finalize()
    return n_rows


def save_splits(files: Mapping[Split, Path], content_hash: str, folder: Path) -> None:
    """Save the splits as `load_from_disk` reads them; the fingerprint comes from the content."""
    splits = {}
    for split, path in files.items():
        table = Dataset.from_file(str(path)).data
        splits[split] = Dataset(table, fingerprint=sha256_json([content_hash, split])[:16])
    with _without_progress():
        DatasetDict(splits).save_to_disk(str(folder))


@contextmanager
def _without_progress() -> Iterator[None]:
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def read_split(folder: str | Path, split: Split) -> Dataset:
    """Read one split of a built dataset; its rows have plain messages and tools, as a chat template wants them.

    `.with_format(None)` and `.to_list()` give the columns as they are stored.

    Raises:
        UserError: it is missing, damaged or empty.
    """
    empty = f"the {split} split of {folder} is empty: the recipe must give it at least one row"
    try:
        found = datasets.load_from_disk(str(Path(folder) / split))
    except IndexError as error:  # datasets 5.2 saves an empty split and cannot read it back
        raise UserError(empty) from error
    except Exception as error:  # Arrow, JSON and OS errors all mean the same to the user
        if _says_empty(Path(folder), split):
            raise UserError(empty) from error
        raise UserError(
            f"cannot read the {split} split of {folder} ({type(error).__name__}: {error}); "
            "make it again with `local-experts data`"
        ) from error
    if not isinstance(found, Dataset) or len(found) == 0:
        raise UserError(empty)
    return found.with_transform(plain_rows)


def _says_empty(folder: Path, split: Split) -> bool:
    """Whether the manifest says that the split has no rows: it is left out then."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest["n_rows"][split] == 0
    except (OSError, ValueError, KeyError, TypeError):
        return False
