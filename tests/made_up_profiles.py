"""Routing profiles written down by hand, for tests of what reads them."""

import numpy as np

from finetune.profiling.profile import MASS_UNIT, Cell, Profile


def made_up_profile(counts, targets, layers=None, replicates=None):
    """A profile of one source and the answers only; gate mass is the counts.

    Args:
        counts: language -> choices [L, E].
        targets: the languages of role target; the others are general.
        layers: decoder index of each of the L rows; None counts from 1.
        replicates: language -> [R, L, E]; None repeats the counts twice.
    """
    counts_CLE = np.array(list(counts.values()), dtype=np.int64)
    if replicates is None:
        replicates = {name: np.stack([found, found]) for name, found in zip(counts, counts_CLE, strict=True)}
    replicates = {name: np.array(found, dtype=np.int64) for name, found in replicates.items()}
    n_layers, n_experts = counts_CLE.shape[1:]
    head = {
        "layers": list(range(1, n_layers + 1)) if layers is None else layers,
        "n_experts": n_experts,
        "top_k": 1,
        "kinds": "answer",
        "roles": {name: "target" if name in targets else "general" for name in counts},
        "model_fingerprint": "made up",
        "shards": [],
    }
    cells = [Cell(name, "made up", "answer") for name in counts]
    unit = round(1 / MASS_UNIT)
    mass = {name: found * unit for name, found in replicates.items()}
    return Profile(head, cells, counts_CLE, counts_CLE * unit, replicates, mass)
