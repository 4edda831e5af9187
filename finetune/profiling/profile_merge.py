"""Add the shards of a routing profile up to the whole: the same bits as one run over all rows.

    local-experts profile-merge runs/x/profile.json runs/x/profile.shard-*.json

Reads shards that `local-experts profile ... profile.shard=2/8` wrote; writes profile.json and
profile.safetensors.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import ARTEFACT_HEAD, UserError
from finetune.profiling.profile import Profile, profile_inputs, read_shard, with_findings, write_profile

_OF_THE_PART = ("shards", "n_tokens", "n_rows")  # what a shard's head says of itself alone


def merge_profiles(shards: Mapping[str, Profile]) -> Profile:
    """The whole profile of all its shards, which go by the name of their file.

    Raises:
        UserError: no shard, a shard that is missing or there twice, or shards of another model, tokenizer,
            dataset, seed, kind or other setting.
    """
    _refuse_incomplete(shards)
    (first_name, first), *others = shards.items()
    for name, shard in others:
        _refuse_other(first_name, first.head, name, shard.head)
    parts = list(shards.values())
    cells = sorted({cell for part in parts for cell in part.cells})
    head = {name: value for name, value in first.head.items() if name not in ARTEFACT_HEAD}
    for counted in ("n_tokens", "n_rows"):
        head[counted] = {
            language: sum(part.head[counted][language] for part in parts) for language in first.head["roles"]
        }
    languages = first.replicate_counts
    return with_findings(
        replace(
            first,
            head={**head, "shards": []},
            cells=cells,
            counts_CLE=sum(_rows(part.cells, part.counts_CLE, cells) for part in parts),
            mass_CLE=sum(_rows(part.cells, part.mass_CLE, cells) for part in parts),
            replicate_counts={name: sum(part.replicate_counts[name] for part in parts) for name in languages},
            replicate_mass={name: sum(part.replicate_mass[name] for part in parts) for name in languages},
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts profile-merge OUT SHARD...`."""
    parser = argparse.ArgumentParser(
        prog="local-experts profile-merge", description="add the shards of a profile up", allow_abbrev=False
    )
    parser.add_argument("out", metavar="OUT", help="the whole profile, as runs/x/profile.json")
    parser.add_argument("shards", metavar="SHARD", nargs="+", help="as runs/x/profile.shard-*.json")
    arguments = parser.parse_args(argv)
    shards: dict[str, Profile] = {}
    for path in arguments.shards:
        if path in shards:
            raise UserError(f"{path} is given twice: give each shard once")
        shards[path] = read_shard(path)
    profile = merge_profiles(shards)
    write_profile(Path(arguments.out), profile, profile_inputs(profile))
    tokens = ", ".join(f"{name} {n:,}" for name, n in profile.head["n_tokens"].items())
    print(f"profile   {len(shards)} shards, tokens: {tokens} -> {arguments.out}")


def _rows(cells: Sequence[Any], sums_CLE: np.ndarray, wanted: Sequence[Any]) -> np.ndarray:
    """The arrays of the wanted cells, in their order; zeros for a cell this shard has not."""
    positions = {cell: position for position, cell in enumerate(cells)}
    found_CLE = np.zeros((len(wanted), *sums_CLE.shape[1:]), dtype=np.int64)
    for row, cell in enumerate(wanted):
        if cell in positions:
            found_CLE[row] = sums_CLE[positions[cell]]
    return found_CLE


def _refuse_incomplete(shards: Mapping[str, Profile]) -> None:
    """Every shard of one number must be there once."""
    if not shards:
        raise UserError("there is no shard to merge")
    for name, shard in shards.items():
        if len(shard.head["shards"]) != 1:
            raise UserError(f"{name} is a whole profile and no shard: leave it out")
    given = {name: shard.head["shards"][0] for name, shard in shards.items()}
    totals = sorted({int(shard.partition("/")[2]) for shard in given.values()})
    if len(totals) > 1:
        raise UserError(f"these are shards of {' and of '.join(map(str, totals))}: {_listed(given)}")
    twice = [shard for shard, n in Counter(given.values()).items() if n > 1]
    if twice:
        raise UserError(f"shard {', '.join(sorted(twice))} is there twice: {_listed(given)}")
    missing = [
        f"{k}/{totals[0]}" for k in range(1, totals[0] + 1) if f"{k}/{totals[0]}" not in given.values()
    ]
    if missing:
        raise UserError(
            f"shard {', '.join(missing)} is missing (given: {_listed(given)}): make it with "
            f"`local-experts profile --config FILE profile.shard={missing[0]}`"
        )


def _refuse_other(first_name: str, first: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    """All that a head says, but of its own part, must be equal."""
    for key in sorted(first.keys() | other.keys()):
        if key in (*_OF_THE_PART, *ARTEFACT_HEAD) or first.get(key) == other.get(key):
            continue
        raise UserError(
            f"{name} and {first_name} cannot be added up, their {key.replace('_', ' ')} differs: "
            f"{other.get(key)} and {first.get(key)}; make all shards from one config"
        )


def _listed(given: Mapping[str, str]) -> str:
    return ", ".join(f"{shard} in {name}" for name, shard in given.items())
