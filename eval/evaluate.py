"""Base and tuned on the same held-out rows, from one loaded model with its adapter switched off and on.

Reads `data/` (split "test") and `adapter/` of the run's folder; writes `results.json`: every row with both
answers, and every metric of both with the interval of their difference, by group, language, task and kind.
Beside it, `base_answers.json` keeps what the base said, for the next adapter on the same rows.

    local-experts eval --config configs/runs/quickstart.yaml
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_recipes.artefact import (
    UserError,
    package_versions,
    read_artefact,
    sha256_file,
    sha256_json,
    write_artefact,
)
from data_recipes.dataset import read_split
from data_recipes.text import script_share
from eval.compare import CONFIDENCE_PERCENT, paired_bootstrap_of_sums, ratio_of_sums
from eval.generate import AnswerLoss, Asked, answers_and_losses, ask_rows
from eval.metrics import (
    BitsPerByte,
    ChrfPlusPlus,
    ExactMatchByChecker,
    ScriptShare,
    chrf_from_counts,
    in_memory,
)
from eval.tasks.results import evaluate_tasks
from eval.tasks.rows import load_tasks
from finetune.adapters.adapter import adapter_disabled, load_adapter
from finetune.config import RunConfig, config_from_arguments
from finetune.eval_options import EvalConfig
from finetune.model import load_model, model_fingerprint, tokenizer_fingerprint

Row = dict[str, Any]
BASE_ANSWERS = "base_answers.json"

# How the sums over rows become the metric: all are ratios of totals but chrF++.
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact_match": ratio_of_sums,
    "chrf": chrf_from_counts,
    "bits_per_byte": ratio_of_sums,
    "script_share": ratio_of_sums,
}


class Answers(NamedTuple):
    """What one model answered to each row, and how unlikely it found the expected answers."""

    texts: list[str]
    loss: AnswerLoss


class KeptAnswers(NamedTuple):
    """A file of the base's answers, and what they depend on (name -> sha256)."""

    path: Path
    inputs: dict[str, str]


class Scores(NamedTuple):
    """One model's metrics: a value for each row, and columns [N, C] whose sums give the metric."""

    per_row: dict[str, list[float]]
    columns: dict[str, np.ndarray]
    signatures: dict[str, str]


def answer_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    config: EvalConfig,
    progress: str | None = None,
    asked: Asked | None = None,
) -> Answers:
    """Answers and losses of the model as it stands, for rows in their order; `asked` are their tokens."""
    asked = asked or ask_rows(tokenizer, rows)
    return Answers(
        *answers_and_losses(model, tokenizer, asked, config.batch_size, config.max_new_tokens, progress)
    )


def write_answers(kept: KeptAnswers, rows: Sequence[Row], answers: Answers) -> None:
    """Keep answers in a file; numbers come back bit for bit."""
    body = {
        "ids": [row["id"] for row in rows],
        "texts": answers.texts,
        "nll_nats": answers.loss.nll_nats.tolist(),
        "n_bytes": answers.loss.n_bytes.tolist(),
    }
    body["sha256"] = sha256_json(body)
    write_artefact(kept.path, "base_answers", kept.inputs, body)


def read_answers(kept: KeptAnswers, rows: Sequence[Row]) -> Answers | None:
    """The kept answers, or None: there are none, they are damaged, or of another base, rows or settings."""
    try:
        found = read_artefact(kept.path, "base_answers")
    except UserError:
        return None
    body: dict[str, Any] = {name: found.get(name) for name in ("ids", "texts", "nll_nats", "n_bytes")}
    is_whole = found.get("sha256") == sha256_json(body)
    is_of_these = found["inputs"] == kept.inputs and body["ids"] == [row["id"] for row in rows]
    if not (is_whole and is_of_these and found["versions"] == package_versions()):
        return None
    return Answers(body["texts"], AnswerLoss(np.array(body["nll_nats"]), np.array(body["n_bytes"])))


