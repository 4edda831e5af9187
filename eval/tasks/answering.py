"""A model's answers to a task, and the columns of numbers that its metrics are made of.

Reads a task and a model, writes nothing. A metric is a function of sums over rows: each row gives the numbers
that are summed, [N, C], and a row that a metric says nothing about gives zeros. So one resampling of rows
serves all metrics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data_recipes.text import script_share
from data_recipes.translate.cache import ReplyCache
from data_recipes.writing.graphemes import graphemes, words
from eval.compare import ratio_of_sums
from eval.contestants.local_model import ask_model
from eval.generate import AnswerLoss, generate_answers
from eval.metrics import ChrfPlusPlus, chrf_from_counts, in_memory
from eval.tasks.checkers import is_right
from eval.tasks.fidelity import BY_SCRIPT, language_basis, script_fidelity
from eval.tasks.formats import FORMATS, numbers_kept
from eval.tasks.likelihood import choice_logprobs, text_bits
from eval.tasks.rows import Row, Task
from finetune.eval_options import EvalConfig


class Answered(NamedTuple):
    """What one model said to each row, the columns [N, C] of each metric, and more to keep with a row."""

    shown: list[str]
    columns: dict[str, np.ndarray]
    details: list[dict[str, Any]]
    signatures: dict[str, str]


def score_of(metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """How sums over rows [R, C] become a metric [R]."""
    return chrf_from_counts if metric == "chrf" else ratio_of_sums


def answer_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    config: EvalConfig,
    identity: Mapping[str, Any],
    cache: ReplyCache,
    progress: str | None = None,
) -> Answered:
    """Ask the model, as it stands, every row of a task that is not the harness' own.

    Args:
        identity: of the model with all that is switched on in it, for what is kept in `cache`.

    Raises:
        UserError: as `ask_model`, `generate_answers`, `choice_logprobs` and `text_bits`.
    """
    options, rows, size = task.options, task.rows, config.batch_size
    if options.kind == "multiple_choice":
        return choice_columns(rows, choice_logprobs(model, tokenizer, rows, size, progress))
    if options.kind == "bits_per_byte":
        texts = [row["text"] for row in rows]
        bits = text_bits(model, tokenizer, texts, size, options.window_tokens, progress)
        return _of_texts(texts, {"bits_per_byte": (bits, [len(text.encode()) for text in texts])})
    if options.kind == "fertility":
        return fertility_columns(tokenizer, [row["text"] for row in rows])
    n_new = options.max_new_tokens or config.max_new_tokens
    if "bits_per_byte" in options.measured:
        limits = replace(config, max_new_tokens=n_new)
        found = ask_model(model, tokenizer, rows, limits, identity, cache, progress)
        return generation_columns(task, found.texts, found.loss)
    prompts = [row["messages"][:-1] for row in rows]
    return generation_columns(task, generate_answers(model, tokenizer, prompts, size, n_new, progress), None)


def generation_columns(task: Task, answers: Sequence[str], loss: AnswerLoss | None) -> Answered:
    """The metrics of a generation task from its answers alone; needs no model.

    Args:
        loss: of the expected answers, where the task measures bits per byte.

    Raises:
        UserError: a row whose checker does not fit it.
    """
    rows, columns, signatures = task.rows, {}, {}
    pairs = list(zip(rows, answers, strict=True))
    for metric in task.options.measured:
        if metric == "chrf":
            expected = [row["expected"] for row in rows]
            chrf = in_memory(ChrfPlusPlus).compute(predictions=list(answers), references=expected)
            assert chrf  # compute gives None only in other processes
            columns[metric] = np.asarray(chrf["statistics"], dtype=np.float64)
            signatures[metric] = chrf["signature"]
        elif metric == "bits_per_byte":
            assert loss is not None
            columns[metric] = np.stack([loss.nll_nats / math.log(2), loss.n_bytes], axis=1)
        else:
            counts = [_COUNTS[metric](task, row, answer) for row, answer in pairs]
            columns[metric] = np.asarray(counts, dtype=np.float64)
    return Answered(list(answers), columns, [{} for _ in rows], signatures)


def choice_columns(rows: Sequence[Row], logprobs: Sequence[np.ndarray]) -> Answered:
    """Accuracy by the sum of a choice's log-likelihoods, and by that sum for each UTF-8 byte."""
    n_bytes = [np.array([len(choice.encode()) for choice in row["choices"]]) for row in rows]
    by_sum = [int(found.argmax()) for found in logprobs]
    by_byte = [int((found / n).argmax()) for found, n in zip(logprobs, n_bytes, strict=True)]
    right = np.array([row["right"] for row in rows])
    one = np.ones(len(rows))
    columns = {
        "accuracy": np.stack([np.array(by_sum) == right, one], axis=1),
        "accuracy_per_byte": np.stack([np.array(by_byte) == right, one], axis=1),
    }
    shown = [row["choices"][number] for row, number in zip(rows, by_sum, strict=True)]
    return Answered(shown, columns, [{"logprobs": found.tolist()} for found in logprobs], {})


def fertility_columns(tokenizer: Any, texts: Sequence[str]) -> Answered:
    """Tokens for each word and for each user-perceived character; no model has a part in it."""
    n_tokens = [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    # A text without a word (a bare sign) says nothing about words.
    n_words = [len(words(text)) for text in texts]
    of_words = [n if n_word else 0 for n, n_word in zip(n_tokens, n_words, strict=True)]
    n_characters = [len(graphemes(text)) for text in texts]
    return _of_texts(
        texts, {"tokens_per_word": (of_words, n_words), "tokens_per_character": (n_tokens, n_characters)}
    )


def _of_texts(texts: Sequence[str], ratios: dict[str, tuple[Any, Any]]) -> Answered:
    columns = {name: np.stack(pair, axis=1).astype(np.float64) for name, pair in ratios.items()}
    return Answered(["" for _ in texts], columns, [{} for _ in texts], {})


Counts = tuple[float, float]  # what is summed over what


def _script_counts(row: Row, answer: str, by: str) -> Counts:
    if script_share(row["expected"], row["script"]) == 0:
        return 0, 0  # a bare number says nothing about the script
    found = script_fidelity(answer, row["script"], allowed=frozenset(words(row["expected"])))
    return (found.lines_right, found.lines) if by == "line" else (found.words_right, found.words)


def _language_counts(task: Task, row: Row, answer: str) -> Counts:
    told = language_basis(f"{row['language']}-{row['script']}") == BY_SCRIPT
    return _script_counts(row, answer, "line") if told else (0, 0)


def _format_counts(task: Task, row: Row, answer: str) -> Counts:
    asked = row.get("format", task.options.format)
    return (FORMATS[asked](answer), 1) if asked else (0, 0)


_COUNTS: dict[str, Callable[[Task, Row, str], Counts]] = {
    "exact_match": lambda task, row, answer: (is_right(task.options.checker, row, answer), 1),
    "script_by_line": lambda task, row, answer: _script_counts(row, answer, "line"),
    "script_by_word": lambda task, row, answer: _script_counts(row, answer, "word"),
    "language_by_line": _language_counts,
    "format": _format_counts,
    "numbers": lambda task, row, answer: numbers_kept(answer, row["expected"]),
}
