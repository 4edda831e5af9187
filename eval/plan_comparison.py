"""Compare the plans of an ablation: what each trained, cost, gained and forgot, and the choice minus others.

Reads plan.json, adapter/ and results.json of every plan's folder; writes nothing. Plans that were not trained
or evaluated alike are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, read_artefact
from eval.compare import paired_bootstrap
from eval.contestants.row_sets import require_same_rows
from finetune.adapters.adapter_folder import TENSORS_FILE
from finetune.config import LoraConfig, RunConfig

GROUPS = ("target", "general")
# What two plans must have in common to be compared, as recorded by the trainer.
SAME_TRAINING = ("row_order_sha256", "seed", "steps")

Outcomes = Mapping[str, float]  # row id -> 1.0 for a right answer


def compare_plans(config: RunConfig, configs: Mapping[str, RunConfig]) -> dict[str, Any]:
    """Body of ablation.json, from the files of every plan.

    Returns:
        "plans": an entry each, also for "none", the base itself; "comparisons": selected minus each other
        one on the same rows, for target and general rows; and what all plans have in common.

    Raises:
        UserError: plans trained on other rows, of another budget, or evaluated on other rows.
    """
    folders = {name: Path(plan.output) for name, plan in configs.items()}
    results = {name: read_artefact(path / "results.json", "eval_results") for name, path in folders.items()}
    trained = read_training(folders)
    if len({found["inputs"]["model"] for found in results.values()}) > 1:
        raise UserError("the base was replaced while the plans were trained: run again")
    layers = read_artefact(folders["selected"] / "profile.json", "routing_profile")["layers"]
    plans = {
        name: plan_entry(folders[name], trained[name], results[name], len(layers))
        | {"label": label(name, configs[name].lora), "seed": configs[name].select.seed}
        for name in configs
    }
    check_equal_budget(plans)
    plans["none"] = base_entry(plans["selected"]) | {"label": label("none", config.lora)}
    selected = results["selected"]
    exact_match = selected["metrics"]["exact_match"]
    if exact_match["target"] is None:
        raise UserError(
            "there are no held-out target rows, so that no gain can be compared: build other data"
        )
    return {
        "run": config.name,
        "languages": {group: sorted(exact_match["by_language"].get(group, ())) for group in GROUPS},
        "model": selected["settings"],
        "base_fingerprint": selected["inputs"]["model"],
        "lora": {
            "rank": config.lora.rank,
            "attention": config.lora.attention,
            "shared_experts": config.lora.shared_experts,
        },
        "training": {key: trained["selected"][key] for key in SAME_TRAINING},
        "plans": plans,
        "comparisons": {
            group: selected_minus_others(
                {name: outcomes(found, group) for name, found in results.items()},
                config.eval.n_bootstrap,
                config.seed,
            )
            for group in GROUPS
            if exact_match[group] is not None
        },
    }


def plan_entry(
    folder: Path, train: Mapping[str, Any], results: Mapping[str, Any], n_layers: int
) -> dict[str, Any]:
    """What one plan trained, cost and gained."""
    plan = read_artefact(folder / "plan.json", "expert_plan")
    n_by_layer = {layer: len(experts) for layer, experts in plan["experts"].items() if experts}
    exact_match = results["metrics"]["exact_match"]
    return {
        "method": plan["method"],
        "n_experts": sum(n_by_layer.values()),
        "n_experts_by_layer": n_by_layer,
        "n_experts_there_are": plan["n_experts"] * n_layers,
        "parameters": train["n_trainable"],
        "bytes": (folder / "adapter" / TENSORS_FILE).stat().st_size,
        "step_time_s": train["step_time_s"],
        "train_s": train["seconds"],
        **{group: exact_match[group] for group in GROUPS},
    }


def base_entry(selected: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that trains nothing: the base's score, and a difference of nothing by construction."""
    nothing = {"difference": 0.0, "low": 0.0, "high": 0.0}
    scores = {
        group: None
        if found is None
        else {"base": found["base"], "tuned": found["base"], "n": found["n"], **nothing}
        for group, found in ((group, selected[group]) for group in GROUPS)
    }
    return {
        **selected,
        "method": None,
        "n_experts": 0,
        "n_experts_by_layer": {},
        "parameters": 0,
        "bytes": 0,
        "step_time_s": None,
        "train_s": None,
        **scores,
    }


