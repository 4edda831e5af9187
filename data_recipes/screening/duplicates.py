"""Duplicates: exact ones, near ones by MinHash on graphemes, and a text beside its own romanisation.

Rows go in; which of two duplicates stays is decided by a hash of their ids, never by the order of arrival,
and each row that goes names the one that stays. In parts: `signatures` of each part, saved by
`candidates.save_signatures`; then `find_duplicates` over the files of all parts, in one place; then
`without_duplicates` of each part, which needs no more of what was found than the ids of that part.

MinHash is rensa's (R-MinHash, 32-bit values), in bands of a few values each. Rows that agree in a whole band
are candidates: a pair of similarity s with the chance 1 - (1 - s^values)^bands. True Jaccard similarity then
decides. Memory grows by 24 bytes a row, some 50 a band that a candidate shares, and the names of what goes;
the shingles of the candidates lie in a file without a name.
"""

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without stubs)

from data_recipes.artefact import UserError
from data_recipes.screening import candidates, comparison
from data_recipes.screening.candidates import (
    BANDS,
    ROWS_PER_BAND,
    SINGLE,
    TWIN,
    TWIN_BANDS,
    TWIN_ROWS_PER_BAND,
    WIDTH,
)
from data_recipes.steps import Rejected, Row, with_transform

NAME, VERSION = "duplicates", 1
# Rows of one template share many bands: without bounds each would be compared with all. A row is compared
# with those it shares most bands with, and a band's value that many rows have says little.
MAX_COMPARED, MAX_ROWS_PER_VALUE = 50, 200
TEXTS_IN_MEMORY = 256  # of candidates; all of them lie in the file

Kind = Literal["exact", "near", "twin"]


@dataclass(frozen=True)
class DuplicateOptions:
    """What counts as a duplicate. Similarities are Jaccard's, from 0 to 1.

    Raises:
        UserError: a similarity or a length that makes no sense.
    """

    similarity: float = 0.8  # of the sets of grapheme shingles of two texts in one script
    twin_similarity: float = 0.6  # of the sets of skeleton shingles, native beside romanised
    twins: Literal["drop", "keep"] = "drop"
    shingle_graphemes: int = 5
    twin_shingle_letters: int = 3
    # Shorter texts are compared whole only: in them one word makes another question of the same template.
    min_shingles: int = 20
    numbers_must_match: bool = True  # "45 in words" is another row than "46 in words"
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"similarity": self.similarity, "twin_similarity": self.twin_similarity}
        wrong = [
            f"{name}={value} (above 0.5, up to 1)" for name, value in shares.items() if not 0.5 < value <= 1
        ]
        lengths = ("shingle_graphemes", "twin_shingle_letters", "min_shingles")
        wrong += [f"{name}={getattr(self, name)} (1 or more)" for name in lengths if getattr(self, name) < 1]
        wrong += [] if self.twins in ("drop", "keep") else [f"twins={self.twins!r} (drop or keep)"]
        if wrong:
            raise UserError(f"duplicates: {', '.join(wrong)}")


@dataclass(frozen=True)
class Duplicate:
    """Why a row goes: it is a duplicate of this kind of the row `kept`."""

    kind: Kind
    kept: str


@dataclass(frozen=True)
class _Text:
    row_id: str
    language: str
    is_latin: bool
    numbers: tuple[str, ...]
    shingles: np.ndarray
    twin_shingles: np.ndarray


def drop_duplicates(
    read_rows: Callable[[], Iterable[Row]], options: DuplicateOptions | None = None
) -> Iterator[Row | Rejected]:
    """Yield each row that stays, or its rejection, in the order of the rows.

    Args:
        read_rows: gives the same rows at each call, as from the file of the step before; called three times.

    Raises:
        UserError: two rows have one id; no room for the shingles.
    """
    options = options or DuplicateOptions()
    found = find_duplicates(signatures(read_rows(), options), read_rows, options)
    yield from without_duplicates(read_rows(), found, options)


def without_duplicates(
    rows: Iterable[Row], found: Mapping[str, Duplicate], options: DuplicateOptions
) -> Iterator[Row | Rejected]:
    """Yield each row, or its rejection where `found` has its id."""
    for row in rows:
        if duplicate := found.get(str(row["id"])):
            yield Rejected(str(row["id"]), NAME, f"{duplicate.kind} duplicate", f"of {duplicate.kept}")
        else:
            yield with_transform(
                row, NAME, VERSION, {"similarity": options.similarity, "twins": options.twins}
            )


def signatures(rows: Iterable[Row], options: DuplicateOptions) -> np.ndarray:
    """Return the signatures of rows, (rows, `WIDTH`) of uint32; those of parts of the rows may be stacked."""
    found = bytearray()
    for row in rows:
        found += signature(row, options)
    return np.frombuffer(found, dtype=np.uint32).reshape(-1, WIDTH)


