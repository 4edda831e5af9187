"""Keep test texts out of a part: those of the named test sets, and those of the recipe's own test split.

Reads an index of each, made once and kept as a file in the working folder; what is held in memory grows with
the test texts and not with the rows. Rows of the test split pass: they are the test.

The own test split is compared conversation by conversation (question and answer together), of rows that ask
for a translation without their phrasing, which all of them share. Long questions and answers of other rows
are compared alone as well.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, whole_file
from data_recipes.parts.splitting import Shares, split_of_row
from data_recipes.screening.comparison import contents, grapheme_shingles
from data_recipes.screening.contamination import (
    NAME,
    ContaminationOptions,
    TestSets,
    find_contact,
    index_test_sets,
    keep_out,
)
from data_recipes.steps import Rejected, Row

OWN = "the recipe's own test split"


@dataclass(frozen=True)
class ContaminationSetting:
    """The files of the two indexes ("": there is none), and how source rows are split."""

    named: str
    own: str
    shares: Shares


def outside_test_texts(rows: Iterable[Row], setting: ContaminationSetting) -> Iterator[Row | Rejected]:
    """Yield each row, or its rejection; rows of locale tasks are compared with the named test sets alone."""
    for row in rows:
        if split_of_row(row, setting.shares) == "test":
            yield row
            continue
        if setting.named:
            row = next(keep_out([row], _read_index(setting.named)))
        if not isinstance(row, Rejected) and setting.own and "split" not in row:
            row = _outside_own(row, _read_index(setting.own))
        yield row


def named_texts(rows: Iterable[Row | Rejected], options: ContaminationOptions) -> Iterator[str]:
    """Yield what is kept out of a test set: every question, and answers long enough to know them by."""
    for row in rows:
        if not isinstance(row, Rejected):
            for role, text in contents(row):
                if role == "user" or _is_long(text, options):
                    yield text


def own_texts(rows: Iterable[Row], shares: Shares, options: ContaminationOptions) -> Iterator[str]:
    """Yield what is kept out of the recipe's own test split, and of what its rows were made from."""
    for row in rows:
        if "split" not in row and split_of_row(row, shares) == "test":
            for made in (row, row.get("parent")):
                if isinstance(made, dict) and "messages" in made:
                    yield _conversation(made)
                    if "pair" not in row:
                        yield from (text for text in _said(made) if _is_long(text, options))


def write_index(path: Path, texts: Mapping[str, Iterable[str]], options: ContaminationOptions) -> None:
    """Write the index of named texts to a file.

    Raises:
        UserError: a test set without a text; a full disk.
    """
    index = index_test_sets(texts, options) if texts else TestSets(options)
    with whole_file(path) as partial:
        partial.write_bytes(pickle.dumps(index))


def write_own_index(path: Path, texts: Iterable[str], options: ContaminationOptions) -> None:
    """Write the index of the own test split, which may have no text at all in a small recipe.

    Raises:
        UserError: a full disk.
    """
    first = next(iter(texts := iter(texts)), None)
    write_index(path, {OWN: itertools.chain([first], texts)} if first else {}, options)


def n_texts(path: str) -> dict[str, int]:
    """Return how many texts of each test set are kept out."""
    return dict(sorted(_read_index(path).n_texts.items()))


def _outside_own(row: Row, index: TestSets) -> Row | Rejected:
    for who, made in (("", row), ("parent ", row.get("parent"))):
        if isinstance(made, dict) and "messages" in made:
            alone = [] if "pair" in row else _said(made)
            if contact := find_contact([_conversation(made), *alone], index):
                return Rejected(str(row["id"]), NAME, f"{who}in {OWN}", f"{contact.form} form, {contact.how}")
    return row


def _said(row: dict[str, Any]) -> list[str]:
    """What each message says, without its calls of tools: two questions may well need the same, whose JSON is
    longer than they are.
    """
    plain = [{"role": one["role"], "content": one.get("content")} for one in row["messages"]]
    return [text for _, text in contents({"messages": plain})]


def _conversation(row: dict[str, Any]) -> str:
    """All that was said; of a row that asks for a translation without the phrasing, which all share."""
    if "pair" in row:
        return f"{row['pair']['english']}\n{contents(row)[-1][1]}"
    return "\n".join(_said(row))


def _is_long(text: str, options: ContaminationOptions) -> bool:
    return len(grapheme_shingles(text, options.graphemes)) >= options.min_runs


@cache
def _read_index(path: str) -> TestSets:
    try:
        return pickle.loads(Path(path).read_bytes())  # our own, of this build
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}; remove the working folder and build again") from error
