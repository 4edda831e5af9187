"""finetune.selecting.choices chooses per layer over experts: in the 2x3 cases here rows and columns disagree."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from data_recipes.artefact import UserError
from finetune.selecting.choices import (
    all_experts,
    budget,
    contrast,
    expert_ids,
    expert_shares,
    gate_mass,
    no_experts,
    random_experts,
    token_share,
    top_k,
)

# Two layers, three experts. Shares by rows: .6 .3 .1 and .1 .2 .7; by columns 6/7 3/5 1/8 and 1/7 2/5 7/8.
COUNTS = np.array([[6, 3, 1], [1, 2, 7]])
MASS = np.array([[2.0, 5.0, 3.0], [6.0, 1.0, 3.0]])
EVEN = np.ones(2, dtype=int)


def test_shares_are_over_experts_within_a_layer() -> None:
    assert expert_shares(COUNTS).tolist() == [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.1, [[0], [2]]),
        (0.6, [[0], [2]]),  # 6 of 10 reach it exactly
        (0.65, [[0, 1], [2]]),  # by columns expert 0 alone would reach it: 6 of 7
        (0.9, [[0, 1], [1, 2]]),
        (0.95, [[0, 1, 2], [0, 1, 2]]),
        (1.0, [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_token_share_takes_the_smallest_set_that_reaches_the_share(share: float, expected: list) -> None:
    assert expert_ids(token_share(COUNTS, share)) == expected


def test_gate_mass_takes_the_smallest_set_by_mass() -> None:
    assert expert_ids(gate_mass(MASS, 0.5)) == [[1], [0]]
    assert expert_ids(gate_mass(MASS, 0.7)) == [[1, 2], [0, 2]]
    assert expert_ids(gate_mass(MASS / 3, 1.0)) == [[0, 1, 2], [0, 1, 2]]


def test_ties_go_to_the_lower_id_and_unused_experts_are_never_taken() -> None:
    counts = np.array([[2, 4, 2, 4, 0]])
    assert expert_ids(token_share(counts, 0.4)) == [[1, 3]]
    assert expert_ids(token_share(counts, 0.8)) == [[0, 1, 3]]
    assert expert_ids(token_share(counts, 1.0)) == [[0, 1, 2, 3]]
    assert expert_ids(top_k(counts, 1)) == [[1]]
    assert expert_ids(top_k(counts, 3)) == [[0, 1, 3]]
    assert expert_ids(top_k(counts, 5)) == [[0, 1, 2, 3]]
    assert expert_ids(budget(counts, np.array([1]), 3)) == [[0, 1, 3]]
    assert expert_ids(budget(counts, np.array([1]), 5)) == [[0, 1, 2, 3]]
    # Wide enough that a sort which does not keep the order of equals would show.
    assert expert_ids(token_share(np.tile([1, 2], (1, 128)), 126 / 384)) == [list(range(1, 126, 2))]


@pytest.mark.parametrize("n_experts", [10, 49, 160])
def test_whole_counts_reach_a_share_exactly(n_experts: int) -> None:
    for n in range(1, n_experts + 1):
        assert token_share(np.ones((1, n_experts), dtype=int), n / n_experts).sum() == n


def test_top_k_takes_the_busiest_experts_of_each_layer() -> None:
    assert expert_ids(top_k(COUNTS, 1)) == [[0], [2]]
    # Down the columns the two largest would be 0 and 2 of the first layer, 0 and 2 of the second.
    assert expert_ids(top_k(np.array([[6, 3, 1], [7, 2, 4]]), 2)) == [[0, 1], [0, 2]]


# Shares of the general rows: .1 .6 .3 and .2 .1 .7. Lift of COUNTS by rows: 6, .5, 1/3 and .5, 2, 1.
GENERAL = np.array([[1, 6, 3], [2, 1, 7]])


@pytest.mark.parametrize(
    ("share", "floor", "expected"),
    [
        (0.5, 0.0, [[0], [1]]),  # the busiest of the second layer is expert 2, with a lift of 1: not above it
        (0.1, 0.6, [[0], [1]]),  # 0.2 of the tokens is 0.6 of a third, exactly
        (0.5, 0.61, [[0], []]),
        (1.0, 0.0, [[0], [1]]),
    ],
)
def test_contrast_takes_what_the_target_uses_beyond_the_general_rows(
    share: float, floor: float, expected: list
) -> None:
    assert expert_ids(contrast(COUNTS, GENERAL, share, floor)) == expected
    # Ten times the general rows change no share: a lift over shares of both together would move.
    assert expert_ids(contrast(COUNTS, 10 * GENERAL, share, floor)) == expected


def test_contrast_goes_by_lift_until_the_share_is_reached() -> None:
    target, general = np.array([[10, 30, 40, 20]]), np.array([[2, 10, 30, 58]])  # lift 5, 3, 1.33, 0.34
    found = [expert_ids(contrast(target, general, share, 0.0)) for share in (0.1, 0.11, 0.4, 0.41, 0.9)]
    assert found == [[[0]], [[0, 1]], [[0, 1]], [[0, 1, 2]], [[0, 1, 2]]]


def test_a_rare_expert_does_not_win_by_its_lift() -> None:
    target, general = np.array([[1, 50, 49, 0]]), np.array([[0, 20, 70, 10]])  # lift infinite, 2.5, 0.7, 0
    assert expert_ids(contrast(target, general, 0.5, 0.0)) == [[0, 1]]
    assert expert_ids(contrast(target, general, 0.5, 0.5)) == [[1]]


def test_equal_lifts_go_to_more_target_tokens_and_then_to_the_lower_id() -> None:
    target, general = (
        np.array([[3, 9, 9, 79]]),
        np.array([[1, 3, 3, 93]]),
    )  # 3 / 1 and 9 / 3 are the same lift
    found = [expert_ids(contrast(target, general, share, 0.0)) for share in (0.05, 0.1, 0.19)]
    assert found == [[[1]], [[1, 2]], [[0, 1, 2]]]


def test_target_and_general_routed_alike_leave_contrast_nothing() -> None:
    assert not contrast(COUNTS, 7 * COUNTS, 0.5, 0.0).any()


def test_no_other_set_with_as_few_general_tokens_holds_more_of_the_target() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        target, general = generator.integers(1, 40, (2, 1, 7))
        chosen = contrast(target, general, 0.4, 0.0)[0]
        most = general[0, chosen].sum()
        others = (np.array(mask) for mask in itertools.product([False, True], repeat=7))
        held = [target[0, other].sum() for other in others if general[0, other].sum() <= most]
        assert len(held) > 1 and max(held) == target[0, chosen].sum()


@pytest.mark.parametrize(
    ("cost", "limit", "expected"),
    [
        (EVEN, 1, [[], [2]]),  # .7 .6 .3 .2 .1 .1, over both layers
        (EVEN, 2, [[0], [2]]),
        (EVEN, 4, [[0, 1], [1, 2]]),
        (EVEN, 5, [[0, 1, 2], [1, 2]]),  # .1 in both: the lower layer first
        (EVEN, 100, [[0, 1, 2], [0, 1, 2]]),
        (np.array([1, 3]), 3, [[0, 1], []]),  # .6 .3 .7/3 .1 .2/3 .1/3: the third costs 3 and 1 is left
        (np.array([1, 3]), 5, [[0, 1], [2]]),
    ],
)
def test_a_budget_goes_to_the_layers_where_it_buys_most(cost: np.ndarray, limit: int, expected: list) -> None:
    assert expert_ids(budget(COUNTS, cost, limit)) == expected


def test_a_budget_weighs_shares_of_a_layer_and_not_its_counts() -> None:
    # A thousand times the tokens in the first layer: 3,000 of 10,000 is still less than 7 of 10.
    assert expert_ids(budget(COUNTS * [[1000], [1]], EVEN, 3)) == [[0, 1], [2]]
    assert expert_ids(budget(COUNTS * [[1000], [1]], EVEN, 1)) == [[], [2]]


def test_the_best_set_is_better_by_less_than_the_first_expert_left_out() -> None:
    generator = np.random.default_rng(1)
    n_short = 0
    for _ in range(40):
        counts, cost = generator.integers(1, 30, (3, 3)), generator.integers(1, 6, 3)
        limit = int(generator.integers(cost.max(), 3 * cost.sum()))
        chosen = budget(counts, cost, limit)
        value, each = expert_shares(counts).ravel(), np.repeat(cost, 3)
        masks = np.array(list(itertools.product([0, 1], repeat=9)))
        best = (masks @ value)[masks @ each <= limit].max()
        taken, density = chosen.ravel(), value / each
        left = np.flatnonzero(~taken)
        gap = best - value[taken].sum()
        n_short += gap > 1e-9
        first = left[np.argmax(density[left])] if len(left) else None
        assert gap < (1e-9 if first is None else value[first])
    assert n_short > 5, "the bound was put to the test"


def test_random_takes_so_many_experts_a_layer_and_depends_on_the_seed_alone() -> None:
    chosen = random_experts([3, 0, 8], 8, seed=0)
    assert chosen.sum(axis=1).tolist() == [3, 0, 8]
    assert np.array_equal(chosen, random_experts([3, 0, 8], 8, seed=0))
    assert len({random_experts([8, 8], 32, seed).tobytes() for seed in range(20)}) == 20
    # numpy's own draws: a plan of an earlier version has the same experts.
    generator = np.random.default_rng(3)
    drawn = [sorted(generator.choice(6, size=n, replace=False).tolist()) for n in (2, 4)]
    assert expert_ids(random_experts([2, 4], 6, seed=3)) == drawn


def test_all_takes_every_expert_of_every_layer_and_none_takes_none() -> None:
    assert expert_ids(all_experts(2, 3)) == [[0, 1, 2], [0, 1, 2]]
    assert expert_ids(no_experts(2, 3)) == [[], []]


# With what follows each method is put to its laws on many random cases.
Method = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
METHODS: dict[str, Method] = {
    "token_share": lambda counts, general, share: token_share(counts, share),
    "gate_mass": lambda counts, general, share: gate_mass(counts / 7, share),
    "top_k": lambda counts, general, share: top_k(counts, 1 + int(share * (counts.shape[-1] - 1))),
    "contrast": lambda counts, general, share: contrast(counts, general, share, 0.5),
    "budget": lambda counts, general, share: budget(counts, *_costs_and_limit(counts, share)),
}


def _costs_and_limit(counts: np.ndarray, share: float) -> tuple[np.ndarray, int]:
    costs = np.arange(1, 1 + counts.shape[-2])
    return costs, int(costs.max() + share * costs.sum() * counts.shape[-1])


def cases() -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Counts without ties within a layer, other counts, and a share."""
    generator = np.random.default_rng(2)
    found = []
    for _ in range(40):
        n_layers, n_experts = int(generator.integers(1, 5)), int(generator.integers(2, 20))
        counts = generator.permuted(np.tile(np.arange(1, n_experts + 1) ** 2, (n_layers, 1)), axis=1)
        counts = counts * 101 + np.arange(n_layers)[:, None]  # no two experts of two layers have one share
        general = generator.integers(1, 5000, (n_layers, n_experts))
        found.append((counts, general, float(generator.uniform(0.05, 1))))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_permuting_the_experts_permutes_the_choice(method: str) -> None:
    choose, generator = METHODS[method], np.random.default_rng(4)
    for counts, general, share in cases():
        order = generator.permutation(counts.shape[1])
        found = choose(counts[:, order], general[:, order], share)
        assert np.array_equal(found, choose(counts, general, share)[:, order])


