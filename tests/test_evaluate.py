"""Base against tuned on the same rows: exact outcomes by hand, one loaded model, and what is refused."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from data_recipes.artefact import UserError, read_artefact, write_artefact
from data_recipes.settings import settings_dict
from data_recipes.tasks import TASKS
from eval.contestants.answers import Answers
from eval.evaluate import cap_rows, compare_answers, evaluate_rows, evaluate_stage, main
from eval.generate import AnswerLoss, ask_rows, generate_answers, labelled_nll
from finetune import cli
from finetune.adapters.adapter import adapter_parameters, attach, save_adapter
from finetune.config import BaseConfig, DataConfig, LoraConfig, RunConfig
from finetune.eval_options import EvalConfig, GateConfig
from finetune.model import load_model, model_fingerprint
from finetune.training_options import TrainConfig

EXPERTS = {"1": [0, 1, 2, 3, 4, 5, 6, 7], "2": [1, 3, 5]}


def row(task, language, script, group, value, number):
    answer = TASKS[task].answer(value, language)
    assert answer is not None
    question = f"{task} {TASKS[task].question(value, language)} {language}"
    return {
        "id": f"{language}-{task}-{number}",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "language": language,
        "script": script,
        "group": group,
        "task": task,
        "kind": TASKS[task].kind,
        "phrasing": 0,
        "value": json.dumps(value, sort_keys=True),
        "checker": task,
        "source": "made up",
        "licence": "CC0-1.0",
    }


def some_rows():
    dates = [{"date": f"19{number}-08-1{number % 10}"} for number in range(41, 47)]
    amounts = [{"rupees": 1234567 + number} for number in range(4)]
    rows = [row("date", "ta", "Taml", "target", value, i) for i, value in enumerate(dates)]
    rows += [row("rupees", "ta", "Taml", "target", value, i) for i, value in enumerate(amounts)]
    return rows + [row("date", "en", "Latn", "general", value, i) for i, value in enumerate(dates[:4])]


def answers(texts, bits=1.0):
    n_bytes = np.full(len(texts), 10)
    return Answers(texts, AnswerLoss(np.full(len(texts), np.log(2) * 10 * bits), n_bytes))


def expected_texts(rows):
    return [row["messages"][-1]["content"] for row in rows]


def test_every_slice_holds_what_was_answered():
    rows = some_rows()
    right = expected_texts(rows)
    base = answers(["no"] * 10 + right[10:], bits=3.0)
    tuned = answers(right[:9] + ["no"] + right[10:], bits=1.0)
    found = compare_answers(rows, base, tuned, 200, seed=0)["metrics"]
    exact = found["exact_match"]
    assert (exact["target"]["base"], exact["target"]["tuned"], exact["target"]["n"]) == (0.0, 0.9, 10)
    assert exact["general"] == {
        **dict.fromkeys(("base", "tuned", "p", "p_holm"), 1),
        **dict.fromkeys(("difference", "low", "high"), 0),
        "n": 4,
        "test": "mcnemar exact",
        "p_bootstrap": 1 / 201,
        "verdict": "too few rows to tell",
    }
    assert (exact["target"]["p"], exact["target"]["verdict"]) == (2 / 2**9, "gain")
    assert exact["by_task"]["target"]["date"]["tuned"] == 1
    assert exact["by_task"]["target"]["rupees"]["difference"] == 0.75
    assert set(exact["by_task"]["general"]) == {"date"}
    assert {group: set(by) for group, by in exact["by_language"].items()} == {
        "target": {"ta"},
        "general": {"en"},
    }
    assert exact["by_kind"]["target"]["generalise"]["n"] == 10
    assert found["bits_per_byte"]["target"]["difference"] == pytest.approx(-2)
    assert found["chrf"]["target"]["tuned"] > 85 and found["chrf"]["general"]["base"] == pytest.approx(100)


def test_script_is_judged_where_the_expected_answer_has_letters():
    rows = some_rows()
    right = expected_texts(rows)
    script = compare_answers(rows, answers(["no"] * len(rows)), answers(right), 50, 0)["metrics"][
        "script_share"
    ]
    assert script["target"]["n"] == 6  # the amounts are digits and a sign
    assert (script["target"]["base"], script["target"]["tuned"]) == (0, 1)
    assert "rupees" not in script["by_task"]["target"]


def test_a_group_without_rows_is_none():
    rows = some_rows()[:10]
    exact = compare_answers(rows, answers(["a"] * 10), answers(["b"] * 10), 50, 0)["metrics"]["exact_match"]
    assert exact["general"] is None
    assert exact["target"]["n"] == 10


def test_rows_keep_both_answers_and_their_outcomes():
    rows = some_rows()
    right = expected_texts(rows)
    outcome = compare_answers(rows, answers(["no"] * 14), answers(right), 50, 0)["rows"]
    assert [one["id"] for one in outcome] == [one["id"] for one in rows]
    assert (outcome[0]["base"], outcome[0]["tuned"], outcome[0]["expected"]) == ("no", right[0], right[0])
    assert (outcome[0]["base_exact"], outcome[0]["tuned_exact"]) == (0, 1)
    assert outcome[0]["tuned_bits_per_byte"] == pytest.approx(1)
    assert outcome[0]["prompt"].startswith("date ")


def test_capped_rows_are_a_draw_of_each_task_and_language_in_their_order():
    rows = some_rows()
    taken = cap_rows(rows, 3, seed=0)
    ids = [row["id"] for row in taken]
    assert ids == [row["id"] for row in rows if row["id"] in ids]
    assert [sum(i.startswith(head) for i in ids) for head in ("ta-date", "ta-rupees", "en-date")] == [3, 3, 3]
    assert taken == cap_rows(rows, 3, seed=0)
    assert cap_rows(rows, None, seed=0) == rows
    assert any(cap_rows(rows, 3, seed=seed) != taken for seed in range(1, 5))


def tiny(tiny_model_factory, seed=1):
    return tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=seed)


def with_adapter(model, size):
    plan = {"experts": EXPERTS, "model_fingerprint": model_fingerprint(model), "seed": 0}
    attach(model, plan, LoraConfig(rank=4, alpha=8.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, value in adapter_parameters(model).items():
        if name.endswith(".B"):
            value.data.copy_(size * torch.randn(value.shape, generator=generator))
    return plan


def test_base_is_the_model_without_its_adapter(tiny_model_factory, tiny_tokenizer):
    rows, config = some_rows(), EvalConfig(batch_size=5, max_new_tokens=6, n_bootstrap=50)
    plain = tiny(tiny_model_factory)
    prompts = [row["messages"][:-1] for row in rows]
    texts = generate_answers(plain, tiny_tokenizer, prompts, 5, 6)
    asked = ask_rows(tiny_tokenizer, rows)
    loss = AnswerLoss(labelled_nll(plain, asked.examples, 5), asked.n_bytes)
    model = tiny(tiny_model_factory)
    with_adapter(model, size=1.0)
    found = evaluate_rows(model, tiny_tokenizer, rows, config, seed=0)
    assert [row["base"] for row in found["rows"]] == texts
    bits = loss.nll_nats / np.log(2) / loss.n_bytes
    assert [row["base_bits_per_byte"] for row in found["rows"]] == pytest.approx(bits.tolist(), abs=1e-12)
    # And the adapter is on again afterwards, as it was for the tuned answers.
    tuned = generate_answers(model, tiny_tokenizer, prompts, 5, 6)
    assert [row["tuned"] for row in found["rows"]] == tuned
    assert tuned != texts


def test_an_adapter_that_learned_nothing_differs_by_exactly_nothing(tiny_model_factory, tiny_tokenizer):
    model = tiny(tiny_model_factory)
    with_adapter(model, size=0.0)
    config = EvalConfig(batch_size=4, max_new_tokens=4, n_bootstrap=50)
    metrics = evaluate_rows(model, tiny_tokenizer, some_rows(), config, seed=0)["metrics"]
    assert len(metrics) == 4
    for metric in metrics.values():
        for group in ("target", "general"):
            assert (metric[group]["difference"], metric[group]["low"], metric[group]["high"]) == (0, 0, 0)


def test_no_rows_is_an_error(tiny_model_factory, tiny_tokenizer):
    with pytest.raises(UserError, match="test split is empty"):
        evaluate_rows(tiny(tiny_model_factory), tiny_tokenizer, [], EvalConfig(), seed=0)


@pytest.fixture
def run_folder(tmp_path, tiny_model_factory, tiny_tokenizer):
    """A run up to its training, with a model of its own folder."""
    model = tiny(tiny_model_factory)
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    config = RunConfig(
        name="tiny",
        output=str(tmp_path / "run"),
        base=BaseConfig(model=str(tmp_path / "base"), device="cpu"),
        data=DataConfig(recipe="none.yaml"),
        train=TrainConfig(steps=1, learning_rate=0.1),
        eval=EvalConfig(batch_size=8, max_new_tokens=4, n_bootstrap=50),
    )
    model, _ = load_model(config.base)
    plan = with_adapter(model, size=1.0)
    folder = Path(config.output)
    write_data(folder, some_rows())
    save_adapter(model, plan, LoraConfig(rank=4, alpha=8.0), folder / "adapter")
    write_artefact(folder / "adapter" / "train.json", "train_result", {"data": "d" * 64}, {})
    return config


def write_data(folder, test_rows, content_hash="d" * 64):
    rows = Dataset.from_list(some_rows())
    splits: Any = {"train": rows, "validation": rows, "test": rows.select(range(len(test_rows)))}
    DatasetDict(splits).save_to_disk(str(folder / "data"))
    write_artefact(folder / "data" / "manifest.json", "dataset_manifest", {}, {"content_hash": content_hash})


def test_the_stage_writes_the_same_whole_results_each_time(run_folder):
    path = evaluate_stage(run_folder)
    first = path.read_bytes()
    results = read_artefact(path, "eval_results")
    assert len(results["rows"]) == 14
    assert set(results["inputs"]) == {"dataset", "adapter", "model", "tokenizer"}
    assert results["settings"]["n_parameters"] > 0
    assert any(row["base"] != row["tuned"] for row in results["rows"])
    assert evaluate_stage(run_folder).read_bytes() == first


def entries(config):
    """What is kept: key -> body."""
    with sqlite3.connect(Path(config.output) / "answers.sqlite") as database:
        return {key: json.loads(text) for key, text in database.execute("SELECT key, text FROM replies")}


def mark_kept(config):
    """Put another text in the place of every first answer of a batch that is kept."""
    with sqlite3.connect(Path(config.output) / "answers.sqlite") as database:
        for key, body in entries(config).items():
            if "texts" in body:
                body["texts"][0] = "kept"
                database.execute("UPDATE replies SET text = ? WHERE key = ?", (json.dumps(body), key))


def base_texts(config):
    return [row["base"] for row in read_artefact(evaluate_stage(config), "eval_results")["rows"]]


def test_the_base_is_asked_once_for_all_adapters_on_the_same_rows(run_folder):
    base_texts(run_folder)
    n_entries = len(entries(run_folder))
    mark_kept(run_folder)
    model, _ = load_model(run_folder.base)
    plan = with_adapter(model, size=2.0)
    other = Path(run_folder.output) / "adapter"
    train = (other / "train.json").read_bytes()
    save_adapter(model, plan, LoraConfig(rank=4, alpha=8.0), other)
    (other / "train.json").write_bytes(train)
    results = read_artefact(evaluate_stage(run_folder), "eval_results")["rows"]
    assert [row["base"] for row in results].count("kept") == 2
    assert [row["tuned"] for row in results].count("kept") == 0
    assert len(entries(run_folder)) == n_entries + n_entries // 2  # of one more model


@pytest.mark.parametrize("option", ["max_new_tokens", "batch_size", "max_rows_per_task"])
def test_the_base_is_asked_again_when_what_is_kept_does_not_fit(run_folder, option):
    base_texts(run_folder)
    mark_kept(run_folder)
    assert base_texts(run_folder).count("kept") == 2
    other = replace(run_folder, eval=replace(run_folder.eval, **{option: 3}))
    assert "kept" not in base_texts(other)


def test_kept_answers_that_are_damaged_are_an_error_with_the_way_out(run_folder):
    base_texts(run_folder)
    path = Path(run_folder.output) / "answers.sqlite"
    path.write_bytes(b"no database" * 900)
    with pytest.raises(UserError, match="answers.sqlite: .*choose another file, or delete it"):
        evaluate_stage(run_folder)


def test_the_command_prints_interval_and_rows(run_folder, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"name: tiny\noutput: {run_folder.output}\nbase: {{model: {run_folder.base.model}, device: cpu}}\n"
        "data: {recipe: none.yaml}\ntrain: {steps: 1, learning_rate: 0.1}\n"
        "eval: {batch_size: 8, max_new_tokens: 4, n_bootstrap: 50}\n"
    )
    assert main(["--config", str(file), "eval.max_rows_per_task=2"]) == 0
    out = capsys.readouterr().out
    assert (
        "target   exact match 0.000 -> 0.000, difference +0.000 [+0.000, +0.000], n = 4: too few rows to tell"
        in out
    )
    assert "n = 2" in out
    assert "n_bootstrap" not in out
    assert main(["--config", str(file), "eval.n_bootstrap=18"]) == 0
    assert "n_bootstrap=18 draws find no gain or loss in 1 language(s)" in capsys.readouterr().out


def test_a_gate_on_a_language_that_is_not_asked_anything_is_an_error_before_anything_loads(run_folder):
    gate = GateConfig(languages=("en", "hi"))
    with pytest.raises(UserError, match="names 'hi', and no test row .* rows are en, ta"):
        evaluate_stage(replace(run_folder, eval=replace(run_folder.eval, gate=gate)))
    assert not (Path(run_folder.output) / "results.json").exists()


def test_the_command_ends_at_the_gate_when_the_results_are_written(run_folder, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(settings_dict(run_folder)))
    gate = ["eval.gate.languages=[en]", "eval.gate.metric=bits_per_byte", "eval.gate.max_loss=0"]
    assert cli.main(["eval", "--config", str(file), *gate]) == 3
    assert "en: Bits per byte lost" in capsys.readouterr().err
    assert (Path(run_folder.output) / "results.json").exists()


def test_an_empty_test_split_is_an_error(run_folder):
    write_data(Path(run_folder.output), [])
    with pytest.raises(UserError, match="test split of .* is empty"):
        evaluate_stage(run_folder)


def test_a_dataset_that_is_not_whole_is_refused_with_the_way_out(run_folder):
    next((Path(run_folder.output) / "data" / "test").glob("*.arrow")).write_bytes(b"half")
    with pytest.raises(UserError, match="make it again with `local-experts data`"):
        evaluate_stage(run_folder)


def test_missing_data_names_the_command_that_makes_it(run_folder):
    (Path(run_folder.output) / "data" / "manifest.json").unlink()
    with pytest.raises(UserError, match="local-experts data"):
        evaluate_stage(run_folder)


def test_a_missing_adapter_names_the_command_that_makes_it(run_folder):
    for file in (Path(run_folder.output) / "adapter").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="local-experts train"):
        evaluate_stage(run_folder)


def test_an_adapter_for_another_model_is_refused(run_folder, tmp_path, tiny_model_factory, tiny_tokenizer):
    tiny(tiny_model_factory, seed=2).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    other = replace(run_folder, base=replace(run_folder.base, model=str(tmp_path / "other")))
    with pytest.raises(UserError, match="another model"):
        evaluate_stage(other)
    assert not (Path(run_folder.output) / "results.json").exists()


def test_an_adapter_trained_on_other_data_is_refused(run_folder):
    write_data(Path(run_folder.output), some_rows(), content_hash="e" * 64)
    with pytest.raises(UserError, match="trained on other data"):
        evaluate_stage(run_folder)


def test_the_stage_puts_tasks_beside_the_test_rows(run_folder, tmp_path):
    without = read_artefact(evaluate_stage(run_folder), "eval_results")
    assert "tasks" not in without
    (tmp_path / "task.yaml").write_text(
        "name: words\nversion: 1\nkind: generation\nlanguage: ta\nprompt: '{q}'\nanswer: '{a}'\n"
        "checker: reference\nmetrics: [chrf, bits_per_byte]\nrows: {inline: [{q: one, a: ஒன்று}]}\n",
        encoding="utf-8",
    )
    (tmp_path / "choice.yaml").write_text(
        "name: choice\nversion: 1\nkind: multiple_choice\nlanguage: en\nprompt: '{q}'\nchoices: a\nright: r\n"
        "rows: {inline: [{q: x, a: [yes it is, 'no'], r: 0}, {q: y, a: [b, c], r: c}]}\n"
    )
    paths = (str(tmp_path / "task.yaml"), str(tmp_path / "choice.yaml"))
    config = replace(run_folder, eval=replace(run_folder.eval, tasks=paths))
    results = read_artefact(evaluate_stage(config), "eval_results")
    assert results["rows"] == without["rows"] and results["metrics"] == without["metrics"]
    assert set(results["tasks"]) == {"words", "choice"}
    choice = results["tasks"]["choice"]
    assert choice["metrics"]["accuracy"]["all"]["n"] == 2
    assert len(choice["rows"][0]["base_logprobs"]) == 2
    assert choice["rows"][1]["expected"] == "c"
    kept = entries(config)
    again = read_artefact(evaluate_stage(config), "eval_results")
    assert again["tasks"] == results["tasks"] and entries(config) == kept, "nothing was asked again"
