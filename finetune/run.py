"""A whole run in one go: data, profile, select, train, eval, report; what did not change is kept.

    local-experts run configs/runs/quickstart.yaml [key=value ...]

Reads a run config; writes everything under its `output`. Beside the results, `.stamps/<stage>.json` records
what a stage was made from and the hashes of the files it wrote. A stage is kept only when both still fit, so
a changed option, a replaced input and a damaged output each run it again, and then what depends on its files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data_recipes
from data_recipes.artefact import (
    UserError,
    file_hashes,
    package_versions,
    read_artefact,
    sha256_file,
    sha256_folder,
    sha256_json,
    write_artefact,
)
from data_recipes.settings import settings_dict
from finetune.config import SHIPPED_MODELS, BaseConfig, RunConfig, load_run_config
from finetune.training_options import CheckpointConfig

StageFunction = Callable[[RunConfig], object]

# Hashing a terabyte checkpoint takes longer than the run: past this, a file's size and time stand for it.
LARGEST_HASHED_BYTES = 1 << 30
PROFILE_FILES = ("profile.json", "profile.safetensors")


@dataclass(frozen=True)
class Stage:
    """One row of the stage table; paths are relative to the run's output folder."""

    name: str
    outputs: tuple[str, ...]  # files or folders the stage writes
    inputs: Callable[[RunConfig], dict[str, str]]  # what it is made from: name -> sha256


def run(config: RunConfig, functions: Mapping[str, StageFunction] | None = None) -> Path:
    """Run every stage whose inputs changed and return the path of the report.

    `functions` maps a stage's name to what runs it; the default are the real stages, imported when needed.

    Raises: UserError from a stage, or when started as one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "`run` starts the processes itself: start it alone, and set train.n_processes and "
            "profile.n_processes"
        )
    if config.profile.shard is not None:
        raise UserError(
            f"profile.shard={config.profile.shard}: `run` needs a whole profile; make each shard with "
            "`local-experts profile`, and of all of them profile.json with `local-experts profile-merge`"
        )
    _tasks_hash(config)  # a wrong task file is told before the training, not after it
    seconds = run_until(STAGES[-1].name, config, functions)
    print("seconds   " + ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()))
    return Path(config.output) / "report.html"


def run_until(
    last: str, config: RunConfig, functions: Mapping[str, StageFunction] | None = None
) -> dict[str, float]:
    """Run the stages up to `last` whose inputs changed, as in a notebook; returns the seconds of each.

    Raises: UserError from a stage, or when there is no stage `last`.
    """
    names = [stage.name for stage in STAGES]
    if last not in names:
        raise UserError(f"there is no stage {last!r} of a run: use {', '.join(names)}")
    functions = functions or STAGE_FUNCTIONS
    stages = STAGES[: names.index(last) + 1]
    return {stage.name: run_stage(stage, config, functions[stage.name]) for stage in stages}


def run_stage(stage: Stage, config: RunConfig, function: StageFunction) -> float:
    """Run one stage, or keep its outputs when they still fit; returns the seconds it took.

    Raises: UserError from the stage.
    """
    started = time.perf_counter()
    inputs = stage_inputs(stage, config)
    if is_kept(stage, config, inputs):
        print(f"{stage.name:<9} unchanged, kept")
        return time.perf_counter() - started
    print(f"{stage.name:<9} started", flush=True)
    stamp_path(stage, config).unlink(missing_ok=True)  # a stage that stops half-way leaves no stamp
    function(config)
    body = {"stage": stage.name, "outputs": output_hashes(stage, config)}
    write_artefact(stamp_path(stage, config), "stage_stamp", inputs, body)
    spent = time.perf_counter() - started
    print(f"{stage.name:<9} done in {spent:.1f} s", flush=True)
    return spent


def stage_inputs(stage: Stage, config: RunConfig) -> dict[str, str]:
    """Everything the stage's outputs depend on: its own inputs, the seed and the installed versions.

    Raises: UserError when an input is missing.
    """
    versions = sha256_json(package_versions())
    return {**stage.inputs(config), "seed": sha256_json(config.seed), "versions": versions}


def is_kept(stage: Stage, config: RunConfig, inputs: dict[str, str]) -> bool:
    """Whether the stage was stamped with these inputs and its outputs still hash to what was stamped."""
    try:
        stamp = read_artefact(stamp_path(stage, config), "stage_stamp")
        return stamp["inputs"] == inputs and stamp.get("outputs") == output_hashes(stage, config)
    except UserError:  # no stamp, a damaged stamp, or an output that is gone: all mean "make it"
        return False


def stamp_path(stage: Stage, config: RunConfig) -> Path:
    """Where the stage's stamp lies."""
    return Path(config.output) / ".stamps" / f"{stage.name}.json"


