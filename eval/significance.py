"""Is a difference more than chance? McNemar's test, Holm's correction over languages, and a verdict in words.

Reads nothing, writes nothing. `eval/compare.py` has the tests that resample; here is what needs no rows.

A verdict is one of four:

- gain, loss: the test says so at 5 % after Holm's correction over the slices beside it (a family: one
  metric, one group of rows, one way to slice them, as all languages).
- no difference seen: the rows would have shown a difference of 5 % of the metric's span, and showed none. The
  interval lies within 5 % on both sides of zero (the confidence interval form of two one-sided tests,
  Schuirmann 1987), and the fewest changed rows that the test could tell from chance are at most 5 % of them.
- too few rows to tell: neither. Silence of few rows is no evidence (Card et al. 2020, "With little power
  comes great responsibility").
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from eval.metric_facts import MetricFacts, facts_of

ALPHA = 0.05  # chance of one false gain or loss in a whole family
SMALLEST_SHARE = 0.05  # of a metric's span: a difference that should not be overlooked
GAIN, LOSS, NO_DIFFERENCE, TOO_FEW = "gain", "loss", "no difference seen", "too few rows to tell"
MOST_EXACT_ROWS = 5_000  # changed rows; with more the exact test takes seconds, and differs by less than 2 %

Comparison = dict[str, Any]
C = TypeVar("C", bound=Mapping[str, Any])


def mcnemar_p(n_lost: int, n_gained: int, exact: bool = True) -> float:
    """Two-sided p of McNemar's test: are as many rows lost as gained?

    Source: McNemar 1947; the correction for continuity is Edwards's (1948). Exact is the binomial test of
    `n_lost` of the changed rows at one half; otherwise the corrected chi-square with one degree of freedom.
    """
    n_changed = n_lost + n_gained
    if n_changed == 0:
        return 1.0
    if not exact:
        chi_square = (abs(n_lost - n_gained) - 1) ** 2 / n_changed
        return math.erfc(math.sqrt(chi_square / 2))
    n_ways = total = 1  # whole numbers: nothing is rounded before the last division
    for k in range(min(n_lost, n_gained)):
        n_ways = n_ways * (n_changed - k) // (k + 1)
        total += n_ways
    return min(1.0, total / (1 << (n_changed - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected so that a family has one false finding or more with the chance of one test.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure". Holds however the tests
    depend on each other.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()


def fewest_rows_to_tell(n_tests: int) -> int:
    """Changed rows, all one way, with which a test in a family this large can find a difference."""
    # Of k rows that all change one way the exact two-sided p is 2 ** (1 - k).
    return math.ceil(1 + math.log2(n_tests / ALPHA))


def rows_needed(n_tests: int) -> int:
    """Rows with which a family this large can see a change of SMALLEST_SHARE of them at all."""
    return math.ceil(fewest_rows_to_tell(n_tests) / SMALLEST_SHARE)


def draws_needed(n_tests: int) -> int:
    """Resamples with which a resampled test's smallest p, 1 / (n + 1), can pass in a family this large."""
    return math.ceil(n_tests / ALPHA) - 1


def verdict(found: Mapping[str, Any], p_holm: float, n_tests: int, facts: MetricFacts) -> str:
    """Gain, loss, no difference seen, or too few rows to tell; the module's docstring has the rule."""
    if p_holm <= ALPHA:
        return GAIN if (found["difference"] > 0) == facts.higher_is_better else LOSS
    span = abs(found["base"]) if facts.span is None else facts.span
    is_narrow = max(-found["low"], found["high"]) <= SMALLEST_SHARE * span
    return NO_DIFFERENCE if is_narrow and found["n"] >= rows_needed(n_tests) else TOO_FEW


def judge(table: dict[str, Any], metric: str) -> dict[str, Any]:
    """Add `p_holm` and `verdict` to every comparison of a metric's table, in place; returns the table.

    Args:
        table: comparisons by name, nested as in results.json. Those on top (target, general, all) are asked
            one by one; those that stand together below (by_language.target) are a family.
    """
    facts = facts_of(metric)
    for family in families(table):
        corrected = holm([found["p"] for found in family])
        for found, p_holm in zip(family, corrected, strict=True):
            found["p_holm"] = p_holm
            found["verdict"] = verdict(found, p_holm, len(family), facts)
    return table


def families(table: Mapping[str, Any], is_top: bool = True) -> Iterator[list[Comparison]]:
    """The comparisons of a metric's table that are corrected together."""
    together = [found for found in table.values() if is_comparison(found) and "p" in found]
    yield from ([found] for found in together) if is_top else [together] if together else []
    for below in table.values():
        if isinstance(below, dict) and not is_comparison(below):
            yield from families(below, is_top=False)


def is_comparison(found: Any) -> bool:
    """Whether a value of results.json compares two systems."""
    return isinstance(found, dict) and found.keys() >= {"base", "difference", "low", "high", "n"}


def improvement(found: Mapping[str, Any], metric: str) -> float:
    """The difference with its sign turned so that more is better."""
    return found["difference"] if facts_of(metric).higher_is_better else -found["difference"]


def worst_first(by_name: Mapping[str, C], metric: str) -> dict[str, C]:
    """The same comparisons, the largest loss first; equal ones by name."""
    ordered = sorted(by_name.items(), key=lambda item: (improvement(item[1], metric), item[0]))
    return dict(ordered)
