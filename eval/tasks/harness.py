"""Tasks of lm-evaluation-harness by name, asked of base and tuned with the base's own chat template.

Reads the harness' task files, its own or those of a local folder, and the datasets they name; writes nothing.
Its model class is put around the model that is already loaded. Each document's values are paired, so that
differences have intervals where a document has a number; what the harness makes of all documents stands under
`aggregate`. It counts the white space that a chat template ends with to each answer that it scores: its
log-likelihoods are lower than those of our multiple choice, by the same for all answers of a question.
"""

import math
from importlib.metadata import version
from typing import Any

import numpy as np

from data_recipes.artefact import UserError
from eval.compare import paired_bootstrap_of_sums, ratio_of_sums
from eval.significance import judge
from eval.tasks.harness_names import quiet, task_manager
from eval.tasks.rows import Task
from finetune.eval_options import EvalConfig

NO_FILTER = "none"  # the harness' name of an answer taken as it is


def harness_answers(model: Any, tokenizer: Any, task: Task, config: EvalConfig) -> dict[str, Any]:
    """Run one task of the harness on the model as it stands, and return the harness' own results.

    Raises:
        UserError: it cannot load or run the task.
    """
    options = task.options.lm_eval
    assert options is not None
    from lm_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    with quiet():
        try:
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size),
                tasks=[options.task],
                num_fewshot=options.fewshot,
                limit=options.limit,
                bootstrap_iters=0,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
                task_manager=task_manager(
                    options.task, task.folder / options.folder if options.folder else None
                ),
                log_samples=True,
                # Library functions do not seed globally; examples are drawn by a seed of their own.
                random_seed=None,  # pyright: ignore[reportArgumentType]
                numpy_random_seed=None,  # pyright: ignore[reportArgumentType]
                torch_random_seed=None,  # pyright: ignore[reportArgumentType]
            )
        except Exception as error:  # a dataset that is not there, a missing package of a task, a wrong file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"lm-evaluation-harness cannot run {options.task!r}: {type(error).__name__}: {reason}; "
                "a task of its own needs the network or a filled cache, a local one its data files"
            ) from error
    assert found is not None  # None only in other processes
    return dict(found)


def harness_result(
    task: Task, base: dict[str, Any], tuned: dict[str, Any], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """The comparison of two runs of the harness on the same documents."""
    rows = _paired_rows(base["samples"], tuned["samples"])
    metrics: dict[str, Any] = {}
    for metric in sorted({name for row in rows for name in row["values"]}):
        judged = [row for row in rows if metric in row["values"]]
        subtasks = sorted({row["task"] for row in judged})
        places = {"all": judged} | {name: [row for row in judged if row["task"] == name] for name in subtasks}
        compared = {
            name: _compare([row["values"][metric] for row in chosen], n_bootstrap, seed)
            for name, chosen in places.items()
        }
        by_task = compared if len(subtasks) > 1 else {}
        table = {"all": compared["all"], "by_language": {}} | {
            "by_task": {name: found for name, found in by_task.items() if name != "all"}
        }
        metrics[metric] = judge(table, metric)
    for row in rows:
        for metric, pair in row.pop("values").items():
            row[f"base_{metric}"], row[f"tuned_{metric}"] = pair
    return {
        "metrics": metrics,
        "aggregate": {name: _plain(found["results"]) for name, found in (("base", base), ("tuned", tuned))},
        "signatures": {"lm_eval": version("lm_eval")},
        "notes": {
            "task_versions": _plain(base.get("versions", {})),
            "n_shot": _plain(base.get("n-shot", {})),
        },
        "rows": rows,
    }


def _paired_rows(base: dict[str, list[Any]], tuned: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One row a document, with the pair of values of each metric that gives it a number."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name in sorted(base):
        others = {(sample["doc_id"], sample["filter"]): sample for sample in tuned[name]}
        for sample in base[name]:
            other = others[sample["doc_id"], sample["filter"]]
            assert sample["prompt_hash"] == other["prompt_hash"], "base and tuned were asked the same"
            row = rows.setdefault((name, sample["doc_id"]), _row(name, sample, other))
            suffix = "" if sample["filter"] == NO_FILTER else f",{sample['filter']}"
            for metric in sample["metrics"]:
                pair = sample[metric], other[metric]
                if all(isinstance(value, bool | int | float | np.number) for value in pair):
                    # Of one document lm-eval's "perplexity" is its log-likelihood: more is better.
                    name_shown = "log_likelihood" if metric == "perplexity" else metric
                    row["values"][f"{name_shown}{suffix}"] = tuple(float(value) for value in pair)
    return [rows[key] for key in sorted(rows)]


def _row(name: str, sample: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{name}/{sample['doc_id']}",
        "task": name,
        "prompt": str(sample["arguments"][0][0]),
        "expected": str(sample["target"]),
        "base": _answer(sample),
        "tuned": _answer(other),
        "values": {},
    }


def _answer(sample: dict[str, Any]) -> str:
    """What was generated; the log-likelihoods of what was scored."""
    return " | ".join(str(answers[0]) for answers in sample["resps"])


def _compare(pairs: list[tuple[float, float]], n_bootstrap: int, seed: int) -> dict[str, float]:
    one = np.ones(len(pairs))
    base, tuned = (np.stack([np.array(values), one], axis=1) for values in zip(*pairs, strict=True))
    return paired_bootstrap_of_sums(base, tuned, ratio_of_sums, n_bootstrap, seed)._asdict()


def _plain(value: Any) -> Any:
    """Plain JSON: numpy numbers as Python's, what is no number as None, all else as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | float | np.number):
        return float(value) if math.isfinite(value) else None
    return str(value)
