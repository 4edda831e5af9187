"""The body of plan.json from a routing profile: which experts, what is routed to them, how sure that is.

Reads and writes nothing; the stage is in finetune.selecting.selection.

Legend: O languages, R bootstrap replicates, L MoE layers that the target reached, E experts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np

from data_recipes.artefact import UserError
from data_recipes.settings import settings_dict
from finetune.config import CountingMethod, SelectConfig
from finetune.profiling.profile import Profile
from finetune.selecting import choices
from finetune.selecting.plan_warnings import plan_warnings
from finetune.selecting.routing_measures import coverage, gini, hottest_share, jaccard, touched_tokens

# Meinshausen and Buehlmann (2010) call stable what more than 0.6 to 0.9 of the resamples choose. Above the
# strictest of these an expert is surely in, below its mirror image surely out, and borderline between.
BORDERLINE = (0.1, 0.9)

COUNTING_METHODS = get_args(CountingMethod)  # the others choose the same whatever the language


class Routed(NamedTuple):
    """The part of a profile that decides: kinds and sources asked for, in the layers the target reached."""

    rows: list[int]  # of the profile, one for each of the L layers
    roles: dict[str, list[str]]  # target, general -> languages
    counts: dict[str, np.ndarray]  # language -> [L, E]
    mass: dict[str, np.ndarray]  # language -> [L, E]


class Case(NamedTuple):
    """What one choice is made from, each [..., L, E]; `general` are counts, None where there are none."""

    counts: np.ndarray
    mass: np.ndarray
    general: np.ndarray | None


def build_plan(profile: Profile, select: SelectConfig) -> dict[str, Any]:
    """Body of plan.json: the experts chosen for the target languages together, and what that choice is worth.

    Several target languages are added up, so each weighs as much as it has tokens. By layer, all over its
    experts: `coverage` is the share of a language's routed rows on chosen experts, `role_coverage` that of a
    role; `touched_tokens` bounds the share of tokens with at least one chosen expert; `skew` is the Gini
    coefficient of a language's routing; `overlap` the Jaccard of this choice with what the method would take
    for another language; `probability` the share of replicates that choose an expert, for each where it is
    between 0 and 1 and each chosen one.

    Raises:
        UserError: the profile has no target, or values that no router gives; `select` asks for more than
            there is, or for what the profile does not have; contrast finds no expert.
    """
    select = replace(select, kinds=select.kinds or profile.head["kinds"])
    routed = _routed(profile, select)
    names = [str(profile.layers[row]) for row in routed.rows]
    parameters_L, bytes_L, cost_L = _costs(profile, routed.rows, select.budget_unit)
    chosen_LE = _choose(select, _role_case(routed.roles, routed.counts, routed.mass), cost_L)
    if not chosen_LE.any() and select.method != "none":
        raise UserError(
            f"select.method={select.method} finds no expert that the target uses more than the general "
            f"languages do, with at least select.floor={select.floor} times even traffic: lower the floor, "
            "or take another method"
        )
    n_chosen_L = chosen_LE.sum(axis=1)
    ids = dict(zip(names, choices.expert_ids(chosen_LE), strict=True))
    plan = {
        **settings_dict(select),
        "model_fingerprint": profile.head["model_fingerprint"],
        "tokenizer_fingerprint": profile.head["tokenizer_fingerprint"],
        "languages": routed.roles,
        "n_experts": profile.head["n_experts"],
        "experts": {} if select.method == "none" else ids,
        "parameters_per_rank": int(parameters_L @ n_chosen_L),
        "expert_bytes": int(bytes_L @ n_chosen_L),
        **_coverages(names, routed, chosen_LE, profile.head["top_k"]),
        "overlap": _by_layer(names, _overlaps(select, routed, chosen_LE, cost_L)),
        **_stability(profile, select, routed, chosen_LE, cost_L),
    }
    return plan | {"warnings": plan_warnings(profile, plan)}


def _routed(profile: Profile, select: SelectConfig) -> Routed:
    """What `select` asks for; a language without any such token is left out, but for targets at least one."""
    _require_possible(profile)
    kinds, sources = select.kinds or "all", select.sources or None
    if unknown := sorted(set(select.sources) - {cell.source for cell in profile.cells}):
        there = ", ".join(sorted({repr(cell.source) for cell in profile.cells}))
        raise UserError(f"select.sources names {', '.join(unknown)}: the profile has {there}")
    if not (targets := profile.languages("target")):
        there = ", ".join(profile.languages()) or "none"
        raise UserError(f"the profile has no target language (it has {there}): add target rows")
    n_LE = profile.counts(targets, kinds, sources)
    rows = np.flatnonzero(n_LE.sum(axis=1)).tolist()
    if not rows:
        raise UserError("the profile shows no token of a target language in any layer: make it again")
    found = {
        cell.language
        for cell, counts_LE in zip(profile.cells, profile.counts_CLE, strict=True)
        if kinds in ("all", cell.kind) and (sources is None or cell.source in sources) and counts_LE.any()
    }
    roles = {
        role: [name for name in profile.languages(role) if name in found] for role in ("target", "general")
    }
    counts = {name: profile.counts([name], kinds, sources)[rows] for name in sorted(found)}
    mass = {name: profile.gate_mass([name], kinds, sources)[rows] for name in sorted(found)}
    for name, counts_LE in counts.items():
        if not counts_LE.any(axis=1).all():
            layer = profile.layers[rows[int(np.argmin(counts_LE.any(axis=1)))]]
            raise UserError(
                f"the profile is not whole: no token of {name} reached layer {layer}, where the target has "
                "some; run `local-experts profile` again"
            )
    return Routed(rows, roles, counts, mass)


def _require_possible(profile: Profile) -> None:
    """Refuse values that no router gives; a replicate's are refused where it is used."""
    for what, values_CLE in (("count", profile.counts_CLE), ("gate mass", profile.mass_CLE)):
        is_wrong_CLE = ~np.isfinite(values_CLE) | (values_CLE < 0)
        for cell, row, expert in np.argwhere(is_wrong_CLE)[:1]:
            raise UserError(
                f"the profile's {what} of {profile.cells[cell].language} for expert {expert} of layer "
                f"{profile.layers[row]} is {values_CLE[cell, row, expert]}: it must be finite and not "
                "negative; run `local-experts profile` again"
            )


