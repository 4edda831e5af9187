"""Every row once an epoch, whoever takes part: order, length grouping, mixtures and shares of a step."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from data_recipes.artefact import UserError
from finetune.batches import Example, contiguous_part
from finetune.batching.mixture import Mixture, exact, n_draws, pools_of
from finetune.batching.order import RowStream, by_length
from finetune.batching.packing import n_positions, parts_of_step
from finetune.config import load_run_config


def steps_of(stream: RowStream, batch_size: int, n_steps: int) -> list[list[int]]:
    return [stream.between(step * batch_size, (step + 1) * batch_size).tolist() for step in range(n_steps)]


def rows_of_lengths(lengths: Any) -> list[Example]:
    return [Example(str(number), [1] * n, [1] * n) for number, n in enumerate(lengths)]


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    steps = steps_of(RowStream(np.arange(10), [0]), 4, 5)
    flat = [number for step in steps for number in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert steps == steps_of(RowStream(np.arange(10), [0]), 4, 5)
    assert steps != steps_of(RowStream(np.arange(10), [1]), 4, 5)


def test_epochs_are_numpys_permutations_of_seed_and_epoch() -> None:
    expected = [np.random.default_rng([7, epoch]).permutation(5).tolist() for epoch in (0, 1, 2)]
    assert RowStream(np.arange(5), [7]).between(0, 15).tolist() == sum(expected, [])


def test_a_batch_larger_than_the_dataset_repeats_rows_only_after_all_were_used() -> None:
    numbers = RowStream(np.arange(3), [0]).between(0, 8).tolist()
    assert len(numbers) == 8
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_all_parts_of_all_processes_have_every_row_once_an_epoch(grouped: bool) -> None:
    random, n_cases = np.random.default_rng(0), 0
    for n_rows in (1, 2, 3, 5, 7, 16, 31, 97, 257):
        for n_processes in (1, 2, 3, 4, 8):
            for accumulate in (1, 2, 3):
                n_parts = n_processes * accumulate
                batch_size, pack = n_parts * int(random.integers(1, 5)), [None, 40][n_cases % 2]
                lengths = random.integers(1, 40, n_rows)
                rows = rows_of_lengths(lengths)
                stream = RowStream(np.arange(n_rows), [1], lengths if grouped else None, batch_size)
                # As many steps as a whole number of epochs takes.
                n_steps = int(np.lcm(n_rows, batch_size)) // batch_size
                seen = []
                for step in steps_of(stream, batch_size, min(n_steps, 60)):
                    parts = parts_of_step([rows[number] for number in step], n_parts, pack)
                    own = [contiguous_part(parts, process, n_processes) for process in range(n_processes)]
                    assert all(len(passes) == accumulate and all(passes) for passes in own)
                    taken = [int(row.row_id) for passes in own for part in passes for p in part for row in p]
                    assert sorted(taken) == sorted(step), "each row of the step with one process, in one part"
                    seen += step
                n_epochs = len(seen) // n_rows
                for epoch in range(n_epochs):
                    assert sorted(seen[epoch * n_rows : (epoch + 1) * n_rows]) == list(range(n_rows))
                n_cases += 1
    assert n_cases == 9 * 5 * 3


def test_rows_of_like_length_share_a_batch_so_padding_and_waiting_fall() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)
    rows, padding, waiting = rows_of_lengths(lengths), {}, {}
    for grouped in (False, True):
        stream = RowStream(np.arange(1003), [0], lengths if grouped else None, 8)
        steps = [[rows[number] for number in step] for step in steps_of(stream, 8, 125)]
        n_tokens = sum(len(row.tokens) for step in steps for row in step)
        padding[grouped] = 1 - n_tokens / sum(n_positions(parts_of_step(step, 1)) for step in steps)
        work = np.array([[n_positions([part]) for part in parts_of_step(step, 4)] for step in steps])
        waiting[grouped] = 1 - work.mean(axis=1).sum() / work.max(axis=1).sum()
    # By hand: the longest of 8 uniform lengths is 8/9 of the range, the mean a half, so 7/16 is padding.
    assert padding[False] == pytest.approx(7 / 16, abs=0.02)
    assert padding[True] < 0.03
    # The longest of two is 2/3 of the range, and the longest of the eight in the slowest of four: 1/4 waits.
    assert waiting[False] == pytest.approx(1 / 4, abs=0.02)
    assert waiting[True] < 0.02


def test_batches_of_one_length_still_come_in_a_shuffled_order() -> None:
    lengths = np.arange(512)
    order = by_length(np.arange(512), lengths, 8, [0, 0])
    firsts = lengths[order].reshape(-1, 8)[:, 0]
    assert sorted(firsts) == list(range(0, 512, 8)) and list(firsts) != sorted(firsts)
    assert not np.array_equal(order, by_length(np.arange(512), lengths, 8, [0, 64])), "of each epoch its own"


def test_grouped_batches_lie_where_steps_lie_in_later_epochs_too() -> None:
    lengths = np.random.default_rng(1).permutation(45)
    stream = RowStream(np.arange(45), [0], lengths, 10)
    steps = steps_of(stream, 10, 9)
    spans = [int(np.ptp(lengths[step])) for step in steps]
    # Ten of about forty neighbours span little more than ten; the fifth step has rows of both epochs.
    assert max(spans[:4] + spans[5:]) < 20 < spans[4]


def test_draws_follow_the_shares_without_chance() -> None:
    shares = [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]
    counts = np.array([n_draws(shares, n) for n in range(2001)])
    assert (counts.sum(axis=1) == np.arange(2001)).all()
    assert np.isin(np.diff(counts, axis=0), (0, 1)).all(), "one more draw is one more of one pool"
    distance = np.abs(counts - np.arange(2001)[:, None] * np.array([0.7, 0.2, 0.1]))
    assert distance.max() < 2
    assert counts[1000].tolist() == [700, 200, 100] and counts[10].tolist() == [7, 2, 1]


def test_a_mixture_draws_each_pool_in_epochs_of_its_own_whatever_the_step_is_asked_first() -> None:
    pools = [(Fraction(3, 4), np.arange(30)), (Fraction(1, 4), np.arange(30, 37))]
    mixture = Mixture(pools, 8, seed=0)
    steps = [mixture.of_step(step) for step in range(35)]
    assert all(sum(number >= 30 for number in step) == 2 for step in steps)
    for first, n_rows, n_epochs in ((0, 30, 7), (30, 7, 10)):
        drawn = [number for step in steps for number in sorted(step) if first <= number < first + n_rows]
        assert np.bincount(np.array(drawn) - first).tolist() == [n_epochs] * n_rows
    assert Mixture(pools, 8, seed=0).of_step(20) == steps[20], "a resumed run needs its step only"
    assert Mixture(pools, 8, seed=1).of_step(20) != steps[20]
    assert any(step != sorted(step) for step in steps), "pools are mixed within a step"


def test_a_small_share_comes_in_even_distances() -> None:
    mixture = Mixture([(exact(0.95), np.arange(50)), (exact(0.05), np.arange(50, 60))], 4, seed=0)
    with_general = [step for step in range(100) if max(mixture.of_step(step)) >= 50]
    assert set(np.diff(with_general).tolist()) == {5}


def test_pools_are_weighted_and_a_value_without_rows_is_named() -> None:
    codes, names = np.array([0, 1, 0, 2]), ["target", "general", "other"]
    pools = pools_of(codes, names, {"target": 3, "general": 1}, "group")
    assert [(share, rows.tolist()) for share, rows in pools] == [
        (Fraction(3, 4), [0, 2]),
        (Fraction(1, 4), [1]),
    ]
    assert pools_of(codes, names, None, "group")[0][1].tolist() == [0, 1, 2, 3]
    with pytest.raises(
        UserError, match=r"mixture names hindi, but the rows have as group: general, other, target"
    ):
        pools_of(codes, names, {"hindi": 1}, "group")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.pack_length_tokens=10"], r"train.pack_length_tokens = 10: must be at least max_length_t"),
        (
            ["train.pack_length_tokens=4096", "train.memory.prefix_cache=disk"],
            "memory.prefix_cache keeps rows that stand alone",
        ),
        (["train.mixture={target: 0}"], r"train.mixture = .*needs at least one value, and weights above 0"),
        (["train.mixture={}"], "needs at least one value"),
        (
            ["train.mixture={target: 1}", "train.group_by_length=true"],
            "not by length: set pack_length_tokens",
        ),
        (["train.replay.share=1", "train.replay.data=x"], "replay.share = 1.0: must be above 0 and below 1"),
        (["train.mixture_by=colour"], "mixture_by.*must be one of group, language, task, source"),
        (["train.batch_size=3", "train.n_processes=2"], r"must be a multiple of n_processes x accumulate"),
    ],
)
def test_options_that_no_run_can_use_are_named(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_run_config("configs/runs/quickstart.yaml", changes)


def test_a_mixture_and_replay_are_read_from_the_command_line() -> None:
    changes = ["train.mixture={target: 0.7, general: 0.3}", "train.replay.data=d", "train.replay.share=0.2"]
    train = load_run_config("configs/runs/quickstart.yaml", changes).train
    assert train.mixture == {"target": 0.7, "general": 0.3}
    assert train.replay is not None and (train.replay.data, train.replay.share) == ("d", 0.2)