def signature(row: Row, options: DuplicateOptions) -> bytes:
    """Return what is kept of one row: hashes of its id, its key, and the bands of its shingles."""
    texts = comparison.contents(row)
    exact = "\0".join(f"{role}\0{comparison.key(text)}" for role, text in texts)
    text = "\n".join(text for _, text in texts)
    near = _bands(
        comparison.grapheme_shingles(text, options.shingle_graphemes), BANDS, ROWS_PER_BAND, options
    )
    twin = np.full(TWIN_BANDS, SINGLE, dtype=np.uint32)
    if options.twins == "drop":
        shingles = comparison.skeleton_shingles(text, options.twin_shingle_letters)
        twin = _bands(shingles, TWIN_BANDS, TWIN_ROWS_PER_BAND, options)
        # The last bit tells the two sides of a twin: values of one side alone make no candidates.
        twin = np.where(twin == SINGLE, SINGLE, twin & ~np.uint32(1) | np.uint32(_is_latin(row)))
    return _hash(str(row["id"])) + _hash(exact) + near.tobytes() + twin.tobytes()


def find_duplicates(
    table: candidates.Table, read_rows: Callable[[], Iterable[Row]], options: DuplicateOptions
) -> dict[str, Duplicate]:
    """Return the rows that go, by id.

    Exact duplicates go first. Then the rows are taken in the order of their ids' hashes, and one goes if it
    is similar to one that stays; so the outcome is the same for every order of `table`.

    Args:
        table: the signatures of all rows, or the .npy files of their parts; rows in any order.
        read_rows: gives those rows in any order; called once.

    Raises:
        UserError: two rows have one id; no room for the shingles.
    """
    order, low, high = candidates.id_order(table)
    gone, kept = candidates.exact_pairs(table, order)
    stays = np.ones(len(order), dtype=bool)
    stays[gone] = False
    shared = candidates.shared_bands(table, order, stays)
    repeated = np.flatnonzero((low[1:] == low[:-1]) & (high[1:] == high[:-1]))
    near = np.unique(shared.positions)
    wanted = np.unique(np.concatenate([near, gone, kept, repeated]))
    named, refused = set(gone.tolist()) | set(kept.tolist()), set(repeated.tolist())
    low, high = low[wanted], high[wanted]
    names: dict[int, str] = {}
    # Beside the signatures: the folder for temporary files may be memory, and small.
    beside = None if isinstance(table, np.ndarray) or not table else Path(table[0]).parent
    with tempfile.TemporaryFile(dir=beside) as file:
        texts = _Texts(file.fileno(), len(near))
        for row in read_rows():
            position = _position(str(row["id"]), low, high, wanted)
            if position in refused:
                raise UserError(f"two rows have the id {row['id']!r}: each row needs an id of its own")
            if position in named:
                names[position] = str(row["id"])
            at = near.searchsorted(position)
            if at < len(near) and near[at] == position:
                texts.put(int(at), _text(row, options))
        exact = zip(gone.tolist(), kept.tolist(), strict=True)
        found = {names[i]: Duplicate("exact", names[first]) for i, first in exact}
        return found | _near_duplicates(shared, near, texts, options)


def _position(row_id: str, low: np.ndarray, high: np.ndarray, positions: np.ndarray) -> int:
    """Return which of `positions`, sorted as their hashes, has this id; -1 for none."""
    name_low, name_high = np.frombuffer(_hash(row_id), dtype=np.uint64)
    for at in range(high.searchsorted(name_high), len(high)):
        if high[at] != name_high:
            break
        if low[at] == name_low:
            return int(positions[at])
    return -1


class _Texts:
    """What is compared of the candidates, by their number, in an open file."""

    def __init__(self, file: int, n_texts: int) -> None:
        self.file = file
        self.places = np.zeros((n_texts, 2), dtype=np.int64)
        self.numbers = np.zeros(n_texts, dtype=np.uint64)  # hashes of the numbers in a text
        self.n_bytes = 0
        self.get = lru_cache(TEXTS_IN_MEMORY)(self._read)

    def put(self, number: int, text: _Text) -> None:
        """Keep a text."""
        record, n_written = pickle.dumps(text), 0
        self.places[number] = self.n_bytes, len(record)
        try:
            while n_written < len(record):
                n_written += os.pwrite(self.file, record[n_written:], self.n_bytes + n_written)
        except OSError as error:
            raise UserError(
                f"cannot keep what is compared of possible duplicates: {error.strerror}; "
                "free some disk beside the parts of the build"
            ) from error
        self.n_bytes += len(record)
        self.numbers[number] = np.frombuffer(_hash("\0".join(text.numbers))[:8], dtype=np.uint64)[0]

    def _read(self, number: int) -> _Text:
        start, n_bytes = self.places[number].tolist()
        return pickle.loads(os.pread(self.file, n_bytes, start))


