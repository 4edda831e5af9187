"""Whether what is installed is within the bounds of pyproject.toml, and whether it is what was tested.

Reads the metadata of installed packages, and constraints.txt where the source is at hand. Imports none of the
packages but `packaging`: one that is missing is what is to be found.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

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
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        extras = re.findall(r'extra == "([^"]+)"', str(marker)) or [""]
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue  # of another system or Python
        name, bounds = requirement.name, requirement.specifier
        version = installed_version(name, installed)
        if version is not None and not _is_within(version, bounds):
            wrong.append(f"{name} {version} is not {bounds}")
        elif version is None and extras == [""]:
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
        if version is not None and not _is_pinned(version, pins[name])
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
    """Name -> version of "name==version" lines that hold here; empty where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    texts = [line.partition("#")[0].strip() for line in lines]
    pins = [Requirement(text) for text in texts if "==" in text]
    return {
        canonicalize_name(pin.name): bound.version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
        for bound in pin.specifier
        if bound.operator == "=="
    }


def _is_within(version: str, bounds: SpecifierSet) -> bool:
    # A vendor builds a release from source before it is out, as 2.13.0a0+nv26.7: by the rules that is older
    # than 2.13, in what it can do it is 2.13. So what is compared is the release that it is a build of.
    try:
        return bounds.contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:
        return False


def _is_pinned(version: str, pin: str) -> bool:
    """Whether it is the pinned one; 2.13.0+cpu is a build of 2.13.0."""
    try:
        return Version(Version(version).public) == Version(pin)
    except InvalidVersion:
        return False