def output_hashes(stage: Stage, config: RunConfig) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of the stage's outputs.

    Raises: UserError when one is missing.
    """
    return {name: file_hashes(Path(config.output) / name) for name in stage.outputs}


# What each stage is made from.


def data_inputs(config: RunConfig) -> dict[str, str]:
    """The recipe, all that it reads, the package that makes rows of it, and the tokenizer it counts with."""
    recipe = importlib.import_module("data_recipes.recipe")  # late: `--help` should not wait for numpy
    package = Path(data_recipes.__file__).parent
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".yaml"))
    return {
        "recipe": sha256_file(config.data.recipe),
        "changes": sha256_json(config.data.overrides),
        "generators": sha256_json([sha256_file(file) for file in files]),
        "reads": recipe.recipe_inputs_hash(config.data.recipe, config.data.overrides),
        "tokenizer": sha256_json([config.base.model, config.base.revision]),
    }


def profile_inputs(config: RunConfig) -> dict[str, str]:
    """Dataset, base model, and what is counted."""
    return {"data": data_hash(config), "base": base_hash(config.base), "profile": part_hash(config.profile)}


def select_inputs(config: RunConfig) -> dict[str, str]:
    """The profile and how to choose from it."""
    profile = {name: sha256_file(Path(config.output) / name) for name in PROFILE_FILES}
    return {**profile, "select": part_hash(config.select)}


def train_inputs(config: RunConfig) -> dict[str, str]:
    """Plan, dataset, base model, and how to train."""
    return {
        "plan": sha256_file(Path(config.output) / "plan.json"),
        "data": data_hash(config),
        "base": base_hash(config.base),
        "lora": part_hash(config.lora),
        # How a run is saved on its way changes nothing of what comes out.
        "train": part_hash(replace(config.train, checkpoint=CheckpointConfig())),
        **({"replay": _content_hash(config.train.replay.data)} if config.train.replay else {}),
    }


def _content_hash(folder: str) -> str:
    """Of a built dataset.

    Raises: UserError when there is none.
    """
    manifest = read_artefact(Path(folder) / "manifest.json", "dataset_manifest", ("content_hash",))
    return manifest["content_hash"]


def eval_inputs(config: RunConfig) -> dict[str, str]:
    """Adapter, dataset, base model, and how to compare."""
    return {
        "adapter": sha256_folder(Path(config.output) / "adapter"),
        "data": data_hash(config),
        "base": base_hash(config.base),
        # What may be forgotten changes nothing of what is answered.
        "eval": part_hash(replace(config.eval, gate=None)),
        "tasks": _tasks_hash(config),
        **contestant_hashes(config),
    }


def contestant_hashes(config: RunConfig) -> dict[str, str]:
    """Hash of the files of each contestant that is a folder, and of the data that it says it learned from."""
    hashes = {}
    for name, one in config.eval.contestants.items():
        if one.is_folder:
            place = str(one.place(config.output))
            hashes[f"contestant {name}"] = base_hash(replace(config.base, model=place))
        hashes |= {f"contestant {name}: {folder}": _content_hash(folder) for folder in one.trained_on}
    return hashes


def _tasks_hash(config: RunConfig) -> str:
    """Hash of the task files and their rows.

    Raises: UserError that lists what is wrong in them.
    """
    return (
        importlib.import_module("eval.tasks.rows").tasks_sha256(config.eval.tasks)
        if config.eval.tasks
        else ""
    )


def report_inputs(config: RunConfig) -> dict[str, str]:
    """The files the report shows, and the whole config: it is shown too."""
    output = Path(config.output)
    files = ("results.json", *PROFILE_FILES, "plan.json", "adapter/metrics.jsonl", "adapter/train.json")
    return {**{name: sha256_file(output / name) for name in files}, "config": part_hash(config)}


def part_hash(part: Any) -> str:
    """Hash of one part of the config."""
    return sha256_json(settings_dict(part))


def data_hash(config: RunConfig) -> str:
    """The dataset's own content hash, from its manifest.

    Raises: UserError when there is no manifest.
    """
    manifest = read_artefact(Path(config.output) / "data" / "manifest.json", "dataset_manifest")
    return manifest["content_hash"]


def base_hash(base: BaseConfig) -> str:
    """Hash of the base config and, for a model on this disk, of its files; a Hub id stands for itself."""
    folder = Path(SHIPPED_MODELS.get(base.model, base.model))
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    identities = {file.relative_to(folder).as_posix(): _file_identity(file) for file in files}
    return sha256_json({"config": settings_dict(base), "files": identities})


def _file_identity(file: Path) -> str:
    status = file.stat()
    if status.st_size > LARGEST_HASHED_BYTES:
        return f"{status.st_size} bytes, changed {status.st_mtime_ns}"
    return sha256_file(file)


STAGES = (
    Stage("data", ("data",), data_inputs),
    Stage("profile", PROFILE_FILES, profile_inputs),
    Stage("select", ("plan.json",), select_inputs),
    Stage("train", ("adapter",), train_inputs),
    Stage("eval", ("results.json",), eval_inputs),
    Stage("report", ("report.json", "report.html", "report.md"), report_inputs),
)


# What runs each stage. Modules are imported by name when needed: a run where all is kept imports no torch.
# finetune must not import eval.


def build_data(config: RunConfig) -> None:
    """Build the run's dataset."""
    build = importlib.import_module("data_recipes.build")
    place = str(SHIPPED_MODELS.get(config.base.model, config.base.model))
    options = build.BuildOptions(tokenizer=build.Tokenizer(config.base.model, place, config.base.revision))
    build.build_dataset(config.data.recipe, Path(config.output) / "data", config.data.overrides, options)


