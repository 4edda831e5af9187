"""Ways to choose experts, as functions on arrays: what was routed where goes in, which are chosen comes out.

Reads and writes nothing, and knows neither profile nor plan.

Legend: L MoE layers, E experts. Arrays end in the axes [L, E]: rows are layers, and every share is taken over
the experts of a layer (the last axis). Axes before these two (languages, replicates) hold further cases, each
chosen by itself. A choice is a boolean array [..., L, E]. On a tie the lower id is chosen, and an expert that
got nothing never is, except at random or by `all_experts`.
"""

from collections.abc import Sequence

import numpy as np

from data_recipes.artefact import UserError


def expert_shares(mass_LE: np.ndarray) -> np.ndarray:
    """Share of each expert in what its layer routed: [..., L, E], sums to 1 over the experts (last axis).

    Raises:
        UserError: a row with nothing routed, or a value that is negative or not finite.
    """
    mass_LE = np.asarray(mass_LE)
    total_L1 = mass_LE.sum(axis=-1, keepdims=True)
    if not np.isfinite(mass_LE).all() or (mass_LE < 0).any() or (total_L1 <= 0).any():
        raise UserError(
            "routing counts or gate mass are negative, not finite, or all zero in a layer: "
            "run `local-experts profile` again"
        )
    share_LE = mass_LE / total_L1
    assert np.allclose(share_LE.sum(axis=-1), 1), "rows are layers and sum to 1 over the experts"
    return share_LE


def token_share(counts_LE: np.ndarray, share: float) -> np.ndarray:
    """ESFT-Token (arXiv 2407.01906): per layer the smallest set of experts with `share` of its routed tokens.

    Rows of `counts_LE` are layers; shares are taken over experts (last axis).

    Raises:
        UserError: `share` outside (0, 1], or a layer that routed nothing.
    """
    expert_shares(counts_LE)  # refuses what has no shares
    return _until_share(counts_LE, _hottest_first(counts_LE), share)


def gate_mass(mass_LE: np.ndarray, share: float) -> np.ndarray:
    """ESFT-Gate (arXiv 2407.01906): per layer the smallest set of experts with `share` of its gate mass.

    Rows of `mass_LE` are layers; shares are taken over experts (last axis).

    Raises:
        UserError: `share` outside (0, 1], or a layer that routed nothing.
    """
    return token_share(mass_LE, share)


def top_k(counts_LE: np.ndarray, k: int) -> np.ndarray:
    """Per layer the `k` experts with the most routed tokens; fewer where fewer got any.

    Rows of `counts_LE` are layers; experts (last axis) are compared within a layer.

    Raises:
        UserError: `k` is not 1 to E, or a layer that routed nothing.
    """
    n_experts = counts_LE.shape[-1]
    if not 1 <= k <= n_experts:
        raise UserError(f"select.k is {k}: a layer has {n_experts} experts, so it must be 1 to {n_experts}")
    expert_shares(counts_LE)
    first_LE = np.broadcast_to(np.arange(n_experts) < k, counts_LE.shape)
    return _at_experts(_hottest_first(counts_LE), first_LE) & (counts_LE > 0)


def contrast(target_LE: np.ndarray, general_LE: np.ndarray, share: float, floor: float) -> np.ndarray:
    """Per layer the experts that target tokens use most beyond general ones, up to `share` of the target's.

    lift = (share of the target's routed tokens) / (share of the general ones), both over the experts of a
    layer (last axis); the name is from association rules (Brin et al. 1997). Candidates have a lift above 1
    and at least `floor` times the traffic of even routing, target share >= floor / E: on fewer tokens a lift
    is noise. They are taken by falling lift (on a tie more target tokens, then the lower id) until they hold
    `share` of the layer's target tokens, or are used up; a layer without candidates gets none. An expert that
    no general token reached has infinite lift. Where lifts are finite, no other set of candidates with as few
    general tokens holds more of the target's: lift is a likelihood ratio (Neyman and Pearson 1933).

    Raises:
        UserError: `share` outside (0, 1], `floor` outside [0, 1], or a layer that routed nothing.
    """
    if not 0 <= floor <= 1:
        raise UserError(f"select.floor is {floor}: it must be at least 0 and at most 1")
    for counts_LE in (target_LE, general_LE):
        expert_shares(counts_LE)
    # Ratios of counts: equal ones are equal floats, which ratios of shares need not be.
    ratio_LE = np.full(target_LE.shape, np.inf)
    np.divide(target_LE, general_LE, out=ratio_LE, where=general_LE > 0)
    total_L1 = target_LE.sum(axis=-1, keepdims=True)
    is_lifted_LE = ratio_LE > total_L1 / general_LE.sum(axis=-1, keepdims=True)
    is_candidate_LE = is_lifted_LE & (target_LE > 0) & (target_LE * target_LE.shape[-1] >= floor * total_L1)
    ratio_LE = np.where(is_candidate_LE, ratio_LE, -np.inf)
    order_LE = np.lexsort((-target_LE, -ratio_LE), axis=-1)
    return _until_share(target_LE, order_LE, share) & is_candidate_LE