def _costs(
    profile: Profile, rows: Sequence[int], budget_unit: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one expert of each layer costs, [L]: LoRA parameters at rank 1, bytes of weights, budget units."""
    parameters_L = np.array(profile.head["parameters_per_rank"])[rows]
    bytes_L = np.array(profile.head["expert_bytes"])[rows]
    cost_L = {"experts": np.ones_like(bytes_L), "parameters": parameters_L, "bytes": bytes_L}[budget_unit]
    return parameters_L, bytes_L, cost_L


def _choose(select: SelectConfig, case: Case, cost_L: np.ndarray) -> np.ndarray:
    """What the method chooses in each case: boolean [..., L, E]."""
    n_layers, n_experts = case.counts.shape[-2:]
    match select.method:
        case "token_share":
            return choices.token_share(case.counts, select.share)
        case "gate_mass":
            return choices.gate_mass(case.mass, select.share)
        case "top_k":
            return choices.top_k(case.counts, _given(select.k, "k"))
        case "budget":
            return choices.budget(case.counts, cost_L, _given(select.budget, "budget"))
        case "contrast":
            if case.general is None:
                raise UserError(
                    "select.method=contrast compares with general languages: the profile has none"
                )
            return choices.contrast(case.counts, case.general, select.share, select.floor)
        case "random":
            n_per_layer = [math.ceil(select.share * n_experts)] * n_layers
            if select.match:
                matched = "token_share" if select.match is True else select.match
                n_per_layer = _choose(replace(select, method=matched), case, cost_L).sum(axis=-1)
            return choices.random_experts(n_per_layer, n_experts, select.seed)
        case "all":
            return choices.all_experts(n_layers, n_experts)
        case "none":
            return choices.no_experts(n_layers, n_experts)


def _given(value: int | None, key: str) -> int:
    if value is None:
        raise UserError(f"select.{key} is not set: the method needs it")
    return value


def _role_case(
    roles: Mapping[str, Sequence[str]],
    counts: Mapping[str, np.ndarray],
    mass: Mapping[str, np.ndarray],
    rows: Sequence[int] | slice = slice(None),
) -> Case:
    """The target languages together against the general ones together, in the layers `rows` of the arrays."""
    target, general = roles["target"], roles["general"]
    return Case(
        _summed(counts, target)[..., rows, :],
        _summed(mass, target)[..., rows, :],
        _summed(counts, general)[..., rows, :] if general else None,
    )


def _summed(by_language: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    total, *others = (by_language[name] for name in names)
    for other in others:
        total = total + other
    return total


def _coverages(
    names: Sequence[str], routed: Routed, chosen_LE: np.ndarray, top_k: int
) -> dict[str, dict[str, Any]]:
    """What is routed to the chosen experts, and how skewed routing is, by language or role and layer."""
    by_role = {role: _summed(routed.counts, found) for role, found in routed.roles.items() if found}
    found = {
        "coverage": {name: coverage(found_LE, chosen_LE) for name, found_LE in routed.counts.items()},
        "role_coverage": {role: coverage(found_LE, chosen_LE) for role, found_LE in by_role.items()},
        "touched_tokens": {
            role: touched_tokens(found_LE, chosen_LE, top_k) for role, found_LE in by_role.items()
        },
        "skew": {name: gini(found_LE) for name, found_LE in routed.counts.items()},
    }
    hottest = dict(zip(names, hottest_share(by_role["target"]).tolist(), strict=True))
    return {key: _by_layer(names, values) for key, values in found.items()} | {"hottest_quarter": hottest}


def _overlaps(
    select: SelectConfig, routed: Routed, chosen_LE: np.ndarray, cost_L: np.ndarray
) -> dict[str, np.ndarray]:
    """Language -> Jaccard by layer of this choice with the one the method would make for that language alone.

    For each general language, and for each target one where several chose together. A general language is set
    against all others, where the method contrasts.
    """
    targets, generals = routed.roles["target"], routed.roles["general"]
    names = generals + (targets if len(targets) > 1 else [])
    if not names or select.method not in COUNTING_METHODS:
        return {}
    everyone_LE = _summed(routed.counts, targets + generals)
    against_OLE = None
    if generals:
        general_LE = _summed(routed.counts, generals)
        against_OLE = np.stack(
            [everyone_LE - routed.counts[name] if name in generals else general_LE for name in names]
        )
    counts_OLE, mass_OLE = (np.stack([by[name] for name in names]) for by in (routed.counts, routed.mass))
    chosen_OLE = _choose(select, Case(counts_OLE, mass_OLE, against_OLE), cost_L)
    return dict(zip(names, jaccard(chosen_OLE, chosen_LE), strict=True))


def _stability(
    profile: Profile, select: SelectConfig, routed: Routed, chosen_LE: np.ndarray, cost_L: np.ndarray
) -> dict[str, Any]:
    """How often the replicates choose each expert, which are borderline, and their Jaccard with the choice.

    A replicate that drew no row of a role that decides is left out: it chooses nothing. `stability` is None
    where the method does not look at the routing, or the replicates do not hold what it looked at.
    """
    names = [str(profile.layers[row]) for row in routed.rows]
    unknown = {"probability": {}, "borderline": {}, "stability": None}
    generals = routed.roles["general"] if select.method == "contrast" else []
    roles = {"target": routed.roles["target"], "general": generals}
    deciding = {name for found in roles.values() for name in found}
    is_of_replicates = select.kinds == profile.head["kinds"] and not select.sources
    if (
        select.method not in COUNTING_METHODS
        or not is_of_replicates
        or not deciding <= profile.replicate_counts.keys()
    ):
        return unknown
    case = _role_case(roles, profile.replicate_counts, profile.replicate_mass, routed.rows)
    decisive = (case.counts,) if case.general is None else (case.counts, case.general)
    is_drawn_R = np.all([counts_RLE.any(axis=-1).all(axis=-1) for counts_RLE in decisive], axis=0)
    if is_drawn_R.sum() < 2:
        return unknown
    general_RLE = None if case.general is None else case.general[is_drawn_R]
    chosen_RLE = _choose(select, Case(case.counts[is_drawn_R], case.mass[is_drawn_R], general_RLE), cost_L)
    probability_LE = chosen_RLE.mean(axis=0)
    is_borderline_LE = (probability_LE >= BORDERLINE[0]) & (probability_LE <= BORDERLINE[1])
    is_shown_LE = chosen_LE | ((probability_LE > 0) & (probability_LE < 1))
    return {
        "probability": {
            name: {str(expert): float(probability_E[expert]) for expert in np.flatnonzero(is_shown_E)}
            for name, probability_E, is_shown_E in zip(names, probability_LE, is_shown_LE, strict=True)
        },
        "borderline": dict(zip(names, choices.expert_ids(is_borderline_LE), strict=True)),
        "stability": {
            "n_replicates": len(chosen_RLE),
            "n_borderline": int(is_borderline_LE.sum()),
            "mean_jaccard": float(jaccard(chosen_RLE, chosen_LE, axis=(-2, -1)).mean()),
        },
    }


def _by_layer(names: Sequence[str], found: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Key -> layer -> value, from key -> array [L, ...]."""
    return {key: dict(zip(names, values.tolist(), strict=True)) for key, values in found.items()}
