"""The paired bootstrap against scipy, a case worked by hand, and its promise of 95 %."""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval.compare import paired_bootstrap, paired_bootstrap_of_sums


def test_interval_agrees_with_scipy():
    generator = np.random.default_rng(3)
    base = generator.normal(0.0, 1.0, 120)
    tuned = base + generator.normal(0.4, 0.7, 120)
    ours = paired_bootstrap(base, tuned, 8000, seed=0)
    theirs = stats.bootstrap(
        (tuned, base),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.difference == pytest.approx((tuned - base).mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.high - ours.low < 0.3  # unpaired it would be about 0.55


def test_interval_of_a_ratio_agrees_with_scipy():
    generator = np.random.default_rng(4)
    n_bytes = generator.integers(3, 90, 150).astype(float)
    base = n_bytes * generator.uniform(2.0, 4.0, 150)
    tuned = base * generator.uniform(0.3, 0.9, 150)

    def difference(a, b, w, axis):
        return (a.sum(axis=axis) - b.sum(axis=axis)) / w.sum(axis=axis)

    theirs = stats.bootstrap(
        (tuned, base, n_bytes), difference, paired=True, n_resamples=8000, method="percentile", rng=2
    ).confidence_interval
    ours = paired_bootstrap(base, tuned, 8000, seed=0, weights=n_bytes)
    assert ours.base == pytest.approx(base.sum() / n_bytes.sum())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_identical_systems_differ_by_exactly_nothing():
    values = np.random.default_rng(0).random(77)
    weights = np.random.default_rng(1).random(77) + 0.1
    for result in (
        paired_bootstrap(values, values, 500, 0),
        paired_bootstrap(values, values, 500, 0, weights),
    ):
        assert (result.difference, result.low, result.high, result.n) == (0.0, 0.0, 0.0, 77)


def test_two_rows_by_hand():
    # Drawing 2 of 2 rows gives 0 with probability 1/4, 1/2 with 1/2, 1 with 1/4: 95 % lie in [0, 1].
    result = paired_bootstrap(np.array([0.0, 1.0]), np.array([1.0, 1.0]), 4000, seed=0)
    assert result[:6] == (0.5, 1.0, 0.5, 0.0, 1.0, 2)


def test_interval_is_that_of_all_3125_possible_draws_of_five_rows():
    base, tuned = np.array([0.0, 0.0, 4.0, 1.0, 0.0]), np.array([1.0, 5.0, 3.0, 1.0, 2.0])
    exact = [(tuned - base)[list(rows)].mean() for rows in itertools.product(range(5), repeat=5)]
    low, high = np.percentile(exact, [2.5, 97.5], method="inverted_cdf")
    result = paired_bootstrap(base, tuned, 40000, seed=0)
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-9)


def test_rows_drawn_in_parts_are_the_rows_drawn_at_once(monkeypatch):
    base, tuned = np.random.default_rng(0).random((2, 50))
    at_once = paired_bootstrap(base, tuned, 300, seed=5)
    monkeypatch.setattr("eval.compare.CELLS_AT_ONCE", 7 * 50)
    in_parts = paired_bootstrap(base, tuned, 300, seed=5)
    assert in_parts == pytest.approx(at_once, abs=1e-12)


def test_the_seed_decides_the_interval():
    base, tuned = np.random.default_rng(0).random((2, 50))
    assert paired_bootstrap(base, tuned, 300, seed=0) == paired_bootstrap(base, tuned, 300, seed=0)
    assert paired_bootstrap(base, tuned, 300, seed=0) != paired_bootstrap(base, tuned, 300, seed=1)


def test_interval_holds_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(7)
    n_held = 0
    for _ in range(400):
        base = generator.random(80) < 0.3
        tuned = base | (generator.random(80) < 0.5)  # true difference 0.7 * 0.5
        result = paired_bootstrap(base, tuned, 400, seed=0)
        n_held += result.low <= 0.35 <= result.high
    assert 0.91 <= n_held / 400 <= 0.98


@pytest.mark.parametrize(
    ("base", "tuned", "weights", "message"),
    [
        ([], [], None, "at least one"),
        ([1.0, 2.0], [1.0], None, "not paired"),
        ([1.0, 2.0], [1.0, 2.0], [1.0], "not paired"),
        ([1.0, 2.0], [1.0, float("nan")], None, "not finite"),
        ([1.0, 2.0], [1.0, 2.0], [1.0, 0.0], "not above 0"),
    ],
)
def test_broken_rows_are_refused(base, tuned, weights, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(np.array(base), np.array(tuned), 100, 0, weights)


def test_no_resamples_is_refused():
    with pytest.raises(ValueError, match="at least one resample"):
        paired_bootstrap_of_sums(np.ones((2, 2)), np.ones((2, 2)), lambda sums: sums[:, 0], 0, 0)
