"""One run with several plans at the same budget: what did the choice of experts gain, cost and forget?

Reads a run config. The run itself is the plan "selected"; every other plan is trained and evaluated under
`<output>/ablation/<plan>/` on the same data and profile (linked, not made again), and what did not change is
kept, so that an ablation that was stopped goes on. Writes `<output>/ablation.json` and `ablation.svg`.

    local-experts ablate configs/runs/quickstart.yaml [key=value ...]
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_recipes.artefact import ARTEFACT_HEAD, UserError, read_artefact, sha256_file, write_artefact
from eval.ablation_figure import ablation_figure as ablation_figure
from eval.ablation_figure import write_svg
from eval.ablation_table import results_table, with_table
from eval.contestants.answer_cache import ANSWERS_FILE
from eval.plan_comparison import compare_plans, label, read_training
from finetune.config import LoraConfig, RunConfig, load_run_config
from finetune.run import STAGE_FUNCTIONS, STAGES, StageFunction, part_hash, run, run_stage

RESULTS = Path(__file__).parent / "results"
N_DRAWS = 3  # of random experts
CONTROLS = ("random", "all", "none")  # methods that choose nothing, so that they cannot be what is tested
SHARED_STAGES, OWN_STAGES = ("data", "profile"), ("select", "train", "eval")


def plan_configs(config: RunConfig) -> dict[str, RunConfig]:
    """The run of each plan that trains, by name; "selected" is the config itself.

    Raises:
        UserError: the config's own plan is one of the controls, or plans could stop at different steps.
    """
    if config.train.early_stop is not None:
        raise UserError(
            "train.early_stop would end each plan at a step of its own, but they are compared after the same "
            "rows: set train.early_stop=null, and train.steps to what one run needed"
        )
    select = config.select
    if select.method in CONTROLS:
        raise UserError(
            f"select.method={select.method} is one of the plans to compare with: set it to a choice that is "
            "to be tested, as select.method=token_share"
        )
    # As many in each layer as the choice has, whatever method made it.
    random = {
        f"random_{draw}": replace(select, method="random", match=select.method, seed=select.seed + draw)
        for draw in range(N_DRAWS)
    }
    changed = {
        **random,
        "all": replace(select, method="all"),
        "attention_only": replace(select, method="none"),
    }
    lora = {"attention_only": dense_lora(config.lora)}
    controls = {
        name: replace(
            config,
            output=f"{config.output}/ablation/{name}",
            select=changed[name],
            lora=lora.get(name, config.lora),
            eval=replace(config.eval, contestants={}, tasks=()),
        )
        for name in changed
    }
    return {"selected": config, **controls}


def dense_lora(lora: LoraConfig) -> LoraConfig:
    """What the run trains beside experts; attention where that is nothing."""
    return lora if lora.attention or lora.shared_experts else replace(lora, attention=True)


def ablate_stage(config: RunConfig, functions: Mapping[str, StageFunction] | None = None) -> Path:
    """Train and evaluate every plan, write `ablation.json` and `ablation.svg`, and return the former's path.

    `functions` are the stages, as of `finetune.run.run`.

    Raises:
        UserError: as `plan_configs` and the stages; plans that cannot be compared.
    """
    functions = functions or STAGE_FUNCTIONS
    configs = plan_configs(config)
    done: dict[str, Path] = {}
    for name, plan in configs.items():
        print(f"\n{label(name, plan.lora)}")
        done[name] = Path(plan.output)
        if name == "selected":
            run(without_missing_plans(plan), functions)
        else:
            share(done["selected"], done[name])
            for stage in STAGES:
                if stage.name in OWN_STAGES:
                    run_stage(stage, plan, functions[stage.name])
        read_training(done)  # now, before more is trained in vain
    if config.eval.contestants:  # those among the plans are there only now
        run(config, functions)
    return write_ablation(Path(config.output) / "ablation", config, compare_plans(config, configs))


def without_missing_plans(config: RunConfig) -> RunConfig:
    """The run as it can be evaluated before the plans are trained that it names as contestants."""
    named = config.eval.contestants.values()
    if all(one.place(config.output).is_dir() for one in named if one.plan):
        return config
    return replace(config, eval=replace(config.eval, contestants={}, tasks=()))


def share(source: Path, folder: Path) -> None:
    """Let a plan's folder read data, profile and the answers of the run's folder, by relative links.

    Raises:
        UserError: something else is there, or the file system knows no links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = (output for stage in STAGES if stage.name in SHARED_STAGES for output in stage.outputs)
    for name in (*outputs, ANSWERS_FILE):
        link, target = folder / name, os.path.relpath(source / name, folder)
        if link.is_symlink() and os.readlink(link) == target:
            continue
        try:
            link.symlink_to(target)
        except OSError as error:
            raise UserError(
                f"cannot link {link} to {source / name} ({error.strerror}): remove what is there, or choose "
                "an output folder on a file system with links"
            ) from error


def write_ablation(place: Path, config: RunConfig, ablation: Mapping[str, Any]) -> Path:
    """Write `<place>.json` and, where there are general rows to forget, the figure `<place>.svg`."""
    path = place.with_name(place.name + ".json")
    results = {name: Path(plan.output) / "results.json" for name, plan in plan_configs(config).items()}
    inputs = {f"{name}/results.json": sha256_file(file) for name, file in results.items()}
    write_artefact(path, "ablation", {"config": part_hash(config), **inputs}, dict(ablation))
    if ablation["plans"]["none"]["general"] is not None:
        write_svg(path.with_suffix(".svg"), ablation_figure(ablation["plans"]))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts ablate CONFIG [key=value ...] [--readme FILE] [--save]`."""
    parser = argparse.ArgumentParser(
        prog="local-experts ablate",
        description="the run with chosen, random and all experts, attention alone, and nothing trained",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="as configs/runs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.steps=50")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table between its markers")
    parser.add_argument(
        "--save", action="store_true", help="keep numbers and figure in eval/results, for the README"
    )
    arguments = parser.parse_intermixed_args(argv)
    config = load_run_config(arguments.config, arguments.overrides)
    path = ablate_stage(config)
    ablation = read_artefact(path, "ablation")
    if arguments.save:
        body = {key: value for key, value in ablation.items() if key not in ARTEFACT_HEAD}
        write_ablation(RESULTS / f"{config.name}_ablation", config, body)
    table = results_table(ablation)
    if arguments.readme:
        readme = with_table(arguments.readme.read_text(encoding="utf-8"), table)
        arguments.readme.write_text(readme, encoding="utf-8")
    print(f"\n{table}\n\n{path}")
    return 0
