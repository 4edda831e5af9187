"""Several plans at one budget: trained alike, gone on with when stopped, and compared row by row."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tiny_model, build_tiny_tokenizer
from datasets import Dataset, DatasetDict
from test_evaluate import some_rows

from data_recipes.artefact import UserError, read_artefact, write_artefact, write_json
from data_recipes.settings import settings_dict
from eval import ablate
from eval.ablate import ablate_stage, main, plan_configs, share
from eval.ablation_table import results_table
from eval.contestants.answer_cache import ANSWERS_FILE
from eval.plan_comparison import check_equal_budget, read_training, selected_minus_others
from finetune.config import BaseConfig, DataConfig, LoraConfig, RunConfig, SelectConfig
from finetune.eval_options import ContestantConfig, EvalConfig
from finetune.run import STAGE_FUNCTIONS, StageFunction
from finetune.training_options import EarlyStopConfig, TrainConfig

DRAWS = ["random_0", "random_1", "random_2"]
TRAINED = ["selected", *DRAWS, "all", "attention_only"]


class Stages:
    """The real stages on fourteen made-up rows, noting what ran; a training may be stopped by hand."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.n_trainings_left = 99

    def functions(self) -> dict[str, StageFunction]:
        real = {**STAGE_FUNCTIONS, "data": self.data, "report": self.report}
        return {name: self.noted(name, function) for name, function in real.items()}

    def noted(self, name: str, function: StageFunction) -> StageFunction:
        def run(config: RunConfig) -> None:
            if name == "train" and self.n_trainings_left == 0:
                raise KeyboardInterrupt
            self.n_trainings_left -= name == "train"
            function(config)
            self.ran.append(name)

        return run

    def data(self, config: RunConfig) -> None:
        folder = Path(config.output) / "data"
        rows = Dataset.from_list(some_rows())
        splits: Any = {"train": rows, "validation": rows, "test": rows}
        DatasetDict(splits).save_to_disk(str(folder))
        write_artefact(folder / "manifest.json", "dataset_manifest", {}, {"content_hash": "d" * 64})

    def report(self, config: RunConfig) -> None:
        for name in ("report.json", "report.html", "report.md"):
            write_json(Path(config.output) / name, {})


def micro_config(folder: Path) -> RunConfig:
    build_tiny_model(vocab_size=262, initializer_range=0.3).save_pretrained(folder / "base")
    build_tiny_tokenizer().save_pretrained(folder / "base")
    (folder / "recipe.yaml").write_text("name: none\nlanguages: [ta]")
    return RunConfig(
        name="micro",
        output=str(folder / "run"),
        base=BaseConfig(model=str(folder / "base"), device="cpu"),
        data=DataConfig(recipe=str(folder / "recipe.yaml")),
        select=SelectConfig(share=0.6),
        lora=LoraConfig(rank=2, alpha=4.0, attention=True),
        train=TrainConfig(steps=2, learning_rate=0.01, batch_size=4, eval_rows=2),
        eval=EvalConfig(
            batch_size=16,
            max_new_tokens=2,
            n_bootstrap=50,
            contestants={"every": ContestantConfig(kind="adapter", plan="all")},
        ),
    )


@pytest.fixture(scope="module")
def stopped_and_done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, list[list[str]]]:
    """An ablation stopped in its third training, gone on with, and run once more; and what ran each time."""
    config, stages = micro_config(tmp_path_factory.mktemp("ablation")), Stages()
    ran = []
    stages.n_trainings_left = 2
    with pytest.raises(KeyboardInterrupt):
        ablate_stage(config, stages.functions())
    ran.append(stages.ran)
    stages.ran, stages.n_trainings_left = [], 99
    ablate_stage(config, stages.functions())
    ran.append(stages.ran)
    stages.ran = []
    path = ablate_stage(config, stages.functions())
    return config, path, [*ran, stages.ran]


def test_a_plan_that_the_run_names_as_a_contestant_is_asked_when_it_is_trained(stopped_and_done: Any) -> None:
    config = stopped_and_done[0]
    plans = {name: Path(plan.output) for name, plan in plan_configs(config).items()}
    results = {name: read_artefact(plans[name] / "results.json", "eval_results") for name in plans}
    every = results["selected"]["others"]["every"]["rows"]
    assert [row["answer"] for row in every] == [row["tuned"] for row in results["all"]["rows"]]
    assert results["selected"]["cost"]["every"] == results["all"]["cost"]["tuned"], "asked once"
    assert [len(found["others"]) for found in results.values()] == [1, 0, 0, 0, 0, 0]


@pytest.fixture
def ablation(stopped_and_done: Any) -> dict[str, Any]:
    return read_artefact(stopped_and_done[1], "ablation")


def test_a_stopped_ablation_goes_on_and_a_done_one_is_kept(stopped_and_done: Any) -> None:
    first, second, third = stopped_and_done[2]
    own = ["select", "train", "eval"]
    assert first == ["data", "profile", *own, "report", *own, "select"]
    assert second == ["train", "eval", *own * 3, "eval", "report"]
    assert third == []


