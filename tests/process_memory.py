"""What the kernel says of this process's memory; for the scripts that measure in a process of their own."""

import re
from pathlib import Path


def status_bytes(name: str) -> int:
    """A size of this process from the kernel's list: VmHWM, VmRSS, VmData, RssAnon.

    VmHWM is the peak. Not ru_maxrss: a child inherits what its parent had, also through exec.
    """
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None, f"this kernel does not tell {name}"
    return int(found[1]) * 1024
