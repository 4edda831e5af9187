"""finetune.selection chooses per layer over experts: in the 2x3 cases here rows and columns disagree."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from finetune.config import DataConfig, LoraConfig, RunConfig, SelectConfig, TrainConfig
from finetune.moe import moe_layers
from finetune.selection import (
    all_experts,
    build_plan,
    coverage,
    expert_shares,
    gate_mass,
    hottest_share,
    main,
    random_experts,
    read_plan,
    select_stage,
    token_share,
)

# Two layers, three experts. Shares by rows: .6 .3 .1 and .1 .2 .7; by columns 6/7 3/5 1/8 and 1/7 2/5 7/8.
COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
MASS = np.array([[2.0, 5.0, 3.0], [6.0, 1.0, 3.0]])
OTHER_COUNTS = [[1, 1, 8], [5, 5, 0]]
MODEL, OTHER_MODEL = "a" * 64, "b" * 64


def group(role: str, counts: Any = COUNTS, mass: Any = MASS) -> dict[str, Any]:
    return {"role": role, "counts": np.asarray(counts).tolist(), "gate_mass": np.asarray(mass).tolist()}


def profile(**groups: dict[str, Any]) -> dict[str, Any]:
    """A profile of layers 3 and 5; a target "ta" and a general "en" unless other groups are given."""
    return {
        "model_fingerprint": MODEL,
        "layers": [3, 5],
        "n_experts": 3,
        "parameters_per_rank": [100, 1000],
        "groups": groups or {"ta": group("target"), "en": group("general", OTHER_COUNTS)},
    }


def test_shares_are_over_experts_within_a_layer() -> None:
    assert expert_shares(COUNTS).tolist() == [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.1, [[0], [2]]),
        (0.6, [[0], [2]]),  # 6 of 10 reach it exactly
        (0.65, [[0, 1], [2]]),  # by columns expert 0 alone would reach it: 6 of 7
        (0.9, [[0, 1], [1, 2]]),
        (0.95, [[0, 1, 2], [0, 1, 2]]),
        (1.0, [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_token_share_takes_the_smallest_set_that_reaches_the_share(share: float, expected: list) -> None:
    assert token_share(COUNTS, share) == expected


def test_gate_mass_takes_the_smallest_set_by_mass() -> None:
    assert gate_mass(MASS, 0.5) == [[1], [0]]
    assert gate_mass(MASS, 0.7) == [[1, 2], [0, 2]]
    assert gate_mass(MASS / 3, 1.0) == [[0, 1, 2], [0, 1, 2]]


def test_ties_go_to_the_lower_id_and_unused_experts_are_never_taken() -> None:
    assert token_share(np.array([[2, 4, 2, 4, 0]]), 0.4) == [[1, 3]]
    assert token_share(np.array([[2, 4, 2, 4, 0]]), 0.8) == [[0, 1, 3]]
    assert token_share(np.array([[2, 4, 2, 4, 0]]), 1.0) == [[0, 1, 2, 3]]
    # Wide enough that a sort which does not keep the order of equals would show.
    assert token_share(np.tile([1, 2], (1, 128)), 126 / 384) == [list(range(1, 126, 2))]


@pytest.mark.parametrize("n_experts", [10, 49, 160])
def test_whole_counts_reach_a_share_exactly(n_experts: int) -> None:
    for n in range(1, n_experts + 1):
        assert len(token_share(np.ones((1, n_experts), dtype=int), n / n_experts)[0]) == n


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_cannot_be_reached_is_an_error(share: float) -> None:
    with pytest.raises(UserError, match=r"select\.share is .*above 0 and at most 1"):
        token_share(COUNTS, share)


@pytest.mark.parametrize("broken", [[[1.0, 1.0], [0.0, 0.0]], [[1.0, float("nan")]], [[2.0, -1.0]]])
def test_mass_without_shares_is_an_error(broken: list) -> None:
    with pytest.raises(UserError, match="negative, not finite, or all zero"):
        gate_mass(np.array(broken), 0.5)


def test_random_takes_so_many_experts_a_layer_and_depends_on_the_seed_alone() -> None:
    chosen = random_experts([3, 0, 8], 8, seed=0)
    assert [len(ids) for ids in chosen] == [3, 0, 8]
    assert all(ids == sorted(set(ids)) and set(ids) <= set(range(8)) for ids in chosen)
    assert chosen == random_experts([3, 0, 8], 8, seed=0)
    assert len({str(random_experts([8, 8], 32, seed)) for seed in range(20)}) == 20


def test_all_takes_every_expert_of_every_layer() -> None:
    assert all_experts(2, 3) == [[0, 1, 2], [0, 1, 2]]


def test_coverage_is_the_share_of_a_layers_routed_tokens_on_its_chosen_experts() -> None:
    assert coverage(COUNTS, [[1, 2], [0]]) == pytest.approx([0.4, 0.1])


def test_the_hottest_quarter_is_taken_within_a_layer_and_rounded_up() -> None:
    assert hottest_share(COUNTS) == pytest.approx([0.6, 0.7])
    assert hottest_share(np.array([[1, 5, 2, 4, 8]])) == pytest.approx([13 / 20])


def test_the_plan_names_global_layers_and_covers_every_group() -> None:
    plan = build_plan(profile(), SelectConfig(share=0.65), MODEL)
    assert plan["experts"] == {"3": [0, 1], "5": [2]}
    assert plan["coverage"]["ta"] == pytest.approx({"3": 0.9, "5": 0.7})
    assert plan["coverage"]["en"] == pytest.approx({"3": 0.2, "5": 0.0})
    assert plan["parameters_per_rank"] == 2 * 100 + 1 * 1000
    assert (plan["model_fingerprint"], plan["n_experts"]) == (MODEL, 3)
    assert (plan["method"], plan["share"], plan["seed"]) == ("token_share", 0.65, 0)
    assert plan["warnings"] == []


def test_general_groups_do_not_choose_and_target_groups_add_up() -> None:
    hindi = group("target", [[0, 0, 30], [30, 0, 0]])
    assert build_plan(profile(), SelectConfig(share=0.5))["experts"] == {"3": [0], "5": [2]}
    both = profile(ta=group("target"), hi=hindi, en=group("general", OTHER_COUNTS))
    assert build_plan(both, SelectConfig(share=0.5))["experts"] == {"3": [2], "5": [0]}


def test_each_method_chooses_its_own_experts() -> None:
    plans = {
        method: build_plan(profile(), SelectConfig(method=method, share=0.65))["experts"]
        for method in ("token_share", "gate_mass", "all")
    }
    assert plans["token_share"] == {"3": [0, 1], "5": [2]}
    assert plans["gate_mass"] == {"3": [1, 2], "5": [0, 2]}
    assert plans["all"] == {"3": [0, 1, 2], "5": [0, 1, 2]}


def test_random_has_the_size_of_token_share_or_a_fixed_one() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 100, (2, 16)) ** 3
    wide = profile(ta=group("target", counts, counts)) | {"n_experts": 16}

    def sizes(select: SelectConfig) -> list[int]:
        return [len(ids) for ids in build_plan(wide, select)["experts"].values()]

    by_tokens = sizes(SelectConfig(share=0.6))
    assert sizes(SelectConfig(method="random", share=0.6)) == by_tokens != [10, 10]
    assert sizes(SelectConfig(method="random", share=0.6, match=False)) == [10, 10]  # 0.6 x 16, rounded up
    chosen = {str(build_plan(wide, SelectConfig(method="random", seed=seed))["experts"]) for seed in range(5)}
    assert len(chosen) == 5


def test_a_layer_that_no_target_token_reached_is_left_out_with_a_warning() -> None:
    half = group("target", [[6, 3, 1], [0, 0, 0]], [[2.0, 5.0, 3.0], [0.0, 0.0, 0.0]])
    plan = build_plan(profile(ta=half), SelectConfig(method="all"))
    assert plan["experts"] == {"3": [0, 1, 2]}
    assert plan["warnings"] == ["no target token reached layer 5: no expert is chosen there"]
    with pytest.raises(UserError, match="no token of a target group in any layer"):
        build_plan(profile(ta=group("target", np.zeros((2, 3)), np.zeros((2, 3)))), SelectConfig())


def test_flat_routing_is_warned_of_by_layer() -> None:
    counts = [[10] * 8, [10] * 7 + [100]]
    flat = profile(ta=group("target", counts, counts)) | {"n_experts": 8}
    (warning,) = build_plan(flat, SelectConfig())["warnings"]
    assert warning.startswith("routing is flat") and "layer 3 (0.25)" in warning and "5 (" not in warning


def test_a_profile_of_another_model_or_without_target_is_refused() -> None:
    with pytest.raises(UserError, match=f"{MODEL}.*{OTHER_MODEL}.*local-experts profile"):
        build_plan(profile(), SelectConfig(), OTHER_MODEL)
    with pytest.raises(UserError, match=r"no target group \(it has en\)"):
        build_plan(profile(en=group("general")), SelectConfig())


def test_the_stage_writes_the_plan_with_the_hash_of_its_profile(tmp_path: Path, capsys) -> None:
    write_artefact(tmp_path / "profile.json", "routing_profile", {}, profile())
    fields = {
        "name": "tiny",
        "output": str(tmp_path),
        "data": {"recipe": "unused.yaml"},
        "train": {"steps": 1, "learning_rate": 0.001},
        "lora": {"rank": 4},
    }
    config_file = tmp_path / "run.yaml"
    config_file.write_text(json.dumps(fields), encoding="utf-8")
    main(["--config", str(config_file), "select.share=0.65"])
    plan = read_plan(tmp_path / "plan.json", MODEL)
    assert plan["experts"] == {"3": [0, 1], "5": [2]}
    assert plan["inputs"] == {"profile": sha256_file(tmp_path / "profile.json")}
    assert (
        "token_share: 3 of 6 experts in 2 layers, 4,800 LoRA parameters at rank 4" in capsys.readouterr().out
    )
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


def write_plan(folder: Path, **changes: Any) -> Path:
    body = {"model_fingerprint": MODEL, "n_experts": 8, "experts": {"1": [0, 5], "2": []}} | changes
    write_artefact(folder / "plan.json", "expert_plan", {}, {k: v for k, v in body.items() if v is not None})
    return folder / "plan.json"


def test_a_plan_that_fits_its_model_is_read(tmp_path: Path, tiny_model) -> None:
    path = write_plan(tmp_path)
    assert read_plan(path, MODEL, moe_layers(tiny_model)) == read_artefact(path, "expert_plan")


def test_a_plan_for_another_model_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{MODEL}.*{OTHER_MODEL}.*base.model.*local-experts select"):
        read_plan(write_plan(tmp_path), model_fingerprint=OTHER_MODEL)


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
