"""What a reader and a test must know of a metric: its name, its digits, which way is better, how far it goes.

Reads nothing, writes nothing. A metric that is not listed is taken for a share from 0 to 1.
"""

from typing import NamedTuple


class MetricFacts(NamedTuple):
    """How a metric is shown and judged."""

    title: str
    digits: int  # after the point
    higher_is_better: bool
    meaning: str
    span: float | None = 1.0  # from worst to best; None has no end, and the base's own value stands for it


METRICS = {
    "exact_match": MetricFacts("Exact match", 3, True, "share of answers that the task's checker accepts"),
    "chrf": MetricFacts(
        "chrF++", 1, True, "overlap of character and word n-grams with the expected answer, 0 to 100", 100.0
    ),
    "bits_per_byte": MetricFacts(
        "Bits per byte", 3, False, "bits the model needs for a byte of the expected answers", None
    ),
    "script_share": MetricFacts(
        "Right script", 3, True, "mean share of an answer's letters in the script of its language"
    ),
}


# Names that lm-evaluation-harness has beside shares where more is better.
_LOWER_IS_BETTER = frozenset(
    {"ter", "wer", "cer", "brier_score", "mse", "likelihood_diff", "tokens_per_word", "tokens_per_character"}
)
_NO_END = _LOWER_IS_BETTER | {"log_likelihood"}
_OF_100 = frozenset({"bleu", "ter"})


def facts_of(metric: str) -> MetricFacts:
    """The facts of a metric by its name in results.json; the harness adds its filter after a comma."""
    name, _, how = metric.partition(",")
    if name in METRICS and not how:
        return METRICS[name]
    title = metric.replace("_", " ")
    return MetricFacts(
        title[:1].upper() + title[1:],
        1 if name in _OF_100 else 3,
        name not in _LOWER_IS_BETTER,
        title,
        100.0 if name in _OF_100 else None if name in _NO_END else 1.0,
    )
