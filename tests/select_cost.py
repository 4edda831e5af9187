"""Seconds a plan takes on a profile of GLM-5.2's size: 75 layers x 256 experts x 22 languages, 64 replicates.

Reads nothing, writes a line for each method, with and without stability, and one for reading such a profile.
One language is the target and 21 are general. Run it alone on a quiet machine: python -m tests.select_cost
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import SelectConfig
from finetune.profiling.profile import MASS_UNIT, Cell, Profile, read_profile, write_profile
from finetune.selecting.plan import build_plan

N_LAYERS, N_EXPERTS, N_LANGUAGES, N_REPLICATES = 75, 256, 22, 64
N_TOKENS, TOP_K = 2**15, 8
N_TIMED = 3  # the fastest is reported
METHODS: dict[str, dict[str, Any]] = {
    "token_share": {},
    "gate_mass": {},
    "top_k": {"k": 64},
    "contrast": {},
    "budget": {"budget": N_LAYERS * 64},
    "random": {},
    "all": {},
    "none": {},
}


def large_profile() -> Profile:
    """Log-normal routing, a share of which is the language's own, and Poisson replicates of it."""
    generator = np.random.default_rng(0)
    names = [f"l{number:02d}" for number in range(N_LANGUAGES)]
    mean_LE = np.exp(generator.normal(size=(N_LAYERS, N_EXPERTS)))
    counts, replicates = {}, {}
    for name in names:
        weight_LE = mean_LE * np.exp(0.5 * generator.normal(size=mean_LE.shape))
        expected_LE = N_TOKENS * TOP_K * weight_LE / weight_LE.sum(axis=1, keepdims=True)
        counts[Cell(name, "", "answer")] = generator.poisson(expected_LE)
        replicates[name] = generator.poisson(expected_LE, (N_REPLICATES, *expected_LE.shape))
    head = {
        "layers": list(range(3, 3 + N_LAYERS)),
        "n_experts": N_EXPERTS,
        "top_k": TOP_K,
        "parameters_per_rank": [3 * 6144 + 3 * 2048] * N_LAYERS,
        "expert_bytes": [2 * 3 * 6144 * 2048] * N_LAYERS,
        "model_fingerprint": "",
        "tokenizer_fingerprint": "",
        "kinds": "all",
        "shards": [],
        "roles": {name: "general" if number else "target" for number, name in enumerate(names)},
    }
    counts_CLE = np.stack(list(counts.values()))
    unit = round(1 / MASS_UNIT) // TOP_K  # each of a token's K experts with the same weight
    mass = {name: found * unit for name, found in replicates.items()}
    return Profile(head, list(counts), counts_CLE, counts_CLE * unit, replicates, mass)


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of N_TIMED runs."""
    seconds = []
    for _ in range(N_TIMED):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--read", action="store_true", help="time reading too: writes 0.9 GB into a temporary folder"
    )
    arguments = parser.parse_args()
    profile = large_profile()
    without = replace(profile, replicate_counts={}, replicate_mass={})
    print(f"{N_LAYERS} layers x {N_EXPERTS} experts x {N_LANGUAGES} languages, {N_REPLICATES} replicates")
    print(f"{'method':<12}{'experts':>9}{'with stability':>18}{'without':>12}   (seconds)")
    for method, options in METHODS.items():
        select = SelectConfig(method=method, **options)  # type: ignore[arg-type]
        n_chosen = sum(map(len, build_plan(profile, select)["experts"].values()))
        seconds = [
            fastest(lambda found=found, select=select: build_plan(found, select))
            for found in (profile, without)
        ]
        print(f"{method:<12}{n_chosen:>9}{seconds[0]:>18.3f}{seconds[1]:>12.3f}", flush=True)
    if arguments.read:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "profile.json"
            write_profile(path, profile, {})
            print(f"read_profile, which hashes the arrays: {fastest(lambda: read_profile(path)):.3f}")


if __name__ == "__main__":
    main()
