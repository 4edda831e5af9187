"""TensorBoard, Trackio and whatever else Accelerate knows get the numbers of metrics.jsonl: train.tracker.

TensorBoard's files are in <output>/tracker/<name of the run>; Trackio's and others' where these keep theirs.
A run that goes on from a checkpoint has made some steps before, and makes them again. TensorBoard is told to
hide them. No other tracker can: there each start is a run of its own, and first gets what was told until the
checkpoint, so that the newest one is whole and has each step once.
"""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

CAN_HIDE = "tensorboard"


def start_trackers(
    accelerator: Accelerator,
    name: str,
    options: dict[str, Any],
    first_step: int = 0,
    metrics: Path | None = None,
) -> None:
    """Open the run `name` in the trackers of `accelerator`, which goes on at `first_step` (from 0).

    `metrics` are the lines that were told before it.
    """
    # Also for a new run: an older one of the same name may lie in the folder.
    accelerator.init_trackers(name, init_kwargs={CAN_HIDE: {"purge_step": first_step + 1}})
    for tracker in accelerator.trackers:  # in the first process alone
        if first_step and tracker.name == CAN_HIDE:
            continue
        tracker.store_init_configuration(options)
        for line in _lines(metrics):
            tracker.log(numbers_for_trackers(line), step=line["step"])


def numbers_for_trackers(line: dict[str, float]) -> dict[str, float]:
    """A line of metrics.jsonl without its step, which a tracker gets as such."""
    return {name: value for name, value in line.items() if name != "step"}


def _lines(metrics: Path | None) -> list[dict[str, Any]]:
    if metrics is None or not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