def score_answers(rows: Sequence[Row], answers: Answers) -> Scores:
    """Every metric for every row; needs no model."""
    expected = [row["messages"][-1]["content"] for row in rows]
    exact = in_memory(ExactMatchByChecker).compute(
        predictions=answers.texts,
        checkers=[row["checker"] for row in rows],
        languages=[row["language"] for row in rows],
        values=[row["value"] for row in rows],
    )
    chrf = in_memory(ChrfPlusPlus).compute(predictions=answers.texts, references=expected)
    script = in_memory(ScriptShare).compute(
        predictions=answers.texts, scripts=[row["script"] for row in rows]
    )
    loss = answers.loss
    bits = in_memory(BitsPerByte).compute(nll_nats=loss.nll_nats.tolist(), n_bytes=loss.n_bytes.tolist())
    assert exact and chrf and script and bits  # compute gives None only in other processes
    one = np.ones(len(rows))
    n_bytes = loss.n_bytes.astype(np.float64)
    return Scores(
        per_row={
            "exact": exact["per_row"],
            "chrf": chrf["per_row"],
            "script": script["per_row"],
            "bits_per_byte": bits["per_row"],
        },
        columns={
            "exact_match": np.stack([exact["per_row"], one], axis=1),
            "chrf": np.asarray(chrf["statistics"], dtype=np.float64),
            "bits_per_byte": np.stack([np.asarray(bits["per_row"]) * n_bytes, n_bytes], axis=1),
            "script_share": np.stack([script["per_row"], one], axis=1),
        },
        signatures={"chrf": chrf["signature"]},
    )


