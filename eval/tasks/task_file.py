"""What a task file may say: kind, rows, prompt, checker, metrics. Each option stands here once.

Reads configs/eval/*.yaml through `settings`; writes nothing. Imports no torch, so that a run knows of a wrong
task file before it trains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from data_recipes.artefact import UserError
from data_recipes.settings import load_settings, out_of_range
from data_recipes.tasks import Split
from data_recipes.writing.written_forms import written_form
from eval.tasks.checkers import CHECKERS, ROW_CHECKER
from eval.tasks.formats import FORMATS
from eval.tasks.locale_questions import QUESTIONS
from eval.tasks.template import columns_of

Kind = Literal["generation", "multiple_choice", "bits_per_byte", "fertility", "lm_eval"]

# What each kind measures; `generation` chooses from these, the others take all of theirs.
METRICS: dict[Kind, tuple[str, ...]] = {
    "generation": (
        "exact_match", "chrf", "bits_per_byte", "script_by_line", "script_by_word", "language_by_line",
        "format", "numbers",
    ),
    "multiple_choice": ("accuracy", "accuracy_per_byte"),
    "bits_per_byte": ("bits_per_byte",),
    "fertility": ("tokens_per_word", "tokens_per_character"),
    "lm_eval": (),
}  # fmt: skip
# The columns a kind makes of a row, beside its language: what must be in the file.
TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "generation": ("prompt", "answer"),
    "multiple_choice": ("prompt",),
    "bits_per_byte": ("text",),
    "fertility": ("text",),
    "lm_eval": (),
}


@dataclass(frozen=True, kw_only=True)
class LocaleOptions:
    """Questions about dates, numbers and names, made from the checked facts of each language."""

    languages: tuple[str, ...]  # codes or tags, as "ta", "hi-Latn"
    tasks: tuple[
        str, ...
    ]  # of `eval.tasks.locale_questions.QUESTIONS`, or of data_recipes with own phrasings
    asked_in: Literal["English", "own"]  # own: the phrasing a speaker wrote and that is kept for testing
    rows_per_task: int = 10  # of each language
    seed: int = 0

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = [] if self.languages else ["languages: name at least one, as [ta]"]
        wrong += [problem for tag in self.languages for problem in language_problems("languages", tag)]
        wrong += [] if self.tasks else ["tasks: name at least one"]
        known = tuple(QUESTIONS)
        if self.asked_in == "English":
            wrong += [unknown("tasks", name, known) for name in self.tasks if name not in known]
        return wrong + out_of_range({"rows_per_task": self.rows_per_task})


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    """Exactly one of inline, file, dataset and locale; a file's path is relative to the task file."""

    inline: tuple[dict[str, Any], ...] | None = None
    file: str | None = None  # JSONL, CSV or Parquet, one record a row
    dataset: str | None = None  # a folder that `local-experts data` or `save_to_disk` wrote
    split: Split = "test"  # of the dataset
    locale: LocaleOptions | None = None
    max_rows: int | None = None  # the first so many

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        kinds = ("inline", "file", "dataset", "locale")
        found = [name for name in kinds if getattr(self, name) is not None]
        wrong = out_of_range({"max_rows": self.max_rows})
        if self.inline == ():
            wrong.append("inline: there are no rows; write at least one")
        if len(found) != 1:
            named = f"it has {' and '.join(found)}" if found else "there are no rows"
            wrong.append(f"{found[0] if found else 'inline'}: name one of {', '.join(kinds)}; {named}")
        return wrong


