"""The order of rows: shuffled epochs end to end, from which a step takes the next ones.

Reads and writes nothing. All follows from the seed and a position in the endless row of epochs, so every
process knows it and a run that goes on in the middle needs no more than its step. An epoch ends where it
ends: the step that reaches past it takes its other rows from the next, and none is lost or seen twice.
"""

from collections.abc import Sequence

import numpy as np

WINDOW_BATCHES = 64  # batches whose rows are sorted together: more is less padding and less chance


class RowStream:
    """Row numbers in shuffled epochs; keeps the orders of the last two, as a step can touch both."""

    def __init__(
        self, numbers: np.ndarray, seed: Sequence[int], lengths: np.ndarray | None = None, batch_size: int = 1
    ) -> None:
        """`seed` may be several numbers; with `lengths` of all rows, batches are of rows of like length."""
        self.numbers, self.seed = numbers, seed
        self.lengths, self.batch_size = lengths, batch_size
        self._orders: dict[int, np.ndarray] = {}

    def between(self, start: int, stop: int) -> np.ndarray:
        """The row numbers at the positions from `start` up to `stop`."""
        n_rows = len(self.numbers)
        epochs = range(start // n_rows, -(-stop // n_rows))
        order = [self._order(epoch) for epoch in epochs]
        offset = start - epochs.start * n_rows if order else 0
        return np.concatenate([*order, np.empty(0, np.int64)])[offset : offset + stop - start]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            order = self.numbers[epoch_order(len(self.numbers), self.seed, epoch)]
            if self.lengths is not None:
                order = by_length(order, self.lengths, self.batch_size, [*self.seed, epoch])
            self._orders[epoch] = order
        return self._orders[epoch]


def epoch_order(n_rows: int, seed: Sequence[int], epoch: int) -> np.ndarray:
    """A shuffle of the row numbers that depends on nothing but its arguments."""
    return np.random.default_rng([*seed, epoch]).permutation(n_rows)


def by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, seed_and_epoch: Sequence[int]
) -> np.ndarray:
    """`order` with rows of like length in the batches that lie wholly in this epoch, batches shuffled.

    What shares a step with the epoch before or after stays as it is.
    """
    first = -(len(order) * seed_and_epoch[-1]) % batch_size  # rows that end the step the last epoch began
    n_whole = max(0, len(order) - first) // batch_size * batch_size
    whole = order[first : first + n_whole]
    window = WINDOW_BATCHES * batch_size
    windows = [whole[start : start + window] for start in range(0, n_whole, window)]
    ordered = [rows[np.argsort(lengths[rows], kind="stable")] for rows in windows]
    if not ordered:
        return order
    batches = np.concatenate(ordered).reshape(-1, batch_size)
    # The last number sets it apart from the shuffle of rows; 0 would not, for numpy drops zeros at the end.
    shuffled = batches[np.random.default_rng([*seed_and_epoch, 1]).permutation(len(batches))]
    return np.concatenate([order[:first], shuffled.ravel(), order[first + n_whole :]])
