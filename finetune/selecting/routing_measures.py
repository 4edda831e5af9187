"""What a choice of experts holds of the routing, how skewed the routing is, and how alike two choices are.

Reads and writes nothing: functions on arrays, for plans and figures.

Legend: L MoE layers, E experts, K experts per token. Arrays end in the axes [L, E]: rows are layers. Axes
before these two (languages, replicates) hold further cases.
"""

import math

import numpy as np

from finetune.selecting.choices import expert_shares

HOTTEST_PART = 0.25  # of a layer's experts


def coverage(counts_LE: np.ndarray, chosen_LE: np.ndarray) -> np.ndarray:
    """Share of a layer's routed rows that are on a chosen expert: [..., L], taken over experts (last axis).

    A token is K routed rows, one on each of its experts; `touched_tokens` is about tokens.

    Raises:
        UserError: a layer that routed nothing, or values that are negative or not finite.
    """
    expert_shares(counts_LE)
    return np.where(chosen_LE, counts_LE, 0).sum(axis=-1) / counts_LE.sum(axis=-1)


def touched_tokens(counts_LE: np.ndarray, chosen_LE: np.ndarray, top_k: int) -> np.ndarray:
    """Bounds of the share of tokens with at least one chosen expert: [..., L, 2], at least and at most.

    Counts do not tell which experts a token had together, so the share itself is not known from them. With s
    the coverage (over experts, last axis), it is at least s (no token has more than K of them) and at least K
    times the largest share of a chosen expert, it is 1 if fewer than K experts of the layer are not chosen,
    and it is at most min(1, K s) (Boole's inequality).

    Raises:
        UserError: as `coverage`.
    """
    coverage_L = coverage(counts_LE, chosen_LE)
    largest_L = np.where(chosen_LE, expert_shares(counts_LE), 0).max(axis=-1)
    least_L = np.maximum(coverage_L, top_k * largest_L)
    least_L = np.where((~chosen_LE).sum(axis=-1) < top_k, 1.0, least_L)
    return np.minimum(np.stack([least_L, np.maximum(least_L, top_k * coverage_L)], axis=-1), 1.0)


def hottest_share(counts_LE: np.ndarray) -> np.ndarray:
    """Share of a layer's routed rows on the hottest quarter of its experts (last axis, rounded up): [..., L].

    Raises:
        UserError: as `coverage`.
    """
    n_hottest = math.ceil(HOTTEST_PART * counts_LE.shape[-1])
    return np.sort(expert_shares(counts_LE), axis=-1)[..., -n_hottest:].sum(axis=-1)


def gini(counts_LE: np.ndarray) -> np.ndarray:
    """Gini coefficient of a layer's routing over its experts (last axis): [..., L], from 0 to (E - 1) / E.

    G = sum_i (2 i - E - 1) x_i / (E sum_i x_i), x_i ascending, i from 1 to E. 0 is even routing,
    (E - 1) / E is all of it on one expert.

    Raises:
        UserError: as `coverage`.
    """
    n_experts = counts_LE.shape[-1]
    weight_E = 2 * np.arange(1, n_experts + 1) - n_experts - 1
    return (np.sort(expert_shares(counts_LE), axis=-1) * weight_E).sum(axis=-1) / n_experts


def jaccard(first_LE: np.ndarray, second_LE: np.ndarray, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """Experts that both chose over those that either chose; 1 where neither chose any.

    Over the experts of a layer (last axis): [..., L]. With `axis=(-2, -1)` over all (layer, expert) pairs.
    """
    n_both = (first_LE & second_LE).sum(axis=axis)
    n_either = (first_LE | second_LE).sum(axis=axis)
    return np.where(n_either > 0, n_both / np.maximum(n_either, 1), 1.0)
