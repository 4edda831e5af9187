"""The report of a run: `report.html`, one file that needs nothing else, `report.md`, and `report.json`.

Reads `results.json`, the routing profile and `adapter/` (plan, train result, metrics) of the run's folder.
All three show the same tables, and each number names its place in `results.json`, where its rows are.

    local-experts report --config configs/runs/quickstart.yaml
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact, write_text
from data_recipes.settings import settings_dict
from eval.figures import language_name
from eval.gate import gate_losses
from eval.page import render_page
from eval.report_markdown import render_markdown
from eval.report_tables import as_json, result_tables
from eval.samples import choose_samples, make_samples
from eval.significance import GAIN, LOSS, NO_DIFFERENCE, TOO_FEW
from finetune.config import RunConfig, config_from_arguments
from finetune.eval_options import GateConfig
from finetune.profiling.profile import read_profile

METRICS = ("exact_match", "chrf", "bits_per_byte", "script_share")
MAX_PAGE_BYTES = 2_000_000
BOTH = ("base", "tuned")
MOST_NAMED_LANGUAGES = 6  # in one sentence
SMALL_MODEL_PARAMETERS = 1_000_000_000


def build_report(
    config: RunConfig, results: Mapping[str, Any], plan: Mapping[str, Any], train: Mapping[str, Any]
) -> dict[str, Any]:
    """Body of report.json: every metric, the finding in words, all tables, cost, and what was trained.

    Raises:
        UserError: the gate lists a language without rows.
    """
    metrics, costs = results["metrics"], results.get("cost") or {}
    slices = {
        by: {metric: metrics[metric][by] for metric in METRICS}
        for by in ("by_task", "by_language", "by_kind")
    }
    totals = {
        metric: {group: metrics[metric][group] for group in ("target", "general")} for metric in METRICS
    }
    return {
        **totals,
        **slices,
        "name": config.name,
        "finding": finding(metrics["exact_match"]),
        "gate": gate_outcome(metrics, config.eval.gate),
        "tables": as_json(result_tables(results)),
        "cost": dict(sorted(costs.items(), key=lambda item: item[0] not in BOTH)),
        "model": {**results["settings"], "note": model_note(results["settings"])},
        "plan": plan_summary(plan),
        "training": {key: train[key] for key in _TRAINING}
        | {"rank": config.lora.rank, "attention": config.lora.attention},
        "signatures": results["signatures"],
        "config": shown_config(config),
    }


def shown_config(config: RunConfig) -> dict[str, Any]:
    """The options of the run; of a contestant who it is, not at which address: a report is passed on."""
    shown = settings_dict(config)
    others = config.eval.contestants
    shown["eval"]["contestants"] = {name: {"kind": one.kind, **one.shown()} for name, one in others.items()}
    return shown


def finding(exact_match: Mapping[str, Any]) -> dict[str, str]:
    """One sentence for target and one for general rows, each with its interval and number of rows."""
    changes = {
        GAIN: "rose",
        LOSS: "fell",
        NO_DIFFERENCE: "did not change measurably:",
        TOO_FEW: "shows no change that so few rows can tell from chance:",
    }
    sentences = {}
    for group in ("target", "general"):
        found = exact_match[group]
        if found is None:
            sentences[group] = f"There are no held-out {group} rows, so nothing is known about them."
            continue
        codes = exact_match["by_language"][group]
        names = ", ".join(language_name(code) for code in codes)
        names = names if len(codes) <= MOST_NAMED_LANGUAGES else f"{len(codes)} languages"
        sentences[group] = (
            f"On {found['n']:,} held-out {group} rows ({names}) exact match {changes[found['verdict']]} "
            f"from {found['base']:.3f} to {found['tuned']:.3f}, difference {found['difference']:+.3f} "
            f"(95 % interval {found['low']:+.3f} to {found['high']:+.3f})."
        )
    return sentences


def gate_outcome(metrics: Mapping[str, Any], gate: GateConfig | None) -> dict[str, Any] | None:
    """What the forgetting gate found, language by language; None without one."""
    if gate is None:
        return None
    losses = gate_losses(metrics, gate)
    return {
        "passed": not any(one.is_too_much for one in losses),
        "metric": gate.metric,
        "max_loss": gate.max_loss,
        "by": gate.by,
        "losses": [one._asdict() for one in losses],
    }


def model_note(settings: Mapping[str, Any]) -> str:
    """What the model is, and what its numbers do not show."""
    millions = settings["n_parameters"] / 1e6
    size = f"{millions / 1e3:,.1f} B" if millions >= 1e3 else f"{millions:,.1f} M"
    what = f"{settings['model']}: {settings['model_type']}, {size} parameters, {settings['dtype']}."
    if settings["n_parameters"] < SMALL_MODEL_PARAMETERS:
        return (
            f"{what} A model of this size shows that the method works from end to end; "
            "it says nothing about quality at the 744 B parameters of GLM-5.2."
        )
    return f"{what} The numbers hold for this model, these tasks and these rows."


def plan_summary(plan: Mapping[str, Any]) -> dict[str, Any]:
    """How many experts of which layers were tuned, and what share of each language's tokens they see."""
    n_by_layer = {layer: len(experts) for layer, experts in plan["experts"].items()}
    return {
        "method": plan["method"],
        "share": plan["share"],
        "seed": plan["seed"],
        "n_chosen": sum(n_by_layer.values()),
        "n_experts": plan["n_experts"] * len(n_by_layer),
        "n_chosen_by_layer": n_by_layer,
        "mean_coverage": {group: float(np.mean(list(by.values()))) for group, by in plan["coverage"].items()},
        "warnings": plan["warnings"],
    }


