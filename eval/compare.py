"""How sure is the difference between two systems that answered the same rows? Its interval and its p value.

Every metric here is a function of sums over rows (a mean, total bits over total bytes, chrF++ over summed
n-gram counts), so one resampling serves all. Axes: N rows, R resamples, C summed columns.

- The interval is the paired bootstrap's: draw rows with replacement, sum both systems over them, subtract.
- The p value is of "which system gave which answer does not matter": McNemar's test where an answer is right
  or wrong, else randomisation, where each row's two answers change places or not. With two outcomes a row,
  McNemar's exact test is all those changes counted, so that both ask the same.
- `p_bootstrap` is what sacrebleu's paired bootstrap gives, for comparison with published numbers. It decides
  nothing here: it counts one tail of a two-sided question, and few rows make it bolder still (Riezler and
  Maxwell 2005; `tests/test_significance.py` shows it on differences that are nothing but chance).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from eval.significance import MOST_EXACT_ROWS, mcnemar_p

CONFIDENCE_PERCENT = 95.0
CELLS_AT_ONCE = 4_000_000  # row counts held in memory at a time (32 MB as float64)
# One rounding error must not tell two differences apart that are the same.
SAME_DIFFERENCE = 1 - 1e-9


class PairedDifference(NamedTuple):
    """Base and tuned score, tuned minus base, its 95 % percentile interval, rows, and p values."""

    base: float
    tuned: float
    difference: float
    low: float
    high: float
    n: int
    p: float  # two-sided, of `test`
    test: str  # mcnemar exact, mcnemar corrected or paired randomisation
    p_bootstrap: float  # as sacrebleu


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
    p, test = _p_and_test(base_NC, tuned_NC, score, n_resamples, seed)
    return PairedDifference(
        base,
        tuned,
        tuned - base,
        float(low),
        float(high),
        len(base_NC),
        p,
        test,
        bootstrap_p(differences_R, tuned - base),
    )


def bootstrap_p(differences_R: np.ndarray, difference: float) -> float:
    """p of sacrebleu's paired bootstrap (as Moses did it) from resampled differences; read the module first.

    Source: `sacrebleu.significance._paired_bs_test`: sizes of the differences, moved by their mean.
    """
    sizes_R = np.abs(differences_R)
    n_larger = int((sizes_R - sizes_R.mean() > abs(difference)).sum())
    return (n_larger + 1) / (len(sizes_R) + 1)


def randomisation_p(
    base_NC: np.ndarray,
    tuned_NC: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int,
) -> float:
    """Two-sided p of the paired approximate randomisation test, at least 1 / (n_resamples + 1).

    The share of draws, the observed one among them, that are at least as far apart. A draw as far apart
    counts: without that, two rows would be enough to find a difference.

    Source: Noreen 1989, "Computer-intensive methods for testing hypotheses"; the draws are sacrebleu's.
    """
    generator = np.random.default_rng(seed)
    base_C, tuned_C = base_NC.sum(axis=0), tuned_NC.sum(axis=0)
    gained_NC = tuned_NC - base_NC
    observed = abs(float((score(tuned_C[None]) - score(base_C[None]))[0]))
    n_rows, n_as_far = len(base_NC), 0
    n_at_once = max(
        32, CELLS_AT_ONCE // n_rows // 32 * 32
    )  # numpy draws 32 bits, and drops what is left over
    for start in range(0, n_resamples, n_at_once):
        n_now = min(n_at_once, n_resamples - start)
        changed_RN = generator.integers(2, size=(n_now, n_rows), dtype=bool)
        moved_RC = changed_RN.astype(np.float64) @ gained_NC
        sizes_R = np.abs(score(tuned_C - moved_RC) - score(base_C + moved_RC))
        n_as_far += int((sizes_R >= observed * SAME_DIFFERENCE).sum())
    return (n_as_far + 1) / (n_resamples + 1)


def _p_and_test(
    base_NC: np.ndarray,
    tuned_NC: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    n_resamples: int,
    seed: int,
) -> tuple[float, str]:
    """McNemar's test where every row is right or wrong and counts once, else randomisation."""
    both = np.concatenate([base_NC, tuned_NC])
    if score is ratio_of_sums and (both[:, 1] == 1).all() and np.isin(both[:, 0], (0, 1)).all():
        gained_N = tuned_NC[:, 0] - base_NC[:, 0]
        n_lost, n_gained = int((gained_N < 0).sum()), int((gained_N > 0).sum())
        exact = n_lost + n_gained <= MOST_EXACT_ROWS
        return mcnemar_p(n_lost, n_gained, exact), "mcnemar exact" if exact else "mcnemar corrected"
    return randomisation_p(base_NC, tuned_NC, score, n_resamples, seed), "paired randomisation"


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
