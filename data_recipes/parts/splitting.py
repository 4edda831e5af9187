"""Split and order of rows: by hashes, so that neither depends on how the rows were cut or came.

Reads the files of the last parts; holds one bucket of rows in memory. A source row is in the split that the
hash of its root says, with all that was made from it. Rows of the locale tasks carry their split and keep
their order; the two streams of a split are merged in proportion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from data_recipes.artefact import UserError, sha256_json
from data_recipes.parts.part_files import Part, draw, line_of, read_rows, root_id
from data_recipes.steps import Row
from data_recipes.tasks import SPLITS, Split

BUCKET_ROWS = 4000  # about so many rows are sorted at a time
MAX_BUCKETS = 128  # of each split: files that are open at a time


class Shares(NamedTuple):
    """Of source rows."""

    validation: float
    test: float


def split_of_row(row: Row, shares: Shares) -> Split:
    """Return the split of a row: its own, or what the hash of its root says."""
    if "split" in row:
        return row["split"]
    place = int(draw(f"split:{root_id(row)}")[:12], 16) / 16**12
    if place < shares.test:
        return "test"
    return "validation" if place < shares.test + shares.validation else "train"


class OrderedRows:
    """The records of the last parts, by split, in the order of the dataset."""

    def __init__(self, parts: Sequence[Part], n_rows: int, seed: int, folder: Path) -> None:
        """Sort the records of sources into buckets; `folder` is empty and for these alone."""
        self._locale = [part for part in parts if part.is_locale]
        self._sources = [part for part in parts if not part.is_locale]
        self._seed, self._folder = seed, folder
        self._n_buckets = min(MAX_BUCKETS, max(1, -(-n_rows // BUCKET_ROWS)))
        self.n_locale, self.n_sources = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        for part in self._locale:
            for item in read_rows(part.rows):
                self.n_locale[item["split"]] += 1
        self._fill()

    def records(self, split: Split) -> Iterator[dict[str, Any]]:
        """Yield the records of a split.

        Raises:
            UserError: two rows have one id.
        """
        n_locale, n_sources = self.n_locale[split], self.n_sources[split]
        n_all, n_taken = n_locale + n_sources, 0
        locale, sources = self._of_locale(split), self._of_sources(split)
        for number in range(n_all):
            # The next one is of the locale tasks when these are behind their share.
            is_locale = (n_taken + 1) * n_all <= (number + 1) * n_locale
            n_taken += is_locale
            yield next(locale if is_locale else sources)

    def _fill(self) -> None:
        with ExitStack() as stack:
            files = {
                (split, bucket): stack.enter_context(open(self._bucket(split, bucket), "wb"))
                for split in SPLITS
                for bucket in range(self._n_buckets)
            }
            for part in self._sources:
                for item in read_rows(part.rows):
                    self.n_sources[item["split"]] += 1
                    key = sha256_json([self._seed, item["record"]["id"]])
                    bucket = int(key[:8], 16) * self._n_buckets >> 32
                    files[item["split"], bucket].write(key.encode() + line_of(item["record"]))

    def _bucket(self, split: Split, bucket: int) -> Path:
        return self._folder / f"{split}-{bucket:03}"

    def _of_sources(self, split: Split) -> Iterator[dict[str, Any]]:
        for bucket in range(self._n_buckets):
            path = self._bucket(split, bucket)
            lines = sorted(path.read_bytes().splitlines(keepends=False))
            path.unlink()
            before = b""
            for line in lines:
                record = json.loads(line[64:])
                if line[:64] == before:
                    raise UserError(f"two rows have the id {record['id']!r}: each row needs an id of its own")
                before = line[:64]
                yield record

    def _of_locale(self, split: Split) -> Iterator[dict[str, Any]]:
        for part in self._locale:
            for item in read_rows(part.rows):
                if item["split"] == split:
                    yield item["record"]
