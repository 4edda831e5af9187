"""Which rows may be duplicates of each other, from the table of their signatures alone.

A signature is `WIDTH` numbers of 32 bits: hashes of the row's id and of its key, and the bands of its two
MinHashes. The table is an array (rows, `WIDTH`), or the files of its parts, which `save_signatures` writes
column by column; one column is read at a time, so that a million rows need tens of megabytes. All positions
are those in the order of the ids' hashes, whatever the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_recipes.artefact import whole_file

# A pair at the threshold of 0.8 is a candidate with 0.9999; half of the pairs of 0.53 are.
BANDS, ROWS_PER_BAND = 25, 5
# Spellings differ between romanisations: a pair of 0.6 is a candidate with 0.9996.
TWIN_BANDS, TWIN_ROWS_PER_BAND = 32, 3
ID, EXACT = 0, 4  # where the four columns of each begin
NEAR, TWIN = slice(8, 8 + BANDS), slice(8 + BANDS, 8 + BANDS + TWIN_BANDS)
WIDTH = 8 + BANDS + TWIN_BANDS
BYTES_PER_ROW = 4 * WIDTH
SINGLE = 0  # a band value that never makes a candidate

Table = np.ndarray | Sequence[str | Path]


@dataclass(frozen=True)
class Shared:
    """The bands that rows share with others: three arrays of one length, by position and then by band."""

    positions: np.ndarray
    bands: np.ndarray
    values: np.ndarray


def save_signatures(path: str | Path, table: np.ndarray) -> None:
    """Write the signatures of a part, (rows, `WIDTH`), to a .npy file, column by column.

    Raises:
        UserError: the disk is full or the place cannot be written.
    """
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.save(file, np.ascontiguousarray(table.T))


def id_order(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows in the order of their ids' hashes, and the two halves of those hashes in that order."""
    low, high = _wide_column(table, ID), _wide_column(table, ID + 2)
    order = np.lexsort((low, high))
    return order, low[order], high[order]


def exact_pairs(table: Table, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of rows that have the key of one before, and of the first row with that key."""
    low, high = _wide_column(table, EXACT)[order], _wide_column(table, EXACT + 2)[order]
    by_key = np.lexsort((low, high))  # stable: of equal rows the first stays first
    low, high = low[by_key], high[by_key]
    again = np.zeros(len(by_key), dtype=bool)
    again[1:] = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(by_key))))
    return by_key[again], by_key[first[again]]


def shared_bands(table: Table, order: np.ndarray, stays: np.ndarray) -> Shared:
    """Return the bands in which a row that stays agrees with another, or with the other side of a twin."""
    positions, bands, values = [], [], []
    for band in range(NEAR.start, TWIN.stop):
        column = _column(table, band)[order]
        usable = np.flatnonzero(stays & (column > 1))
        column = column[usable]
        distinct, counts = np.unique(column, return_counts=True)
        if band < TWIN.start:
            shared = distinct[counts > 1]
        else:
            shared = distinct[np.isin(distinct ^ np.uint32(1), distinct)]
        found = np.flatnonzero(np.isin(column, shared))
        positions.append(usable[found].astype(np.int32))
        bands.append(np.full(len(found), band, dtype=np.uint8))
        values.append(column[found])
    every = np.concatenate(positions)
    by_position = np.argsort(every, kind="stable")
    return Shared(every[by_position], np.concatenate(bands)[by_position], np.concatenate(values)[by_position])


def _column(table: Table, number: int) -> np.ndarray:
    if isinstance(table, np.ndarray):
        return table[:, number]
    # Copied piece by piece: an open mapping holds its file open, and there may be thousands.
    pieces = [np.array(np.load(path, mmap_mode="r")[number]) for path in table]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *pieces])


def _wide_column(table: Table, number: int) -> np.ndarray:
    low, high = _column(table, number), _column(table, number + 1)
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