def _late(module: str, function: str) -> StageFunction:
    return lambda config: getattr(importlib.import_module(module), function)(config)


def _in_processes(stage: str, function: str) -> StageFunction:
    """The stage here, or in as many processes as the config asks for; their own messages stand above."""

    def run_here_or_there(config: RunConfig) -> object:
        launch = importlib.import_module("finetune.launch")
        if getattr(config, stage).n_processes > 1:
            return launch.run_in_processes(stage, config)
        return _late(launch.STAGE_MODULES[stage], function)(config)

    return run_here_or_there


STAGE_FUNCTIONS: dict[str, StageFunction] = {
    "data": build_data,
    "profile": _in_processes("profile", "profile_stage"),
    "select": _late("finetune.selecting.selection", "select_stage"),
    "train": _in_processes("train", "train_stage"),
    "eval": _late("eval.evaluate", "evaluate_stage"),
    "report": _late("eval.report", "report_stage"),
}


def result_table(report: Mapping[str, Any]) -> str:
    """Exact match of base and tuned with the interval of the difference, for target and general rows."""
    head = ("exact match", "base", "tuned", "difference", "95 % interval", "rows")
    lines: list[tuple[str, ...]] = [head]
    for group in ("target", "general"):
        score = report["exact_match"].get(group)
        if score is None or not score["n"]:
            lines.append((group, "-", "-", "-", "-", "0"))
            continue
        interval = f"{score['low']:+.3f} to {score['high']:+.3f}"
        means = (f"{score['base']:.3f}", f"{score['tuned']:.3f}", f"{score['difference']:+.3f}")
        lines.append((group, *means, interval, str(score["n"])))
    return "\n".join(
        f"{line[0]:<12}{line[1]:>7}{line[2]:>8}{line[3]:>12}{line[4]:>18}{line[5]:>7}" for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts run CONFIG [key=value ...]`: run all stages, print the result and the report's path.

    Raises: GateFailed when more was forgotten than `eval.gate` allows; all is written then.
    """
    purpose = "from a recipe to a report; stages whose inputs did not change are kept"
    parser = argparse.ArgumentParser(prog="local-experts run", description=purpose, allow_abbrev=False)
    parser.add_argument("config", metavar="CONFIG", help="as configs/runs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.steps=50")
    arguments = parser.parse_args(argv)
    config = load_run_config(arguments.config, arguments.overrides)
    report = run(config)
    print()
    print(result_table(json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))))
    print(f"\nreport: {report}")
    _late("eval.gate", "check_gate")(config)
    return 0
