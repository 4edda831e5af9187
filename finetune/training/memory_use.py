"""How much memory this process holds now, and held at most.

Reads what the device's allocator or the kernel says; writes nothing.
"""

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Bytes now and at most: reserved on `device` by torch, or on the CPU the resident set.

    Where a model lies over several devices it is the first one's. Without Linux's list of a process the
    largest resident set stands for the present one.
    """
    if device.type != "cpu":
        return torch.accelerator.memory_reserved(device), torch.accelerator.max_memory_reserved(device)
    sizes = _sizes_of_process()
    if not {"VmRSS", "VmHWM"} <= sizes.keys():
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    # VmHWM and not ru_maxrss: a child inherits what its parent had, also through exec.
    now, peak = (1024 * int(sizes[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, peak


def _sizes_of_process() -> dict[str, str]:
    """Linux's list, of which a sandbox may show a part; empty elsewhere."""
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return {name: value for name, _, value in (line.partition(":") for line in lines)}
