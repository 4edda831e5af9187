"""Base and tuned on the same held-out rows, from one loaded model with its adapter switched off and on.

Reads `data/` (split "test") and `adapter/` of the run's folder; writes `results.json`: every row with both
answers, and every metric of both with the interval of their difference, by group, language, task and kind.
Beside it, `answers.sqlite` keeps what each contestant said: a run that was stopped asks for none of it again,
and the next adapter on the same rows finds the base's answers there.

    local-experts eval --config configs/runs/quickstart.yaml
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from data_recipes.dataset import read_split
from data_recipes.text import script_share
from data_recipes.translate.cache import ReplyCache
from eval.compare import CONFIDENCE_PERCENT, paired_bootstrap_of_sums, ratio_of_sums
from eval.contestants.answer_cache import open_answers
from eval.contestants.answers import Answers
from eval.contestants.contestants import (
    adapter_hash,
    ask_adapters,
    ask_endpoints,
    ask_merged,
    check_contestants,
    costs,
    other_result,
)
from eval.contestants.local_model import ask_base_and_tuned, model_identity
from eval.gate import check_gate, check_gate_languages
from eval.generate import AnswerLoss
from eval.metrics import (
    BitsPerByte,
    ChrfPlusPlus,
    ExactMatchByChecker,
    ScriptShare,
    chrf_from_counts,
    in_memory,
)
from eval.significance import draws_needed, judge
from eval.tasks.results import evaluate_tasks
from eval.tasks.rows import load_tasks
from finetune.adapters.adapter import load_adapter
from finetune.config import RunConfig, config_from_arguments
from finetune.eval_options import EvalConfig
from finetune.model import load_model

Row = dict[str, Any]

# How the sums over rows become the metric: all are ratios of totals but chrF++.
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exact_match": ratio_of_sums,
    "chrf": chrf_from_counts,
    "bits_per_byte": ratio_of_sums,
    "script_share": ratio_of_sums,
}


class Scores(NamedTuple):
    """One model's metrics: a value for each row, and columns [N, C] whose sums give the metric."""

    per_row: dict[str, list[Any]]
    columns: dict[str, np.ndarray]
    signatures: dict[str, str]


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
    assert exact and chrf and script  # compute gives None only in other processes
    one = np.ones(len(rows))
    scores = Scores(
        per_row={"exact": exact["per_row"], "chrf": chrf["per_row"], "script": script["per_row"]},
        columns={
            "exact_match": np.stack([exact["per_row"], one], axis=1),
            "chrf": np.asarray(chrf["statistics"], dtype=np.float64),
            "script_share": np.stack([script["per_row"], one], axis=1),
        },
        signatures={"chrf": chrf["signature"]},
    )
    return _with_bits_per_byte(scores, answers.loss)


def _with_bits_per_byte(scores: Scores, loss: AnswerLoss | None) -> Scores:
    """The scores and bits per byte, which a model without likelihoods has for no row."""
    n_rows = len(scores.per_row["exact"])
    if loss is None:
        return scores._replace(per_row={**scores.per_row, "bits_per_byte": [None] * n_rows})
    bits = in_memory(BitsPerByte).compute(nll_nats=loss.nll_nats.tolist(), n_bytes=loss.n_bytes.tolist())
    assert bits  # compute gives None only in other processes
    n_bytes = loss.n_bytes.astype(np.float64)
    column = np.stack([np.asarray(bits["per_row"]) * n_bytes, n_bytes], axis=1)
    return scores._replace(
        per_row={**scores.per_row, "bits_per_byte": bits["per_row"]},
        columns={**scores.columns, "bits_per_byte": column},
    )


