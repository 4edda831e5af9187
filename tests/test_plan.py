"""finetune.selecting.plan bridges profile and choices: languages, kinds and sources, costs, overlap, replicates."""

from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError
from finetune.config import SelectConfig
from finetune.profiling.profile import Cell
from finetune.selecting.plan import build_plan
from finetune.selecting.routing_measures import jaccard
from tests.small_profiles import MODEL, TOKENIZER, of_languages, small_profile

# Shares by rows: .6 .3 .1 and .1 .2 .7; of the general one .1 .1 .8 and .5 .5 0.
COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
OTHER = np.array([[1, 1, 8], [5, 5, 0]])
MASS = {Cell("ta", "", "answer"): [[2.0, 5.0, 3.0], [6.0, 1.0, 3.0]], Cell("en", "", "answer"): OTHER}
TWO: dict[str, Any] = {"ta": COUNTS, "en": OTHER}


def experts(profile: Any, **select: Any) -> dict[str, list[int]]:
    return build_plan(profile, SelectConfig(**select))["experts"]


def test_the_plan_names_global_layers_and_covers_every_language() -> None:
    plan = build_plan(of_languages(TWO), SelectConfig(share=0.65))
    assert plan["experts"] == {"3": [0, 1], "5": [2]}
    assert plan["coverage"]["ta"] == pytest.approx({"3": 0.9, "5": 0.7})
    assert plan["coverage"]["en"] == pytest.approx({"3": 0.2, "5": 0.0})
    assert plan["role_coverage"] == {
        "target": plan["coverage"]["ta"],
        "general": plan["coverage"]["en"],
    }
    assert plan["languages"] == {"target": ["ta"], "general": ["en"]}
    assert plan["parameters_per_rank"] == 2 * 100 + 1 * 1000
    assert plan["expert_bytes"] == 2 * 7 + 1 * 70
    assert (plan["model_fingerprint"], plan["tokenizer_fingerprint"]) == (MODEL, TOKENIZER)
    assert (plan["method"], plan["share"], plan["seed"], plan["n_experts"]) == ("token_share", 0.65, 0, 3)
    assert plan["hottest_quarter"] == {"3": 0.6, "5": 0.7}
    assert plan["skew"]["ta"] == pytest.approx({"3": 1 / 3, "5": 2 / 5})
    assert plan["touched_tokens"]["target"]["3"] == pytest.approx([0.9, 0.9]), "one expert a token"


def test_general_languages_do_not_choose_and_target_languages_add_up() -> None:
    assert experts(of_languages(TWO), share=0.5) == {"3": [0], "5": [2]}
    both = of_languages({**TWO, "te": [[0, 0, 30], [30, 0, 0]]})
    assert experts(both, share=0.5) == {"3": [2], "5": [0]}


def test_each_method_chooses_its_own_experts() -> None:
    profile = small_profile({Cell("ta", "", "answer"): COUNTS, Cell("en", "", "answer"): OTHER}, MASS)
    found = {
        "token_share": {"3": [0, 1], "5": [2]},
        "gate_mass": {"3": [1, 2], "5": [0, 2]},
        "contrast": {"3": [0, 1], "5": [2]},
        "all": {"3": [0, 1, 2], "5": [0, 1, 2]},
        "none": {},
    }
    for method, expected in found.items():
        assert experts(profile, method=method, share=0.65) == expected
    assert experts(profile, method="top_k", k=1) == {"3": [0], "5": [2]}
    assert experts(profile, method="budget", budget=3) == {"3": [0, 1], "5": [2]}


def test_a_budget_is_of_experts_of_lora_parameters_at_rank_1_or_of_the_experts_bytes() -> None:
    profile = of_languages(TWO)  # parameters 100 and 1000, bytes 7 and 70 for an expert of each layer
    assert experts(profile, method="budget", budget=1) == {"3": [], "5": [2]}
    for unit, enough in (("parameters", 3 * 100 + 1000), ("bytes", 3 * 7 + 70)):
        assert experts(profile, method="budget", budget=enough, budget_unit=unit) == {
            "3": [0, 1, 2],
            "5": [2],
        }
        short = {"method": "budget", "budget": enough - 1, "budget_unit": unit}
        assert experts(profile, **short) == {"3": [0, 1, 2], "5": []}


