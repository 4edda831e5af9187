"""Further adapters and merged checkpoints beside base and tuned: same rows, asked once, no leak."""

import shutil
import sqlite3
import weakref
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from evaluated_run import answered, texts_of, with_contestants
from evaluated_run import plain as plain
from evaluated_run import run as run
from evaluated_run import saved_run as saved_run
from evaluated_run import train_another as train_another
from test_evaluate import entries, some_rows
from test_generate import greedy_by_hand
from tuned_bases import GLM_EXPERTS, save_base, save_trained

from data_recipes.artefact import UserError, write_artefact
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.endpoint_options import EndpointConfig
from eval.ablate import plan_configs
from eval.contestants.answers import Answers, Usage
from eval.contestants.contestants import ask_adapters, ask_merged, check_contestants, costs
from eval.contestants.local_model import ask_base_and_tuned, ask_model, model_identity
from eval.contestants.row_sets import require_same_rows
from eval.evaluate import evaluate_stage
from finetune.adapters.adapter import load_adapter
from finetune.config import RunConfig
from finetune.eval_options import ContestantConfig, EvalConfig
from finetune.exporting.export import export_adapter
from finetune.model import load_model
from finetune.run import eval_inputs


def all_experts(config: RunConfig) -> Path:
    return Path(config.output) / "ablation" / "all" / "adapter"


def text_of(tokenizer: Any, tokens: Any) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_each_adapter_answers_as_it_does_alone_and_base_and_tuned_keep_their_numbers(
    run, plain, train_another
):
    every = train_another(all_experts(run))
    config = with_contestants(
        run,
        every=ContestantConfig(kind="adapter", plan="all"),
        run=ContestantConfig(kind="adapter", folder=str(every.parent)),
    )
    n_kept = len(entries(run))  # of base and tuned
    (Path(run.output) / "answers.sqlite").unlink()
    results = answered(config)
    assert results["rows"] == plain["rows"] and results["metrics"] == plain["metrics"]
    # Once asked nobody is asked again, and the results have the same bytes.
    first, kept = (Path(run.output) / "results.json").read_bytes(), entries(config)
    assert evaluate_stage(config).read_bytes() == first and entries(config) == kept
    assert len(kept) == n_kept + n_kept // 2, "one more model"
    model, tokenizer = load_model(config.base)
    load_adapter(model, every)
    prompts = [row["messages"][:-1] for row in some_rows()]
    alone = [text_of(tokenizer, greedy_by_hand(model, tokenizer, prompt, 4, 0)) for prompt in prompts]
    assert texts_of(results, "every") == texts_of(results, "run") == alone
    assert all(alone != [row[name] for row in plain["rows"]] for name in ("base", "tuned"))
    found = results["others"]["every"]
    assert (found["kind"], found["settings"], found["missing"]) == ("adapter", {"plan": "all"}, {})
    assert [row["id"] for row in found["rows"]] == [row["id"] for row in plain["rows"]]
    against = found["against_tuned"]["bits_per_byte"]["target"]
    assert against["base"] == found["metrics"]["bits_per_byte"]["target"]["tuned"]
    assert against["tuned"] == plain["metrics"]["bits_per_byte"]["target"]["tuned"]
    bits, before = (one["metrics"]["bits_per_byte"]["target"] for one in (found, plain))
    assert bits["base"] == before["base"] and bits["tuned"] != before["tuned"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["peft", "sglang"])
