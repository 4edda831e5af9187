"""profiling.replicates: Poisson weights known by row id alone, and their agreement by hand."""

import numpy as np
import pytest
from scipy import stats

from finetune.config import ProfileConfig, SelectConfig
from finetune.profiling.replicates import POISSON_THRESHOLDS, replicates_agree, row_weights


def test_weights_are_poisson_with_mean_one() -> None:
    expected = stats.poisson.cdf(np.arange(len(POISSON_THRESHOLDS)), 1) * 2**32
    assert np.abs(POISSON_THRESHOLDS.astype(np.float64) - expected).max() <= 1
    weights = row_weights([str(number) for number in range(4000)], seed=0, n_replicates=64).ravel()
    observed = np.bincount(np.minimum(weights, 6), minlength=7)
    chances = np.append(stats.poisson.pmf(range(6), 1), stats.poisson.sf(5, 1))
    assert stats.chisquare(observed, chances * len(weights)).pvalue > 0.001


def test_weights_depend_on_seed_and_id_alone() -> None:
    ids = [f"ta/{number}" for number in range(50)]
    weights_RB = row_weights(ids, seed=3, n_replicates=16)
    assert weights_RB.shape == (16, 50) and weights_RB.dtype == np.int64
    alone = [row_weights([row_id], 3, 16)[:, 0] for row_id in reversed(ids)]
    assert (np.stack(alone[::-1], axis=1) == weights_RB).all()
    assert (row_weights(ids, 3, 8) == weights_RB[:8]).all(), "more replicates leave the first as they are"
    assert (row_weights(ids, 4, 16) != weights_RB).any()
    assert row_weights(ids, 3, 0).shape == (0, 50)


def test_agreement_is_the_mean_over_replicates_and_reached_layers() -> None:
    counts_LE = np.array([[6, 3, 1], [0, 0, 0], [1, 4, 5]])  # top sets at 0.6: {0}, none, {1, 2}
    replicates_RLE = np.array([[[6, 3, 1], [0, 0, 0], [0, 1, 9]], [[4, 5, 1], [0, 0, 0], [1, 4, 5]]])
    # {0} of {0}: 1; {2} of {1, 2}: 1/2; {0, 1} of {0}: 1/2; {1, 2} of {1, 2}: 1
    assert replicates_agree(counts_LE, replicates_RLE, 0.6) == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    nothing_1LE = np.zeros((1, 3, 3), dtype=int)
    with_empty = np.concatenate([replicates_RLE, nothing_1LE])
    assert replicates_agree(counts_LE, with_empty, 0.6) == pytest.approx((1 + 0.5 + 0.5 + 1 + 0 + 0) / 6)
    assert replicates_agree(counts_LE, replicates_RLE[:0], 0.6) == 0
    assert replicates_agree(np.zeros((2, 3)), np.zeros((4, 2, 3)), 0.6) == 0


def test_the_default_stop_is_for_the_default_choice() -> None:
    assert ProfileConfig().stable_share == SelectConfig().share
