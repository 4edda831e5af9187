"""What a plan warns of, and the profiles it refuses; a layer that no token reached is among the first."""

from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError
from finetune.config import SelectConfig
from finetune.profiling.profile import Cell
from finetune.selecting.plan import build_plan
from tests.small_profiles import of_languages, small_profile

COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
OTHER = np.array([[1, 1, 8], [5, 5, 0]])


def warnings(counts: dict[str, Any], **select: Any) -> list[str]:
    """Warnings of a plan that knows how sure it is."""
    replicates = {name: [found] * 2 for name, found in counts.items()}
    return build_plan(of_languages(counts, replicates=replicates), SelectConfig(**select))["warnings"]


def test_a_layer_that_no_target_token_reached_is_left_out_with_a_warning() -> None:
    half = [[6, 3, 1], [0, 0, 0]]
    plan = build_plan(of_languages({"ta": half, "en": half}), SelectConfig(method="all"))
    assert plan["experts"] == {"3": [0, 1, 2]}
    assert plan["warnings"] == ["no target token reached layer 5: no expert is chosen there"]
    with pytest.raises(UserError, match="no token of a target language in any layer"):
        build_plan(of_languages({"ta": np.zeros((2, 3), dtype=int)}), SelectConfig())


def test_flat_routing_is_warned_of_by_layer() -> None:
    (warning,) = warnings({"ta": [[10] * 8, [10] * 7 + [100]]})
    assert warning.startswith("routing is flat") and "layer 3 (0.25)" in warning and "5 (" not in warning
    (warning,) = warnings({"ta": [[10] * 8] * 11})
    assert warning.count("(0.25)") == 8 and "and 3 more" in warning


def test_general_tokens_covered_as_well_as_the_targets_are_warned_of() -> None:
    (warning,) = warnings({"ta": COUNTS, "en": COUNTS}, share=0.6)
    assert "not specific to the target: its experts hold 0.65 of the target's" in warning
    assert "0.65 of the general ones" in warning and "select.method=contrast" in warning
    assert warnings({"ta": COUNTS, "en": OTHER}, share=0.6) == []
    assert warnings({"ta": COUNTS, "en": COUNTS}, method="all") == [], (
        "all experts hold all tokens of anybody"
    )


def test_what_was_asked_for_and_cannot_be_reached_is_warned_of_by_layer() -> None:
    (warning,) = warnings({"ta": COUNTS, "en": [[1, 6, 3], [2, 1, 7]]}, method="contrast", share=0.6)
    assert "select.share=0.6 of the target tokens is not reached in layer 5 (0.20)" in warning
    assert "select.floor=0.5" in warning
    warning = warnings({"ta": [[6, 3, 1], [3, 7, 0]], "en": OTHER}, method="top_k", k=3)[0]
    assert "fewer than select.k=3 experts got a target token in layer 5 (2)" in warning
    warning = warnings({"ta": COUNTS, "en": OTHER}, method="budget", budget=7)[0]
    assert "select.budget=7 experts is enough for every expert" in warning and "all 6" in warning
    assert warnings({"ta": COUNTS, "en": OTHER}, method="budget", budget=3) == []


def test_contrast_without_an_expert_or_without_general_rows_is_an_error() -> None:
    with pytest.raises(UserError, match=r"contrast finds no expert.*select\.floor=0\.5.*another method"):
        warnings({"ta": COUNTS, "en": COUNTS}, method="contrast")
    with pytest.raises(UserError, match="contrast compares with general languages: the profile has none"):
        warnings({"ta": COUNTS}, method="contrast")


def test_a_method_without_its_number_is_an_error() -> None:
    for method, key in (("top_k", "k"), ("budget", "budget")):
        with pytest.raises(UserError, match=rf"select\.{key} is not set"):
            warnings({"ta": COUNTS}, method=method)


def test_a_profile_without_target_or_with_a_layer_that_only_some_reached_is_refused() -> None:
    with pytest.raises(UserError, match=r"no target language \(it has en\)"):
        build_plan(of_languages({"en": COUNTS}), SelectConfig())
    with pytest.raises(UserError, match="no token of en reached layer 5.*local-experts profile"):
        build_plan(of_languages({"ta": COUNTS, "en": COUNTS * [[1], [0]]}), SelectConfig())
    with pytest.raises(UserError, match="counted no prompt token of ta"):
        build_plan(of_languages({"ta": COUNTS}), SelectConfig(kinds="prompt"))


def test_negative_counts_and_gate_mass_that_is_no_number_are_refused_by_place() -> None:
    with pytest.raises(UserError, match="count of ta for expert 1 of layer 5 is -2: it must be finite"):
        build_plan(of_languages({"ta": [[6, 3, 1], [1, -2, 7]]}), SelectConfig())
    cell = Cell("ta", "", "answer")
    profile = small_profile({cell: COUNTS}, {cell: [[0.5, float("nan"), 0.5], [1, 1, 1]]})
    with pytest.raises(
        UserError, match="gate mass of ta for expert 1 of layer 3 is nan.*local-experts profile"
    ):
        build_plan(profile, SelectConfig())