@pytest.mark.parametrize("method", METHODS)
def test_scaling_all_counts_changes_nothing(method: str) -> None:
    for counts, general, share in cases():
        found = METHODS[method](counts * 12, general * 5, share)
        assert np.array_equal(found, METHODS[method](counts, general, share))


@pytest.mark.parametrize("method", METHODS)
def test_asking_for_more_never_drops_an_expert(method: str) -> None:
    n_grew = 0
    for counts, general, share in cases():
        few, many = (METHODS[method](counts, general, part) for part in (share / 2, share))
        assert not (few & ~many).any()
        n_grew += (many & ~few).any()
    assert n_grew > 10


@pytest.mark.parametrize("method", METHODS)
def test_further_axes_hold_cases_of_their_own(method: str) -> None:
    for counts, general, share in cases()[:10]:
        counts_RLE, general_RLE = (np.stack([found, found[:, ::-1], found**2]) for found in (counts, general))
        together = METHODS[method](counts_RLE, general_RLE, share)
        apart = [METHODS[method](*pair, share) for pair in zip(counts_RLE, general_RLE, strict=True)]
        assert np.array_equal(together, np.stack(apart))


def test_a_budget_is_never_exceeded_and_a_share_always_reached() -> None:
    for counts, _, share in cases():
        costs, limit = _costs_and_limit(counts, share)
        assert (budget(counts, costs, limit).sum(axis=1) * costs).sum() <= limit
        held = np.where(token_share(counts, share), counts, 0).sum(axis=1) / counts.sum(axis=1)
        assert (held >= share).all()


