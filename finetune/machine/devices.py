"""Which devices are here, and whether each computes. Reads and writes nothing."""

import os

import torch

from data_recipes.artefact import UserError
from finetune.config import RunConfig
from finetune.layouts.placement import problems_here
from finetune.machine.finding import Finding
from finetune.model import choose_device


def check_devices(config: RunConfig | None = None) -> list[Finding]:
    """One line for the CPU, one for each accelerator, and one for what a config asks for."""
    findings = [
        _computes(torch.device("cpu"), f"cpu, {n_cores()} core(s), {torch.get_num_threads()} thread(s)")
    ]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    for number in range(n_accelerators()):
        assert accelerator is not None
        device = torch.device(accelerator.type, number)
        name = getattr(torch.get_device_module(device), "get_device_name", lambda _: "")(device)
        findings.append(_computes(device, f"{device} {name}".strip()))
    if config is not None:
        findings.append(_as_asked(config))
    return findings


def n_accelerators() -> int:
    """Accelerators that can be used."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _computes(device: torch.device, name: str) -> Finding:
    """Multiply two matrices there, and look at the gradient: of a sum of n products of ones it is n."""
    n = 64
    try:
        left = torch.ones(n, n, device=device, requires_grad=True)
        (left @ torch.ones(n, n, device=device)).sum().backward()
        assert left.grad is not None
        is_right = bool((left.grad.cpu() == n).all())
    except RuntimeError as error:
        way_out = "update its driver and torch together"
        return Finding("device", False, f"{name} does not compute ({error}): {way_out}")
    if not is_right:
        return Finding("device", False, f"{name} computes wrong numbers: take another base.device")
    return Finding("device", True, name)


def _as_asked(config: RunConfig) -> Finding:
    train = config.train
    kind = train.layout.kind
    if kind == "auto":
        kind = "one_device" if train.n_processes == 1 else "data_parallel"
    what = (
        f"base.device={config.base.device}, train.layout.kind={kind}, train.n_processes={train.n_processes}"
    )
    try:
        choose_device(config.base.device)
    except UserError as error:
        return Finding("config", False, str(error))
    problems = problems_here(kind, config.base, train.n_processes)
    if problems:
        return Finding("config", False, f"{what}: {'; '.join(problems)}")
    return Finding("config", True, f"{what} can be had here")