def test_an_exported_adapter_answers_as_it_did_before(run, train_another, form):
    every = train_another(all_experts(run))
    export_adapter(every, form, Path(run.output) / form, run.base, "deltas")
    data = (f"{run.output}/data",)
    config = with_contestants(
        run,
        every=ContestantConfig(kind="adapter", plan="all"),
        exported=ContestantConfig(kind="adapter", folder=f"{run.output}/{form}", trained_on=data),
    )
    results = answered(config)
    assert texts_of(results, "exported") == texts_of(results, "every")
    found = [
        [row["bits_per_byte"] for row in results["others"][name]["rows"]] for name in ("exported", "every")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_merged_checkpoint_answers_as_the_adapter_that_was_merged(run):
    merged = Path(run.output) / "merged"
    export_adapter(Path(run.output) / "adapter", "merged", merged, run.base, "deltas")
    results = answered(with_contestants(run, whole=ContestantConfig(kind="merged", folder=str(merged))))
    assert texts_of(results, "whole") == [row["tuned"] for row in results["rows"]]
    assert len(set(texts_of(results, "whole"))) > 3
    found = [row["bits_per_byte"] for row in results["others"]["whole"]["rows"]]
    assert found == pytest.approx([row["tuned_bits_per_byte"] for row in results["rows"]], rel=1e-4)


def test_the_base_leaves_the_memory_before_another_model_loads(run, train_another):
    every = train_another(all_experts(run))
    config = with_contestants(run, every=ContestantConfig(kind="adapter", folder=str(every)))
    model, tokenizer = load_model(config.base)
    alive = weakref.ref(model)
    load_adapter(model, Path(config.output) / "adapter")
    with ReplyCache(":memory:") as cache:
        base = model_identity(model, tokenizer, config.base)
        both = base, {**base, "adapter": "own"}
        answers = ask_base_and_tuned(model, tokenizer, some_rows(), config.eval, both, cache)
        others = ask_adapters(model, tokenizer, config, some_rows(), base, cache)
        del model
        ask_merged(config, some_rows(), cache)  # there is none; it makes room all the same
    assert alive() is None and answers and others


class Stopped(Exception):
    """A crash in the middle of answering."""


def test_a_crash_repeats_no_answer_and_ends_as_an_uninterrupted_run(
    tiny_model_factory, tiny_tokenizer, tmp_path
):
    model = tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)
    rows, options, path = some_rows(), EvalConfig(batch_size=3, max_new_tokens=5), tmp_path / "a.sqlite"
    identity, n_calls, stops_at = {"model": "tiny"}, 0, 3

    def count(module: Any, arguments: Any) -> None:
        nonlocal n_calls
        if path.exists() and n_entries(path) == stops_at:
            raise Stopped
        n_calls += 1

    model.register_forward_pre_hook(count)
    with ReplyCache(":memory:") as cache:
        whole = ask_model(model, tiny_tokenizer, rows, options, identity, cache)
    n_whole, n_calls = n_calls, 0
    with ReplyCache(path) as cache, pytest.raises(Stopped):
        ask_model(model, tiny_tokenizer, rows, options, identity, cache)
    assert 0 < n_calls < n_whole and n_entries(path) == 3  # of five batches
    stops_at = None
    with ReplyCache(path) as cache:
        again = ask_model(model, tiny_tokenizer, rows, options, identity, cache)
    assert n_calls == n_whole, "of both runs together"
    assert again.texts == whole.texts
    assert again.loss is not None and whole.loss is not None
    assert again.loss.nll_nats.tolist() == whole.loss.nll_nats.tolist()
    assert again.usage._replace(seconds=0) == whole.usage._replace(seconds=0)


def n_entries(path: Path) -> int:
    with sqlite3.connect(path) as database:
        return database.execute("SELECT COUNT(*) FROM replies").fetchone()[0]


def test_tokens_are_counted_with_the_one_that_stops_an_answer(tiny_model_factory, tiny_tokenizer):
    model = tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)
    rows = some_rows()[:3]
    prompts = [row["messages"][:-1] for row in rows]
    answers = [greedy_by_hand(model, tiny_tokenizer, prompt, 12, stop=-1) for prompt in prompts]
    stop = answers[0][3]
    model.generation_config.eos_token_id = [stop]
    n_answers = [answer.index(stop) + 1 if stop in answer else 12 for answer in answers]
    usage = ask_model(
        model, tiny_tokenizer, rows, EvalConfig(batch_size=2, max_new_tokens=12), {}, ReplyCache(":memory:")
    ).usage
    # [gMASK]<sop><|user|> and a line end, <|assistant|> and a line end; one token a byte.
    n_prompts = [len(prompt[0]["content"].encode()) + 6 for prompt in prompts]
    assert usage[:2] == (sum(n_prompts), sum(n_answers)) and usage.seconds > 0
    assert min(n_answers) < 12


def test_an_amount_is_there_where_prices_are():
    answers = {
        name: Answers([], None, Usage(2_000_000, 500_000, 12.5, is_counted))
        for name, is_counted in (("base", True), ("paid", False), ("free", True))
    }
    endpoint = EndpointConfig(price_prompt=1.5, price_reply=4.0, currency="EUR")
    contestants = {
        "paid": ContestantConfig(kind="endpoint", endpoint=endpoint),
        "free": ContestantConfig(kind="adapter", folder="a"),
    }
    found = costs(answers, contestants)
    tokens = {"prompt_tokens": 2_000_000, "answer_tokens": 500_000, "seconds": 12.5}
    unpaid = {**tokens, "is_counted": True, "price": None, "amount": None, "currency": None}
    assert found["base"] == found["free"] == unpaid
    price = {"prompt": 1.5, "answer": 4.0}
    assert found["paid"] == {**tokens, "is_counted": False, "price": price, "amount": 5.0, "currency": "EUR"}


# What an adapter learned from


def other_data(folder: Path, questions: list[str], content_hash: str = "e" * 64) -> Path:
    rows = some_rows()[: len(questions)]
    for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
        row |= {"id": f"other-{number}"}
        row["messages"] = [{"role": "user", "content": question}, row["messages"][1]]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder))
    write_artefact(folder / "manifest.json", "dataset_manifest", {}, {"content_hash": content_hash})
    return folder


def test_an_adapter_of_other_data_is_refused_with_both_hashes(run, tmp_path, train_another):
    folder = train_another(tmp_path / "other" / "adapter", data="e" * 64)
    config = with_contestants(run, other=ContestantConfig(kind="adapter", folder=str(folder)))
    (Path(run.output) / "answers.sqlite").unlink()
    with pytest.raises(UserError, match=r"contestant other: .*other data \(eeeeeeeeeeee\).*\(dddddddddddd\)"):
        evaluate_stage(config)
    assert not (Path(run.output) / "answers.sqlite").exists()