def report_stage(config: RunConfig) -> Path:
    """Write `report.json`, `report.md` and `report.html` of a run; returns the path of the page.

    Raises:
        UserError: a result is missing, damaged or of another adapter, or the page would be too large.
    """
    folder = Path(config.output)
    adapter = folder / "adapter"
    results = read_artefact(folder / "results.json", "eval_results")
    profile = read_profile(folder / "profile.json")
    profile_sha256 = sha256_file(folder / "profile.json")
    plan = read_artefact(adapter / "plan.json", "expert_plan")
    train = read_artefact(adapter / "train.json", "train_result")
    if results["inputs"]["adapter"] != sha256_file(adapter / "adapter_config.json"):
        raise UserError(
            f"{folder / 'results.json'} was made with another adapter: run `local-experts eval` again"
        )
    if plan["inputs"].get("profile", profile_sha256) != profile_sha256:
        raise UserError(
            f"{folder / 'profile.json'} is not the profile that {adapter / 'plan.json'} was chosen from: "
            "run `local-experts select` and `local-experts train` again"
        )
    paths = (
        folder / "results.json",
        folder / "profile.json",
        *(adapter / n for n in ("plan.json", "train.json")),
    )
    inputs = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
    report = build_report(config, results, plan, train)
    shown = {**report, "inputs": inputs, "versions": results["versions"]}
    tables = result_tables(results)
    chosen = choose_samples(results["rows"], config.eval.samples, config.seed)
    samples = make_samples(results, chosen)
    page = render_page(shown, tables, samples, profile, plan, _read_metrics(adapter / "metrics.jsonl"))
    write_artefact(folder / "report.json", "report", inputs, report)
    write_text(folder / "report.md", render_markdown(shown, tables, samples))
    if len(page.encode("utf-8")) > MAX_PAGE_BYTES:
        raise UserError(
            f"report.html would be larger than {MAX_PAGE_BYTES:,} bytes: lower eval.samples, or name fewer "
            "contestants or tasks; report.json and report.md are written"
        )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts report`: write the report, print the finding and the path."""
    config = config_from_arguments(argv, "report", "Write report.html, .md and .json of a run.")
    path = report_stage(config)
    found = read_artefact(path.with_suffix(".json"), "report")["finding"]
    print(f"{found['target']}\n{found['general']}\n{path}")
    return 0


_TRAINING = ("steps", "seconds", "tokens", "first_loss", "last_loss", "n_trainable", "tokens_per_s")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the training metrics {path} ({error}): train again") from error
