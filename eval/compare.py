"""Paired bootstrap: how sure is the difference between two systems that answered the same rows?

Every metric here is a function of sums over rows (a mean, total bits over total bytes, chrF++ over summed
n-gram counts), so one resampling serves all: draw rows with replacement once, sum both systems over them,
take the difference. Axes: N rows, R resamples, C summed columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CONFIDENCE_PERCENT = 95.0
CELLS_AT_ONCE = 4_000_000  # row counts held in memory at a time (32 MB as float64)


class PairedDifference(NamedTuple):
    """Base and tuned score, tuned minus base, its 95 % percentile interval, and the number of rows."""

    base: float
    tuned: float
    difference: float
    low: float
    high: float
    n: int


def paired_bootstrap(
    base: np.ndarray, tuned: np.ndarray, n_resamples: int, seed: int, weights: np.ndarray | None = None
) -> PairedDifference:
    """Compare two means, or with `weights` two ratios of totals, over the same rows.

    Args:
        base, tuned: one value per row, [N]. With weights: the numerators, e.g. bits of each row.
        n_resamples: how often the N rows are drawn anew.
        seed: of the draws; the same seed gives the same interval.
        weights: the denominators, [N], e.g. bytes of each row. None counts every row as one.

    Raises:
        ValueError: as `paired_bootstrap_of_sums`, or a weight that is not above 0.
    """
    base, tuned = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    weights = np.ones_like(base) if weights is None else np.asarray(weights, dtype=np.float64)
    if base.ndim != 1 or base.shape != tuned.shape or base.shape != weights.shape:
        raise ValueError(f"rows are not paired: shapes {base.shape}, {tuned.shape}, weights {weights.shape}")
    if not (weights > 0).all():
        raise ValueError("a weight is not above 0: a ratio of totals needs a length for every row")
    base_N2, tuned_N2 = np.stack([base, weights], axis=1), np.stack([tuned, weights], axis=1)
    return paired_bootstrap_of_sums(base_N2, tuned_N2, ratio_of_sums, n_resamples, seed)


def paired_bootstrap_of_sums(
    base_NC: np.ndarray,
    tuned_NC: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int,
) -> PairedDifference:
    """Compare two scores made of column sums over the same rows; `score` maps sums [R, C] to [R].

    Source of the test: Koehn 2004, "Statistical significance tests for machine translation evaluation".

    Raises:
        ValueError: no rows, values that are not finite, shapes that differ, or no resamples.
    """
    if base_NC.shape != tuned_NC.shape or len(base_NC) == 0 or n_resamples < 1:
        raise ValueError(
            f"need paired rows and at least one resample: {base_NC.shape}, {tuned_NC.shape}, {n_resamples}"
        )
    if not (np.isfinite(base_NC).all() and np.isfinite(tuned_NC).all()):
        raise ValueError("a row's value is not finite: its loss or its length is broken")
    base = float(score(base_NC.sum(axis=0, keepdims=True))[0])
    tuned = float(score(tuned_NC.sum(axis=0, keepdims=True))[0])
    differences_R = _resampled_differences(base_NC, tuned_NC, score, n_resamples, seed)
    tail = (100 - CONFIDENCE_PERCENT) / 2
    low, high = np.percentile(differences_R, [tail, 100 - tail])
    return PairedDifference(base, tuned, tuned - base, float(low), float(high), len(base_NC))


def _resampled_differences(
    base_NC: np.ndarray,
    tuned_NC: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int,
) -> np.ndarray:
    """Tuned minus base [R], both summed over the same drawn rows in each resample."""
    generator = np.random.default_rng(seed)
    n_rows = len(base_NC)
    n_at_once = max(1, CELLS_AT_ONCE // n_rows)
    differences = []
    for start in range(0, n_resamples, n_at_once):
        n_now = min(n_at_once, n_resamples - start)
        drawn_RN = generator.integers(0, n_rows, size=(n_now, n_rows))
        # How often each row was drawn: the sums over drawn rows are then one matrix product.
        flat = (drawn_RN + n_rows * np.arange(n_now)[:, None]).ravel()
        times_RN = np.bincount(flat, minlength=n_now * n_rows).reshape(n_now, n_rows).astype(np.float64)
        differences.append(score(times_RN @ tuned_NC) - score(times_RN @ base_NC))
    return np.concatenate(differences)


def ratio_of_sums(sums_R2: np.ndarray) -> np.ndarray:
    """Total of the first column over total of the second, [R]: a mean where the second column is all ones."""
    return sums_R2[:, 0] / sums_R2[:, 1]
