"""The rows of a task: read from where its file says, hashed, and made into questions with their answers.

Reads inline rows, JSONL, CSV, Parquet, datasets on disk, and the facts behind the locale questions; writes
nothing. Every row that is wrong is named, all in one message: a row left out in silence would change a score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, sha256_folder, sha256_json
from data_recipes.row_sources.files import Record, records
from data_recipes.row_sources.folders import allowed_path
from data_recipes.row_sources.lines import opened
from data_recipes.row_sources.options import MAX_RECORD_BYTES
from data_recipes.writing.written_forms import written_form
from eval.tasks.formats import FORMATS, numbers_in
from eval.tasks.harness_names import task_manager
from eval.tasks.locale_questions import locale_rows
from eval.tasks.task_file import TEMPLATES, HarnessOptions, RowsOptions, TaskFile, load_task_file, unknown
from eval.tasks.template import fill

Row = dict[str, Any]
HARNESS_ENTRY = "lm_eval:"
MAX_NAMED = 10  # wrong rows that a message names


@dataclass(frozen=True)
class Task:
    """A task ready to be asked; `rows` have id, language, script, tag, messages or text, and more."""

    options: TaskFile
    folder: Path  # of its file
    file_sha256: str | None  # None for a task of the harness that is named alone
    rows: list[Row] = field(default_factory=list)
    rows_sha256: str = ""
    notes: dict[str, Any] = field(default_factory=dict)  # what the result must say of the rows

    @property
    def name(self) -> str:
        """The name that its result stands under."""
        return self.options.name

    @property
    def identity(self) -> list[str | None]:
        """What decides about what is asked: file, rows, and the harness where it asks.

        Data of a harness' task that changes on the Hub under its name is not seen.
        """
        harness = [metadata.version("lm_eval")] if self.options.kind == "lm_eval" else []
        return [self.file_sha256, self.rows_sha256, *harness]


def load_tasks(entries: tuple[str, ...] | list[str]) -> list[Task]:
    """Return the tasks of `eval.tasks`: paths of task files, or "lm_eval:NAME".

    Raises:
        UserError: every problem of every file.
    """
    tasks, problems = [], []
    for entry in entries:
        try:
            tasks.append(_load_task(entry))
        except UserError as error:
            problems.append(f"{entry}: {error}")
    names = Counter(task.name for task in tasks)
    problems += [f"two tasks are named {name!r}; rename one" for name in names if names[name] > 1]
    if problems:
        raise UserError("\n".join(problems))
    return tasks


def tasks_sha256(entries: tuple[str, ...] | list[str]) -> str:
    """Return one hash over what a run's tasks ask: files, rows, and the names of the harness' own tasks.

    Raises:
        UserError: as `load_tasks`.
    """
    return sha256_json([[task.name, *task.identity] for task in load_tasks(entries)])


def _load_task(entry: str) -> Task:
    if entry.startswith(HARNESS_ENTRY):
        name = entry.removeprefix(HARNESS_ENTRY)
        options = TaskFile(name=name, version=1, kind="lm_eval", lm_eval=HarnessOptions(task=name))
        problems = options.problems()
        if problems:
            raise UserError("; ".join(problems))
        task_manager(name, None)
        return Task(options, Path.cwd(), None)
    path = Path(entry)
    options = load_task_file(path)
    if options.rows is None:
        assert options.lm_eval is not None
        folder = options.lm_eval.folder
        read = sha256_folder(allowed_path(folder, path.parent, [Path.cwd()])) if folder else ""
        task_manager(options.lm_eval.task, path.parent / folder if folder else None)
        return Task(options, path.parent, sha256_file(path), [], read)
    raw, read, notes = _raw_rows(options, options.rows, path.parent)
    rows = _made_rows(options, raw)
    _refuse_needless(options, rows)
    return Task(options, path.parent, sha256_file(path), rows, read, notes)


def _raw_rows(options: TaskFile, where: RowsOptions, folder: Path) -> tuple[list[Row], str, dict[str, Any]]:
    """The records as they are, the hash of what they were read from, and what is to be said of them."""
    notes: dict[str, Any] = {}
    if where.locale is not None:
        locale, with_choices = where.locale, options.kind == "multiple_choice"
        found = locale_rows(
            locale.languages, locale.tasks, locale.rows_per_task, locale.seed, locale.asked_in, with_choices
        )
        raw = found.rows
        read = sha256_json(raw)
        notes = {"asked_in": locale.asked_in, "left_out": found.left_out}
    elif where.inline is not None:
        raw, read = [dict(row) for row in where.inline], sha256_json([str(row) for row in where.inline])
    elif where.file is not None:
        raw, read = _file_rows(allowed_path(where.file, folder, [Path.cwd()]))
    else:
        assert where.dataset is not None, "problems() refuses rows from nowhere"
        raw, read = _dataset_rows(allowed_path(where.dataset, folder, [Path.cwd()]), where)
    return raw[: where.max_rows], read, notes


def _file_rows(path: Path) -> tuple[list[Row], str]:
    with opened(path) as (handle, sha256):
        found = list(records(handle, path, MAX_RECORD_BYTES))
    wrong = [one.detail for one in found if not isinstance(one, Record)]
    if wrong:
        raise UserError(_listed(wrong, len(found)))
    if not found:
        raise UserError(f"there are no rows in {path}")
    return [dict(one.values) for one in found if isinstance(one, Record)], sha256


def _dataset_rows(folder: Path, where: RowsOptions) -> tuple[list[Row], str]:
    from data_recipes.dataset import read_split  # imported late: Arrow, for the tasks that need it

    return [dict(row) for row in read_split(folder, where.split)], sha256_folder(folder / where.split)


def _made_rows(options: TaskFile, raw: list[Row]) -> list[Row]:
    rows, wrong = [], []
    for number, values in enumerate(raw, start=1):
        try:
            rows.append(_made_row(options, values, number))
        except (ValueError, UserError) as error:
            wrong.append(f"row {values.get('id', number)}: {error}")
    ids = Counter(row["id"] for row in rows)
    wrong += [f"{n} rows have the id {one!r}: give each its own" for one, n in ids.items() if n > 1]
    if wrong:
        raise UserError(_listed(wrong, len(raw)))
    if not rows:
        raise UserError("there are no rows")
    return rows


def _made_row(options: TaskFile, values: Row, number: int) -> Row:
    """One row with what its kind asks; ValueError says what is wrong with it."""
    values = _with_columns_of_messages(values)
    tag = values.get("language", options.language)
    if not tag or not isinstance(tag, str):
        raise ValueError(f"its language is empty ({tag!r}): set language for the task, or in a column")
    script = values.get("script") if "-" not in tag else None
    form = written_form(f"{tag}-{script}" if script else tag)
    row: Row = {
        "id": str(values.get("id", f"{options.name}/{number}")),
        "language": form.code,
        "script": form.script,
        "tag": form.code if form.use == "main" else form.tag,
    }
    kept = ("task", "value", "checker", "format", "asked_in")
    row |= {name: values[name] for name in kept if values.get(name) is not None}
    if "text" in TEMPLATES[options.kind]:
        row["text"] = _text(options.text, values, "expected", "text")
    else:
        row["messages"] = _asked(options, values)
    if options.kind == "multiple_choice":
        row |= _choices(options, values)
    if options.kind == "generation":
        row["expected"] = _text(options.answer, values, "expected", "answer")
        row["messages"] = [*row["messages"], {"role": "assistant", "content": row["expected"]}]
    if "format" in row and row["format"] not in FORMATS:
        raise ValueError(unknown("format", str(row["format"]), tuple(FORMATS)))
    return row


def _with_columns_of_messages(values: Row) -> Row:
    """A row of a dataset has its question and its answer inside its messages."""
    messages = values.get("messages")
    if not messages:
        return values
    texts = {message["role"]: message["content"] for message in messages}
    return {"question": texts.get("user"), "expected": texts.get("assistant")} | values


def _text(template: str, values: Mapping[str, Any], default: str, what: str) -> str:
    text = fill(template or f"{{{default}}}", values)
    if not text.strip():
        raise ValueError(f"its {what} is empty")
    return text


def _asked(options: TaskFile, values: Row) -> list[dict[str, str]]:
    """The messages up to the question: the row's own where it has them and no prompt is set."""
    own = values.get("messages")
    if own and not options.prompt:
        asked = list(own[:-1]) if own[-1]["role"] == "assistant" else list(own)
    else:
        asked = [{"role": "user", "content": _text(options.prompt, values, "question", "prompt")}]
    return [{"role": "system", "content": options.system}, *asked] if options.system else asked


