"""Look whether this machine can do a run, and say what to change.

    local-experts doctor [--config FILE [key=value ...]] [--time-limit SECONDS]

Checks versions, devices, the start of processes (two are really started), memory, disk, and with a config
what that asks for. Prints a line for each, and exits with 0 when nothing is to be changed, else with 2.
"""

import argparse
import importlib
import platform
from collections.abc import Iterator, Sequence

from data_recipes.artefact import UserError
from finetune.config import RunConfig, load_run_config
from finetune.machine.finding import Finding
from finetune.machine.versions import check_versions

TIME_LIMIT_S = 60  # a first start reads torch from the disk, twice


def checks(config: RunConfig | None, time_limit_s: int) -> Iterator[Finding]:
    """Yield what each check found, as it is found; all but the first need the packages it looks for."""
    tracker = config.train.tracker if config else None
    versions = check_versions()
    yield Finding("python", True, f"{platform.python_version()} on {platform.platform()}")
    yield versions
    try:
        devices = importlib.import_module("finetune.machine.devices")
        process_start = importlib.import_module("finetune.machine.process_start")
        room = importlib.import_module("finetune.machine.room")
    except ImportError as error:
        yield Finding("devices", False, f"not looked for, as a package cannot be imported ({error})")
        return
    found = devices.check_devices(config)
    yield from found
    # Needs are told only where the device is there that they are compared with.
    fits = config is not None and all(finding.is_ok for finding in found)
    yield process_start.check_launch("cpu", time_limit_s)
    if devices.n_accelerators() >= process_start.N_PROCESSES:
        yield process_start.check_launch("auto", time_limit_s)
    try:
        needs = room.needs_of(config) if fits else None
        yield from room.check_memory(config, needs)
        yield from room.check_disk(config, needs)
    except UserError as error:
        yield Finding("config", False, str(error))
    if tracker is not None:
        yield _tracker(tracker)


def _tracker(name: str) -> Finding:
    tracking = importlib.import_module("accelerate.tracking")
    available = sorted(str(tracker) for tracker in tracking.get_available_trackers())
    if name in (*available, "all"):
        return Finding("tracker", True, f"{name} is installed")
    known = (
        f"{name} is not installed, or Accelerate does not know it; there are {', '.join(available) or 'none'}"
    )
    return Finding("tracker", False, f"{known}: pip install {name}, or leave train.tracker out")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; exit code 0 when nothing is to be changed, else 2."""
    parser = argparse.ArgumentParser(
        prog="local-experts doctor",
        description="Check this machine, and say what to change.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="check what this run needs, too")
    parser.add_argument(
        "--time-limit", type=int, default=TIME_LIMIT_S, metavar="SECONDS", help="of the start of processes"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.n_processes=2")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.overrides and not arguments.config:
        parser.error("key=value changes a config: give one with --config")
    config = load_run_config(arguments.config, arguments.overrides) if arguments.config else None
    n_wrong = 0
    for finding in checks(config, arguments.time_limit):
        print(finding.line(), flush=True)
        n_wrong += not finding.is_ok
    print(f"{n_wrong} to change" if n_wrong else "nothing to change")
    return 2 if n_wrong else 0
