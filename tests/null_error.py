"""How often a run of 22 languages finds something where nothing differs: the family's error after Holm.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/null_error.py [RUNS [ROWS [SEED]]]     (without: 1000 100 1)

Scores are drawn, skewed, over lengths, and both systems have the same law; p is that of the comparison's
randomisation. Prints the share of runs with a finding, which is to be at most 0.05, and that of languages
with p at most 0.05 before the correction. 1,000 runs take half a minute.
"""

import sys

import numpy as np

from eval.compare import randomisation_p, ratio_of_sums
from eval.significance import ALPHA, holm

N_LANGUAGES, N_RESAMPLES = 22, 1500


def main() -> None:
    """Simulate and print."""
    given = sys.argv[1:]
    n_runs, n_rows, seed = map(int, (*given, *("1000", "100", "1")[len(given) :]))
    generator = np.random.default_rng(seed)
    n_found = n_low = 0
    for _ in range(n_runs):
        p = [drawn_p(n_rows, generator) for _ in range(N_LANGUAGES)]
        n_found += min(holm(p)) <= ALPHA
        n_low += sum(one <= ALPHA for one in p)
    found, low = n_found / n_runs, n_low / n_runs / N_LANGUAGES
    error = (ALPHA * (1 - ALPHA) / n_runs) ** 0.5
    print(
        f"{n_runs:,} runs of {N_LANGUAGES} languages with {n_rows} rows: a finding in {found:.3f} of them "
        f"(standard error {error:.3f}); p at most {ALPHA} in {low:.3f} of all tests"
    )


def drawn_p(n_rows: int, generator: np.random.Generator) -> float:
    """p of two systems that differ by chance alone on the same rows."""
    lengths = generator.integers(5, 60, size=n_rows).astype(float)
    difficulty = generator.gamma(1.0, size=n_rows)
    both = [difficulty * generator.gamma(2.0, size=n_rows) * lengths for _ in range(2)]
    base_N2, tuned_N2 = (np.stack([one, lengths], axis=1) for one in both)
    return randomisation_p(base_N2, tuned_N2, ratio_of_sums, N_RESAMPLES, int(generator.integers(2**31)))


if __name__ == "__main__":
    main()
