"""The select stage: plan.json with the hash of its profile, what it prints, and which plans it reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from finetune.cli import main as command_line
from finetune.config import DataConfig, LoraConfig, RunConfig, SelectConfig
from finetune.moe import moe_layers
from finetune.profiling.profile import write_profile
from finetune.selecting.selection import main, read_plan, select_stage
from finetune.training_options import TrainConfig
from tests.small_profiles import MODEL, TOKENIZER, of_languages

COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
PROFILE = of_languages(
    {"ta": COUNTS, "en": [[1, 1, 8], [5, 5, 0]]},
    replicates={"ta": np.array([COUNTS, [[6, 1, 3], [1, 2, 7]]]), "en": np.ones((2, 2, 3), dtype=int)},
)
OTHER = "b" * 64


@pytest.fixture
def run_config(tmp_path: Path) -> Path:
    """The config of a run that has been profiled."""
    write_profile(tmp_path / "profile.json", PROFILE, {})
    fields = {
        "name": "tiny",
        "output": str(tmp_path),
        "data": {"recipe": "unused.yaml"},
        "train": {"steps": 1, "learning_rate": 0.001},
        "lora": {"rank": 4},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(fields), encoding="utf-8")
    return tmp_path / "run.yaml"


def test_the_stage_writes_the_plan_with_the_hash_of_its_profile(run_config: Path, tmp_path: Path) -> None:
    main(["--config", str(run_config), "select.share=0.65"])
    plan = read_plan(tmp_path / "plan.json", MODEL, tokenizer_fingerprint=TOKENIZER)
    assert plan["experts"] == {"3": [0, 1], "5": [2]}
    assert plan["inputs"] == {"profile": sha256_file(tmp_path / "profile.json")}
    first_bytes = (tmp_path / "plan.json").read_bytes()
    config = RunConfig(
        name="tiny",
        output=str(tmp_path),
        data=DataConfig(recipe="unused.yaml"),
        train=TrainConfig(steps=1, learning_rate=0.001),
        select=SelectConfig(share=0.65),
        lora=LoraConfig(rank=16),
    )
    assert select_stage(config).read_bytes() == first_bytes, "the plan does not depend on the rank"


def test_the_stage_says_what_is_chosen_what_it_holds_and_how_sure_it_is(run_config: Path, capsys) -> None:
    main(["--config", str(run_config), "select.share=0.65"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "token_share: 3 of 6 experts in 2 of 2 layers, 4,800 LoRA parameters at rank 4" in lines[0]
    assert "0.80 of ta (target) and 0.10 of en (general)" in lines[1]
    # The second replicate takes 0 and 2 in layer 3: two of the four pairs that either has.
    assert "2 resamples of the rows: 2 experts are borderline, mean Jaccard with the plan 0.75" in lines[2]
    main(["--config", str(run_config), "select.method=contrast", "select.share=0.95"])
    assert "warning: select.share=0.95 of the target tokens is not reached" in capsys.readouterr().out


def test_explain_adds_a_line_for_each_layer(run_config: Path, capsys) -> None:
    assert command_line(["select", "--config", str(run_config), "--explain", "select.share=0.65"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["3", "2", "2", "0.90", "0.20", "0.60", "0.00"],
        ["5", "1", "0", "0.70", "0.00", "0.70", "0.00"],
    ]
    command_line(
        ["select", "--config", str(run_config), "--explain", "select.method=none", "lora.attention=true"]
    )
    assert capsys.readouterr().out.splitlines()[-1].split() == ["5", "0", "0", "0.00", "0.00", "0.70", "-"]


def test_none_chooses_no_expert_and_needs_something_else_to_train(
    run_config: Path, tmp_path: Path, capsys
) -> None:
    main(["--config", str(run_config), "select.method=none", "lora.attention=true"])
    plan = read_plan(tmp_path / "plan.json", MODEL)
    assert (plan["method"], plan["experts"], plan["n_experts"]) == ("none", {}, 3)
    assert "none: 0 of 6 experts in 0 of 2 layers, 0 LoRA parameters" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"select\.method.*set lora\.attention or lora\.shared_experts to true"
    ):
        main(["--config", str(run_config), "select.method=none"])


def test_choosing_imports_no_torch() -> None:
    code = "import sys, finetune.selecting.selection; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_plan(folder: Path, **changes: Any) -> Path:
    body = {"model_fingerprint": MODEL, "n_experts": 8, "experts": {"1": [0, 5], "2": []}} | changes
    write_artefact(folder / "plan.json", "expert_plan", {}, {k: v for k, v in body.items() if v is not None})
    return folder / "plan.json"


def test_a_plan_that_fits_its_model_is_read(tmp_path: Path, tiny_model) -> None:
    path = write_plan(tmp_path)
    assert read_plan(path, MODEL, moe_layers(tiny_model)) == read_artefact(path, "expert_plan")


def test_a_plan_for_another_model_or_tokenizer_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model .*{MODEL}.*{OTHER}.*base.model.*local-experts select"):
        read_plan(write_plan(tmp_path), model_fingerprint=OTHER)
    path = write_plan(tmp_path, tokenizer_fingerprint=TOKENIZER)
    assert read_plan(path, MODEL, tokenizer_fingerprint=TOKENIZER)["n_experts"] == 8
    with pytest.raises(
        UserError, match=f"tokenizer .*{TOKENIZER}.*{OTHER}.*base.model.*local-experts profile"
    ):
        read_plan(path, MODEL, tokenizer_fingerprint=OTHER)


def test_a_plan_from_a_list_of_experts_has_met_no_tokenizer(tmp_path: Path) -> None:
    assert read_plan(write_plan(tmp_path), MODEL, tokenizer_fingerprint=OTHER)["n_experts"] == 8


def test_only_a_plan_of_the_method_none_may_choose_no_expert(tmp_path: Path, tiny_model) -> None:
    path = write_plan(tmp_path, experts={}, method="none")
    assert read_plan(path, MODEL, moe_layers(tiny_model))["experts"] == {}
    with pytest.raises(UserError, match="it counts 4 experts a layer"):
        read_plan(write_plan(tmp_path, experts={}, method="none", n_experts=4), MODEL, moe_layers(tiny_model))
    with pytest.raises(UserError, match="chooses no expert"):
        read_plan(write_plan(tmp_path, experts={}, method="token_share"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": {}}, "chooses no expert"),
        ({"experts": {"1": [], "2": []}}, "chooses no expert"),
        ({"experts": [[0]]}, "chooses no expert"),
        ({"experts": {"0": [1]}}, r"layer 0 is no MoE layer of the model \(it has 1, 2\)"),
        ({"experts": {"one": [1]}}, "layer one is no number"),
        ({"experts": {"1": [5, 0]}}, "layer 1: expert ids are not ascending"),
        ({"experts": {"1": [5, 5]}}, "layer 1: expert ids are not ascending"),
        ({"experts": {"2": [0, 8]}}, r"layer 2: an expert id outside 0\.\.7"),
        ({"experts": {"2": [-1, 0]}}, r"layer 2: an expert id outside 0\.\.7"),
        ({"experts": {"1": [True]}}, "layer 1: not a list of whole numbers"),
        ({"experts": {"1": 4}}, "layer 1: not a list of whole numbers"),
        ({"n_experts": 16}, r"it counts 16 experts a layer, the model has \[8\]"),
        ({"n_experts": "8"}, "n_experts is no whole number"),
        ({"n_experts": None}, "lacks n_experts"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path, tiny_model, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read_plan(write_plan(tmp_path, **changes), MODEL, moe_layers(tiny_model))
    assert "local-experts select" in str(refused.value)


def test_a_layer_that_is_no_number_is_refused_without_a_model_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer one is no number"):
        read_plan(write_plan(tmp_path, experts={"one": [1]}))


def test_every_problem_of_a_plan_is_listed_at_once(tmp_path: Path, tiny_model) -> None:
    path = write_plan(tmp_path, experts={"0": [1], "1": [3, 2], "2": [99]})
    with pytest.raises(UserError) as refused:
        read_plan(path, MODEL, moe_layers(tiny_model))
    assert len(str(refused.value).splitlines()) == 1 + 3


def test_a_missing_or_truncated_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="local-experts select"):
        read_plan(tmp_path / "plan.json")
    path = write_plan(tmp_path)
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(UserError, match="local-experts select"):
        read_plan(path)
