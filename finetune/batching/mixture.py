"""Pools of rows drawn by shares: a target language with replay of general rows, and the like.

Reads and writes nothing. How many of the first n draws fall to a pool follows from n alone, and is never a
whole draw or two from its share: no step is all replay by chance, and a resumed run needs its step only.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from data_recipes.artefact import UserError
from finetune.batching.order import RowStream

Pool = tuple[Fraction, np.ndarray]  # share of the draws, row numbers


def n_draws(shares: Sequence[Fraction], n: int) -> list[int]:
    """How many of the first `n` draws fall to each pool; `shares` add up to 1.

    The first pool takes floor(share x n), the next its part of what is left, and so on. One more draw is so
    always one more for one pool and for no other.
    """
    counts, left = [], Fraction(1)
    for share in shares:
        # The last pool takes all that is left.
        counts.append(int(share / left * (n - sum(counts))) if left else 0)
        left -= share
    assert sum(counts) == n, "shares add up to 1"
    return counts


class Mixture:
    """Rows of each step, drawn from pools by their shares; each pool has shuffled epochs of its own."""

    def __init__(self, pools: Sequence[Pool], batch_size: int, seed: int) -> None:
        self.shares = [share for share, _ in pools]
        # Numbered from 1: numpy drops zeros at the end of a seed.
        self.streams = [RowStream(rows, [seed, number]) for number, (_, rows) in enumerate(pools, start=1)]
        self.batch_size, self.seed = batch_size, seed

    def of_step(self, step: int) -> list[int]:
        """Row numbers of `step` (from 0), in mixed order."""
        starts = n_draws(self.shares, step * self.batch_size)
        stops = n_draws(self.shares, (step + 1) * self.batch_size)
        drawn = [
            stream.between(start, stop)
            for stream, start, stop in zip(self.streams, starts, stops, strict=True)
        ]
        mixed = np.random.default_rng([self.seed, step, 1, 1]).permutation(self.batch_size)
        return np.concatenate(drawn)[mixed].tolist()


def pools_of(
    codes: np.ndarray, names: Sequence[str], mixture: Mapping[str, float] | None, column: str
) -> list[Pool]:
    """The rows of a dataset as pools: one of each value named in `mixture`, or one of all rows.

    `codes` has each row's place in `names`, the values that the rows have in `column`.

    Raises:
        UserError: a value that no row has.
    """
    if mixture is None:
        return [(Fraction(1), np.arange(len(codes)))]
    missing = [value for value in mixture if value not in names]
    if missing:
        raise UserError(
            f"train.mixture names {', '.join(missing)}, but the rows have as {column}: "
            f"{', '.join(sorted(names))}"
        )
    total = sum(map(exact, mixture.values()))
    return [
        (exact(share) / total, np.flatnonzero(codes == names.index(value)))
        for value, share in mixture.items()
    ]


def exact(share: float) -> Fraction:
    """A share as written: 0.7 is 7/10, and ten draws of it are seven."""
    return Fraction(str(share))