def test_random_has_the_size_of_the_method_it_is_matched_with_or_a_fixed_one() -> None:
    counts = np.random.default_rng(0).integers(1, 100, (2, 16)) ** 3
    wide = of_languages({"ta": counts, "en": counts[::-1]})

    def sizes(**select: Any) -> list[int]:
        return [len(ids) for ids in experts(wide, **select).values()]

    by_tokens = sizes(share=0.6)
    assert sizes(method="random", share=0.6) == by_tokens != [10, 10]
    assert sizes(method="random", share=0.6, match=False) == [10, 10]  # 0.6 x 16, rounded up
    assert sizes(method="random", k=5, match="top_k") == [5, 5]
    assert sizes(method="random", match="budget", budget=7) == sizes(method="budget", budget=7)
    assert len({str(experts(wide, method="random", seed=seed)) for seed in range(5)}) == 5


def test_kinds_and_sources_decide_and_the_profiles_own_kinds_are_the_default() -> None:
    profile = small_profile(
        {
            Cell("ta", "dates", "answer"): [[9, 1, 0]],
            Cell("ta", "dates", "prompt"): [[0, 1, 30]],
            Cell("ta", "names", "answer"): [[0, 12, 1]],
            Cell("en", "dates", "answer"): [[1, 1, 1]],
        },
        kinds="answer",
    )
    assert experts(profile) == {"3": [1]}
    assert build_plan(profile, SelectConfig())["kinds"] == "answer"
    assert experts(profile, kinds="prompt") == {"3": [2]}
    assert experts(profile, kinds="all") == {"3": [2]}
    assert experts(profile, sources=("dates",)) == {"3": [0]}
    plan = build_plan(profile, SelectConfig(sources=("names",)))
    assert plan["coverage"].keys() == {"ta"} and plan["languages"] == {"target": ["ta"], "general": []}
    assert "no answer token of en from names: left out of the plan" in plan["warnings"]
    with pytest.raises(UserError, match="select.sources names nouns: the profile has 'dates', 'names'"):
        build_plan(profile, SelectConfig(sources=("dates", "nouns")))


def test_overlap_is_with_what_the_method_would_choose_for_each_other_language() -> None:
    plan = build_plan(of_languages(TWO), SelectConfig(share=0.65))  # en: [2] and [0, 1]
    assert plan["overlap"] == {"en": {"3": 0.0, "5": 0.0}}
    plan = build_plan(of_languages({**TWO, "te": 2 * COUNTS[::-1]}), SelectConfig(share=0.65))
    # Together 8 7 15 and 13 8 11. Alone ta takes [0, 1] and [2], te [1, 2] and [0, 1], en [2] and [0, 1].
    assert plan["experts"] == {"3": [0, 2], "5": [0, 2]}
    assert plan["overlap"] == {
        "en": {"3": 1 / 2, "5": 1 / 3},
        "ta": {"3": 1 / 3, "5": 1 / 2},
        "te": {"3": 1 / 2, "5": 1 / 3},
    }
    for method in ("random", "all", "none"):
        assert build_plan(of_languages(TWO), SelectConfig(method=method))["overlap"] == {}


def test_contrast_sets_a_general_language_against_all_others() -> None:
    counts = {"ta": [[70, 10, 20]], "en": [[20, 50, 30]], "hi": [[10, 60, 30]]}
    plan = build_plan(of_languages(counts), SelectConfig(method="contrast", share=0.7))
    assert plan["experts"] == {"3": [0]}
    # Against ta and hi (80 70 50) en is lifted on 1 and 2; against hi alone it would be on 0.
    assert plan["overlap"] == {"en": {"3": 0.0}, "hi": {"3": 0.0}}


REPLICATES = {
    # Expert 0 of layer 3 leads in nine replicates of ten and expert 1 in one; layer 5 always has expert 2.
    "ta": np.array([COUNTS] * 9 + [[[3, 6, 1], [1, 2, 7]]]),
    "en": np.array([OTHER] * 10),
}


def test_probability_is_the_share_of_replicates_that_choose_an_expert() -> None:
    profile = of_languages(TWO, replicates=REPLICATES)
    plan = build_plan(profile, SelectConfig(share=0.5))
    assert plan["experts"] == {"3": [0], "5": [2]}
    assert plan["probability"] == {"3": {"0": 0.9, "1": 0.1}, "5": {"2": 1.0}}
    assert plan["borderline"] == {"3": [0, 1], "5": []}, "both ends of 0.1 to 0.9 belong to it"
    # Nine replicates agree with the plan; one shares one pair of three.
    assert plan["stability"] == pytest.approx(
        {"n_replicates": 10, "n_borderline": 2, "mean_jaccard": (9 + 1 / 3) / 10}
    )
    assert plan["warnings"] == []


