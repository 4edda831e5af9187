"""The command line: `local-experts <stage> ...` finds the stage's module by name and calls its `main(argv)`.

Imports no torch itself, and reads a stage's config before it imports the stage: `--help` and a config error
answer in a fraction of a second. Exit codes: 0 done, 2 a problem the user can solve, 3 more was forgotten
than `eval.gate` allows, 130 interrupted, 75 stopped by SIGTERM and to be started again.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from data_recipes.artefact import UserError, is_disk_full
from finetune.checkpoints.stop_signals import Stopped
from finetune.config import config_from_arguments
from finetune.eval_options import GATE_EXIT_CODE, GateFailed


class Stage(NamedTuple):
    """One stage of the command line."""

    module: str
    purpose: str
    takes_config: bool = True  # `--config FILE [key=value ...]`; others read their own arguments


# By name, because finetune must not import eval: the direction is data_recipes <- finetune <- eval.
STAGES = {
    "run": Stage("finetune.run", "the whole way: data to report, each stage only when it is needed", False),
    "data": Stage("data_recipes.build", "build a dataset from a recipe", False),
    "masks": Stage("finetune.masks", "show which tokens of a row are trained, and audit all rows", False),
    "profile": Stage("finetune.profiling.routing", "count which experts each language uses"),
    "profile-merge": Stage("finetune.profiling.profile_merge", "add the shards of a profile up", False),
    "select": Stage("finetune.selecting.selection", "choose the experts to tune", False),
    "train": Stage("finetune.train", "train LoRA on the chosen experts"),
    "eval": Stage("eval.evaluate", "compare base and tuned on held-out rows"),
    "report": Stage("eval.report", "write report.html, report.md and report.json"),
    "ablate": Stage("eval.ablate", "the run with chosen, random, all and no experts trained", False),
    "export": Stage(
        "finetune.exporting.export", "write an adapter for PEFT, vLLM, SGLang, or merge it", False
    ),
    "push": Stage("finetune.hub.push", "send adapter, dataset and report to the Hub, with cards", False),
    "import": Stage("finetune.exporting.import_adapter", "read an adapter of PEFT, vLLM or SGLang", False),
    "doctor": Stage("finetune.machine.doctor", "check this machine, and say what to change", False),
    "bench": Stage("finetune.benching.bench", "measure time and memory of a step beside PEFT", False),
    "base": Stage("finetune.base", "train the shipped tiny-glm from scratch", False),
    "base-check": Stage(
        "eval.base_check", "measure a base: what it knows, and the trace of languages", False
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code; every problem the user can solve becomes one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run_stage(arguments)
    except UserError as error:
        return _complain(str(error))
    except GateFailed as failed:
        print(failed, file=sys.stderr)
        return GATE_EXIT_CODE
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # A full disk has many types (Arrow, safetensors, torch); all else is a bug and keeps its traceback.
        if not is_disk_full(error):
            raise
        return _complain(f"no space left on the disk ({error}): free some, or choose another output folder")


def usage() -> str:
    """The help text: one line for each stage."""
    stages = "\n".join(f"  {name:<15}{stage.purpose}" for name, stage in STAGES.items())
    return (
        "usage: local-experts STAGE ...\n\n"
        "Localize a mixture-of-experts model by training only the experts a language uses.\n\n"
        f"stages:\n{stages}\n\n"
        "start here:        local-experts run configs/runs/quickstart.yaml\n"
        "help for a stage:  local-experts STAGE --help"
    )


def _run_stage(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in STAGES:
        nearest = difflib.get_close_matches(name, STAGES, n=1)
        hint = f"; nearest: {nearest[0]}" if nearest else ""
        raise UserError(f"unknown stage {name!r}{hint}; stages are {', '.join(STAGES)}")
    stage = STAGES[name]
    if stage.takes_config:
        config_from_arguments(rest, name, stage.purpose)  # a bad config is told before torch is imported
    return importlib.import_module(stage.module).main(rest) or 0


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