@pytest.mark.parametrize("place", ["beside it", "named"])
def test_an_adapter_of_other_data_is_asked_when_no_row_of_it_asks_a_test_row(
    run, tmp_path, place, train_another
):
    folder = train_another(tmp_path / "other" / "adapter", data="e" * 64)
    data = tmp_path / ("other/data" if place == "beside it" else "far")
    named = () if place == "beside it" else (str(data),)
    contestant = ContestantConfig(kind="adapter", folder=str(folder), trained_on=named)
    config = with_contestants(run, other=contestant)
    other_data(data, ["one", "two"])
    check_contestants(config, "d" * 64, some_rows())
    shutil.rmtree(data)
    other_data(data, ["one", some_rows()[3]["messages"][0]["content"]])
    with pytest.raises(UserError, match="1 rows ask what a test row of this run asks: row other-1;"):
        check_contestants(config, "d" * 64, some_rows())


def test_an_adapter_that_does_not_say_what_it_learned_from_is_refused(run, tmp_path, train_another):
    folder = train_another(tmp_path / "other")
    (folder / "train.json").unlink()
    config = with_contestants(run, other=ContestantConfig(kind="adapter", folder=str(folder)))
    with pytest.raises(UserError, match="does not say what it was trained on .*trained_on"):
        evaluate_stage(config)


def test_replayed_rows_of_an_adapter_of_other_data_are_looked_through_too(run, tmp_path, train_another):
    folder = train_another(tmp_path / "other" / "adapter")
    inputs = {"data": "e" * 64, "replay": "f" * 64}
    write_artefact(folder / "train.json", "train_result", inputs, {})
    data = other_data(tmp_path / "other" / "data", ["one"])
    contestant = ContestantConfig(kind="adapter", folder=str(folder), trained_on=(str(data),))
    with pytest.raises(UserError, match=r"other data \(ffffffffffff\)"):
        evaluate_stage(with_contestants(run, other=contestant))


# What is refused


@pytest.mark.parametrize(
    ("contestant", "said"),
    [
        (
            {"kind": "adapter", "plan": "random_7"},
            "plan=random_7: .*`local-experts ablate FILE`.*there are all",
        ),
        ({"kind": "adapter", "folder": "nowhere"}, "nowhere holds no adapter_config.json: set folder to"),
        ({"kind": "merged", "folder": "nowhere"}, "nowhere holds no config.json: .*--to merged"),
    ],
)
def test_a_contestant_that_is_not_there_is_named_before_anything_is_asked(
    run, contestant, said, train_another
):
    train_another(all_experts(run))
    config = with_contestants(run, far=ContestantConfig(**contestant))
    (Path(run.output) / "answers.sqlite").unlink()
    with pytest.raises(UserError, match=f"contestant far: .*{said}"):
        evaluate_stage(config)
    assert not (Path(run.output) / "answers.sqlite").exists()


def test_an_adapter_of_another_base_is_named_and_what_was_answered_before_is_kept(
    run, tmp_path, tiny_model_factory, tiny_tokenizer
):
    far = save_base(tiny_model_factory(vocab_size=262, seed=9), tiny_tokenizer, tmp_path / "far")
    folder = save_trained(far, GLM_EXPERTS, attention=False, folder=tmp_path / "other")
    write_artefact(folder / "train.json", "train_result", {"data": "d" * 64}, {})
    kept = entries(run)
    (Path(run.output) / "answers.sqlite").unlink()
    config = with_contestants(run, far=ContestantConfig(kind="adapter", folder=str(folder)))
    with pytest.raises(UserError, match="contestant far: .*trained on another model"):
        evaluate_stage(config)
    assert entries(config).keys() == kept.keys()


def test_results_of_two_row_sets_are_refused_with_the_rows_that_differ():
    require_same_rows("ours", ["a", "b"], "theirs", ["b", "a"])
    with pytest.raises(
        UserError, match=r"ours and theirs .*\(1 only in ours: b; 4 only in theirs: c, d, e, \.\.\.\)"
    ):
        require_same_rows("ours", ["a", "b"], "theirs", ["a", "c", "d", "e", "f"])
    with pytest.raises(UserError, match=r"\(some are there twice\)"):
        require_same_rows("ours", ["a", "a"], "theirs", ["a"])


# Around it


def test_the_controls_of_an_ablation_ask_no_contestant(run):
    config = with_contestants(run, every=ContestantConfig(kind="adapter", plan="all"))
    configs = plan_configs(config)
    assert configs["selected"] == config
    assert all(not plan.eval.contestants for name, plan in configs.items() if name != "selected")


def test_another_adapter_in_a_contestants_folder_is_another_input_of_the_stage(run, train_another):
    (Path(run.output) / "plan.json").write_text("{}")
    folder = train_another(all_experts(run))
    config = with_contestants(run, every=ContestantConfig(kind="adapter", plan="all"))
    before = eval_inputs(config)
    assert eval_inputs(config) == before
    train_another(folder, seed=6)
    changed = eval_inputs(config)
    assert {name for name in before if before[name] != changed[name]} == {"contestant every"}
