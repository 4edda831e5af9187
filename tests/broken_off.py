"""Run a stage again and again, each time broken off at a later point, and say how each run ended.

    python broken_off.py FORMER FOLDER ARGUMENTS...

A run is a fork that writes to FOLDER/<how>-<number>/out, which holds a copy of FORMER at first. It is
interrupted or killed before the <number>-th time that it opens an unfinished file or renames one, or no file
of it may be longer than 16^<number> bytes, as on a full disk. The last run of each kind came through.
Prints JSON: [how, number, exit code, standard error].
"""

import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune import cli


def interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def break_before(number: int, act: Callable[[], None]) -> None:
    """Act before the `number`-th opening of an unfinished file for writing, or renaming."""
    points = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and ".partial-" in str(arguments[0]) and set(arguments[1] or "") & set("wax+")
        if (opens or event == "os.rename") and next(points) == number:
            act()

    sys.addaudithook(hook)


def run(how: str, number: int, arguments: list[str]) -> tuple[int, str]:
    """Exit code (that of a killed run is negative) and standard error of one run."""
    reading, writing = os.pipe()  # a file would be full too
    if child := os.fork():
        os.close(writing)
        with open(reading, encoding="utf-8") as said:
            text = said.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(writing, 2)
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (16**number, 16**number))
    else:
        break_before(number, kill if how == "killed" else interrupt)
    code = 1
    try:
        code = cli.main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    former, folder, *arguments = sys.argv[1:]
    importlib.import_module(cli.STAGES[arguments[0]].module)  # else each run would import torch again
    ends = []
    for how in ("interrupted", "killed", "full"):
        for number in range(1, 40):
            output = Path(folder) / f"{how}-{number}" / "out"
            shutil.copytree(former, output)
            code, said = run(how, number, [*arguments, "--output", str(output)])
            ends.append((how, number, code, said))
            if code == 0:
                break
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