def _near_duplicates(
    shared: candidates.Shared, near: np.ndarray, texts: _Texts, options: DuplicateOptions
) -> dict[str, Duplicate]:
    """Take the candidates in order: one goes if it is similar to one before it that stayed."""
    number, own, other = _lists(shared, near, texts.numbers, options)
    sizes = np.minimum(np.bincount(own), MAX_ROWS_PER_VALUE)
    starts = np.cumsum(sizes) - sizes  # of each list of rows that stayed, all in one array
    stayed = np.zeros(int(sizes.sum()), dtype=np.int32)
    n_stayed = np.zeros(len(sizes), dtype=np.int32)
    found: dict[str, Duplicate] = {}
    bounds = np.flatnonzero(np.diff(number, prepend=-1, append=-1)) if len(number) else np.zeros(1, int)
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        i = int(number[start])
        filled = other[start:end]
        filled = filled[filled >= 0]
        filled = filled[n_stayed[filled] > 0]
        match = None
        if len(filled):
            before = np.concatenate([stayed[starts[k] : starts[k] + n_stayed[k]] for k in filled])
            rows, n_shared = np.unique(before, return_counts=True)
            most = rows[np.argsort(-n_shared, kind="stable")[:MAX_COMPARED]].tolist()
            text = texts.get(i)
            match = next((d for k in most if (d := _compare(text, texts.get(k), options))), None)
            if match:
                found[text.row_id] = match
                continue
        lists = own[start:end]
        lists = lists[n_stayed[lists] < sizes[lists]]
        stayed[starts[lists] + n_stayed[lists]] = i
        n_stayed[lists] += 1
    return found


def _lists(
    shared: candidates.Shared, near: np.ndarray, numbers: np.ndarray, options: DuplicateOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each shared band the number of its row, its list, and the list it looks into (-1: none).

    A list is of the rows with one value in one band and with the same numbers; a twin looks into that of the
    other side.
    """
    number = np.searchsorted(near, shared.positions)
    kinds = np.unique(numbers, return_inverse=True)[1] if options.numbers_must_match else numbers * 0
    assert len(near) < 2**26, "a list's key has 26 bits for the kinds of numbers"
    bands = shared.bands.astype(np.uint64) << np.uint64(58)
    last = kinds[number].astype(np.uint64)
    own = bands | shared.values.astype(np.uint64) << np.uint64(26) | last
    is_twin = shared.bands >= TWIN.start
    looked = shared.values ^ is_twin.astype(np.uint32)
    other = bands | looked.astype(np.uint64) << np.uint64(26) | last
    keys, own = np.unique(own, return_inverse=True)
    at = np.searchsorted(keys, other)
    at[at == len(keys)] = 0
    there = keys[at] == other if len(keys) else np.zeros(0, dtype=bool)
    return number, own, np.where(there, at, -1)


def _compare(text: _Text, kept: _Text, options: DuplicateOptions) -> Duplicate | None:
    if options.numbers_must_match and text.numbers != kept.numbers:
        return None
    if _jaccard(text.shingles, kept.shingles) >= options.similarity:
        return Duplicate("near", kept.row_id)
    twins = options.twins == "drop" and text.language == kept.language and text.is_latin != kept.is_latin
    if twins and _jaccard(text.twin_shingles, kept.twin_shingles) >= options.twin_similarity:
        return Duplicate("twin", kept.row_id)
    return None


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    n_both = len(np.intersect1d(a, b, assume_unique=True))
    return n_both / max(1, len(a) + len(b) - n_both)


def _text(row: Row, options: DuplicateOptions) -> _Text:
    text = "\n".join(text for _, text in comparison.contents(row))
    return _Text(
        row_id=str(row["id"]),
        language=str(row.get("language", "")).split("-")[0],
        is_latin=_is_latin(row),
        numbers=comparison.numbers(text),
        shingles=_hashed(comparison.grapheme_shingles(text, options.shingle_graphemes)),
        twin_shingles=_hashed(comparison.skeleton_shingles(text, options.twin_shingle_letters)),
    )


def _is_latin(row: Row) -> bool:
    return row.get("script") == "Latn" or str(row.get("language", "")).endswith("-Latn")


def _hashed(shingles: set[str]) -> np.ndarray:
    return np.array(sorted(comparison.hashes(shingles)), dtype=np.uint64)


def _bands(shingles: set[str], n_bands: int, n_rows: int, options: DuplicateOptions) -> np.ndarray:
    """Return one 32-bit value a band; `SINGLE` in all of a text that is too short to be near another."""
    if len(shingles) < options.min_shingles:
        return np.full(n_bands, SINGLE, dtype=np.uint32)
    minhash = RMinHash(n_bands * n_rows, options.seed)
    minhash.update(list(shingles))
    values = np.array(minhash.digest(), dtype=np.uint64).reshape(n_bands, n_rows)
    mixed = np.zeros(n_bands, dtype=np.uint64)
    for column in range(n_rows):  # FNV's way of mixing; a chance agreement costs one comparison
        mixed = (mixed ^ values[:, column]) * np.uint64(0x100000001B3)
    return np.maximum((mixed ^ (mixed >> np.uint64(32))).astype(np.uint32), 2)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
