"""Keep test sets out of the rows, in every script, and the rows that were made from a kept-out English one.

Reads the texts of named test sets; rows go in, rows or rejections come out. What is held in memory grows with
the test sets and not with the rows: some 12 bytes a run. A row is contaminated when, in one of two forms,

- one of its messages holds at least `share` of a test text's runs of graphemes, or
- it holds a run of `words` words of one, or
- it is the whole of a test text that is too short for runs.

The forms are the text's key in lower case, and its consonant skeleton: a test question in Tamil script is
found romanised, and one in Latin letters in Tamil script.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import regex

from data_recipes.artefact import UserError
from data_recipes.screening import comparison
from data_recipes.steps import Rejected, Row, with_transform

NAME, VERSION = "contamination", 1
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}\p{Cf}]+")
FORMS = ("written", "skeleton")


@dataclass(frozen=True)
class ContaminationOptions:
    """How much of a test text makes a row contaminated.

    Raises:
        UserError: a share or a length that makes no sense.
    """

    graphemes: int = 8  # length of a run in the written form
    letters: int = 5  # length of a run in the skeleton
    share: float = 0.8  # of a test text's runs of graphemes
    skeleton_share: float = 0.7
    min_runs: int = 12  # of a test text with fewer only the whole counts
    words: int = 13  # GPT-3's length of overlap (Brown et al. 2020, appendix C)

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value} (above 0, up to 1)"
            for name, value in (("share", self.share), ("skeleton_share", self.skeleton_share))
            if not 0 < value <= 1
        ]
        lengths = ("graphemes", "letters", "min_runs", "words")
        wrong += [f"{name}={getattr(self, name)} (1 or more)" for name in lengths if getattr(self, name) < 1]
        if wrong:
            raise UserError(f"contamination: {', '.join(wrong)}")


@dataclass(frozen=True)
class Contact:
    """What a row has in common with a test set."""

    test_set: str
    form: str
    how: str  # "runs", "words" or "whole"


@dataclass(frozen=True)
class Postings:
    """Which test texts hold a hash: two arrays of one length, by hash and then by text."""

    hashes: np.ndarray  # uint64
    items: np.ndarray  # int32, the number of a test text

    def of(self, wanted: set[int]) -> np.ndarray:
        """Return the texts that hold some hashes, each as often as it holds one."""
        asked = np.fromiter(wanted, dtype=np.uint64, count=len(wanted))
        start = self._places(asked)
        end = self.hashes.searchsorted(self.hashes[start], side="right")
        n_found = end - start
        before = n_found.cumsum() - n_found
        return self.items[(start - before).repeat(n_found) + np.arange(int(n_found.sum()))]

    def first(self, wanted: set[int]) -> int | None:
        """Return the first text that holds the smallest of some hashes that is held at all."""
        if not wanted or not len(self.hashes):
            return None
        held = self._places(np.fromiter(sorted(wanted), dtype=np.uint64, count=len(wanted)))
        return int(self.items[held[0]]) if len(held) else None

    def _places(self, asked: np.ndarray) -> np.ndarray:
        """Return where those of some hashes that are held begin."""
        if not len(self.hashes):
            return np.zeros(0, dtype=np.int64)
        places = self.hashes.searchsorted(asked)
        return places[self.hashes.take(places, mode="clip") == asked]


@dataclass(frozen=True)
class Runs:
    """The runs of each test text that is long enough, and those for which it is looked at.

    A text of n runs, of which m must be in a row, is in no row that has fewer than k of some n - m + k of its
    runs (prefix filtering, Chaudhuri et al. 2006): the rarest, so that few rows have so many by chance.
    """

    hashes: np.ndarray  # uint64, text by text
    starts: np.ndarray  # int64, of each text, and the end
    rare: Postings
    n_needed: np.ndarray  # of the rare runs of each text: k, a third of m

    def held(self, runs: set[int], share: float) -> int | None:
        """Return the first text of whose runs a row holds at least a share."""
        found = self.rare.of(runs)
        if not len(found):
            return None
        items, n_found = np.unique(found, return_counts=True)
        for item in items[n_found >= self.n_needed[items]].tolist():
            own = self.hashes[self.starts[item] : self.starts[item + 1]].tolist()
            if len(runs.intersection(own)) >= share * len(own):
                return item
        return None


@dataclass
class _Collected:
    """Hashes and the texts that hold them, as they come."""

    hashes: "array[int]" = field(default_factory=lambda: array("Q"))
    items: "array[int]" = field(default_factory=lambda: array("i"))

    def add(self, hashes: set[int], item: int) -> None:
        self.hashes.extend(hashes)
        self.items.extend([item] * len(hashes))

    def postings(self) -> Postings:
        return _by_hash(np.frombuffer(self.hashes, np.uint64), np.frombuffer(self.items, np.int32))

    def runs(self, n_items: int, share: float) -> Runs:
        hashes, items = np.frombuffer(self.hashes, np.uint64), np.frombuffer(self.items, np.int32)
        n_runs = np.bincount(items, minlength=n_items)
        starts = np.concatenate([[0], np.cumsum(n_runs)])
        _, place, frequency = np.unique(hashes, return_inverse=True, return_counts=True)
        order = np.lexsort((frequency[place], items))
        n_shared = np.ceil(share * n_runs).astype(np.int64)
        n_needed = (n_shared + 2) // 3
        of_order = items[order]
        is_rare = np.arange(len(order)) - starts[of_order] < (n_runs - n_shared + n_needed)[of_order]
        order = order[is_rare]
        return Runs(hashes, starts, _by_hash(hashes[order], items[order]), n_needed)


def _by_hash(hashes: np.ndarray, items: np.ndarray) -> Postings:
    order = np.lexsort((items, hashes))
    return Postings(hashes[order], items[order])


def _no_postings() -> dict[str, Postings]:
    return {form: Postings(np.zeros(0, np.uint64), np.zeros(0, np.int32)) for form in FORMS}


@dataclass
class TestSets:
    """The named test sets, as hashes of their runs; made by `index_test_sets`."""

    __test__ = False  # no test case of pytest's

    options: ContaminationOptions
    names: list[str] = field(default_factory=list)  # of each test text
    n_texts: dict[str, int] = field(default_factory=dict)
    runs: dict[str, Runs] = field(default_factory=dict)
    words: dict[str, Postings] = field(default_factory=_no_postings)
    whole: dict[str, Postings] = field(default_factory=_no_postings)


def index_test_sets(
    test_sets: Mapping[str, Iterable[str]], options: ContaminationOptions | None = None
) -> TestSets:
    """Return the index of the texts (questions, and answers worth keeping out) of named test sets.

    Raises:
        UserError: there is no test set, or one has no text.
    """
    index = TestSets(options or ContaminationOptions())
    runs, words, whole = ({form: _Collected() for form in FORMS} for _ in range(3))
    for name, texts in test_sets.items():
        for text in (text for text in texts if text.strip()):
            item = len(index.names)
            index.names.append(name)
            index.n_texts[name] = index.n_texts.get(name, 0) + 1
            for form in FORMS:
                of_text, of_words, all_of_it = _units(text, form, index.options)
                if len(of_text) >= index.options.min_runs:
                    runs[form].add(of_text, item)
                elif form == "written":  # the skeleton of a short text is that of many others
                    whole[form].add({all_of_it}, item)
                words[form].add(of_words, item)
        if name not in index.n_texts:
            raise UserError(f"the test set {name!r} has no text to keep out: check its path and column")
    if not index.names:
        raise UserError("no test set is named: give at least one to keep out, or leave the step out")
    for form in FORMS:
        index.runs[form] = runs[form].runs(len(index.names), _share(form, index.options))
        index.words[form], index.whole[form] = words[form].postings(), whole[form].postings()
    return index


def keep_out(
    rows: Iterable[Row], index: TestSets, parents: Mapping[str, Contact] | None = None
) -> Iterator[Row | Rejected]:
    """Yield each row, or its rejection when it, or the row it was made from, is in a test set.

    A row names what it was made from in `parent`: the id of a row, or a dict with its `id` and its
    `messages` or `text`.

    Args:
        parents: contaminated rows of the source by id, from `contaminated_ids`.
    """
    parents = parents or {}
    for row in rows:
        parent = row.get("parent")
        parent_id = str(parent.get("id", "")) if isinstance(parent, dict) else str(parent)
        contact = find_contact([text for _, text in comparison.contents(row)], index)
        of_parent = parents.get(parent_id) or find_contact(_parent_texts(parent), index)
        if contact or of_parent:
            who = "" if contact else "parent "
            hit = contact or of_parent
            assert hit is not None
            yield Rejected(
                str(row["id"]), NAME, f"{who}in test set {hit.test_set}", f"{hit.form} form, {hit.how}"
            )
        else:
            yield with_transform(row, NAME, VERSION, {"test_sets": dict(sorted(index.n_texts.items()))})


def contaminated_ids(rows: Iterable[Row], index: TestSets) -> dict[str, Contact]:
    """Return the contaminated rows of a source by id, so that what is made from them can go too."""
    found = (
        (str(row["id"]), find_contact([text for _, text in comparison.contents(row)], index)) for row in rows
    )
    return {row_id: contact for row_id, contact in found if contact}


def find_contact(texts: Iterable[str], index: TestSets) -> Contact | None:
    """Return what some texts have in common with a test set, the first found; None without contact."""
    for text in texts:
        for form in FORMS:
            if contact := _contact(text, form, index):
                return contact
    return None


def _contact(text: str, form: str, index: TestSets) -> Contact | None:
    runs, words, whole = _units(text, form, index.options)
    if (item := index.whole[form].first({whole})) is not None:
        return Contact(index.names[item], form, "whole")
    if (item := index.words[form].first(words)) is not None:
        return Contact(index.names[item], form, "words")
    held = index.runs[form].held(runs, _share(form, index.options)) if form in index.runs else None
    return None if held is None else Contact(index.names[held], form, "runs")


def _share(form: str, options: ContaminationOptions) -> float:
    return options.share if form == "written" else options.skeleton_share


def _units(text: str, form: str, options: ContaminationOptions) -> tuple[set[int], set[int], int]:
    """Return a text's runs of graphemes or letters, its runs of words, and the whole, each hashed."""
    if form == "written":
        key = comparison.key(text).casefold()
        runs, words = comparison.grapheme_shingles(text, options.graphemes), _WORD.findall(key)
    else:
        key = comparison.skeleton(text)
        runs, words = comparison.skeleton_shingles(text, options.letters), key.split()
    n = options.words
    word_runs = {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
    return comparison.hashes(runs), comparison.hashes(word_runs), next(iter(comparison.hashes({key})))


def _parent_texts(parent: object) -> list[str]:
    if not isinstance(parent, dict):
        return []
    texts = [text for _, text in comparison.contents(parent)] if "messages" in parent else []
    return texts + ([parent["text"]] if isinstance(parent.get("text"), str) else [])