def compare_answers(
    rows: Sequence[Row], base: Answers, tuned: Answers, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Outcome of each row, and each metric of both with the interval of their difference.

    Returns:
        "rows": one dict each; "signatures": how chrF++ was computed; "metrics": for each metric "target" and
        "general" (None without rows), "by_language", "by_task" and "by_kind" (group, then name); a comparison
        holds base, tuned, difference, low, high, n, p, p_holm, test, p_bootstrap and verdict. A metric that
        one of the two has not is None.
    """
    scores = score_answers(rows, base), score_answers(rows, tuned)
    known = [metric for metric in SCORES if all(metric in one.columns for one in scores)]
    tables = {metric: _compare_slices(rows, metric, scores, n_bootstrap, seed) for metric in known}
    return {
        "rows": [_outcome(row, i, (base, tuned), scores) for i, row in enumerate(rows)],
        "metrics": {metric: tables.get(metric) for metric in SCORES},
        "signatures": scores[0].signatures,
    }


def evaluate_rows(
    model: Any, tokenizer: Any, rows: Sequence[Row], config: EvalConfig, seed: int, progress: bool = False
) -> dict[str, Any]:
    """Compare a model with an attached adapter to its own base on dataset rows, as `compare_answers`.

    Raises:
        UserError: no rows, or a row without an answer.
    """
    if not rows:
        raise UserError("no rows to evaluate: the test split is empty; raise the recipe's share of test rows")
    with ReplyCache(":memory:") as cache:
        both = {"adapter": "off"}, {"adapter": "on"}  # a cache of its own: nothing else is in it
        base, tuned = ask_base_and_tuned(model, tokenizer, rows, config, both, cache, progress)
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
            rows, or none of a language that the gate lists.
    """
    folder = Path(config.output)
    tasks = load_tasks(config.eval.tasks)
    manifest = read_artefact(folder / "data" / "manifest.json", "dataset_manifest")
    test: list[Row] = [dict(row) for row in read_split(folder / "data", "test")]
    rows = cap_rows(test, config.eval.max_rows_per_task, config.seed)
    check_gate_languages(config.eval.gate, *({row[key] for row in rows} for key in ("language", "group")))
    trained = read_artefact(folder / "adapter" / "train.json", "train_result")
    if trained["inputs"]["data"] != manifest["content_hash"]:
        # Its training rows may be among the test rows of today.
        raise UserError(f"{folder / 'adapter'} was trained on other data than {folder / 'data'}: train again")
    _tell_few_draws(rows, config.eval.n_bootstrap)
    check_contestants(config, manifest["content_hash"], test)
    with open_answers(folder) as cache:
        answers = ask_endpoints(config, rows, cache)
        model, tokenizer = load_model(config.base)
        settings = _settings(config, model)
        load_adapter(model, folder / "adapter")
        model.eval()
        base_identity = model_identity(model, tokenizer, config.base)
        tuned_identity = {**base_identity, "adapter": adapter_hash(folder / "adapter")}
        both = base_identity, tuned_identity
        base, tuned = ask_base_and_tuned(model, tokenizer, rows, config.eval, both, cache, progress=True)
        # Before the run's own adapter is taken off.
        of_tasks = evaluate_tasks(model, tokenizer, tasks, config.eval, config.seed, True, both, cache)
        answers |= ask_adapters(model, tokenizer, config, rows, base_identity, cache)
        del model  # before another one loads: never two
        answers |= ask_merged(config, rows, cache)
    results = _results(config, rows, base, tuned, answers)
    if tasks:
        results["tasks"] = of_tasks
    inputs = {
        "dataset": manifest["content_hash"],
        "model": base_identity["model"],
        "tokenizer": base_identity["tokenizer"],
        "adapter": sha256_file(folder / "adapter" / "adapter_config.json"),
    }
    write_artefact(folder / "results.json", "eval_results", inputs, {**results, "settings": settings})
    return folder / "results.json"


def _tell_few_draws(rows: Sequence[Row], n_bootstrap: int) -> None:
    """Say when no gain or loss of a resampled metric can be found, whatever the answers are."""
    in_group = Counter(group for group, _ in {(row["group"], row["language"]) for row in rows})
    n_languages = max(in_group.values(), default=0)
    if n_bootstrap < draws_needed(n_languages):
        print(
            f"eval.n_bootstrap={n_bootstrap} draws find no gain or loss in {n_languages} language(s) but "
            f"that of exact match: set at least {draws_needed(n_languages)}",
            flush=True,
        )


def _settings(config: RunConfig, model: Any) -> dict[str, Any]:
    """What was asked of which base, which has no adapter yet."""
    return {
        "model": config.base.model,
        "model_type": model.config.model_type,
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": config.base.dtype,
        "max_new_tokens": config.eval.max_new_tokens,
        "max_rows_per_task": config.eval.max_rows_per_task,
        "n_bootstrap": config.eval.n_bootstrap,
        "confidence_percent": CONFIDENCE_PERCENT,
        "seed": config.seed,
    }


def _results(
    config: RunConfig, rows: Sequence[Row], base: Answers, tuned: Answers, others: dict[str, Answers]
) -> dict[str, Any]:
    """Base against tuned, each other contestant against both, and what each one cost."""
    contestants = config.eval.contestants

    def compared(first: Answers, second: Answers) -> dict[str, Any]:
        return compare_answers(rows, first, second, config.eval.n_bootstrap, config.seed)

    results = compared(base, tuned)
    results["others"] = {
        name: other_result(one, compared(base, others[name]), compared(others[name], tuned))
        for name, one in contestants.items()
    }
    results["cost"] = costs({"base": base, "tuned": tuned, **others}, contestants)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts eval`: compare base and tuned, print the exact match of both, and ask the gate."""
    config = config_from_arguments(argv, "eval", "Compare base and tuned on the held-out rows of a run.")
    path = evaluate_stage(config)
    results = read_artefact(path, "eval_results")
    for name, compared in {"": results, **results["others"]}.items():
        for group in ("target", "general"):
            found = compared["metrics"]["exact_match"][group]
            if found is not None:
                print(f"{name + ' ' if name else ''}{group:8s} {describe(found)}")
        for metric, reason in compared.get("missing", {}).items():
            print(f"{name} {metric}: none, for {reason}")
        cost = results["cost"].get(name, {})
        if cost.get("amount") is not None:
            print(f"{name} cost {cost['amount']:.4f} {cost['currency']}")
    print(path)
    check_gate(config)
    return 0


def describe(found: dict[str, Any]) -> str:
    """One line for a compared exact match, never a mean alone."""
    return (
        f"exact match {found['base']:.3f} -> {found['tuned']:.3f}, difference {found['difference']:+.3f} "
        f"[{found['low']:+.3f}, {found['high']:+.3f}], n = {found['n']}: {found['verdict']}"
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
    return judge(table, metric)


def _outcome(
    row: Row, i: int, answers: tuple[Answers, Answers], scores: tuple[Scores, Scores]
) -> dict[str, Any]:
    """One row of results.json."""
    kept = ("id", "task", "language", "script", "group", "kind", "phrasing", "source")
    outcome: dict[str, Any] = {name: row.get(name) for name in kept}
    outcome["prompt"] = row["messages"][-2]["content"]
    outcome["expected"] = row["messages"][-1]["content"]
    outcome["n_bytes"] = len(outcome["expected"].encode("utf-8"))
    for system, answer, score in zip(("base", "tuned"), answers, scores, strict=True):
        outcome[system] = answer.texts[i]
        outcome |= {f"{system}_{metric}": values[i] for metric, values in score.per_row.items()}
    return outcome
