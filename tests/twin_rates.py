"""Print how many romanised sentences the skeleton finds, and how many strangers it takes for them.

Reads `twin_pairs.yaml`; writes nothing. Command: `python -m tests.twin_rates`.
"""

from pathlib import Path

import yaml

from data_recipes.screening.comparison import skeleton_shingles

PAIRS: dict[str, list[list[str]]] = yaml.safe_load(
    Path(__file__).with_name("twin_pairs.yaml").read_text(encoding="utf-8")
)


def similarity(a: str, b: str, n_letters: int = 3) -> float:
    """Return the Jaccard similarity of two texts' skeleton shingles."""
    left, right = skeleton_shingles(a, n_letters), skeleton_shingles(b, n_letters)
    return len(left & right) / len(left | right)


def twin_similarities() -> dict[str, list[float]]:
    """Return the similarity of each pair, by language."""
    return {
        code: [similarity(native, romanised) for native, romanised in pairs] for code, pairs in PAIRS.items()
    }


def stranger_similarities() -> list[float]:
    """Return the similarity of each native sentence to the romanised others of its language."""
    return [
        similarity(native, romanised)
        for pairs in PAIRS.values()
        for i, (native, _) in enumerate(pairs)
        for j, (_, romanised) in enumerate(pairs)
        if i != j
    ]


def main() -> None:
    """Print recall by language, and what is taken for a twin wrongly, at several thresholds."""
    twins, strangers = twin_similarities(), stranger_similarities()
    every = [value for values in twins.values() for value in values]
    for threshold in (0.5, 0.6, 0.7):
        by_language = {code: f"{sum(v >= threshold for v in vs)}/{len(vs)}" for code, vs in twins.items()}
        n_wrong = sum(value >= threshold for value in strangers)
        print(f"{threshold}: {sum(v >= threshold for v in every)}/{len(every)} found {by_language}")
        print(f"     {n_wrong}/{len(strangers)} strangers, the most similar {max(strangers):.2f}")


if __name__ == "__main__":
    main()