def compare_answers(
    rows: Sequence[Row], base: Answers, tuned: Answers, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Outcome of each row, and each metric of both with the interval of their difference.

    Returns:
        "rows": one dict each; "signatures": how chrF++ was computed; "metrics": for each metric "target" and
        "general" (None without rows), "by_language", "by_task" and "by_kind" (group, then name); a comparison
        holds base, tuned, difference, low, high and n.
    """
    scores = score_answers(rows, base), score_answers(rows, tuned)
    return {
        "rows": [_outcome(row, i, (base, tuned), scores) for i, row in enumerate(rows)],
        "metrics": {metric: _compare_slices(rows, metric, scores, n_bootstrap, seed) for metric in SCORES},
        "signatures": scores[0].signatures,
    }


def evaluate_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    config: EvalConfig,
    seed: int,
    progress: bool = False,
    kept: KeptAnswers | None = None,
) -> dict[str, Any]:
    """Compare a model with an attached adapter to its own base on dataset rows, as `compare_answers`.

    The base's answers are taken from `kept` when they are there, and written to it when not.

    Raises:
        UserError: no rows, or a row without an answer.
    """
    if not rows:
        raise UserError("no rows to evaluate: the test split is empty; raise the recipe's share of test rows")
    asked = ask_rows(tokenizer, rows)
    base = read_answers(kept, rows) if kept else None
    if base is None:
        with adapter_disabled(model):
            base = answer_rows(model, tokenizer, rows, config, "base " if progress else None, asked)
        if kept:
            write_answers(kept, rows, base)
    tuned = answer_rows(model, tokenizer, rows, config, "tuned" if progress else None, asked)
    return compare_answers(rows, base, tuned, config.n_bootstrap, seed)


def cap_rows(rows: Sequence[Row], max_rows_per_task: int | None, seed: int) -> list[Row]:
    """At most so many rows of each task in each language, drawn by the seed, in their order."""
    if max_rows_per_task is None:
        return list(rows)
    order = np.random.default_rng(seed).permutation(len(rows))
    n_taken: dict[tuple[str, str], int] = {}
    taken = []
    for i in order.tolist():
        key = rows[i]["language"], rows[i]["task"]
        n_taken[key] = n_taken.get(key, 0) + 1
        if n_taken[key] <= max_rows_per_task:
            taken.append(i)
    return [rows[i] for i in sorted(taken)]


def evaluate_stage(config: RunConfig) -> Path:
    """Write `results.json` of a run and return its path.

    Raises:
        UserError: a wrong task file; no data, no adapter, one trained on other data or another model; no test
            rows.
    """
    folder = Path(config.output)
    tasks = load_tasks(config.eval.tasks)
    manifest = read_artefact(folder / "data" / "manifest.json", "dataset_manifest")
    test: list[Row] = [dict(row) for row in read_split(folder / "data", "test")]
    rows = cap_rows(test, config.eval.max_rows_per_task, config.seed)
    trained = read_artefact(folder / "adapter" / "train.json", "train_result")
    if trained["inputs"]["data"] != manifest["content_hash"]:
        # Its training rows may be among the test rows of today.
        raise UserError(f"{folder / 'adapter'} was trained on other data than {folder / 'data'}: train again")
    model, tokenizer = load_model(config.base)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    load_adapter(model, folder / "adapter")
    model.eval()
    of_base = {
        "dataset": manifest["content_hash"],
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    # What else decides about an answer; the size of a batch changes its last bits.
    settings = [config.base.dtype, str(model.device), config.eval.batch_size, config.eval.max_new_tokens]
    # Through a link: the plans of an ablation share one file.
    answers_path = Path(os.path.realpath(folder / BASE_ANSWERS))
    kept = KeptAnswers(answers_path, of_base | {"settings": sha256_json(settings)})
    results = evaluate_rows(model, tokenizer, rows, config.eval, config.seed, progress=True, kept=kept)
    if tasks:
        results["tasks"] = evaluate_tasks(model, tokenizer, tasks, config.eval, config.seed, progress=True)
    path = folder / "results.json"
    inputs = of_base | {"adapter": sha256_file(folder / "adapter" / "adapter_config.json")}
    settings = {
        "model": config.base.model,
        "model_type": model.config.model_type,
        "n_parameters": n_parameters,
        "dtype": config.base.dtype,
        "max_new_tokens": config.eval.max_new_tokens,
        "max_rows_per_task": config.eval.max_rows_per_task,
        "n_bootstrap": config.eval.n_bootstrap,
        "confidence_percent": CONFIDENCE_PERCENT,
        "seed": config.seed,
    }
    write_artefact(path, "eval_results", inputs, {**results, "settings": settings})
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts eval`: compare base and tuned, print the exact match of both."""
    config = config_from_arguments(argv, "eval", "Compare base and tuned on the held-out rows of a run.")
    path = evaluate_stage(config)
    exact_match = read_artefact(path, "eval_results")["metrics"]["exact_match"]
    for group in ("target", "general"):
        found = exact_match[group]
        if found is not None:
            print(f"{group:8s} {describe(found)}")
    print(path)
    return 0


def describe(found: dict[str, float]) -> str:
    """One line for a compared exact match, never a mean alone."""
    return (
        f"exact match {found['base']:.3f} -> {found['tuned']:.3f}, difference {found['difference']:+.3f} "
        f"[{found['low']:+.3f}, {found['high']:+.3f}], n = {found['n']}"
    )


def _rows_in_their_script(rows: Sequence[Row]) -> np.ndarray:
    """Which rows expect letters of their script at all: a bare number says nothing about the script, [N]."""
    return np.array([script_share(row["messages"][-1]["content"], row["script"]) > 0 for row in rows])


def _slices(rows: Sequence[Row]) -> dict[tuple[str, ...], list[int]]:
    """Row indices of each group, language, task and kind, by their place in the table of results."""
    found: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        group = row["group"]
        paths = [(group,), *((f"by_{name}", group, row[name]) for name in ("language", "task", "kind"))]
        for path in paths:
            found.setdefault(path, []).append(i)
    return found


def _compare_slices(
    rows: Sequence[Row], metric: str, scores: tuple[Scores, Scores], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    base, tuned = (one.columns[metric] for one in scores)
    counted = _rows_in_their_script(rows) if metric == "script_share" else np.ones(len(rows), dtype=bool)
    table: dict[str, Any] = {"target": None, "general": None, "by_language": {}, "by_task": {}, "by_kind": {}}
    for path, indices in sorted(_slices(rows).items()):
        chosen = [i for i in indices if counted[i]]
        if not chosen:
            continue
        found = paired_bootstrap_of_sums(base[chosen], tuned[chosen], SCORES[metric], n_bootstrap, seed)
        place = table
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = found._asdict()
    return table


def _outcome(
    row: Row, i: int, answers: tuple[Answers, Answers], scores: tuple[Scores, Scores]
) -> dict[str, Any]:
    """One row of results.json."""
    kept = ("id", "task", "language", "script", "group", "kind", "phrasing", "source")
    outcome: dict[str, Any] = {name: row.get(name) for name in kept}
    outcome["prompt"] = row["messages"][-2]["content"]
    outcome["expected"] = row["messages"][-1]["content"]
    outcome["n_bytes"] = int(answers[0].loss.n_bytes[i])
    for system, answer, score in zip(("base", "tuned"), answers, scores, strict=True):
        outcome[system] = answer.texts[i]
        outcome |= {f"{system}_{metric}": values[i] for metric, values in score.per_row.items()}
    return outcome
