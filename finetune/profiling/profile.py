"""The routing profile as an artefact: what the routers chose, by language, source and kind of token.

Reads and writes `profile.json` (what the numbers are of) and `profile.safetensors` beside it (the numbers).
All numbers are whole, so parts that were counted apart add up to the same bits in any order.

Legend: C cells (language x source x kind), R bootstrap replicates, L MoE layers, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data_recipes.artefact import (
    ARTEFACT_HEAD,
    UserError,
    read_artefact,
    sha256_file,
    whole_file,
    write_artefact,
)
from finetune.profiling.replicates import replicates_agree

# One token's gate weights sum to 1; they are kept as whole multiples of this, so that sums are exact.
MASS_UNIT = 2.0**-36

Kind = Literal["prompt", "answer"]
Kinds = Literal["prompt", "answer", "all"]


class Cell(NamedTuple):
    """What one [L, E] array of a profile was counted on."""

    language: str
    source: str
    kind: Kind


@dataclass(frozen=True)
class Profile:
    """A routing profile in memory.

    `head` says what was counted: layers (decoder index of each of the L rows), n_experts, top_k, router,
    parameters_per_rank and expert_bytes (one value a layer), model_fingerprint, tokenizer_fingerprint,
    dataset (content hash), kinds (counted in replicates), seed, roles (language -> target or general),
    n_tokens (of these kinds) and n_rows (language -> count), settings (how it was counted), stopped (language
    -> why, at how many tokens, with which Jaccard of the replicates), unseen_layers (that no token reached),
    shards (["2/8"] for a part, [] for a whole). `counts_CLE` are choices, `mass_CLE` gate mass in
    MASS_UNIT. `replicate_counts` and `replicate_mass` map a language to [R, L, E]: the same sums over a
    resample of its rows (each row Poisson(1) times; Chamandy et al. 2012).
    """

    head: dict[str, Any]
    cells: list[Cell]
    counts_CLE: np.ndarray
    mass_CLE: np.ndarray
    replicate_counts: dict[str, np.ndarray]
    replicate_mass: dict[str, np.ndarray]

    @property
    def layers(self) -> list[int]:
        """Decoder index of each of the L rows."""
        return self.head["layers"]

    def languages(self, role: str | None = None) -> list[str]:
        """Languages of a role (target or general), or all, sorted."""
        return sorted(name for name, found in self.head["roles"].items() if role in (None, found))

    def counts(
        self, languages: Sequence[str], kinds: Kinds = "all", sources: Sequence[str] | None = None
    ) -> np.ndarray:
        """How often each expert was chosen: int64 [L, E], rows are layers, summed over the named cells.

        Raises:
            UserError: no cell has such a language, kind and source.
        """
        return self.counts_CLE[self._of(languages, kinds, sources)].sum(axis=0)

    def gate_mass(
        self, languages: Sequence[str], kinds: Kinds = "all", sources: Sequence[str] | None = None
    ) -> np.ndarray:
        """Router weight each expert got, every token's weights summing to 1: float64 [L, E], rows are layers.

        Raises:
            UserError: no cell has such a language, kind and source.
        """
        return self.mass_CLE[self._of(languages, kinds, sources)].sum(axis=0) * MASS_UNIT

    def _of(self, languages: Sequence[str], kinds: Kinds, sources: Sequence[str] | None) -> list[int]:
        found = [
            position
            for position, cell in enumerate(self.cells)
            if cell.language in languages
            and kinds in ("all", cell.kind)
            and (sources is None or cell.source in sources)
        ]
        if not found:
            there = ", ".join(sorted({f"{cell.language} {cell.source} {cell.kind}" for cell in self.cells}))
            raise UserError(
                f"the profile counted no {kinds} token of {', '.join(languages)}"
                f"{'' if sources is None else ' from ' + ', '.join(sources)}: it has {there or 'nothing'}"
            )
        return found


def with_findings(profile: Profile) -> Profile:
    """A whole profile with what only the whole shows: unseen layers, and how far the replicates agree.

    Raises:
        UserError: a language has no token of the kinds that are counted.
    """
    head = profile.head
    for language, n_tokens in head["n_tokens"].items():
        if n_tokens == 0:
            raise UserError(
                f"language {language!r} has no token of kind {head['kinds']!r}: set profile.kinds=all"
            )
    is_unseen_L = profile.counts_CLE.sum(axis=(0, 2)) == 0
    unseen = [layer for layer, is_unseen in zip(profile.layers, is_unseen_L, strict=True) if is_unseen]
    stopped = {}
    for language, found in head["stopped"].items():
        counts_LE = profile.counts([language], head["kinds"])
        agree = replicates_agree(
            counts_LE, profile.replicate_counts[language], head["settings"]["stable_share"]
        )
        stopped[language] = {**found, "jaccard": round(agree, 4)}
    return replace(profile, head={**head, "unseen_layers": unseen, "stopped": stopped})


def profile_inputs(profile: Profile) -> dict[str, str]:
    """What a profile was made from, for the head of its file."""
    head = profile.head
    inputs = {"model": head["model_fingerprint"], "tokenizer": head["tokenizer_fingerprint"]}
    return inputs | ({"dataset": head["dataset"]} if head["dataset"] else {})


def write_profile(path: str | Path, profile: Profile, inputs: Mapping[str, str]) -> None:
    """Write `path` (profile.json), and the arrays beside it under the same name with .safetensors.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    arrays = {"counts": profile.counts_CLE, "gate_mass": profile.mass_CLE}
    arrays |= {f"replicate_counts.{name}": found for name, found in profile.replicate_counts.items()}
    arrays |= {f"replicate_gate_mass.{name}": found for name, found in profile.replicate_mass.items()}
    file = path.with_suffix(".safetensors")
    with whole_file(file) as partial:
        save_file({name: np.ascontiguousarray(found) for name, found in arrays.items()}, partial)
    head = {name: value for name, value in profile.head.items() if name not in ARTEFACT_HEAD}
    body = {**head, "cells": [list(cell) for cell in profile.cells]}
    write_artefact(path, "routing_profile", dict(inputs), body | {"arrays_sha256": sha256_file(file)})


def read_profile(path: str | Path) -> Profile:
    """Read a whole profile, as `write_profile` wrote it.

    Raises:
        UserError: a file is missing or damaged, the arrays are of another profile, or it is one shard only.
    """
    profile = read_shard(path)
    if profile.head["shards"]:
        raise UserError(
            f"{path} is shard {', '.join(profile.head['shards'])} of a profile: add all shards up with "
            "`local-experts profile-merge`"
        )
    return profile


def read_shard(path: str | Path) -> Profile:
    """Read a profile that may be a shard.

    Raises:
        UserError: a file is missing or damaged, or the arrays are of another profile.
    """
    path = Path(path)
    head = read_artefact(path, "routing_profile")
    if "cells" not in head:
        raise UserError(f"{path} was written by an older version: run `local-experts profile` again")
    file = path.with_suffix(".safetensors")
    if not file.exists() or sha256_file(file) != head.get("arrays_sha256"):
        raise UserError(f"{file} is missing or not of {path.name}: run `local-experts profile` again")
    try:
        arrays = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} cannot be read ({error}): run `local-experts profile` again") from error
    cells = [Cell(*cell) for cell in head["cells"]]
    return Profile(
        {name: value for name, value in head.items() if name not in ("cells", "arrays_sha256")},
        cells,
        arrays["counts"],
        arrays["gate_mass"],
        _by_language(arrays, "replicate_counts."),
        _by_language(arrays, "replicate_gate_mass."),
    )


def _by_language(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): found for name, found in arrays.items() if name.startswith(prefix)}
