"""The Arrow dataset of a recipe: its schema, its content hash and its files.

Writes the splits of a dataset as a stream, the same bytes for the same rows; reads them back.
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
from data_recipes.records import TEXT_COLUMNS, json_text, plain_rows
from data_recipes.tasks import Split

FEATURES = Features(
    {
        "messages": datasets.List({name: Value("string") for name in ("role", "content", "extra")}),
        "phrasing": Value("int32"),
        "may_commit": Value("bool"),
        **{name: Value("string") for name in TEXT_COLUMNS},
    }
)
_BATCH_ROWS = 1000


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
    """Read one split of a built dataset; its rows have messages and tools as a chat template wants them.

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
