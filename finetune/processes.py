"""Several processes that work as one: refuse a launch that lost one, speak once, keep adapters in step.

Stages that run so are profile and train. The model stays unwrapped: only sums are added up, or the adapter
synchronised, by hand, in one message.
Reads the environment that `accelerate launch` and `torchrun` set. Writes nothing.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather_object
from torch import nn

from data_recipes.artefact import UserError
from data_recipes.progress import in_notebook
from finetune.launch import LAUNCHED, LOST_EXIT_CODE, STAGE_MODULES

SECONDS_TO_TELL = 5
LOST = re.compile(r"gloo|[Cc]onnection (closed|reset)|[Tt]imed out")


def say(message: str) -> None:
    """Print on the first process only, also once the processes have parted."""
    is_together = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if is_together else int(os.environ.get("RANK", "0"))
    if rank == 0:
        print(message, flush=True)


def start_accelerator(
    n_processes: int,
    device: str = "auto",
    tracker: str | None = None,
    tracker_folder: str | None = None,
    stage: str = "train",
    time_limit_s: int = 1800,
) -> Accelerator:
    """Accelerator over exactly `n_processes` processes; `device` is "auto" or a torch device name.

    `stage` is the one that runs: errors name its option and its command. A process that waits longer than
    `time_limit_s` for the others gives up.

    Raises:
        UserError: another number of processes runs, a launcher was asked for several and started one, or
            Accelerate does not know the tracker, does not find it installed, or cannot do what its launcher
            was told.
    """
    # Without cpu=True, torchrun on a machine without an accelerator gives processes that never talk.
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    try:
        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=time_limit_s))
        accelerator = Accelerator(
            cpu=on_cpu, log_with=tracker, project_dir=tracker_folder, kwargs_handlers=[limit]
        )
    except ValueError as error:
        what = f"train.tracker={tracker}" if tracker else "Accelerate cannot start"
        raise UserError(f"{what}: {error}") from error
    if tracker and not accelerator.log_with:
        # Accelerate only warns, and trains without it.
        raise UserError(f"train.tracker={tracker} is not installed: pip install {tracker}, or leave it out")
    check_process_count(n_processes, accelerator.num_processes, os.environ, stage)
    return accelerator


def check_process_count(
    expected: int, running: int, environment: Mapping[str, str], stage: str = "train"
) -> None:
    """Compare what the config expects and what the launcher was asked for with what runs.

    Raises:
        UserError: they differ; the message holds the command that works.
    """
    # `accelerate launch --cpu --num_processes 2` and a MULTI_CPU config file silently run one process.
    # What they leave behind: an address for the processes to meet, and no number of processes to wait for.
    asked_for_several = "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment
    if running == 1 and asked_for_several and "ACCELERATE_MIXED_PRECISION" in environment:
        raise UserError(
            "accelerate launch was asked for several processes and started one (as with --cpu "
            "or a MULTI_CPU config file); run instead: "
            f"{launch_command(max(expected, 2), sys.argv[1:], stage)}"
        )
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if running < world_size:
        raise UserError(
            f"{world_size} processes were launched, but each is alone: run instead: "
            f"{launch_command(world_size, sys.argv[1:], stage)}"
        )
    if running != expected:
        raise UserError(
            f"{running} process(es) run, but {stage}.n_processes is {expected}: "
            f"set {stage}.n_processes={running}, or run: {launch_command(expected, sys.argv[1:], stage)}"
        )


def launch_command(n_processes: int, arguments: Sequence[str], stage: str = "train") -> str:
    """The command that really runs `n_processes` of a stage on this machine."""
    if in_notebook():  # the arguments of this process are those of a notebook's kernel
        return (
            f'run_in_processes("{stage}", config) of finetune.launch, with {stage}.n_processes={n_processes}'
        )
    module = " ".join([f"-m {STAGE_MODULES[stage]}", *arguments])
    if n_processes == 1:
        return f"python {module}"
    launch = f"accelerate launch --multi_gpu --num_processes {n_processes} {module}"
    return launch if torch.accelerator.is_available() else f"ACCELERATE_USE_CPU=true {launch}"


def sum_over_processes(accelerator: Accelerator | None, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every process's `tensor`, on the CPU; exact for whole numbers."""
    if accelerator is None or accelerator.num_processes == 1:
        return tensor
    summed = accelerator.reduce(tensor.to(accelerator.device), reduction="sum")
    assert isinstance(summed, torch.Tensor)
    return summed.cpu()


def gather(accelerator: Accelerator, value: Any) -> list[Any]:
    """Every process's `value`, in order of the processes."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def stop_together(accelerator: Accelerator, message: str) -> NoReturn:
    """End every process with an error, which only the first one tells; all must call this at one point.

    Raises:
        UserError: in a run of one process; SystemExit in one of several.
    """
    if accelerator.num_processes == 1:
        raise UserError(message)
    tell_together(accelerator, f"error: {message}")
    raise SystemExit(2)


def stop_if_any(accelerator: Accelerator, problem: str | None) -> None:
    """End all processes when one of them has a problem; each calls this, with None when it has none.

    Raises:
        UserError: as `stop_together`.
    """
    found = [(process, text) for process, text in enumerate(gather(accelerator, problem)) if text is not None]
    if found:
        process, text = found[0]
        where = f"process {process}: " if process else ""
        stop_together(accelerator, f"{where}{text}")


def tell_together(accelerator: Accelerator, message: str) -> None:
    """Tell `message` from the first process; the others wait for it.

    A launcher ends all processes as soon as one is gone, also one that has something left to say.
    """
    if accelerator.is_main_process:
        print(message, file=sys.stderr, flush=True)
    accelerator.wait_for_everyone()


@contextmanager
def one_message(time_limit_s: int) -> Iterator[None]:
    """Inside, what ends several processes is told by one of them.

    Raises:
        UserError: as inside; or the connection to another process is lost, or `time_limit_s` passed while it
            did not answer. Under `finetune.launch`, which tells how that one ended, this process ends.
    """
    try:
        yield
    except UserError:
        # The others may have found the same: the launcher ends them when the first has told it.
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            time.sleep(SECONDS_TO_TELL)
        raise
    except RuntimeError as error:
        # gloo has no type of error of its own.
        lost = isinstance(error, torch.distributed.DistError) or LOST.search(str(error))
        if not lost or not torch.distributed.is_initialized():
            raise
        if LAUNCHED in os.environ:
            # In the usual end gloo's threads may abort the process, and it would be taken for the killed one.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(LOST_EXIT_CODE)
        raise UserError(
            "another process of this run ended, or did not answer within "
            f"train.layout.time_limit_s={time_limit_s}: its own message, or the launcher's, says why"
        ) from error


@torch.no_grad()
def broadcast_parameters(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the values that the first one has."""
    if accelerator.num_processes > 1:
        _copy_back(broadcast(_flat(parameters), from_process=0), parameters)


@torch.no_grad()
def sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over processes; a process that had no rows to learn from adds zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        _copy_back(accelerator.reduce(_flat(gradients), reduction="sum"), gradients)


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One message for all tensors: each collective costs its latency, and there are hundreds of tensors."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _copy_back(flat: object, tensors: Sequence[torch.Tensor]) -> None:
    assert isinstance(flat, torch.Tensor)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
