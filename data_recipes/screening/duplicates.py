"""Duplicates: exact ones, near ones by MinHash on graphemes, and a text beside its own romanisation.

Rows go in, twice: once for their signatures, once for the texts of those that may be duplicates. Nothing is
written. Which of two duplicates stays is decided by a hash of their ids, never by the order of arrival, and
each row that goes names the one that stays. Memory grows with the rows by `BYTES_PER_ROW` of hashes, and by
the shingles of the candidates.

MinHash is rensa's (R-MinHash, 32-bit values), in bands of a few values each. Rows that agree in a whole band
are candidates: a pair of similarity s with the chance 1 - (1 - s^values)^bands. True Jaccard similarity then
decides.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without stubs)

from data_recipes.artefact import UserError
from data_recipes.screening import comparison
from data_recipes.steps import Rejected, Row, with_transform

NAME, VERSION = "duplicates", 1
# A pair at the threshold of 0.8 is a candidate with 0.9999; half of the pairs of 0.53 are.
BANDS, ROWS_PER_BAND = 25, 5
# Spellings differ between romanisations: a pair of 0.6 is a candidate with 0.9996.
TWIN_BANDS, TWIN_ROWS_PER_BAND = 32, 3
_ID, _EXACT = slice(0, 4), slice(4, 8)
_NEAR, _TWIN = slice(8, 8 + BANDS), slice(8 + BANDS, 8 + BANDS + TWIN_BANDS)
WIDTH = 8 + BANDS + TWIN_BANDS
BYTES_PER_ROW = 4 * WIDTH
_SINGLE = 0  # a band value that never makes a candidate
# Rows of one template share many bands: without bounds each would be compared with all. A row is compared
# with those it shares most bands with, and a band's value that many rows have says little.
MAX_COMPARED, MAX_ROWS_PER_VALUE = 50, 200

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
        UserError: two rows have one id.
    """
    options = options or DuplicateOptions()
    found = find_duplicates(signatures(read_rows(), options), read_rows, options)
    for row in read_rows():
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
    twin = np.full(TWIN_BANDS, _SINGLE, dtype=np.uint32)
    if options.twins == "drop":
        shingles = comparison.skeleton_shingles(text, options.twin_shingle_letters)
        twin = _bands(shingles, TWIN_BANDS, TWIN_ROWS_PER_BAND, options)
        # The last bit tells the two sides of a twin: values of one side alone make no candidates.
        twin = np.where(twin == _SINGLE, _SINGLE, twin & ~np.uint32(1) | np.uint32(_is_latin(row)))
    return _hash(str(row["id"])) + _hash(exact) + near.tobytes() + twin.tobytes()


def find_duplicates(
    table: np.ndarray, read_rows: Callable[[], Iterable[Row]], options: DuplicateOptions
) -> dict[str, Duplicate]:
    """Return the rows that go, by id.

    Exact duplicates go first. Then the rows are taken in the order of their ids' hashes, and one goes if it
    is similar to one that stays; so the outcome is the same for every order of `table`.

    Raises:
        UserError: two rows have one id.
    """
    table = table[np.lexsort(table[:, _ID].T)]
    same_id = (table[1:, _ID] == table[:-1, _ID]).all(axis=1)
    exact = _exact_duplicates(table)
    near = _groups(table, exact)
    wanted = {table[i, _ID].tobytes(): i for i in near}
    named = {table[i, _ID].tobytes(): i for pair in exact.items() for i in pair}
    repeated = {table[i, _ID].tobytes() for i in np.flatnonzero(same_id)}
    ids: dict[int, str] = {}
    texts: dict[int, _Text] = {}
    for row in read_rows():
        name = _hash(str(row["id"]))
        if name in repeated:
            raise UserError(f"two rows have the id {row['id']!r}: each row needs an id of its own")
        if name in named:
            ids[named[name]] = str(row["id"])
        if name in wanted:
            texts[wanted[name]] = _text(row, options)
    found = {ids[i]: Duplicate("exact", ids[kept]) for i, kept in exact.items()}
    return found | _near_duplicates(near, texts, options)


def _exact_duplicates(table: np.ndarray) -> dict[int, int]:
    """Return row -> the row that stays, of rows with one key; `table` is in the order of ids' hashes."""
    order = np.lexsort(table[:, _EXACT].T)  # stable: of equal rows the first stays first
    keys = table[order][:, _EXACT]
    kept: dict[int, int] = {}
    for before, same in enumerate((keys[1:] == keys[:-1]).all(axis=1)):
        if same:
            first = int(order[before])
            kept[int(order[before + 1])] = kept.get(first, first)
    return kept


def _groups(table: np.ndarray, exact: dict[int, int]) -> dict[int, list[tuple[int, int]]]:
    """Return the shared bands and their values of each row that has any, in the table's order."""
    stays = np.ones(len(table), dtype=bool)
    stays[list(exact)] = False
    groups: dict[int, list[tuple[int, int]]] = {}
    for band in range(_NEAR.start, _TWIN.stop):
        column = table[:, band]
        values, counts = np.unique(column[stays & (column > 1)], return_counts=True)
        shared = values[counts > 1] if band < _TWIN.start else values[np.isin(values ^ np.uint32(1), values)]
        for i in np.flatnonzero(stays & np.isin(column, shared)):
            groups.setdefault(int(i), []).append((band, int(column[i])))
    return dict(sorted(groups.items()))


def _near_duplicates(
    groups: dict[int, list[tuple[int, int]]], texts: dict[int, _Text], options: DuplicateOptions
) -> dict[str, Duplicate]:
    kept_by_value: dict[tuple[int, int, tuple[str, ...]], list[int]] = {}
    found: dict[str, Duplicate] = {}
    for i, bands in groups.items():
        numbers = texts[i].numbers if options.numbers_must_match else ()
        n_shared: Counter[int] = Counter()
        for band, value in bands:
            other_side = value if band < _TWIN.start else value ^ 1
            n_shared.update(kept_by_value.get((band, other_side, numbers), []))
        candidates = sorted(n_shared, key=lambda other: (-n_shared[other], other))[:MAX_COMPARED]
        match = next((d for other in candidates if (d := _compare(texts[i], texts[other], options))), None)
        if match:
            found[texts[i].row_id] = match
            continue
        for band, value in bands:
            rows = kept_by_value.setdefault((band, value, numbers), [])
            if len(rows) < MAX_ROWS_PER_VALUE:
                rows.append(i)
    return found


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
    """Return one 32-bit value a band; `_SINGLE` in all of a text that is too short to be near another."""
    if len(shingles) < options.min_shingles:
        return np.full(n_bands, _SINGLE, dtype=np.uint32)
    minhash = RMinHash(n_bands * n_rows, options.seed)
    minhash.update(list(shingles))
    values = np.array(minhash.digest(), dtype=np.uint64).reshape(n_bands, n_rows)
    mixed = np.zeros(n_bands, dtype=np.uint64)
    for column in range(n_rows):  # FNV's way of mixing; a chance agreement costs one comparison
        mixed = (mixed ^ values[:, column]) * np.uint64(0x100000001B3)
    return np.maximum((mixed ^ (mixed >> np.uint64(32))).astype(np.uint32), 2)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
