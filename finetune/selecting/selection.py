"""Choose the experts to train from a routing profile.

Reads `<output>/profile.json` with its arrays, writes `<output>/plan.json`. Needs no model, and no torch.
Run it with `local-experts select --config configs/runs/quickstart.yaml`; `--explain` adds a line a layer.
The ways to choose are in finetune/selecting/choices.py, what a plan says of a choice in finetune/selecting/plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from finetune.config import RunConfig, config_parser, load_run_config
from finetune.profiling.profile import read_profile
from finetune.selecting.plan import build_plan
from finetune.selecting.plan_warnings import mean_coverage

if TYPE_CHECKING:  # it would import torch
    from finetune.moe import MoeLayer


def select_stage(config: RunConfig) -> Path:
    """Choose experts from the profile of a run and write plan.json.

    Raises:
        UserError: the profile is missing or not whole, or as `build_plan`.
    """
    output = Path(config.output)
    profile = read_profile(output / "profile.json")
    plan = build_plan(profile, config.select)
    path = output / "plan.json"
    write_artefact(path, "expert_plan", {"profile": sha256_file(output / "profile.json")}, plan)
    print("\n".join(summary(plan, config.lora.rank, path)))
    return path


def summary(plan: Mapping[str, Any], rank: int, path: Path) -> list[str]:
    """What was chosen, what it costs, what it covers and how sure it is, in a few lines."""
    n_layers = len(plan["hottest_quarter"])
    n_chosen = sum(len(ids) for ids in plan["experts"].values())
    n_parameters = plan["parameters_per_rank"] * rank
    lines = [
        f"select    {plan['method']}: {n_chosen} of {n_layers * plan['n_experts']} experts "
        f"in {sum(map(bool, plan['experts'].values()))} of {n_layers} layers, "
        f"{n_parameters:,} LoRA parameters at rank {rank} "
        f"({_megabytes(4 * n_parameters)}, in float32; the experts have {_megabytes(plan['expert_bytes'])}) "
        f"-> {path}"
    ]
    covered = [
        f"{share:.2f} of {', '.join(plan['languages'][role])} ({role})"
        for role, share in mean_coverage(plan).items()
    ]
    lines.append(f"routed to them (mean of the layers): {' and '.join(covered)}")
    if (stability := plan["stability"]) is not None:
        lines.append(
            f"{stability['n_replicates']} resamples of the rows: {stability['n_borderline']} experts are "
            f"borderline, mean Jaccard with the plan {stability['mean_jaccard']:.2f}"
        )
    lines += [f"warning: {warning}" for warning in plan["warnings"]]
    return [lines[0], *(f"          {line}" for line in lines[1:])]


def layer_table(plan: Mapping[str, Any]) -> list[str]:
    """One line a layer: experts chosen and borderline, coverage, how even routing is, mean overlap."""
    lines = ["layer  chosen  borderline  target  general  hottest quarter  overlap"]
    for name, hottest in plan["hottest_quarter"].items():
        shares = [plan["role_coverage"].get(role, {}).get(name) for role in ("target", "general")]
        overlaps = [by[name] for by in plan["overlap"].values()]
        shares += [hottest, sum(overlaps) / len(overlaps) if overlaps else None]
        target, general, hottest, overlap = ("-" if share is None else f"{share:.2f}" for share in shares)
        n_chosen, n_borderline = (len(plan[key].get(name, [])) for key in ("experts", "borderline"))
        lines.append(
            f"{name:>5}{n_chosen:>8}{n_borderline:>12}{target:>8}{general:>9}{hottest:>17}{overlap:>9}"
        )
    return lines


def read_plan(
    path: str | Path,
    model_fingerprint: str | None = None,
    model_layers: Sequence[MoeLayer] | None = None,
    tokenizer_fingerprint: str | None = None,
) -> dict[str, Any]:
    """Read plan.json and check it, against the model and tokenizer too as far as they are given.

    Raises:
        UserError: not a whole plan, one for another model or tokenizer, or one that names layers or experts
            there are not.
    """
    plan = read_artefact(path, "expert_plan")
    absent = sorted({"model_fingerprint", "n_experts", "experts"} - plan.keys())
    if absent:
        raise UserError(f"{path} lacks {', '.join(absent)}; make it again with `local-experts select`")
    # A plan made from a list of experts (`local-experts import`) has met no tokenizer.
    for what, expected in (("model", model_fingerprint), ("tokenizer", tokenizer_fingerprint)):
        found = plan.get(f"{what}_fingerprint")
        if expected is not None and found not in (expected, None):
            raise UserError(
                f"{path} was made for another {what} (fingerprint {found}, the loaded {what} has {expected}"
                "): set base.model to the one it was made for, or run `local-experts profile` and "
                "`local-experts select` again with this one"
            )
    problems = _plan_problems(plan, model_layers)
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"{path} cannot be used; make it again with `local-experts select`:\n  {listed}")
    return plan


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts select --config FILE [--explain] [key=value ...]`."""
    parser = config_parser("select", "choose the experts to train from the routing profile")
    parser.add_argument("--explain", action="store_true", help="also show each layer of the plan")
    arguments = parser.parse_intermixed_args(argv)
    path = select_stage(load_run_config(arguments.config, arguments.overrides))
    if arguments.explain:
        print("\n".join(layer_table(read_plan(path))))


def _plan_problems(plan: Mapping[str, Any], model_layers: Sequence[MoeLayer] | None) -> list[str]:
    """What is wrong with the choice of experts, one line each."""
    experts, n_experts = plan["experts"], plan["n_experts"]
    chooses_none = plan.get("method") == "none" and experts == {}  # for attention or shared experts alone
    if not chooses_none and (not isinstance(experts, dict) or not any(experts.values())):
        return ["it chooses no expert (only the method none may)"]
    if type(n_experts) is not int:
        return [f"n_experts is no whole number: {n_experts!r}"]
    problems = [f"layer {name} is no number" for name in experts if not name.isdecimal()]
    if model_layers is not None:
        known = {str(layer.index): layer.n_experts for layer in model_layers}
        strangers = [name for name in experts if name.isdecimal() and name not in known]
        problems += [
            f"layer {name} is no MoE layer of the model (it has {', '.join(known)})" for name in strangers
        ]
        if set(known.values()) != {n_experts}:
            problems.append(
                f"it counts {n_experts} experts a layer, the model has {sorted(set(known.values()))}"
            )
    for name, ids in experts.items():
        if not isinstance(ids, list) or not all(type(expert) is int for expert in ids):
            problems.append(f"layer {name}: not a list of whole numbers: {ids}")
        elif ids != sorted(set(ids)):
            problems.append(f"layer {name}: expert ids are not ascending, each once: {ids}")
        elif ids and not 0 <= ids[0] <= ids[-1] < n_experts:
            problems.append(f"layer {name}: an expert id outside 0..{n_experts - 1}: {ids}")
    return problems


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