@dataclass(frozen=True, kw_only=True)
class HarnessOptions:
    """A task of lm-evaluation-harness (`pip install local-experts[lm-eval]`)."""

    task: str  # its name there
    folder: str | None = None  # with task files of one's own, relative to this file
    fewshot: int | None = None  # examples before each question; None is as the task says
    limit: int | None = None  # the first so many documents of each task

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = [] if self.task else ["task: name one, as hellaswag"]
        return (
            wrong + out_of_range({"fewshot": self.fewshot}, minimum=0) + out_of_range({"limit": self.limit})
        )


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """One task. Templates hold columns of the rows in braces: "Translate: {english}"; {{ is a brace."""

    name: str  # letters, digits, ".", "-" and "_"
    version: int  # raise it when rows, prompt or scoring change: scores of two versions do not compare
    kind: Kind
    language: str = ""  # code or tag ("ta", "hi-Latn") of all rows; or each row has a column of that name
    rows: RowsOptions | None = None
    system: str = ""  # system message; empty is none
    prompt: str = (
        ""  # what the user asks. A row's own `messages` stand for prompt and answer where it has them
    )
    answer: str = ""  # the expected answer
    text: str = ""  # of bits_per_byte and fertility
    choices: str = ""  # of multiple_choice: the column that holds the list of answers
    right: str = ""  # of multiple_choice: the column that holds the right one, or its number from 0
    checker: str = ""  # what decides whether an answer is right, or "row": each row's own
    metrics: tuple[str, ...] = ()  # beside exact_match, which a checker brings
    format: str = ""  # that answers must keep, for the metric of that name; or each row's column `format`
    max_new_tokens: int | None = None  # longest answer; None is eval.max_new_tokens
    window_tokens: int = 1024  # of bits_per_byte: a longer text is read in pieces of so many
    lm_eval: HarnessOptions | None = None

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics of this task: for generation those that it names, else all of its kind."""
        named = self.metrics if self.kind == "generation" else METRICS[self.kind]
        return tuple(dict.fromkeys((*(("exact_match",) if self.checker else ()), *named)))

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = out_of_range({"version": self.version, "window_tokens": self.window_tokens})
        wrong += out_of_range({"max_new_tokens": self.max_new_tokens})
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            wrong.append('name: use letters, digits, ".", "-" and "_" only')
        if self.language:
            wrong += language_problems("language", self.language)
        wrong += self._scoring_problems() + self._template_problems()
        if (self.lm_eval is None) == (self.kind == "lm_eval"):
            wrong.append("lm_eval: the section and the kind of that name belong together")
        if (self.rows is None) != (self.kind == "lm_eval"):
            missing = "there are no rows: name inline, file, dataset or locale"
            wrong.append(f"rows: {'the harness brings its own' if self.rows else missing}")
        return wrong

    def _scoring_problems(self) -> list[str]:
        known, checkers = METRICS[self.kind], (ROW_CHECKER, *CHECKERS)
        wrong = [unknown("metrics", name, known) for name in self.metrics if name not in known]
        if self.kind != "generation":
            return wrong + ([f"checker: {self.kind} needs none; leave it out"] if self.checker else [])
        if self.checker and self.checker not in checkers:
            wrong.append(unknown("checker", self.checker, checkers))
        if not self.checker and not self.metrics:
            wrong.append(
                f"checker: is missing: name one of {', '.join(checkers)}, or metrics: {', '.join(known)}"
            )
        if "exact_match" in self.metrics and not self.checker:
            wrong.append(f"checker: exact_match needs one of {', '.join(checkers)}")
        if self.format and self.format not in FORMATS:
            wrong.append(unknown("format", self.format, tuple(FORMATS)))
        if self.format and "format" not in self.metrics:
            wrong.append("format: nothing looks at it: add format to metrics")
        return wrong

    def _template_problems(self) -> list[str]:
        wrong = []
        for name in ("system", "prompt", "answer", "text"):
            template = getattr(self, name)
            if template and name not in (*TEMPLATES[self.kind], "system"):
                wrong.append(f"{name}: {self.kind} has no use for it; leave it out")
            try:
                columns_of(template)
            except ValueError as error:
                wrong.append(f"{name}: {error}; columns stand in braces, as {{question}}")
        for name in ("choices", "right"):
            if bool(getattr(self, name)) != (self.kind == "multiple_choice" and not self._is_locale):
                must = "name the column" if self.kind == "multiple_choice" else "is of multiple_choice alone"
                wrong.append(f"{name}: {must}" + ("; the locale rows bring it" if self._is_locale else ""))
        own = self._is_locale or (self.rows is not None and self.rows.dataset is not None)
        if not own:
            missing = [name for name in TEMPLATES[self.kind] if not getattr(self, name)]
            wrong += [f"{name}: is missing: say what a row's columns are made into" for name in missing]
        return wrong

    @property
    def _is_locale(self) -> bool:
        return self.rows is not None and self.rows.locale is not None


def unknown(key: str, name: str, known: tuple[str, ...]) -> str:
    """One problem: a name that is none of the known ones, with the nearest."""
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{key}: unknown {name!r}: {hint}known are {', '.join(known) or 'none for this kind'}"


def language_problems(key: str, tag: str) -> list[str]:
    """Problems of a language's code or tag."""
    if not tag:
        return [f'{key}: a language is empty; write its code, as "ta", or tag, as "hi-Latn"']
    try:
        written_form(tag)
    except UserError as error:
        return [f"{key}: {error}"]
    return []


def load_task_file(path: str | Path) -> TaskFile:
    """Fill a TaskFile from YAML.

    Raises: UserError that lists every problem.
    """
    return load_settings(TaskFile, path)
