"""A finished run whose numbers are made up, down to every file that a report reads."""

import json

import numpy as np
from made_up_profiles import made_up_profile

from data_recipes.artefact import sha256_file, write_artefact
from data_recipes.languages import LANGUAGES
from data_recipes.tasks import TASKS
from eval.evaluate import Answers, compare_answers
from eval.generate import AnswerLoss
from finetune.config import DataConfig, RunConfig
from finetune.eval_options import EvalConfig
from finetune.profiling.profile import write_profile
from finetune.training_options import TrainConfig

HOSTILE = '</pre><script>alert("x")</script>'
LAYERS, N_EXPERTS = [1, 2, 3], 8
SETTINGS = {
    "model": "tiny-glm",
    "model_type": "glm_moe_dsa",
    "n_parameters": 12_000_000,
    "dtype": "float32",
    "max_new_tokens": 64,
    "max_rows_per_task": None,
    "n_bootstrap": 200,
    "confidence_percent": 95.0,
    "seed": 0,
}


def made_up_rows():
    rows = []
    for group, language, script, answer in (
        ("target", "ta", "Taml", "15 ஆகஸ்ட், 1947"),
        ("target", "ur", "Arab", "15 اگست، 1947"),
        ("general", "en", "Latn", "15 August 1947"),
    ):
        for number in range(12):
            task, kind = ("date", "generalise") if number % 2 else ("unit", "remember")
            rows.append(
                {
                    "id": f"{language}-{number}",
                    "messages": [
                        {"role": "user", "content": f"Question {number} <b>&amp;</b>"},
                        {"role": "assistant", "content": answer},
                    ],
                    "language": language,
                    "script": script,
                    "group": group,
                    "task": task,
                    "kind": kind,
                    "phrasing": 0,
                    "value": json.dumps({"date": "1947-08-15"}),
                    "checker": "date",
                    "source": "made up",
                }
            )
    return rows


def made_up_results():
    rows = made_up_rows()
    expected = [row["messages"][-1]["content"] for row in rows]
    n_bytes = np.array([len(text.encode()) for text in expected])
    base = [text if row["group"] == "general" else HOSTILE for row, text in zip(rows, expected, strict=True)]
    loss = AnswerLoss(n_bytes * 2.0, n_bytes), AnswerLoss(n_bytes * 0.5, n_bytes)
    return compare_answers(rows, Answers(base, loss[0]), Answers(expected, loss[1]), 200, 0)