def test_a_replicate_without_a_row_of_a_language_that_decides_is_left_out() -> None:
    replicates = {"ta": REPLICATES["ta"].copy(), "en": REPLICATES["en"].copy()}
    replicates["ta"][:5] = 0
    replicates["en"][8] = 0
    profile = of_languages(TWO, replicates=replicates)
    plan = build_plan(profile, SelectConfig(share=0.5))
    assert plan["probability"]["3"] == {"0": 0.8, "1": 0.2}
    contrasted = build_plan(profile, SelectConfig(method="contrast", share=0.5))
    assert contrasted["stability"]["n_replicates"] == 4, "there the general rows decide too"
    replicates["ta"][:9] = 0
    plan = build_plan(of_languages(TWO, replicates=replicates), SelectConfig(share=0.5))
    assert plan["stability"] is None and "10 replicates" in plan["warnings"][0]


def test_replicates_are_of_the_layers_that_the_target_reached() -> None:
    with_none = [np.insert(found, 1, 0, axis=1) for found in REPLICATES.values()]
    counts = {name: np.insert(found, 1, 0, axis=0) for name, found in TWO.items()}
    profile = of_languages(counts, replicates=dict(zip(REPLICATES, with_none, strict=True)))
    plan = build_plan(profile, SelectConfig(share=0.5))
    assert plan["experts"] == {"3": [0], "7": [2]}
    assert plan["probability"] == {"3": {"0": 0.9, "1": 0.1}, "7": {"2": 1.0}}


def test_target_languages_add_up_in_each_replicate() -> None:
    profile = of_languages(
        {"ta": [[6, 4, 0]], "te": [[0, 4, 6]]},
        replicates={"ta": [[[9, 1, 0]], [[1, 2, 0]]], "te": [[[0, 5, 5]], [[0, 6, 6]]]},
    )
    plan = build_plan(profile, SelectConfig(share=0.3))  # 6 8 6; then 9 6 5, and 1 8 6
    assert plan["experts"] == {"3": [1]}
    assert plan["probability"] == {"3": {"0": 0.5, "1": 0.5}}


@pytest.mark.parametrize("method", ["token_share", "gate_mass", "top_k", "contrast", "budget"])
def test_every_replicate_is_chosen_from_as_if_it_were_the_profile(method: str) -> None:
    generator = np.random.default_rng(5)
    replicates = {name: generator.integers(1, 60, (12, 2, 8)) for name in ("ta", "en")}
    whole = {name: found.sum(axis=0) for name, found in replicates.items()}
    select = SelectConfig(method=method, share=0.5, k=3, budget=5)  # type: ignore[arg-type]
    plan = build_plan(of_languages(whole, replicates=replicates), select)
    chosen = np.zeros((13, 2, 8), dtype=bool)
    for row in range(12):
        single = of_languages({name: found[row] for name, found in replicates.items()})
        for layer, ids in enumerate(build_plan(single, select)["experts"].values()):
            chosen[row, layer, ids] = True
    for layer, (name, ids) in enumerate(plan["experts"].items()):
        chosen[12, layer, ids] = True
        share = chosen[:12, layer].mean(axis=0)
        shown = [e for e in range(8) if 0 < share[e] < 1 or e in ids]
        assert plan["probability"][name] == {str(e): share[e] for e in shown}
        assert plan["borderline"][name] == [e for e in range(8) if 0.1 <= share[e] <= 0.9]
    mean = np.mean([jaccard(row, chosen[12], axis=(0, 1)) for row in chosen[:12]])
    assert plan["stability"]["mean_jaccard"] == pytest.approx(mean)
    assert plan["stability"]["n_borderline"] > 0


def test_stability_is_none_where_the_replicates_do_not_hold_what_decided() -> None:
    profile = of_languages(TWO, replicates=REPLICATES, kinds="answer")
    assert build_plan(profile, SelectConfig())["stability"] is not None
    others: list[dict[str, Any]] = [{"kinds": "all"}, {"sources": ("",)}]
    for asked in others:
        plan = build_plan(profile, SelectConfig(**asked))
        assert plan["stability"] is None and plan["probability"] == {}
        (warning,) = plan["warnings"]
        assert "how sure the choice is, is not known" in warning and "answer tokens of all sources" in warning
    for method in ("random", "all", "none"):
        plan = build_plan(profile, SelectConfig(method=method))
        assert plan["stability"] is None and plan["warnings"] == [], "these do not look at the routing"
