"""What a person should know of a plan before training with it, as sentences that name the layers.

Reads and writes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from finetune.config import CountingMethod
from finetune.profiling.profile import Profile

FLAT_SHARE = 0.35  # of the target tokens on the hottest quarter of a layer; even routing gives 0.25
MOST_LISTED = 8  # layers named in one warning


def plan_warnings(profile: Profile, plan: Mapping[str, Any]) -> list[str]:
    """Warnings for a plan made from `profile`, each one sentence; [] when there is nothing to say."""
    found = [*_absent(profile, plan), *_flat(plan)]
    if plan["method"] in get_args(CountingMethod):
        found += [*_short(plan), *_unspecific(plan), *_unsure(profile, plan)]
    return found


def _absent(profile: Profile, plan: Mapping[str, Any]) -> list[str]:
    found = []
    if layers := [str(layer) for layer in profile.layers if str(layer) not in plan["hottest_quarter"]]:
        found.append(f"no target token reached layer {_listed(layers)}: no expert is chosen there")
    if languages := [name for name in profile.languages() if name not in plan["coverage"]]:
        of_sources = f" from {', '.join(plan['sources'])}" if plan["sources"] else ""
        found.append(f"no {plan['kinds']} token of {_listed(languages)}{of_sources}: left out of the plan")
    return found


def _flat(plan: Mapping[str, Any]) -> list[str]:
    flat = {name: value for name, value in plan["hottest_quarter"].items() if value < FLAT_SHARE}
    if not flat or plan["method"] == "none":
        return []
    return [
        f"routing is flat: the hottest quarter of the experts takes below {FLAT_SHARE} of the target "
        f"tokens in layer {_valued(flat)}; chosen experts may gain no more than random ones: compare them"
    ]


def _short(plan: Mapping[str, Any]) -> list[str]:
    """What was asked for and cannot be reached."""
    target = plan["role_coverage"]["target"]
    n_chosen = {name: len(ids) for name, ids in plan["experts"].items()}
    if plan["method"] == "contrast":
        # Counts are whole, so a share that is reached is reached exactly; the product with one may round.
        short = {name: value for name, value in target.items() if value < plan["share"] - 1e-9}
        if short:
            return [
                f"select.share={plan['share']} of the target tokens is not reached in layer {_valued(short)}"
                ": the target uses the other experts no more than the general languages do, or less than "
                f"select.floor={plan['floor']} times even traffic"
            ]
    if plan["method"] == "top_k":
        short = {name: n for name, n in n_chosen.items() if n < plan["k"]}
        if short:
            return [f"fewer than select.k={plan['k']} experts got a target token in layer {_valued(short)}"]
    if plan["method"] == "budget" and all(value == 1 for value in target.values()):
        return [
            f"select.budget={plan['budget']} {plan['budget_unit']} is enough for every expert that got a "
            f"target token: it chooses all {sum(n_chosen.values())} of these"
        ]
    return []


def _unspecific(plan: Mapping[str, Any]) -> list[str]:
    mean = mean_coverage(plan)
    if "general" not in mean or mean["general"] < mean["target"]:
        return []
    return [
        f"the choice is not specific to the target: its experts hold {mean['target']:.2f} of the target's "
        f"routed tokens and {mean['general']:.2f} of the general ones; try select.method=contrast, or "
        "compare with random"
    ]


def _unsure(profile: Profile, plan: Mapping[str, Any]) -> list[str]:
    if plan["stability"] is not None:
        return []
    n_replicates = min((len(counts) for counts in profile.replicate_counts.values()), default=0)
    return [
        f"how sure the choice is, is not known: the profile has {n_replicates} replicates, which count "
        f"{profile.head['kinds']} tokens of all sources (the choice is from {plan['kinds']} tokens of "
        f"{', '.join(plan['sources']) or 'all sources'}); set profile.replicates and profile.kinds for it"
    ]


def mean_coverage(plan: Mapping[str, Any]) -> dict[str, float]:
    """Role -> share of its routed rows on chosen experts, averaged over the layers the target reached."""
    return {role: sum(by.values()) / len(by) for role, by in plan["role_coverage"].items()}


def _valued(values: Mapping[str, float]) -> str:
    return _listed(
        [
            f"{key} ({value:.2f})" if isinstance(value, float) else f"{key} ({value})"
            for key, value in values.items()
        ]
    )


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return ", ".join(items[:MOST_LISTED]) + more