def write_run(tmp_path, results=None, gate=None):
    """Write a run's folder and return its config."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_artefact(adapter / "adapter_config.json", "expert_adapter", {}, {"rank": 8})
    inputs = {"adapter": sha256_file(adapter / "adapter_config.json")}
    write_artefact(
        tmp_path / "results.json",
        "eval_results",
        inputs,
        {**(results or made_up_results()), "settings": SETTINGS},
    )
    generator = np.random.default_rng(0)
    counts = {name: generator.poisson(100, (len(LAYERS), N_EXPERTS)) for name in ("ta", "ur", "en")}
    write_profile(tmp_path / "profile.json", made_up_profile(counts, ["ta", "ur"], LAYERS), {})
    plan = {
        "method": "token_share",
        "share": 0.5,
        "seed": 0,
        "n_experts": N_EXPERTS,
        "experts": {"1": [0, 5], "2": [1], "3": [2, 3, 4]},
        "borderline": {"2": [1, 6]},
        "coverage": {"ta": {"1": 0.5, "2": 0.6, "3": 0.7}, "en": {"1": 0.2, "2": 0.2, "3": 0.2}},
        "warnings": ["a warning of the plan"],
    }
    of_profile = {"profile": sha256_file(tmp_path / "profile.json")}
    write_artefact(adapter / "plan.json", "expert_plan", of_profile, plan)
    numbers = {"steps": 20, "seconds": 1.5, "tokens": 900, "first_loss": 3.0, "last_loss": 1.0}
    numbers |= {"n_trainable": 1234, "tokens_per_s": 600.0}
    write_artefact(adapter / "train.json", "train_result", {}, numbers)
    lines = [{"step": step, "loss": 3 / step, "lr": 0.1} for step in range(1, 21)]
    lines += [{"step": 20, "eval_loss_target": 0.5, "eval_loss_general": 0.2}]
    (adapter / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunConfig(
        name="made-up",
        output=str(tmp_path),
        data=DataConfig(recipe="none.yaml"),
        train=TrainConfig(steps=20, learning_rate=0.1),
        eval=EvalConfig(gate=gate),
    )


def full_results(n_rows=8, seed=0):
    """Results with every part: all 22 languages and English, two contestants, two tasks and what it cost."""
    generator = np.random.default_rng(seed)
    rows = [
        language_row(language, int(day)) for language in LANGUAGES.values() for day in range(1, n_rows + 1)
    ]
    expected = [row["messages"][-1]["content"] for row in rows]
    n_bytes = np.array([len(text.encode()) for text in expected])

    def answered(share_of_target, bits):
        """Some answers are another day's, few of them in general rows; some of those name the language."""
        texts = []
        for i, row in enumerate(rows):
            share = 0.9 if row["group"] == "general" else share_of_target
            share = 0.1 if row["language"] == "doi" and bits < 2 else share
            wrong = (
                f"{LANGUAGES[row['language']].native_name} {expected[i - 1]}" if i % 2 else expected[i - 1]
            )
            texts.append(expected[i] if generator.random() < share else wrong)
        nats = n_bytes * bits * np.log(2) * generator.uniform(0.8, 1.2, len(rows))
        return Answers(texts, AnswerLoss(nats, n_bytes))

    base, tuned = answered(0.4, 2.0), answered(0.75, 1.5)
    results = compare_answers(rows, base, tuned, 100, 0)
    others = {"random experts": ("adapter", answered(0.7, 1.6)), "a/b~c": ("endpoint", answered(0.8, 1.4))}
    results["others"] = {
        name: as_contestant(
            kind,
            compare_answers(rows, base, other, 100, 0),
            compare_answers(rows, other, tuned, 100, 0)["metrics"],
        )
        for name, (kind, other) in others.items()
    }
    for key in ("metrics", "against_tuned"):
        results["others"]["a/b~c"][key]["bits_per_byte"] = None  # an endpoint tells no likelihoods
    table = {"all": results["metrics"]["exact_match"]["target"], "by_task": {}}
    table["by_language"] = results["metrics"]["exact_match"]["by_language"]["target"]
    results["tasks"] = {
        "dates": {"version": 1, "kind": "generation", "metrics": {"exact_match": table}, "rows": []},
        "lm/one": {
            "version": 2,
            "kind": "lm_eval",
            "metrics": {"acc,none": {"all": table["all"]}},
            "rows": [],
        },
    }
    usage = {"prompt_tokens": 12_345, "answer_tokens": 6_789, "seconds": 12.5}
    free = {**usage, "price": None, "amount": None, "currency": None}
    results["cost"] = {"base": free, "tuned": {**free, "seconds": 13.0}, "random experts": free}
    price = {"prompt": 0.6, "answer": 2.2}
    results["cost"]["a/b~c"] = {
        **usage,
        "price": price,
        "amount": 0.0223,
        "currency": "USD",
        "is_counted": False,
    }
    return results


def language_row(language, day):
    """A dataset row that asks for a date in a language."""
    value = {"date": f"1947-08-{day:02d}"}
    answer = TASKS["date"].answer(value, language.code)
    return {
        "id": f"{language.code}/date/{day}",
        "messages": [
            {"role": "user", "content": f"{language.native_name}: 1947-08-{day:02d}?"},
            {"role": "assistant", "content": answer},
        ],
        "language": language.code,
        "script": language.script,
        "group": "general" if language.code in ("en", "hi") else "target",
        "task": "date",
        "kind": "generalise",
        "phrasing": 0,
        "value": json.dumps(value),
        "checker": "date",
        "source": "made up",
    }


def as_contestant(kind, compared, against_tuned):
    """A comparison of base and tuned as the results hold one of base and a further contestant."""
    rows = [
        {"id": row["id"], "answer": row["tuned"], "exact": row["tuned_exact"]} for row in compared["rows"]
    ]
    metrics = {"metrics": compared["metrics"], "against_tuned": against_tuned}
    return {"kind": kind, **metrics, "missing": {}, "rows": rows}