def test_every_plan_is_an_entry_with_its_gain_its_forgetting_and_its_cost(ablation: dict[str, Any]) -> None:
    plans = ablation["plans"]
    assert set(plans) == {*TRAINED, "none"}
    for name, plan in plans.items():
        assert plan["target"].keys() >= {"base", "tuned", "difference", "low", "high", "n"}
        assert (plan["target"]["n"], plan["general"]["n"]) == (10, 4)
        assert plan["target"]["base"] == plans["none"]["target"]["base"], name
    for name in TRAINED:
        assert plans[name]["step_time_s"] > 0 and plans[name]["bytes"] > 4 * plans[name]["parameters"]
    nothing = plans["none"]
    assert (nothing["parameters"], nothing["n_experts"], nothing["bytes"]) == (0, 0, 0)
    assert nothing["step_time_s"] is None and nothing["general"]["difference"] == 0
    assert nothing["target"]["tuned"] == nothing["target"]["base"]
    assert ablation["languages"] == {"target": ["ta"], "general": ["en"]}


def test_budgets_are_equal_where_they_should_be(ablation: dict[str, Any]) -> None:
    plans = ablation["plans"]
    chosen = plans["selected"]["n_experts"]
    assert 0 < chosen < 16
    assert [plans[name]["n_experts"] for name in DRAWS] == [chosen] * 3
    assert {plans[name]["parameters"] for name in DRAWS} == {plans["selected"]["parameters"]}
    assert (plans["all"]["n_experts"], plans["attention_only"]["n_experts"]) == (16, 0)
    # Of one expert of the tiny model, at rank 2: gate_up_proj 32 -> 32 and down_proj 16 -> 32.
    per_expert = 2 * ((32 + 32) + (16 + 32))
    attention = plans["attention_only"]["parameters"]
    assert attention > 0
    assert plans["selected"]["parameters"] == attention + chosen * per_expert
    assert plans["all"]["parameters"] == attention + 16 * per_expert


def test_the_draws_differ_and_all_plans_saw_the_same_rows_in_the_same_order(stopped_and_done: Any) -> None:
    config, _, _ = stopped_and_done
    folders = {name: Path(plan.output) for name, plan in plan_configs(config).items()}
    experts = [read_artefact(folders[name] / "plan.json", "expert_plan")["experts"] for name in DRAWS]
    assert len({str(found) for found in experts}) == 3
    trained = [
        read_artefact(folder / "adapter" / "train.json", "train_result") for folder in folders.values()
    ]
    assert len({train["row_order_sha256"] for train in trained}) == 1
    # B starts at zero: the first loss is the base's on the first rows, whatever is trained.
    assert [train["first_loss"] for train in trained] == pytest.approx([trained[0]["first_loss"]] * 6)


def test_data_profile_and_the_base_s_answers_are_there_once(stopped_and_done: Any) -> None:
    folder = Path(stopped_and_done[0].output)
    assert len(sorted(folder.rglob("results.json"))) == 6
    for name in ("data", "profile.json", ANSWERS_FILE):
        found = [path for path in folder.rglob(name) if path.parent.name != ".stamps"]
        assert len(found) == 6 and [path for path in found if not path.is_symlink()] == [folder / name]
        linked = folder / "ablation" / "all" / name
        assert linked.is_symlink() and linked.resolve() == (folder / name).resolve()


def test_a_comparison_is_made_with_every_plan_and_with_all_draws(ablation: dict[str, Any]) -> None:
    assert set(ablation["comparisons"]) == {"target", "general"}
    for found in ablation["comparisons"].values():
        assert set(found) == {*TRAINED, "random"} - {"selected"}


def test_the_choice_is_compared_with_the_mean_of_the_draws_on_each_row() -> None:
    rows = "abcd"

    def right(answers: str) -> dict[str, float]:
        return {row: float(row in answers) for row in rows}

    of_plan = {
        "selected": right("abcd"),
        "random_0": right("ab"),
        "random_1": right("a"),
        "random_2": right(""),
        "all": right("abcd"),
        "attention_only": right(""),
    }
    found = selected_minus_others(of_plan, 200, seed=0)
    # By hand: the draws' means a row are 2/3, 1/3, 0, 0, so their mean is 1/4.
    assert found["random"]["other"] == pytest.approx(0.25)
    assert found["random"]["difference"] == pytest.approx(0.75)
    # A resample of one row four times: at the least 1 - 2/3, at the most 1 - 0.
    assert 1 / 3 - 1e-9 <= found["random"]["low"] < 0.75 < found["random"]["high"] <= 1
    assert found["random_1"]["difference"] == 0.75 and found["random_1"]["other"] == 0.25
    for name, expected in (("all", 0), ("attention_only", 1), ("random_2", 1)):
        one = found[name]
        assert (one["difference"], one["low"], one["high"], one["n"]) == (expected, expected, expected, 4)


def test_plans_that_answered_other_rows_are_refused() -> None:
    of_plan = {"selected": {"a": 1.0}, "random_0": {"b": 1.0}}
    with pytest.raises(
        UserError,
        match=r"different rows \(1 only in the plan selected: a; 1 only in .* random_0: b\): delete",
    ):
        selected_minus_others(of_plan, 10, seed=0)


