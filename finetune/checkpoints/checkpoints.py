"""When a training is saved, and how it goes on: `restore` before the loop, `step_ends` in it.

Reads and writes <output>/checkpoints/step-<n>/ (checkpoint_files.py). Only the first process writes; the
others read the folder too, so `output` must be one that all machines see.

A disk that fills while a checkpoint is written stops the run: what was whole before stays, so that nothing
older than the last checkpoint is lost, and it is told now and not after hours that end in the same full disk.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from data_recipes.artefact import UserError, sha256_file
from finetune.adapters.active_adapter import adapter_parameters, file_name
from finetune.checkpoints.checkpoint_files import (
    HEAD_FILE,
    METRICS_FILE,
    Checkpoint,
    checkpoint_folders,
    newest_whole,
    read_tensors,
    read_whole,
    remove_checkpoints,
    remove_folders,
    step_of,
    write_checkpoint,
)
from finetune.checkpoints.same_run import CHANGEABLE, differences
from finetune.checkpoints.stop_signals import EXIT_CODES, Stopped, StopRequest
from finetune.layouts.layout import Layout
from finetune.processes import say, stop_if_any, tell_together
from finetune.training.monitor import Monitor
from finetune.training.validation import Validation
from finetune.training_options import CheckpointConfig

LARGEST_SHARE = 0.02  # of the time that writing checkpoints may take, when they are written by time


class Checkpoints:
    """The checkpoints of one run under `root`. `identity` says what the run is made from (same_run.py)."""

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        identity: Mapping[str, Any],
        request: StopRequest | None = None,
    ) -> None:
        self.root, self.config, self.identity = root, config, json.loads(json.dumps(identity))
        self.request = request or StopRequest()
        self.newest: Path | None = None
        self.write_s = 0.0  # of the last one
        self._found: Checkpoint | None = None
        self._has_looked = False

    def find(self, layout: Layout) -> tuple[int, Path | None]:
        """The first step (from 0) to do, and the lines of metrics.jsonl that were told before it.

        Raises:
            UserError: the newest whole checkpoint is of another run, there is none and there must be, or
                processes see different ones.
        """
        if not self._has_looked:
            self.layout = layout
            self._found, self._has_looked = self._agreed_checkpoint(), True
        found = self._found
        return (found.step, found.folder / METRICS_FILE) if found else (0, None)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        monitor: Monitor,
        layout: Layout,
        validation: Validation,
    ) -> int:
        """Put adapter, optimizer and told numbers back as they were; returns the first step (from 0) to do.

        Raises:
            UserError: as `find`.
        """
        self.model, self.optimizer, self.monitor, self.layout = model, optimizer, monitor, layout
        self.validation = validation
        self.parameters = {file_name(name): value for name, value in adapter_parameters(model).items()}
        self.saved_at = time.monotonic()
        _, metrics = self.find(layout)
        found = self._found
        if found is None or metrics is None:
            return 0
        self.newest = found.folder
        saved = read_tensors(found)
        put_back(self.parameters, optimizer, saved["adapter"], saved["optimizer"])
        layout.check_same(list(self.parameters.values()))
        monitor.restore(found.head["monitor"], metrics)
        validation.restore(found.head.get("validation", {}), saved.get("best", {}))
        say(f"resumed from step {found.step} of {found.folder}")
        return found.step

    def step_ends(self, step: int, n_steps: int, is_calm: bool = True) -> None:
        """After `step` (from 0) of `n_steps`: save when it is time, or when a signal came, and then stop.

        While the loss is not `is_calm` nothing is saved by time: the last checkpoint is to be a good one.

        Raises:
            Stopped: a signal asked for it; SystemExit in several processes.
            UserError: the checkpoint cannot be written, or holds values that are no numbers.
        """
        done = step + 1
        is_due = is_calm and done < n_steps and self._is_due(done)
        received, is_due = self._agreed_wishes(is_due)
        if received is not None or is_due:
            self.save(done, is_calm)
        if received is not None:
            message = f"stopped by {received.name}; the same command goes on from {self.newest}"
            if self.layout.accelerator.num_processes == 1:
                raise Stopped(message, EXIT_CODES[received])
            tell_together(self.layout.accelerator, message)
            raise SystemExit(EXIT_CODES[received])

    def save(self, done: int, is_calm: bool = True) -> None:
        """Write the checkpoint of `done` steps and remove old ones; those stay while the loss is not calm.

        Raises:
            UserError: as `step_ends`.
        """
        started = time.monotonic()
        accelerator, problem = self.layout.accelerator, None
        self.layout.check_same(list(self.parameters.values()))
        if accelerator.is_main_process:
            try:
                self._write(done)
                if is_calm:
                    remove_checkpoints(self.root, self.config.keep)
            except (UserError, OSError) as error:
                kept = f"{self.newest} is whole, and" if self.newest else "no checkpoint was written before:"
                problem = f"{error}; training stopped after step {done}: {kept} the same command goes on from"
                problem += " there" if self.newest else " the start"
        stop_if_any(accelerator, problem)
        self.newest = self.root / f"step-{done}"
        self.saved_at = time.monotonic()
        self.write_s = self.saved_at - started

    def last_good(self) -> str:
        """Where the newest checkpoint is, to be told."""
        return f"the last good checkpoint is {self.newest}" if self.newest else "there is no checkpoint yet"

    def _write(self, done: int) -> None:
        bad = [name for name, value in self.parameters.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise UserError(f"after step {done} {bad[0]} holds values that are no numbers")
        tensors = {
            "adapter": {name: on_cpu(value) for name, value in self.parameters.items()},
            "optimizer": optimizer_tensors(self.parameters, self.optimizer),
        }
        if self.validation.kept:
            tensors["best"] = self.validation.kept
        monitor, validation = self.monitor.state(), self.validation.state()
        body = {"run": self.identity, "monitor": monitor, "validation": validation}
        write_checkpoint(self.root, done, tensors, self.monitor.metrics_path, body)

    def _is_due(self, done: int) -> bool:
        if self.config.every_steps is not None and done % self.config.every_steps == 0:
            return True
        if self.config.every_minutes is None:
            return False
        wait_s = max(self.config.every_minutes * 60, self.write_s / LARGEST_SHARE)
        return time.monotonic() - self.saved_at >= wait_s

    def _agreed_wishes(self, is_due: bool) -> tuple[Any, bool]:
        """The signal that any process got, and whether the first one's clock says that it is time."""
        accelerator, received = self.layout.accelerator, self.request.received
        if accelerator.num_processes == 1:
            return received, is_due
        wishes = [received == number for number in EXIT_CODES] + [is_due and accelerator.is_main_process]
        told = accelerator.reduce(torch.tensor(wishes, dtype=torch.float32, device=self.layout.device))
        *signals, due = (torch.as_tensor(told) > 0).tolist()
        return next((number for number, came in zip(EXIT_CODES, signals, strict=True) if came), None), due

    def _agreed_checkpoint(self) -> Checkpoint | None:
        """The checkpoint all processes go on from; the first one chooses it."""
        accelerator = self.layout.accelerator
        found, problem = None, None
        if accelerator.is_main_process:
            try:
                found = self._chosen()
            except (UserError, OSError) as error:
                problem = str(error)
        stop_if_any(accelerator, problem)
        if accelerator.num_processes == 1:
            return found
        chosen = [(found.folder, sha256_file(found.folder / HEAD_FILE)) if found else None]
        broadcast_object_list(chosen)
        if chosen[0] is not None and found is None:
            folder, sha256 = chosen[0]
            try:
                found = read_whole(folder)
                if sha256_file(folder / HEAD_FILE) != sha256:
                    raise UserError(f"{folder} is not the checkpoint that the first process found")
            except UserError as error:
                problem = f"{error}; all machines must see the same output folder"
        stop_if_any(accelerator, problem)
        return found

    def _chosen(self) -> Checkpoint | None:
        if self.config.resume == "never":
            remove_checkpoints(self.root)
            return None
        found = newest_whole(self.root)
        if found is not None:
            self._refuse_another_run(found)
        elif self.config.resume == "must":
            raise UserError(
                f"train.checkpoint.resume=must, but {self.root} holds no whole checkpoint: set it to auto"
            )
        # Damaged ones are in the way of those to come.
        step = found.step if found else 0
        folders = checkpoint_folders(self.root)
        remove_folders(self.root, [folder for folder in folders if step_of(folder) > step])
        return found

    def _refuse_another_run(self, found: Checkpoint) -> None:
        changed = differences(found.head["run"], self.identity)
        if self.config.resume == "changed":
            for name in [name for name in changed if name.startswith(CHANGEABLE)]:
                say(f"goes on although {name} {changed.pop(name)}")
        if not changed:
            return
        told = "; ".join(f"{name} {text}" for name, text in changed.items())
        in_spite = ", train.checkpoint.resume=changed to go on in spite of it"
        may_go_on = all(name.startswith(CHANGEABLE) for name in changed)
        raise UserError(
            f"{found.folder} is of another run: {told}. Set it back to go on from there"
            f"{in_spite if may_go_on else ''}, or train.checkpoint.resume=never to lose it and start anew"
        )


def optimizer_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """ "<parameter>/<name>" -> that part of the optimizer's state, as "exp_avg"."""
    return {
        f"{name}/{part}": on_cpu(value)
        for name, parameter in parameters.items()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def put_back(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    adapter: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Give parameters and optimizer what `optimizer_tensors` and the parameters held, bit for bit.

    Raises:
        UserError: they are of another adapter.
    """
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: tuple(value.shape) for name, value in adapter.items()}:
        raise UserError(
            "the checkpoint's adapter has other parameters than this one: it was written by another version; "
            "set train.checkpoint.resume=never"
        )
    for name, parameter in parameters.items():
        parameter.copy_(adapter[name])
    for full_name, value in state.items():
        name, _, part = full_name.rpartition("/")
        parameter = parameters[name]
        # AdamW counts its steps on the CPU, wherever the parameter is.
        optimizer.state[parameter][part] = value.to(parameter.device) if value.ndim else value


def on_cpu(value: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU, or the tensor itself when it is one."""
    return value.detach().cpu().contiguous()
