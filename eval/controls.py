"""The same run with other experts: chosen, random at the same budget, all, and no training, side by side.

Reads a run config; runs it once a plan into `<output>-controls/<plan>/` (what did not change is kept) and
writes `eval/results/<name>_controls.json` and the table between the markers of README.md.

    local-experts controls configs/runs/quickstart.yaml --save --readme README.md
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from data_recipes.languages import language
from eval.compare import paired_bootstrap
from finetune.config import RunConfig, load_run_config
from finetune.run import run

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
# Name in the table, and the changes to `select` that make it.
PLANS: dict[str, dict[str, Any]] = {
    "chosen for the language": {},
    "random, same number a layer": {"method": "random", "match": True},
    "all experts": {"method": "all"},
}


def run_controls(config: RunConfig) -> dict[str, Any]:
    """Run the config once a plan and return the comparison: one entry a plan, and chosen against random.

    Raises:
        UserError: as the stages; results of different rows.
    """
    plans, outcomes = {}, {}
    for name, changes in PLANS.items():
        folder = Path(f"{config.output}-controls") / name.split(",")[0].replace(" ", "_")
        print(f"\n{name}")
        run(replace(config, output=str(folder), select=replace(config.select, **changes)))
        results = read_artefact(folder / "results.json", "eval_results")
        plans[name] = plan_entry(folder, results)
        outcomes[name] = {
            row["id"]: row["tuned_exact"] for row in results["rows"] if row["group"] == "target"
        }
    chosen, random, _ = outcomes.values()
    return {
        "run": config.name,
        "languages": sorted(results["metrics"]["exact_match"]["by_language"]["target"]),
        "model": results["settings"],
        "trains_attention": config.lora.attention,
        "base_fingerprint": results["inputs"]["model"],
        "plans": plans,
        "chosen_minus_random": difference(random, chosen, config.eval.n_bootstrap, config.seed),
    }


def plan_entry(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one plan cost and gained."""
    plan = read_artefact(folder / "plan.json", "expert_plan")
    train = read_artefact(folder / "adapter" / "train.json", "train_result")
    exact_match = results["metrics"]["exact_match"]
    return {
        "n_experts": sum(len(ids) for ids in plan["experts"].values()),
        "n_experts_there_are": plan["n_experts"] * len(plan["experts"]),
        "n_trainable": train["n_trainable"],
        "steps": train["steps"],
        "target": exact_match["target"],
        "general": exact_match["general"],
        "results_sha256": sha256_file(folder / "results.json"),
    }


def difference(
    first: Mapping[str, float], second: Mapping[str, float], n_resamples: int, seed: int
) -> dict[str, float]:
    """Return second minus first on the same target rows, with its paired 95 % interval.

    Raises:
        UserError: the two did not answer the same rows.
    """
    if first.keys() != second.keys():
        raise UserError(
            "two plans were evaluated on different rows: delete the controls' folder and run again"
        )
    ids = sorted(first)
    found = paired_bootstrap(
        np.array([first[i] for i in ids]), np.array([second[i] for i in ids]), n_resamples, seed
    )
    return found._asdict()


def results_table(controls: Mapping[str, Any]) -> str:
    """Return the table as Markdown, never a mean alone."""
    names = ", ".join(language(code).name for code in controls["languages"])
    some = next(iter(controls["plans"].values()))
    lines = [
        f"Exact match on held-out rows, {names}, base `{controls['model']['model']}` "
        f"({controls['model']['n_parameters'] / 1e6:.1f} M parameters), {some['steps']} steps. "
        "Difference to the base with its 95 % paired-bootstrap interval; "
        f"n = {some['target']['n']} target rows, {some['general']['n']} general rows (English and Hindi: "
        "what must not be forgotten)."
        + (" LoRA on attention is trained with each of them." if controls["trains_attention"] else ""),
        "",
        "| trained | experts | parameters | target | general |",
        "|---|---|---|---|---|",
        f"| nothing (the base) | 0 | 0 | {some['target']['base']:.3f} | {some['general']['base']:.3f} |",
    ]
    for name in (name for name in PLANS if name in controls["plans"]):  # a file keeps its keys sorted
        plan = controls["plans"][name]
        cells = [
            f"{plan[group]['tuned']:.3f} ({plan[group]['difference']:+.3f}, "
            f"{plan[group]['low']:+.3f} to {plan[group]['high']:+.3f})"
            for group in ("target", "general")
        ]
        share = f"{plan['n_experts']} of {plan['n_experts_there_are']}"
        lines.append(f"| {name} | {share} | {plan['n_trainable']:,} | {cells[0]} | {cells[1]} |")
    found = controls["chosen_minus_random"]
    lines += [
        "",
        f"Chosen minus random experts on the target rows: {found['difference']:+.3f} "
        f"({found['low']:+.3f} to {found['high']:+.3f}). One seed each. A small model proves the mechanics, "
        "not the quality at 744 B parameters.",
    ]
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    """Return a README with the table between its markers.

    Raises:
        UserError: the markers are not there.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"the README has no place for the table: put {BEGIN} and {END} on lines of their own")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts controls CONFIG [key=value ...] [--readme FILE]`."""
    parser = argparse.ArgumentParser(
        prog="local-experts controls", description="the run with chosen, random, all and no experts trained"
    )
    parser.add_argument("config", metavar="CONFIG", help="as configs/runs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train.steps=50")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table between its markers")
    parser.add_argument(
        "--save", action="store_true", help="keep the numbers in eval/results, for the README"
    )
    arguments = parser.parse_intermixed_args(argv)
    config = load_run_config(arguments.config, arguments.overrides)
    controls = run_controls(config)
    place = RESULTS if arguments.save else Path(f"{config.output}-controls")
    inputs = {"config": sha256_file(arguments.config)}
    write_artefact(place / f"{config.name}_controls.json", "controls", inputs, controls)
    table = results_table(controls)
    if arguments.readme:
        readme = with_table(arguments.readme.read_text(encoding="utf-8"), table)
        arguments.readme.write_text(readme, encoding="utf-8")
    print(f"\n{table}")
    return 0
