"""finetune.selecting.routing_measures, by hand: over the experts of a layer, where rows and columns disagree."""

import numpy as np
import pytest
from scipy.spatial.distance import jaccard as jaccard_distance

from data_recipes.artefact import UserError
from finetune.selecting.routing_measures import coverage, gini, hottest_share, jaccard, touched_tokens

COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
CHOSEN = np.array([[False, True, True], [True, False, False]])


def test_coverage_is_the_share_of_a_layers_routed_rows_on_its_chosen_experts() -> None:
    assert coverage(COUNTS, CHOSEN).tolist() == [0.4, 0.1]
    assert coverage(np.stack([COUNTS, COUNTS[::-1]]), CHOSEN).tolist() == [[0.4, 0.1], [0.9, 0.6]]


def test_the_hottest_quarter_is_taken_within_a_layer_and_rounded_up() -> None:
    assert hottest_share(COUNTS) == pytest.approx([0.6, 0.7])
    assert hottest_share(np.array([[1, 5, 2, 4, 8]])) == pytest.approx([13 / 20])


def test_gini_is_half_the_relative_mean_difference_over_the_experts_of_a_layer() -> None:
    # Pairs of the first layer differ by 3, 5, 2: 2 * 10 / (2 * 9 * 10/3); of the second by 1, 6, 5.
    assert gini(COUNTS) == pytest.approx([20 / 60, 24 / 60])
    assert gini(np.array([[5, 5, 5, 5], [0, 0, 9, 0]])) == pytest.approx([0, 3 / 4])
    values = np.random.default_rng(0).integers(0, 50, 12)
    pairs = np.abs(values[:, None] - values).mean()
    assert gini(values[None]) == pytest.approx([pairs / (2 * values.mean())])


def test_jaccard_is_by_layer_or_over_all_pairs_of_layer_and_expert() -> None:
    first = np.array([[True, True, False], [True, False, False]])
    second = np.array([[False, True, False], [True, True, True]])
    assert jaccard(first, second).tolist() == pytest.approx([1 / 2, 1 / 3])
    assert jaccard(first, second, axis=(-2, -1)) == pytest.approx(2 / 5)
    assert jaccard(first, second).tolist() == pytest.approx(
        [1 - jaccard_distance(a, b) for a, b in zip(first, second, strict=True)]
    )
    assert jaccard(np.zeros((1, 3), dtype=bool), np.array([[False] * 3])).tolist() == [1.0]
    assert jaccard(np.zeros((1, 3), dtype=bool), np.array([[False, True, False]])).tolist() == [0.0]


def test_bounds_of_touched_tokens_by_hand() -> None:
    # Two experts a token, ten routed rows: five tokens. Chosen 1 and 2 hold 4 rows: 2 to 4 tokens of 5, but
    # expert 1 alone is on 3 of them. Layer two: expert 0 is on one token.
    assert touched_tokens(COUNTS, CHOSEN, 2)[1].tolist() == [0.2, 0.2]
    wide = np.array([[4, 3, 1, 1, 1], [2, 2, 2, 2, 2]])
    chosen = np.array([[False, True, True, False, False], [True, True, False, False, False]])
    assert touched_tokens(wide, chosen, 2).tolist() == [[0.6, 0.8], [0.4, 0.8]]
    # One expert is not chosen, and each token has two: every token touches a chosen one.
    assert touched_tokens(COUNTS, CHOSEN, 2)[0].tolist() == [1.0, 1.0]
    assert touched_tokens(COUNTS, np.zeros_like(CHOSEN), 2).tolist() == [[0, 0], [0, 0]]


def test_the_share_of_tokens_that_touch_lies_within_its_bounds_and_can_be_either() -> None:
    generator = np.random.default_rng(1)
    gaps = []
    for _ in range(1500):
        top_k, n_experts = int(generator.integers(1, 4)), int(generator.integers(4, 8))
        weights = generator.dirichlet(np.full(n_experts, 0.5)) + 1e-3
        tokens = np.array(
            [
                generator.choice(n_experts, top_k, replace=False, p=weights / weights.sum())
                for _ in range(generator.integers(1, 6))
            ]
        )
        counts = np.bincount(tokens.ravel(), minlength=n_experts)[None]
        chosen = generator.random((1, n_experts)) < 0.4
        touched = chosen[0][tokens].any(axis=1).mean()
        least, most = touched_tokens(counts, chosen, top_k)[0]
        assert least - 1e-9 <= touched <= most + 1e-9
        if most - least > 0.1:
            gaps.append((touched - least < 1e-9, most - touched < 1e-9))
    assert min(np.sum(gaps, axis=0)) > 2, "both bounds are reached"


def test_a_layer_that_routed_nothing_has_no_measure() -> None:
    for measure in (gini, hottest_share, lambda counts: coverage(counts, CHOSEN)):
        with pytest.raises(UserError, match="all zero in a layer"):
            measure(np.array([[6, 3, 1], [0, 0, 0]]))
