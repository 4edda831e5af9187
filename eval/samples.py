"""Answers side by side, as a report shows them: what differs from the expected answer is marked.

Reads rows of results.json, writes nothing. Marks lie between words, never inside a grapheme, so that a script
is shaped as it would be without them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_recipes.publishing.page_frame import cut_text
from data_recipes.publishing.text_difference import Piece, text_difference
from eval.figures import language_name
from eval.report_tables import words
from eval.results_places import pointer


@dataclass(frozen=True)
class Answer:
    """What one contestant said; `is_right` is None where nothing judged it."""

    system: str
    text: str
    is_right: bool | None
    pieces: list[Piece]


@dataclass(frozen=True)
class Sample:
    """One row with all answers; `tag` is its language and script, `place` where it is in results.json."""

    title: str
    place: str
    row_id: str
    tag: str
    prompt: str
    expected: str
    answers: list[Answer]


def choose_samples(rows: Sequence[Mapping[str, Any]], n_per_task: int, seed: int) -> list[int]:
    """Indices of rows to show, drawn by the seed, never by outcome.

    `n_per_task` of each target task, one of each general task, and one of each language that is then missing.
    """
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    shown: dict[tuple[str, str], list[int]] = {}
    for i in order:
        key = rows[i]["group"], rows[i]["task"]
        n_wanted = n_per_task if key[0] == "target" else min(1, n_per_task)
        if len(shown.setdefault(key, [])) < n_wanted:
            shown[key].append(i)
    languages = {rows[i]["language"] for of_task in shown.values() for i in of_task}
    for i in order if n_per_task else ():
        if rows[i]["language"] not in languages:
            shown[rows[i]["group"], rows[i]["task"]].append(i)
            languages.add(rows[i]["language"])
    keys = sorted(shown, key=lambda key: (key[0] != "target", key[1]))
    return [i for key in keys for i in sorted(shown[key])]


def make_samples(results: Mapping[str, Any], chosen: Sequence[int]) -> list[Sample]:
    """The chosen rows with the answers of base, tuned and each further contestant that has that row."""
    others = {
        name: {row["id"]: row for row in other.get("rows") or ()}
        for name, other in (results.get("others") or {}).items()
    }
    samples = []
    for i in chosen:
        row = results["rows"][i]
        answers = [make_answer(s, row[s], row["expected"], row.get(f"{s}_exact")) for s in ("base", "tuned")]
        for name, by_id in others.items():
            if found := by_id.get(row["id"]):
                answers.append(make_answer(name, found["answer"], row["expected"], found.get("exact")))
        samples.append(
            Sample(
                title=f"{language_name(row['language'])}, {words(row['task'])}",
                place=pointer("rows", str(i)),
                row_id=row["id"],
                tag=f"{row['language']}-{row['script']}",
                prompt=cut_text(row["prompt"]),
                expected=cut_text(row["expected"]),
                answers=answers,
            )
        )
    return samples


def make_answer(system: str, text: str, expected: str, exact: float | None) -> Answer:
    """An answer with what differs from the expected one marked."""
    shown = cut_text(text)
    pieces = [Piece("same", shown)] if text == expected else text_difference(expected, shown)[1]
    return Answer(system, shown, None if exact is None else exact == 1, pieces if shown else [])
