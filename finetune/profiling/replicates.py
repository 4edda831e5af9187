"""Bootstrap over rows: how often a row counts in each replicate, and how far the replicates agree.

Reads and writes nothing. A row's weights depend on the seed and its id alone, so that shards and processes
that never meet resample the same rows.

Legend: B rows, R replicates, L MoE layers, E experts.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

# A draw of 32 bits counts as often as it has passed thresholds: the distribution function of Poisson(1).
_CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
POISSON_THRESHOLDS = np.round(_CUMULATIVE * 2**32).astype(np.uint64)


def row_weights(row_ids: Sequence[str], seed: int, n_replicates: int) -> np.ndarray:
    """How often each row counts in each replicate, Poisson(1) drawn from (seed, id): int64 [R, B].

    Poisson weights resample a stream without knowing its length (Chamandy et al. 2012, "Estimating
    uncertainty for massive data streams"). Not numpy's generators: their draws may change between versions.
    """
    digests = [hashlib.shake_256(f"{seed}\n{row_id}".encode()).digest(4 * n_replicates) for row_id in row_ids]
    draws_BR = np.frombuffer(b"".join(digests), dtype="<u4").reshape(len(row_ids), n_replicates)
    return np.searchsorted(POISSON_THRESHOLDS, draws_BR.astype(np.uint64), side="right").T.copy()


def top_sets(counts_LE: np.ndarray, share: float) -> np.ndarray:
    """Per layer the smallest set of experts with `share` of the counts: bool, the shape of `counts_LE`.

    The last axis is the experts, any may stand before it; on a tie the lower id is taken. A layer without
    counts has an empty set.
    """
    order_LE = np.argsort(-counts_LE, axis=-1, kind="stable")
    before_LE = np.take_along_axis(counts_LE, order_LE, axis=-1)
    before_LE = np.cumsum(before_LE, axis=-1) - before_LE  # what the experts in front of this one have
    total_L1 = counts_LE.sum(axis=-1, keepdims=True)
    is_needed_LE = (before_LE < share * total_L1) & (total_L1 > 0)
    found_LE = np.zeros(counts_LE.shape, dtype=bool)
    np.put_along_axis(found_LE, order_LE, is_needed_LE, axis=-1)
    return found_LE


def jaccard(first_LE: np.ndarray, second_LE: np.ndarray) -> np.ndarray:
    """Shared experts over experts in either set; the last axis is the experts. Two empty sets: 1."""
    n_shared = (first_LE & second_LE).sum(axis=-1)
    n_either = (first_LE | second_LE).sum(axis=-1)
    return np.where(n_either == 0, 1.0, n_shared / np.maximum(n_either, 1))


def replicates_agree(counts_LE: np.ndarray, replicate_counts_RLE: np.ndarray, share: float) -> float:
    """Mean Jaccard, over layers and replicates, of a replicate's top set with the whole sample's.

    Layers that no token reached are left out; 0 when there is no other, or no replicate.
    """
    seen_L = counts_LE.sum(axis=-1) > 0
    if not seen_L.any() or not len(replicate_counts_RLE):
        return 0.0
    whole_LE = top_sets(counts_LE[seen_L], share)
    return float(jaccard(whole_LE[None], top_sets(replicate_counts_RLE[:, seen_L], share)).mean())
