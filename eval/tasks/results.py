"""The tasks of a run, answered by base and tuned from one loaded model, and what came of them.

Reads tasks and a model with an attached adapter; returns `results["tasks"]`, writes nothing. Both answer the
same rows, the base with the adapter switched off, so every difference is paired.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_recipes.translate.cache import ReplyCache
from eval.compare import paired_bootstrap_of_sums
from eval.contestants.answer_cache import kept_or_made
from eval.significance import judge
from eval.tasks.answering import Answered, answer_task, score_of
from eval.tasks.fidelity import language_basis
from eval.tasks.harness import harness_answers, harness_result
from eval.tasks.rows import Row, Task
from finetune.adapters.adapter import adapter_disabled
from finetune.eval_options import EvalConfig

SCORING_VERSION = 1  # raised by hand when the same answers get other numbers: what is kept are numbers


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    config: EvalConfig,
    seed: int,
    progress: bool,
    identities: tuple[Mapping[str, Any], Mapping[str, Any]],
    cache: ReplyCache,
) -> dict[str, Any]:
    """Ask base and tuned the rows of all tasks; a task that was compared before is not asked again.

    `identities` are those of the base and of the base with the adapter: all that decides about their answers
    beside the task and the options.

    Returns:
        By task name: "version", "kind", "file_sha256", "rows_sha256", "signatures", "notes", "metrics" (for
        each "all", "by_language" and "by_task": comparisons, None where it judges no row) and "rows".

    Raises:
        UserError: as `answer_task` and `harness_answers`.
    """
    results = {}
    for task in tasks:
        options = [config.batch_size, config.max_new_tokens, config.n_bootstrap, seed]
        content = [SCORING_VERSION, identities, task.name, task.identity, *options]
        compared = partial(_compared, model, tokenizer, task, config, seed, progress, identities, cache)
        results[task.name] = kept_or_made(cache, content, compared)
    return results


def _compared(
    model: Any,
    tokenizer: Any,
    task: Task,
    config: EvalConfig,
    seed: int,
    progress: bool,
    identities: tuple[Mapping[str, Any], Mapping[str, Any]],
    cache: ReplyCache,
) -> dict[str, Any]:
    """One task's result."""
    is_of_harness = task.options.kind == "lm_eval"

    def answers(which: int, label: str) -> Any:
        if is_of_harness:
            return harness_answers(model, tokenizer, task, config)
        told = f"{label} {task.name}" if progress else None
        return answer_task(model, tokenizer, task, config, identities[which], cache, told)

    with adapter_disabled(model):
        base = answers(0, "base ")
    compare = harness_result if is_of_harness else compare_task
    return {
        "version": task.options.version,
        "kind": task.options.kind,
        "file_sha256": task.file_sha256,
        "rows_sha256": task.rows_sha256,
        **compare(task, base, answers(1, "tuned"), config.n_bootstrap, seed),
    }


def compare_task(task: Task, base: Answered, tuned: Answered, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """One task's comparisons and rows from the answers of both; needs no model."""
    both = base, tuned
    return {
        "metrics": {
            metric: compare_columns(
                task.rows, metric, (base.columns[metric], tuned.columns[metric]), n_bootstrap, seed
            )
            for metric in task.options.measured
        },
        "signatures": base.signatures,
        "notes": {**task.notes, **_language_notes(task)},
        "rows": [_outcome(row, i, both) for i, row in enumerate(task.rows)],
    }


def compare_columns(
    rows: Sequence[Row], metric: str, both: tuple[np.ndarray, np.ndarray], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """A metric's comparison over all rows, and over those of each language and each kind of question."""
    judged = _judged(metric, both)
    table: dict[str, Any] = {"all": None, "by_language": {}, "by_task": {}}
    places: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if judged[i]:
            named = [("by_language", row["tag"])] + ([("by_task", row["task"])] if "task" in row else [])
            for place in (("all",), *named):
                places.setdefault(place, []).append(i)
    for place, chosen in sorted(places.items()):
        found = paired_bootstrap_of_sums(
            both[0][chosen], both[1][chosen], score_of(metric), n_bootstrap, seed
        )._asdict()
        if len(place) == 1:
            table["all"] = found
        else:
            table[place[0]][place[1]] = found
    return judge(table, metric)


def _judged(metric: str, both: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which rows a metric says something about: a ratio with nothing below the line says nothing, [N]."""
    if metric == "chrf":
        return np.ones(len(both[0]), dtype=bool)
    assert ((both[0][:, 1] > 0) == (both[1][:, 1] > 0)).all()  # it depends on the row, not on an answer
    return both[0][:, 1] > 0


def _language_notes(task: Task) -> dict[str, Any]:
    """How the language of an answer was told, for each language."""
    if "language_by_line" not in task.options.measured:
        return {}
    tags = {row["tag"]: f"{row['language']}-{row['script']}" for row in task.rows}
    return {"language_by_line": {tag: language_basis(form) for tag, form in sorted(tags.items())}}


def _outcome(row: Row, i: int, both: tuple[Answered, Answered]) -> Row:
    """One row of the result: what was asked and expected, and answer and values of both."""
    kept = ("id", "language", "script", "task", "asked_in", "format", "expected", "choices", "right", "text")
    outcome = {name: row[name] for name in kept if name in row}
    if "messages" in row:
        asked = [message for message in row["messages"] if message["role"] != "assistant"]
        outcome["prompt"] = asked[-1]["content"]
    for system, answered in zip(("base", "tuned"), both, strict=True):
        outcome[system] = answered.shown[i]
        outcome |= {f"{system}_{name}": value for name, value in answered.details[i].items()}
        for metric, columns in answered.columns.items():
            is_judged = metric == "chrf" or columns[i, 1] > 0
            outcome[f"{system}_{metric}"] = (
                float(score_of(metric)(columns[i : i + 1])[0]) if is_judged else None
            )
    return outcome