def _choices(options: TaskFile, values: Row) -> Row:
    """The answers to choose from, and the number of the right one."""
    choices: Any = values.get(options.choices or "choices")
    right: Any = values.get(options.right or "right")
    texts = choices if isinstance(choices, list) and len(choices) > 1 else [""]
    if not all(isinstance(choice, str) and choice.strip() for choice in texts):
        raise ValueError(f"its choices must be a list of two texts or more, and are {choices!r}")
    if len(set(texts)) < len(texts):
        raise ValueError(f"two of its choices are the same: {texts!r}")
    number = texts.index(str(right)) if right in texts else right
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(texts):
        raise ValueError(f"its right answer {right!r} is neither one of {texts!r} nor a number from 0")
    return {"choices": texts, "right": number, "expected": texts[number]}


def _refuse_needless(options: TaskFile, rows: list[Row]) -> None:
    """A metric that no row is judged by would be an empty column."""
    if "numbers" in options.metrics and not any(numbers_in(row["expected"]) for row in rows):
        raise UserError("metrics: numbers: no expected answer holds a number; leave it out")
    if "format" in options.metrics and not (options.format or any("format" in row for row in rows)):
        raise UserError("metrics: format: neither the task nor a row says which; set format")


def _listed(problems: list[str], n_rows: int) -> str:
    named = problems[:MAX_NAMED] + (
        [f"... and {len(problems) - MAX_NAMED} more"] if problems[MAX_NAMED:] else []
    )
    return "\n  ".join([f"{len(problems)} problems in {n_rows} rows", *named])
