"""Choose the experts to train from a routing profile.

Reads `<output>/profile.json`, writes `<output>/plan.json`. Needs no model.
Run it with `local-experts select --config configs/runs/quickstart.yaml`.

Legend: L MoE layers, E experts. Each choice is one sorted list of expert ids a layer.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, read_artefact, sha256_file, write_artefact
from finetune.config import RunConfig, SelectConfig, config_from_arguments
from finetune.moe import MoeLayer

HOTTEST_PART = 0.25  # of a layer's experts
FLAT_SHARE = 0.35  # of the target tokens on the hottest part; even routing gives HOTTEST_PART


def expert_shares(mass_LE: np.ndarray) -> np.ndarray:
    """Share of each expert in what its layer routed: rows are layers and sum to 1 over the experts (axis 1).

    Raises:
        UserError: a row with nothing routed, or a value that is negative or not finite.
    """
    mass_LE = np.asarray(mass_LE)
    total_L1 = mass_LE.sum(axis=1, keepdims=True)
    if not np.isfinite(mass_LE).all() or (mass_LE < 0).any() or (total_L1 <= 0).any():
        raise UserError("routing counts or gate mass are negative, not finite, or all zero in a layer")
    share_LE = mass_LE / total_L1
    assert np.allclose(share_LE.sum(axis=1), 1), "rows are layers and sum to 1 over the experts"
    return share_LE


def token_share(counts_LE: np.ndarray, share: float) -> list[list[int]]:
    """ESFT-Token (arXiv 2407.01906): per layer the smallest set of experts with `share` of its routed tokens.

    Rows of `counts_LE` are layers; shares are taken over experts (axis 1). On a tie the lower id is chosen.

    Raises:
        UserError: `share` outside (0, 1], or a layer that routed nothing.
    """
    return _smallest_sets(counts_LE, share)


def gate_mass(mass_LE: np.ndarray, share: float) -> list[list[int]]:
    """ESFT-Gate (arXiv 2407.01906): per layer the smallest set of experts with `share` of its gate mass.

    Rows of `mass_LE` are layers; shares are taken over experts (axis 1). On a tie the lower id is chosen.

    Raises:
        UserError: `share` outside (0, 1], or a layer that routed nothing.
    """
    return _smallest_sets(mass_LE, share)


def random_experts(n_per_layer: Sequence[int], n_experts: int, seed: int) -> list[list[int]]:
    """So many experts a layer as `n_per_layer` says, drawn at random: the control for any other choice."""
    generator = np.random.default_rng(seed)
    return [sorted(generator.choice(n_experts, size=n, replace=False).tolist()) for n in n_per_layer]


def all_experts(n_layers: int, n_experts: int) -> list[list[int]]:
    """Every expert of every layer."""
    return [list(range(n_experts)) for _ in range(n_layers)]


def coverage(counts_LE: np.ndarray, chosen: Sequence[Sequence[int]]) -> list[float]:
    """Per layer, the share of routed tokens (over experts, axis 1) that hit a chosen expert."""
    share_LE = expert_shares(counts_LE)
    return [float(share_E[list(ids)].sum()) for share_E, ids in zip(share_LE, chosen, strict=True)]


def hottest_share(counts_LE: np.ndarray) -> list[float]:
    """Per layer, the share of routed tokens on the hottest quarter of its experts (rounded up)."""
    n_hottest = math.ceil(HOTTEST_PART * counts_LE.shape[1])
    hottest_LE = np.sort(expert_shares(counts_LE), axis=1)[:, ::-1][:, :n_hottest]
    return hottest_LE.sum(axis=1).tolist()


def build_plan(
    profile: Mapping[str, Any], select: SelectConfig, model_fingerprint: str | None = None
) -> dict[str, Any]:
    """Body of plan.json: the experts chosen for the groups of role "target", and their share of each group.

    Several target groups are added up, so each weighs as much as it has tokens.

    Raises:
        UserError: the profile is of another model than `model_fingerprint` (when given), has no target group,
            or shows no routed token; `select.share` outside (0, 1].
    """
    if model_fingerprint is not None:
        _require_model(profile["model_fingerprint"], model_fingerprint, "the profile", "profile")
    groups = profile["groups"]
    targets = [group for group in groups.values() if group["role"] == "target"]
    if not targets:
        raise UserError(
            f"the profile has no target group (it has {', '.join(groups) or 'none'}): add target rows"
        )
    counts_LE = np.sum([group["counts"] for group in targets], axis=0)
    seen = np.flatnonzero(counts_LE.sum(axis=1)).tolist()
    if not seen:
        raise UserError("the profile shows no token of a target group in any layer: make it again")
    mass_LE = np.sum([group["gate_mass"] for group in targets], axis=0)
    chosen = _choose(select, counts_LE[seen], mass_LE[seen])
    names = [str(profile["layers"][position]) for position in seen]
    hottest = dict(zip(names, hottest_share(counts_LE[seen]), strict=True))
    unseen = [layer for position, layer in enumerate(profile["layers"]) if position not in seen]
    per_rank = [profile["parameters_per_rank"][position] for position in seen]
    return {
        "model_fingerprint": profile["model_fingerprint"],
        "method": select.method,
        "share": select.share,
        "seed": select.seed,
        "n_experts": profile["n_experts"],
        "experts": {} if select.method == "none" else dict(zip(names, chosen, strict=True)),
        "coverage": {
            name: dict(zip(names, coverage(np.array(group["counts"])[seen], chosen), strict=True))
            for name, group in groups.items()
        },
        "hottest_quarter": hottest,
        "parameters_per_rank": sum(n * len(ids) for n, ids in zip(per_rank, chosen, strict=True)),
        "warnings": _warnings(unseen, hottest),
    }


def select_stage(config: RunConfig) -> Path:
    """Choose experts from the profile of a run and write plan.json.

    Raises:
        UserError: the profile is missing or not whole, or as `build_plan`.
    """
    output = Path(config.output)
    profile = read_artefact(output / "profile.json", "routing_profile")
    plan = build_plan(profile, config.select)
    path = output / "plan.json"
    write_artefact(path, "expert_plan", {"profile": sha256_file(output / "profile.json")}, plan)
    sizes = [len(ids) for ids in plan["experts"].values()]
    n_parameters = plan["parameters_per_rank"] * config.lora.rank
    print(
        f"select    {plan['method']}: {sum(sizes)} of {len(sizes) * plan['n_experts']} experts "
        f"in {len(sizes)} layers, {n_parameters:,} LoRA parameters at rank {config.lora.rank} -> {path}"
    )
    for warning in plan["warnings"]:
        print(f"          warning: {warning}")
    return path


def read_plan(
    path: str | Path, model_fingerprint: str | None = None, model_layers: Sequence[MoeLayer] | None = None
) -> dict[str, Any]:
    """Read plan.json and check it, against the model too when its fingerprint or layers are given.

    Raises:
        UserError: not a whole plan, one for another model, or one that names layers or experts there are not.
    """
    plan = read_artefact(path, "expert_plan")
    absent = sorted({"model_fingerprint", "n_experts", "experts"} - plan.keys())
    if absent:
        raise UserError(f"{path} lacks {', '.join(absent)}; make it again with `local-experts select`")
    if model_fingerprint is not None:
        _require_model(plan["model_fingerprint"], model_fingerprint, str(path), "select")
    problems = _plan_problems(plan, model_layers)
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(f"{path} cannot be used; make it again with `local-experts select`:\n  {listed}")
    return plan


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts select --config FILE [key=value ...]`."""
    select_stage(
        config_from_arguments(argv, "select", "choose the experts to train from the routing profile")
    )


