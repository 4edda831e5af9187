"""Keep test sets out of the rows, in every script, and the rows that were made from a kept-out English one.

Reads the texts of named test sets; rows go in, rows or rejections come out. What is held in memory grows with
the test sets and not with the rows. A row is contaminated when, in one of two forms,

- one of its messages holds at least `share` of a test text's runs of graphemes, or
- it holds a run of `words` words of one, or
- it is the whole of a test text that is too short for runs.

The forms are the text's key in lower case, and its consonant skeleton: a test question in Tamil script is
found romanised, and one in Latin letters in Tamil script.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

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


@dataclass
class TestSets:
    """The named test sets, as hashes of their runs; made by `index_test_sets`."""

    __test__ = False  # no test case of pytest's

    options: ContaminationOptions
    names: list[str] = field(default_factory=list)  # of each test text
    n_texts: dict[str, int] = field(default_factory=dict)
    n_runs: dict[str, list[int]] = field(default_factory=lambda: {form: [] for form in FORMS})
    runs: dict[str, dict[int, list[int]]] = field(default_factory=lambda: {form: {} for form in FORMS})
    words: dict[str, dict[int, int]] = field(default_factory=lambda: {form: {} for form in FORMS})
    whole: dict[str, dict[int, int]] = field(default_factory=lambda: {form: {} for form in FORMS})


def index_test_sets(
    test_sets: Mapping[str, Iterable[str]], options: ContaminationOptions | None = None
) -> TestSets:
    """Return the index of the texts (questions, and answers worth keeping out) of named test sets.

    Raises:
        UserError: there is no test set, or one has no text.
    """
    index = TestSets(options or ContaminationOptions())
    for name, texts in test_sets.items():
        for text in texts:
            if text.strip():
                _add(index, name, text)
        if name not in index.n_texts:
            raise UserError(f"the test set {name!r} has no text to keep out: check its path and column")
    if not index.names:
        raise UserError("no test set is named: give at least one to keep out, or leave the step out")
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
    if (item := index.whole[form].get(whole)) is not None:
        return Contact(index.names[item], form, "whole")
    for run in sorted(words & index.words[form].keys()):
        return Contact(index.names[index.words[form][run]], form, "words")
    hits: dict[int, int] = {}
    for run in runs & index.runs[form].keys():
        for item in index.runs[form][run]:
            hits[item] = hits.get(item, 0) + 1
    share = index.options.share if form == "written" else index.options.skeleton_share
    for item in sorted(hits):
        if hits[item] >= share * index.n_runs[form][item]:
            return Contact(index.names[item], form, "runs")
    return None


def _add(index: TestSets, name: str, text: str) -> None:
    item = len(index.names)
    index.names.append(name)
    index.n_texts[name] = index.n_texts.get(name, 0) + 1
    for form in FORMS:
        runs, words, whole = _units(text, form, index.options)
        index.n_runs[form].append(len(runs))
        if len(runs) >= index.options.min_runs:
            for run in runs:
                index.runs[form].setdefault(run, []).append(item)
        elif form == "written":  # the skeleton of a short text is that of many others
            index.whole[form].setdefault(whole, item)
        for run in words:
            index.words[form].setdefault(run, item)


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