def test_random_never_repeats_an_expert() -> None:
    for seed in range(30):
        n_per_layer = np.random.default_rng(seed).integers(0, 17, 4)
        chosen = random_experts(n_per_layer.tolist(), 16, seed)
        assert chosen.sum(axis=1).tolist() == n_per_layer.tolist()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_cannot_be_reached_is_an_error(share: float) -> None:
    for choose in (token_share, gate_mass, lambda counts, share: contrast(counts, GENERAL, share, 0.0)):
        with pytest.raises(UserError, match=r"select\.share is .*above 0 and at most 1"):
            choose(COUNTS, share)


def test_what_a_layer_does_not_have_is_an_error() -> None:
    for k in (0, 4):
        with pytest.raises(UserError, match=rf"select\.k is {k}: a layer has 3 experts"):
            top_k(COUNTS, k)
    with pytest.raises(UserError, match=r"select\.budget is 2, and one expert costs 3 in the dearest layer"):
        budget(COUNTS, np.array([1, 3]), 2)
    with pytest.raises(UserError, match=r"costs are above 0"):
        budget(COUNTS, np.array([0, 3]), 5)
    for floor in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"select\.floor is .*at least 0 and at most 1"):
            contrast(COUNTS, GENERAL, 0.5, floor)


@pytest.mark.parametrize("broken", [[[1.0, 1.0], [0.0, 0.0]], [[1.0, float("nan")]], [[2.0, -1.0]]])
def test_mass_without_shares_is_an_error(broken: list) -> None:
    mass = np.array(broken)
    for choose in (
        lambda: gate_mass(mass, 0.5),
        lambda: token_share(mass, 0.5),
        lambda: top_k(mass, 1),
        lambda: budget(mass, np.ones(len(mass)), 1),
        lambda: contrast(mass, np.ones_like(mass), 0.5, 0.0),
        lambda: contrast(np.ones_like(mass), mass, 0.5, 0.0),
    ):
        with pytest.raises(UserError, match=r"negative, not finite, or all zero.*local-experts profile"):
            choose()