def _smallest_sets(mass_LE: np.ndarray, share: float) -> list[list[int]]:
    if not 0 < share <= 1:
        raise UserError(f"select.share is {share}: it must be above 0 and at most 1")
    expert_shares(mass_LE)  # refuses what has no shares
    order_LE = np.argsort(-mass_LE, axis=1, kind="stable")  # stable: the lower id first on a tie
    # Sum first, divide last: whole counts stay exact, so 3 of 10 tokens do reach a share of 0.3.
    reached_LE = np.cumsum(np.take_along_axis(mass_LE, order_LE, axis=1), axis=1)
    reached_LE = reached_LE / reached_LE[:, -1:]
    n_chosen_L = (reached_LE < share).sum(axis=1) + 1
    return [sorted(order_E[:n].tolist()) for order_E, n in zip(order_LE, n_chosen_L, strict=True)]


def _choose(select: SelectConfig, counts_LE: np.ndarray, mass_LE: np.ndarray) -> list[list[int]]:
    n_layers, n_experts = counts_LE.shape
    if select.method == "gate_mass":
        return gate_mass(mass_LE, select.share)
    if select.method == "all":
        return all_experts(n_layers, n_experts)
    if select.method == "none":
        return [[] for _ in range(n_layers)]
    by_tokens = token_share(counts_LE, select.share)
    if select.method == "token_share":
        return by_tokens
    n_fixed = math.ceil(select.share * n_experts)
    n_per_layer = [len(ids) if select.match else n_fixed for ids in by_tokens]
    return random_experts(n_per_layer, n_experts, select.seed)


def _warnings(unseen: Sequence[int], hottest: Mapping[str, float]) -> list[str]:
    warnings = []
    if unseen:
        listed = ", ".join(map(str, unseen))
        warnings.append(f"no target token reached layer {listed}: no expert is chosen there")
    flat = {name: value for name, value in hottest.items() if value < FLAT_SHARE}
    if flat:
        listed = ", ".join(f"{name} ({value:.2f})" for name, value in flat.items())
        warnings.append(
            f"routing is flat: the hottest quarter of the experts takes below {FLAT_SHARE} of the target "
            f"tokens in layer {listed}; chosen experts may gain no more than random ones: compare them"
        )
    return warnings


def _require_model(found: str, expected: str, what: str, stage: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} was made for another model (fingerprint {found}, the loaded model has {expected}): "
            f"set base.model to the model it was made for, or run `local-experts {stage}` again with this one"
        )


def _plan_problems(plan: Mapping[str, Any], model_layers: Sequence[MoeLayer] | None) -> list[str]:
    """What is wrong with the choice of experts, one line each."""
    experts, n_experts = plan["experts"], plan["n_experts"]
    if plan.get("method") == "none" and experts == {}:
        return []
    if not isinstance(experts, dict) or not any(experts.values()):
        return ["it chooses no expert"]
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
