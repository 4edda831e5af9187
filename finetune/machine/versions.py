"""Whether what is installed is within the bounds of pyproject.toml, and whether it is what was tested.

Reads the metadata of installed packages, and constraints.txt where the source is at hand. Imports none of the
packages: one that is missing is what is to be found.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from finetune.machine.finding import Finding

DISTRIBUTION = "local-experts"
N_SHOWN = 8  # versions in a message
PINS = Path(__file__).parents[2] / "constraints.txt"


def check_versions(
    requirements: Sequence[str] | None = None,
    pins: Mapping[str, str] | None = None,
    installed: Callable[[str], str] = metadata.version,
) -> Finding:
    """Compare each requirement ("torch>=2.13"; of an extra only what is there) and each pin with its version.

    Without arguments they are those of this package. A version that is within its bounds and not the pinned
    one is told, and is nothing to change.
    """
    try:
        requirements = metadata.requires(DISTRIBUTION) or [] if requirements is None else requirements
    except metadata.PackageNotFoundError:
        return Finding("versions", False, f"{DISTRIBUTION} is not installed: pip install -e . in its folder")
    wrong, n_found = [], 0
    for requirement in requirements:
        bounds, _, marker = requirement.partition(";")
        name = re.split(r"[\[<>=!~ ]", bounds.strip())[0]
        version = installed_version(name, installed)
        if version is not None and not within(version, bounds):
            wrong.append(f"{name} {version} is not {bounds.strip().removeprefix(name)}")
        elif version is None and "extra" not in marker:
            wrong.append(f"{name} is not installed")
        n_found += version is not None
    if wrong:
        way_out = "pip install -c constraints.txt -e . in the folder of the source"
        return Finding("versions", False, f"{', '.join(wrong)}: {way_out}")
    told = f"{n_found} packages within their bounds"
    pins = read_pins(PINS) if pins is None else pins
    found = {name: installed_version(name, installed) for name in pins}
    others = [
        f"{name} {version} (tested: {pins[name]})"
        for name, version in found.items()
        if version is not None and version.partition("+")[0] != pins[name]
    ]
    if others:
        more = f" and {len(others) - N_SHOWN} more" if len(others) > N_SHOWN else ""
        told += f"; not the ones that were tested: {', '.join(others[:N_SHOWN])}{more}"
    elif pins:
        told += ", all as tested"
    return Finding("versions", True, told)


def installed_version(name: str, installed: Callable[[str], str] = metadata.version) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return installed(name)
    except metadata.PackageNotFoundError:
        return None


def read_pins(path: Path) -> dict[str, str]:
    """Name -> version of "name==version" lines; empty where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version.strip() for name, version in pins}


def within(version: str, bounds: str) -> bool:
    """Whether a version keeps to ">=2.13" or ">=5.2,<5.3"; other signs are not used here."""
    have = _numbers(version)
    for sign, number in re.findall(r"(>=|<)\s*([\d.]+)", bounds):
        wanted = _numbers(number)
        width = max(len(have), len(wanted))
        padded = [(*numbers, *[0] * (width - len(numbers))) for numbers in (have, wanted)]
        if (padded[0] < padded[1]) == (sign == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
