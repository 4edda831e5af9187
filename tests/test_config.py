"""The options of a run: derived values, ranges, the shipped files, and the command line of every stage."""

import json
from pathlib import Path

import pytest

from data_recipes.artefact import UserError
from data_recipes.settings import settings_dict
from finetune.config import RunConfig, config_from_arguments, load_run_config

ROOT = Path(__file__).parents[1]
SMALLEST = "name: small\ndata: {recipe: a.yaml}\ntrain: {steps: 10, learning_rate: 1e-3}\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(SMALLEST, encoding="utf-8")
    return tmp_path / "run.yaml"


def test_every_shipped_run_loads():
    files = sorted((ROOT / "configs" / "runs").glob("*.yaml"))
    assert len(files) >= 1
    configs = [load_run_config(file) for file in files]
    assert [config.name for config in configs] == [file.stem for file in files]


def test_the_output_follows_the_name_unless_it_is_given(small: Path):
    assert load_run_config(small).output == "runs/small"
    assert load_run_config(small, ["name=other"]).output == "runs/other"
    assert load_run_config(small, ["output=elsewhere"]).output == "elsewhere"


def test_a_saved_config_loads_back_as_the_same(small: Path, tmp_path: Path):
    config = load_run_config(small, ["train.learning_rate=1e-5", "data.overrides=[a=1]"])
    (tmp_path / "saved.json").write_text(json.dumps(settings_dict(config)), encoding="utf-8")
    assert load_run_config(tmp_path / "saved.json") == config


def test_options_of_a_choice_take_what_they_took_and_the_name_of_a_method(small: Path):
    for typed, match in (("true", True), ("false", False), ("top_k", "top_k")):
        changes = ["select.method=random", f"select.match={typed}", "select.k=8"]
        assert load_run_config(small, changes).select.match == match
    changes = ["select.method=none", "lora.shared_experts=true", "select.sources=[a, b]"]
    assert load_run_config(small, changes).select.sources == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.steps=0"], "train.steps = 0: must be at least 1"),
        (["train.learning_rate=0"], "train.learning_rate = 0.0: must be above 0"),
        (["train.warmup_steps=10"], "train.warmup_steps = 10: must be below steps (10)"),
        (["train.weight_decay=-1"], "train.weight_decay = -1.0: must be at least 0"),
        (["train.n_threads=0"], "train.n_threads = 0: must be at least 1"),
        (
            ["train.batch_size=10", "train.accumulate=2", "train.n_processes=3"],
            "n_processes x accumulate (6)",
        ),
        (["select.share=0"], "select.share = 0.0: must be above 0 and at most 1"),
        (["select.share=1.5"], "select.share = 1.5: must be above 0 and at most 1"),
        (["select.seed=-1"], "select.seed = -1: must be at least 0"),
        (["select.floor=-0.1"], "select.floor = -0.1: must be at least 0 and at most 1"),
        (["select.floor=1.5"], "select.floor = 1.5: must be at least 0 and at most 1"),
        (["select.k=0"], "select.k = 0: must be at least 1"),
        (["select.budget=0"], "select.budget = 0: must be at least 1"),
        (["select.method=top_k"], "select.k = None: top_k needs it, as select.k=8"),
        (["select.method=budget"], "select.budget = None: the method of that name needs it"),
        (["select.method=random", "select.match=budget"], "select.budget = None: the method of that name"),
        (["select.method=random", "select.match=all"], "select.match = 'all': must be one of token_share"),
        (["select.method=topk"], "select.method = 'topk': must be one of token_share, gate_mass, top_k"),
        (["select.budget_unit=mb"], "select.budget_unit = 'mb': must be one of experts, parameters, bytes"),
        (["select.kinds=answers"], "select.kinds = 'answers': must be one of prompt, answer, all"),
        (["select.method=none"], "select.method: none leaves nothing to train: set lora.attention"),
        (["lora.rank=0"], "lora.rank = 0: must be at least 1"),
        (["lora.alpha=0"], "lora.alpha = 0.0: must be above 0"),
        (["lora.down_rank=0"], "lora.down_rank = 0: must be at least 1"),
        (["lora.down_alpha=-1"], "lora.down_alpha = -1.0: must be above 0"),
        (["lora.dropout=1"], "lora.dropout = 1.0: must be at least 0 and below 1"),
        (["lora.dropout=-0.1"], "lora.dropout = -0.1: must be at least 0 and below 1"),
        (["train.b_learning_rate_ratio=0"], "train.b_learning_rate_ratio = 0.0: must be above 0"),
        (["profile.max_tokens=0"], "profile.max_tokens = 0: must be at least 1"),
        (["eval.n_bootstrap=0"], "eval.n_bootstrap = 0: must be at least 1"),
        (["eval.samples=-1"], "eval.samples = -1: must be at least 0"),
        (["seed=-1"], "seed = -1: must be at least 0"),
        (["name=../up"], "name = '../up': use letters"),
    ],
)
def test_a_value_that_no_run_can_use_is_named(small: Path, changes: list[str], said: str):
    with pytest.raises(UserError) as caught:
        load_run_config(small, changes)
    assert said in str(caught.value)
    assert "1 problem" in str(caught.value)


def test_zero_is_a_seed_and_the_edges_of_ranges_are_inside(small: Path):
    changes = ["seed=0", "select.share=1", "train.warmup_steps=9", "train.batch_size=1", "eval.samples=0"]
    assert isinstance(load_run_config(small, changes), RunConfig)


def test_changes_may_stand_on_either_side_of_the_config(small: Path):
    arguments = ["train.steps=3", "--config", str(small), "lora.rank=2"]
    config = config_from_arguments(arguments, "train", "train")
    assert (config.train.steps, config.lora.rank) == (3, 2)


@pytest.mark.parametrize(
    "arguments", [[], ["--config"], ["--conf", "a.yaml"], ["--config", "a.yaml", "--fast"]]
)
def test_a_malformed_command_line_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        config_from_arguments(arguments, "train", "train")
    assert caught.value.code == 2
    assert "usage: local-experts train" in capsys.readouterr().err
