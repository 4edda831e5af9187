"""Routing profiles made by hand, of as many languages, cells and replicates as a test needs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.profiling.profile import MASS_UNIT, Cell, Profile

MODEL, TOKENIZER = "a" * 64, "c" * 64


def small_profile(
    cells: Mapping[Cell, Any],
    mass: Mapping[Cell, Any] | None = None,
    replicates: Mapping[str, Any] | None = None,
    general: tuple[str, ...] = ("en", "hi"),
    **head: Any,
) -> Profile:
    """Counts [L, E] by cell; gate mass is the counts unless given; replicates are [R, L, E] by language."""
    counts_CLE = np.array([np.asarray(found) for found in cells.values()])
    mass_CLE = np.array([(mass or cells)[cell] for cell in cells]) / MASS_UNIT
    _, n_layers, n_experts = counts_CLE.shape
    languages = sorted({cell.language for cell in cells})
    replicates = {name: np.asarray(found) for name, found in (replicates or {}).items()}
    standard = {
        "layers": list(range(3, 3 + 2 * n_layers, 2)),
        "n_experts": n_experts,
        "top_k": 1,
        "router": "TinyRouter",
        "parameters_per_rank": [100 * 10**row for row in range(n_layers)],
        "expert_bytes": [7 * 10**row for row in range(n_layers)],
        "model_fingerprint": MODEL,
        "tokenizer_fingerprint": TOKENIZER,
        "dataset": "d" * 64,
        "kinds": "all",
        "seed": 0,
        "roles": {name: "general" if name in general else "target" for name in languages},
        "n_tokens": dict.fromkeys(languages, 10),
        "n_rows": dict.fromkeys(languages, 2),
        "shards": [],
    }
    return Profile(
        standard | head,
        list(cells),
        counts_CLE,
        mass_CLE if np.isnan(mass_CLE).any() else mass_CLE.astype(np.int64),
        replicates,
        {name: (found / MASS_UNIT).astype(np.int64) for name, found in replicates.items()},
    )


def of_languages(counts: Mapping[str, Any], **others: Any) -> Profile:
    """One cell a language: the answers of rows that name no source."""
    return small_profile({Cell(name, "", "answer"): found for name, found in counts.items()}, **others)