TRAIN = {"row_order_sha256": "o", "seed": 0, "steps": 2}


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"row_order_sha256": "p"}, "d", "not trained as the selected plan was: other row_order_sha256; del"),
        ({"seed": 1}, "d", "other seed; delete it"),
        ({"steps": 3}, "d", "other steps; delete it"),
        ({}, "e", "other data; delete it"),
        ({"row_order_sha256": None}, "d", "by an earlier version, which did not record the order"),
    ],
)
def test_plans_that_were_not_trained_alike_are_refused(
    changes: dict[str, Any], data: str, message: str, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("selected", "all")}
    for folder in folders.values():
        write_artefact(folder / "adapter" / "train.json", "train_result", {"data": "d"}, TRAIN)
    assert set(read_training(folders)) == set(folders)
    body = {key: value for key, value in (TRAIN | changes).items() if value is not None}
    write_artefact(folders["all"] / "adapter" / "train.json", "train_result", {"data": data}, body)
    with pytest.raises(UserError, match=f"all/adapter .*{message}"):
        read_training(folders)


def test_training_that_cannot_be_compared_is_told_before_more_is_trained(tmp_path: Path) -> None:
    config, stages = micro_config(tmp_path), Stages()
    functions = stages.functions()

    def train(run: RunConfig) -> None:
        other = replace(run, seed=1) if run.select.method == "random" else run
        functions["train"](other)

    with pytest.raises(UserError, match="random_0/adapter .* other row_order_sha256, seed; delete it"):
        ablate_stage(config, {**functions, "train": train})
    assert stages.ran.count("train") == 2


@pytest.mark.parametrize("key", ["n_experts_by_layer", "parameters"])
def test_a_random_plan_of_another_budget_is_refused(key: str) -> None:
    plan = {"n_experts_by_layer": {"1": 2, "2": 1}, "parameters": 30}
    plans = {"selected": plan, "random_0": plan, "all": {"n_experts_by_layer": {"1": 8}, "parameters": 80}}
    check_equal_budget(plans)
    other = {"n_experts_by_layer": {"1": 1, "2": 2}, "parameters": 31}
    with pytest.raises(UserError, match=f"random_0 has {key} .* different budgets"):
        check_equal_budget({**plans, "random_0": {**plan, key: other[key]}})


@pytest.mark.parametrize("method", ["random", "all", "none"])
def test_a_run_that_chooses_nothing_cannot_be_ablated(method: Any, tmp_path: Path) -> None:
    config = replace(micro_config(tmp_path), select=SelectConfig(method=method))
    with pytest.raises(UserError, match=f"select.method={method} is one of the plans to compare with"):
        ablate_stage(config, Stages().functions())


def test_plans_that_could_stop_at_different_steps_are_not_trained(tmp_path: Path) -> None:
    config = micro_config(tmp_path)
    config = replace(config, train=replace(config.train, early_stop=EarlyStopConfig(patience=1)))
    with pytest.raises(UserError, match="train.early_stop would end .* set train.early_stop=null, and train"):
        ablate_stage(config, Stages().functions())


def test_attention_is_trained_alone_even_where_the_run_trains_none(tmp_path: Path) -> None:
    config = micro_config(tmp_path)
    plain = plan_configs(replace(config, lora=LoraConfig(rank=2)))
    assert plain["attention_only"].lora == LoraConfig(rank=2, attention=True)
    assert plain["all"].lora == LoraConfig(rank=2)
    shared = LoraConfig(rank=2, shared_experts=True)
    assert plan_configs(replace(config, lora=shared))["attention_only"].lora == shared


def test_what_stands_in_the_way_of_a_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "run/ablation/all/data").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot link .*all/data to .*run/data .*remove what is there"):
        share(tmp_path / "run", tmp_path / "run/ablation/all")


def test_the_stage_writes_the_figure_beside_the_numbers(
    stopped_and_done: Any, ablation: dict[str, Any]
) -> None:
    _, path, _ = stopped_and_done
    assert ET.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")
    assert "| chosen for the language |" in results_table(ablation)
    assert set(ablation["inputs"]) == {"config", *(f"{name}/results.json" for name in TRAINED)}


def test_the_command_writes_the_readme_s_table_and_keeps_the_numbers_it_comes_from(
    stopped_and_done: Any,
    ablation: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, path, _ = stopped_and_done
    monkeypatch.setattr(ablate, "RESULTS", tmp_path / "results")
    write_json(tmp_path / "run.yaml", settings_dict(config))
    (tmp_path / "README.md").write_text("# a\n<!-- results:begin -->\n<!-- results:end -->\n")
    assert main([str(tmp_path / "run.yaml"), "--save", "--readme", str(tmp_path / "README.md")]) == 0
    table = results_table(ablation)
    assert capsys.readouterr().out.endswith(f"\n{table}\n\n{path}\n")
    assert table in (tmp_path / "README.md").read_text()
    kept = tmp_path / "results" / "micro_ablation.json"
    assert kept.read_bytes() == path.read_bytes()
    assert kept.with_suffix(".svg").read_bytes() == path.with_suffix(".svg").read_bytes()