def outcomes(results: Mapping[str, Any], group: str) -> dict[str, float]:
    """Which rows of a group the tuned model answered rightly: row id -> 1.0 or 0.0."""
    return {row["id"]: row["tuned_exact"] for row in results["rows"] if row["group"] == group}


def selected_minus_others(
    of_plan: Mapping[str, Outcomes], n_resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Selected minus each other plan, and minus all random draws, with the interval over rows.

    "random" compares each row with the mean of the draws on it: its interval says what other rows would
    give, not other draws. What the draws gave one by one stands beside it.
    """
    draws = [found for name, found in of_plan.items() if name.startswith("random_")]
    pool = {row: float(np.mean([draw.get(row, np.nan) for draw in draws])) for row in draws[0]}
    others = {name: found for name, found in of_plan.items() if name != "selected"} | {"random": pool}
    return {
        name: difference(name, found, of_plan["selected"], n_resamples, seed)
        for name, found in others.items()
    }


def difference(
    name: str, other: Outcomes, selected: Outcomes, n_resamples: int, seed: int
) -> dict[str, float]:
    """Selected minus other on the same rows, with its paired 95 % interval.

    Raises:
        UserError: the two did not answer the same rows.
    """
    way_out = "delete the run's folder `ablation` and run again"
    require_same_rows("the plan selected", [*selected], f"the plan {name}", [*other], way_out)
    rows = sorted(selected)
    found = paired_bootstrap(
        np.array([other[row] for row in rows]), np.array([selected[row] for row in rows]), n_resamples, seed
    )
    numbers = found._asdict()
    return {"other": numbers.pop("base"), "selected": numbers.pop("tuned"), **numbers}


def read_training(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Each plan's train.json, by the plan's name; "selected" must be there.

    Raises:
        UserError: they were not trained on the same rows, in one order, from one start.
    """
    trained = {
        name: read_artefact(folder / "adapter" / "train.json", "train_result")
        for name, folder in folders.items()
    }
    expected = trained["selected"]
    for name, found in trained.items():
        if not found.keys() >= set(SAME_TRAINING):
            raise UserError(
                f"{folders[name] / 'adapter'} was trained by an earlier version, which did not record the "
                "order of the rows: delete it and run again"
            )
        differing = [key for key in SAME_TRAINING if found[key] != expected[key]]
        if found["inputs"]["data"] != expected["inputs"]["data"]:
            differing.append("data")
        if differing:
            raise UserError(
                f"{folders[name] / 'adapter'} was not trained as the selected plan was: other "
                f"{', '.join(differing)}; delete it and run again"
            )
    return trained


def check_equal_budget(plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError unless every random plan has as many experts a layer, and parameters, as the choice."""
    for name, plan in plans.items():
        for key in ("n_experts_by_layer", "parameters") if name.startswith("random_") else ():
            if plan[key] != plans["selected"][key]:
                raise UserError(
                    f"{name} has {key} {plan[key]}, the selected plan {plans['selected'][key]}: they are of "
                    "different budgets; delete the run's folder `ablation` and run again"
                )


def label(name: str, lora: LoraConfig) -> str:
    """A plan's name in tables and figures; `lora` is the plan's own."""
    if name.startswith("random_"):
        return f"random, draw {int(name.removeprefix('random_')) + 1}"
    dense = {"attention": lora.attention, "shared experts": lora.shared_experts}
    return {
        "none": "nothing (the base)",
        "selected": "chosen for the language",
        "all": "all experts",
        "attention_only": " and ".join(part for part, is_on in dense.items() if is_on) + " only",
    }[name]