def budget(counts_LE: np.ndarray, cost_L: np.ndarray, limit: int) -> np.ndarray:
    """Experts of all layers together whose costs sum to at most `limit`, by falling value per cost.

    The value of an expert is its share of its layer's routed tokens (over experts, last axis), so what grows
    is the sum of the layers' coverage; `cost_L` is the cost of one expert of each layer. A layer may get
    none. Values add up, so this is a 0/1 knapsack, filled greedily (Dantzig 1957) up to the first expert that
    does not fit. With equal costs no set is better; else the best is better by less than the value of that
    expert. Cheaper ones behind it are not squeezed in, so a larger limit never drops an expert.

    Raises:
        UserError: one expert of the dearest layer costs more than `limit`, or a layer that routed nothing.
    """
    cost_L = np.asarray(cost_L)
    if not (cost_L > 0).all() or cost_L.max() > limit:
        raise UserError(
            f"select.budget is {limit}, and one expert costs {cost_L.max()} in the dearest layer "
            "(costs are above 0): raise it"
        )
    share_LE = expert_shares(counts_LE)
    value_N = (share_LE / cost_L[:, None]).reshape(*share_LE.shape[:-2], -1)  # N = L x E
    order_N = np.argsort(-value_N, axis=-1, kind="stable")
    spent_N = np.cumsum(np.repeat(cost_L, share_LE.shape[-1])[order_N], axis=-1)
    return _at_experts(order_N, spent_N <= limit).reshape(share_LE.shape) & (share_LE > 0)


def random_experts(n_per_layer: Sequence[int], n_experts: int, seed: int) -> np.ndarray:
    """So many experts a layer as `n_per_layer` says, drawn at random: [L, E]; the control for any choice."""
    generator = np.random.default_rng(seed)
    chosen_LE = no_experts(len(n_per_layer), n_experts)
    for chosen_E, n in zip(chosen_LE, n_per_layer, strict=True):
        chosen_E[generator.choice(n_experts, size=n, replace=False)] = True
    return chosen_LE


def all_experts(n_layers: int, n_experts: int) -> np.ndarray:
    """Every expert of every layer: [L, E]."""
    return np.ones((n_layers, n_experts), dtype=bool)


def no_experts(n_layers: int, n_experts: int) -> np.ndarray:
    """No expert of any layer: [L, E]."""
    return np.zeros((n_layers, n_experts), dtype=bool)


def expert_ids(chosen_LE: np.ndarray) -> list[list[int]]:
    """Ascending ids of the chosen experts (last axis), one list a layer."""
    return [np.flatnonzero(chosen_E).tolist() for chosen_E in chosen_LE]


def _hottest_first(mass_LE: np.ndarray) -> np.ndarray:
    return np.argsort(-mass_LE, axis=-1, kind="stable")  # stable: the lower id first on a tie


def _until_share(mass_LE: np.ndarray, order_LE: np.ndarray, share: float) -> np.ndarray:
    """Experts in the order given, up to and with the one that makes `share` of the layer's mass full."""
    if not 0 < share <= 1:
        raise UserError(f"select.share is {share}: it must be above 0 and at most 1")
    # Sum first, divide last: whole counts stay exact, so 3 of 10 tokens do reach a share of 0.3.
    reached_LE = np.cumsum(np.take_along_axis(mass_LE, order_LE, axis=-1), axis=-1)
    reached_LE = reached_LE / reached_LE[..., -1:]
    is_wanted_LE = np.ones(mass_LE.shape, dtype=bool)
    is_wanted_LE[..., 1:] = reached_LE[..., :-1] < share
    return _at_experts(order_LE, is_wanted_LE)


def _at_experts(order: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
    """What stands in the order `order` of the last axis, put back to its ids."""
    chosen = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(chosen, order, is_taken, axis=-1)
    return chosen
