"""Bootstrap over rows: how often a row counts in each replicate, and how far the replicates agree.

Reads and writes nothing. A row's weights depend on the seed and its id alone, so that shards and processes
that never meet resample the same rows.

Legend: B rows, R replicates, L MoE layers, E experts.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from finetune.selecting.choices import token_share
from finetune.selecting.routing_measures import jaccard

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


def replicates_agree(counts_LE: np.ndarray, replicate_counts_RLE: np.ndarray, share: float) -> float:
    """Mean Jaccard, over layers and replicates, of a replicate's `token_share` with that of the whole sample.

    Layers that no token reached are left out; 0 when there is no other, or no replicate. A replicate that
    drew no row agrees with nothing: of a single row, all that drew it agree by being multiples of it.
    """
    seen_L = counts_LE.sum(axis=-1) > 0
    seen_RLE = replicate_counts_RLE[:, seen_L]
    drawn_RLE = seen_RLE[seen_RLE.any(axis=-1).all(axis=-1)]
    if not seen_L.any() or not len(drawn_RLE):
        return 0.0
    agree_RL = jaccard(token_share(drawn_RLE, share), token_share(counts_LE[seen_L], share))
    return float(agree_RL.mean()) * len(drawn_RLE) / len(seen_RLE)
