"""What a routing profile says of languages: their expert shares, how alike they are, what few experts carry.

Reads a `finetune.profiling.profile.Profile`, writes nothing. All of it is for pictures and reports; experts are
chosen in `finetune/selecting/selection.py`.

Legend: N languages, R bootstrap replicates, L MoE layers, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_recipes.artefact import UserError
from finetune.profiling.profile import Kinds, Profile


def routed_shares(profile: Profile, languages: Sequence[str], kinds: Kinds | None = None) -> np.ndarray:
    """Each expert's share of the choices of its layer's router, [L, E], over the named languages' tokens.

    Rows are layers: each sums to 1 over the experts, or is NaN where no token came. `kinds` None takes those
    that the profile was resampled for.

    Raises:
        UserError: the profile has no such language or kind of token.
    """
    return _shares(profile.counts(languages, kinds or profile.head["kinds"]))


def language_similarity(profile: Profile, kinds: Kinds | None = None) -> tuple[list[str], np.ndarray]:
    """The languages of a profile, and for each two the share of their choices on the same experts, [N, N].

    It is 1 minus the total variation between their shares over the experts, mean over the layers that all
    languages reached: 1 is equal routing, 0 no expert in common. Few tokens make languages look less alike
    than they are: see `resample_distance`.

    Raises:
        UserError: no layer was reached by all languages.
    """
    names = profile.languages()
    share_NLE = np.stack([routed_shares(profile, [name], kinds) for name in names])
    reached_L = np.isfinite(share_NLE).all(axis=(0, 2))
    if not reached_L.any():
        raise UserError(
            f"no layer was reached by all of {', '.join(names)}: profile again with more tokens of each"
        )
    share_NLE = share_NLE[:, reached_L]
    # 1 - sum |p - q| / 2 = sum min(p, q) where p and q each sum to 1.
    similarity_NN = np.array([np.minimum(share_NLE, one).sum(axis=2).mean(axis=1) for one in share_NLE])
    return names, np.clip(similarity_NN, 0, 1)


def resample_distance(profile: Profile, language: str) -> float | None:
    """Total variation, mean over layers, between two resamples of one language's own rows; None without them.

    So far apart two samples of this size come out although nothing differs but the rows: a distance between
    languages that is not larger is noise.
    """
    share_RLE = _shares(profile.replicate_counts.get(language, np.zeros((0, len(profile.layers), 1))))
    n_pairs = len(share_RLE) // 2
    apart = np.abs(share_RLE[:n_pairs] - share_RLE[n_pairs : 2 * n_pairs]).sum(axis=2) / 2
    apart = apart[np.isfinite(apart)]  # of each pair and layer; NaN where a resample holds no token
    return float(apart.mean()) if apart.size else None


def average_linkage(distance_NN: np.ndarray) -> np.ndarray:
    """Clusters by mean distance between members (UPGMA), as rows of scipy's `linkage`, [N - 1, 4].

    Row i says which two clusters become cluster N + i, their distance, and how many languages it then holds.
    Equal distances join in the order of the rows.
    """
    n = len(distance_NN)
    members = {i: [i] for i in range(n)}
    merges = []
    for joined in range(n, 2 * n - 1):
        apart = {
            (a, b): float(distance_NN[np.ix_(members[a], members[b])].mean())
            for a in members
            for b in members
            if a < b
        }
        a, b = min(apart, key=lambda pair: apart[pair])
        members[joined] = members.pop(a) + members.pop(b)
        merges.append((a, b, apart[a, b], len(members[joined])))
    return np.array(merges)


def carried_by_hottest(heat_LE: np.ndarray, share_LE: np.ndarray) -> np.ndarray:
    """Share of each layer that its n hottest experts carry, for n = 0 to E: [L, E + 1], from 0 to 1.

    Hot is what `heat_LE` says (the lower id on a tie); summed is `share_LE`, rows are layers that sum to 1.
    """
    order_LE = np.argsort(-heat_LE, axis=1, kind="stable")
    carried_LE = np.cumsum(np.take_along_axis(share_LE, order_LE, axis=1), axis=1)
    return np.pad(carried_LE, ((0, 0), (1, 0)))


def experts_of(plan: Mapping[str, Any], key: str, profile: Profile) -> list[list[int]]:
    """The experts a plan lists under `key` (experts or borderline) for each layer of the profile, [L]."""
    listed = plan.get(key, {})
    return [list(listed.get(str(layer), ())) for layer in profile.layers]


def _shares(counts: np.ndarray) -> np.ndarray:
    """Counts over their sum along the last axis (experts); NaN where that is zero."""
    counts = counts.astype(np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    assert np.allclose(share.sum(axis=-1)[total[..., 0] > 0], 1), "shares sum to 1 over a layer's experts"
    return share
