"""The validation losses of a run and what they decide: when to stop early, and which adapter is kept.

Reads and writes nothing. A checkpoint holds `state()` and `kept`: a run that goes on decides the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from data_recipes.artefact import UserError
from finetune.adapters.active_adapter import file_name
from finetune.batches import Example
from finetune.processes import gather
from finetune.training.losses import Losses
from finetune.training.monitor import Monitor
from finetune.training_options import TrainConfig


class Lowest(NamedTuple):
    """A loss in nats per trained token, and the steps that were done by then."""

    loss: float
    step: int


class Validation:
    """Evaluates `examples`, by group, when it is time. `kept` is the best adapter so far, if asked for.

    Processes decide by the numbers of the first: the last bits of theirs may differ.
    """

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        losses: Losses,
        monitor: Monitor,
        config: TrainConfig,
        adapter: Mapping[str, nn.Parameter],
    ) -> None:
        """Raises: UserError: a group that is to decide has no rows."""
        deciding = {"early_stop.group": config.early_stop and config.early_stop.group}
        deciding["keep_best"] = config.keep_best
        for option, group in deciding.items():
            if group is not None and group not in examples:
                raise UserError(
                    f"train.{option}={group}: there are no validation rows of this group; "
                    f"there are {', '.join(examples) or 'none at all'}"
                )
        self.examples, self.losses, self.monitor, self.config = examples, losses, monitor, config
        self.parameters = {file_name(name): value for name, value in adapter.items()}
        self.lowest: dict[str, Lowest] = {}  # by group
        self.bar: float | None = None  # of early_stop
        self.n_not_lower = 0
        self.kept: dict[str, torch.Tensor] = {}
        self.kept_at: Lowest | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run has to stop: the loss has not fallen for as many evaluations as it may."""
        stop = self.config.early_stop
        return stop is not None and self.n_not_lower >= stop.patience

    def step_ends(self, step: int) -> None:
        """Evaluate after `step` (from 0) when it is time, tell the losses, and note what follows."""
        done = step + 1
        if not self.examples or (done % self.config.eval_every and done != self.config.steps):
            return
        found = {group: self.losses.of_validation(rows) for group, rows in self.examples.items()}
        self.monitor.log(step, {f"eval_loss_{group}": loss for group, loss in found.items()})
        self.note(done, gather(self.losses.layout.accelerator, found)[0])

    def note(self, done: int, found: Mapping[str, float]) -> None:
        """Note the loss of each group after `done` steps; one that is no number is never the lowest."""
        for group, loss in found.items():
            if is_lower(loss, self.lowest[group].loss if group in self.lowest else None):
                self.lowest[group] = Lowest(loss, done)
        stop, best = self.config.early_stop, self.config.keep_best
        if stop is not None and is_lower(found[stop.group], self.bar, stop.min_delta):
            self.bar, self.n_not_lower = found[stop.group], 0
        elif stop is not None:
            self.n_not_lower += 1
        if best is not None and is_lower(found[best], self.kept_at.loss if self.kept_at else None):
            self.kept_at = Lowest(found[best], done)
            self.kept = {name: value.detach().to("cpu", copy=True) for name, value in self.parameters.items()}

    @torch.no_grad()
    def put_best_back(self) -> None:
        """Give the adapter the values of the best evaluation, if they were asked for."""
        for name, value in self.kept.items():
            self.parameters[name].copy_(value)

    def outcome(self, n_steps: int) -> dict[str, Any]:
        """What `TrainResult` says of the evaluations of a run that made `n_steps`."""
        return {
            "lowest_eval_loss": {group: lowest.loss for group, lowest in self.lowest.items()},
            "lowest_eval_step": {group: lowest.step for group, lowest in self.lowest.items()},
            "adapter_step": self.kept_at.step if self.kept_at else n_steps,
            "stopped_early": self.is_over and n_steps < self.config.steps,
        }

    def state(self) -> dict[str, Any]:
        """What a run that goes on has to know, as JSON; beside it the tensors of `kept`."""
        stop = self.config.early_stop
        return {
            "lowest": self.lowest,
            "early_stop": stop and {"group": stop.group, "bar": self.bar, "n_not_lower": self.n_not_lower},
            "kept": self.kept_at and {"group": self.config.keep_best, "at": self.kept_at},
        }

    def restore(self, state: Mapping[str, Any], kept: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state`; empty is that of a checkpoint from before there was one.

        What another group decided does not count (train.checkpoint.resume=changed).
        """
        self.lowest = {group: Lowest(*lowest) for group, lowest in state.get("lowest", {}).items()}
        stop, said = self.config.early_stop, state.get("early_stop")
        if stop is not None and said and said["group"] == stop.group:
            self.bar, self.n_not_lower = said["bar"], said["n_not_lower"]
        said = state.get("kept")
        if said and said["group"] == self.config.keep_best:
            self.kept_at, self.kept = Lowest(*said["at"]), dict(kept)


def is_lower(loss: float, bar: float | None, min_delta: float = 0.0) -> bool:
    """Whether a loss is a number, and lower than `bar` by more than `min_delta` where there is one."""
    return math.isfinite(loss) and (bar is None or loss < bar - min_delta)
