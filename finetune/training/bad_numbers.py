"""Numbers that go bad: a loss or gradient that is no number, or a loss that explodes, ends the run.

It is told with the step, the rows and the last good checkpoint; the bad step changes nothing. All processes
look at the same numbers, so all end at the same step. Reads and writes nothing.
"""

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from finetune.batching.packing import Pack
from finetune.checkpoints.checkpoints import Checkpoints
from finetune.layouts.layout import Layout
from finetune.processes import gather, stop_together
from finetune.training_options import TrainConfig

N_RECENT = 50  # losses that the running median is of
N_SHOWN = 32  # row ids in a message


class BadNumbers:
    """Looks at the numbers of each step. `losses` are those of the steps before, when a run goes on."""

    def __init__(
        self,
        config: TrainConfig,
        layout: Layout,
        checkpoints: Checkpoints | None = None,
        losses: Sequence[float] = (),
    ) -> None:
        self.config, self.layout, self.checkpoints = config, layout, checkpoints
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=N_RECENT)
        self.n_high = 0
        for loss in losses:
            self._note(loss)

    @property
    def is_calm(self) -> bool:
        """Whether the last loss was in the usual range."""
        return self.n_high == 0

    def refuse(
        self, step: int, own_loss: float, loss: float, gradient_norm: float, parts: Sequence[Sequence[Pack]]
    ) -> None:
        """Look at `step` (from 0) before it changes the adapter; `own_loss` is this process's part of `loss`,
        and `parts` are the forward passes of all.

        Raises:
            UserError: a number is not finite, or the loss has stayed too high for too long; in all processes.
        """
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                self._stop(f"the {name} is {value}", step, self._bad_rows(own_loss, parts))
        usual = median(self.recent) if self.recent else loss
        self._note(loss)
        if self.n_high >= self.config.explode_steps:
            bar = f"{self.config.explode_ratio:g} times its usual {usual:.3g}"
            what = f"the loss explodes: {self.n_high} steps in a row above {bar}, now {loss:.3g},"
            self._stop(what, step, row_ids(parts))

    def _note(self, loss: float) -> None:
        """A high loss does not count as usual: the bar stays while the losses above it are counted."""
        self.first = loss if self.first is None else self.first
        ratio, usual = self.config.explode_ratio, median(self.recent) if self.recent else loss
        if ratio is not None and loss > max(ratio * usual, self.first):
            self.n_high += 1
        else:
            self.n_high = 0
            self.recent.append(loss)

    def _bad_rows(self, own_loss: float, parts: Sequence[Sequence[Pack]]) -> list[str]:
        """Rows of the processes whose own loss is no number; all of the step when that is nobody's."""
        own = [] if math.isfinite(own_loss) else row_ids(self.layout.own_rows(parts))
        bad = dict.fromkeys(row_id for ids in gather(self.layout.accelerator, own) for row_id in ids)
        return list(bad) or row_ids(parts)

    def _stop(self, what: str, step: int, bad: Sequence[str]) -> None:
        more = f" and {len(bad) - N_SHOWN} more" if len(bad) > N_SHOWN else ""
        last = f" {self.checkpoints.last_good()};" if self.checkpoints else ""
        stop_together(
            self.layout.accelerator,
            f"{what} at step {step + 1}, rows {', '.join(bad[:N_SHOWN])}{more}: nothing of this step "
            f"is kept;{last} lower train.learning_rate (and go on with train.checkpoint.resume=changed), "
            "or look at these rows",
        )


def row_ids(parts: Sequence[Sequence[Pack]]) -> list[str]:
    """The ids of all rows in some forward passes."""
    return [example.row_id for packs in parts for pack in packs for example in pack]
