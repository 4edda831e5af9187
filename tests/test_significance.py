"""p values equal to statsmodels' and sacrebleu's, verdicts by their rule, and how rare false findings are."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from eval.compare import paired_bootstrap, paired_bootstrap_of_sums, randomisation_p, ratio_of_sums
from eval.metric_facts import MetricFacts, facts_of
from eval.metrics import ChrfPlusPlus, chrf_from_counts, in_memory
from eval.significance import (
    ALPHA,
    MOST_EXACT_ROWS,
    draws_needed,
    fewest_rows_to_tell,
    holm,
    judge,
    mcnemar_p,
    rows_needed,
    verdict,
    worst_first,
)

WORDS = ["நாள்", "மாதம்", "ஆண்டு", "காலை", "மாலை", "இரவு", "பகல்", "வாரம்", "ஞாயிறு", "புதன்", "சனி"]


@pytest.mark.parametrize("exact", [True, False])
def test_mcnemar_is_that_of_statsmodels(exact):
    pairs = [(lost, changed - lost) for changed in (1, 2, 5, 13, 40, 333) for lost in range(changed + 1)]
    ours = [mcnemar_p(lost, gained, exact) for lost, gained in pairs]
    theirs: list[Any] = [mcnemar([[7, lost], [gained, 9]], exact=exact) for lost, gained in pairs]
    assert ours == pytest.approx([found.pvalue for found in theirs], rel=5e-13, abs=0)


def test_exact_mcnemar_by_hand():
    # 1 of 9 changed rows lost: 2 * (1 + 9) / 512; 3 of 3: 2 / 8; equally many, or none: no difference at all.
    assert [mcnemar_p(1, 8), mcnemar_p(0, 3), mcnemar_p(4, 4), mcnemar_p(0, 0)] == [20 / 512, 0.25, 1, 1]
    assert mcnemar_p(0, 0, exact=False) == 1
    tail = sum(math.comb(2100, k) for k in range(901))  # far below the smallest part of a double
    assert mcnemar_p(900, 1200) == float(Fraction(2 * tail, 2**2100))


def test_where_the_exact_test_ends_the_corrected_one_hardly_differs():
    for lost in (2300, 2400, 2450, 2490):
        gained = MOST_EXACT_ROWS - lost
        assert mcnemar_p(lost, gained, exact=False) == pytest.approx(mcnemar_p(lost, gained), rel=0.02)


@pytest.mark.parametrize("seed", range(2))  # multipletests collects garbage: 0.4 s each
def test_holm_is_that_of_statsmodels_to_the_last_digit(seed):
    p = np.random.default_rng(seed).random(22) ** 3
    p[5], p[7] = p[3], 1.0  # equal ones, and one that is no finding at all
    theirs: Any = multipletests(p, alpha=ALPHA, method="holm")
    assert holm(p.tolist()) == theirs[1].tolist()
    assert [one <= ALPHA for one in holm(p.tolist())] == theirs[0].tolist()
    assert holm([0.03]) == [0.03]


def chrf_rows(n_rows, seed):
    """Answers of two systems and the references, with as much chance in them as in translations."""
    generator = np.random.default_rng(seed)
    references = [" ".join(generator.choice(WORDS, 8)) for _ in range(n_rows)]

    def spoiled(share):
        swap = [generator.random(8) < share for _ in references]
        others = [generator.choice(WORDS, 8) for _ in references]
        return [
            " ".join(np.where(now, other, text.split()))
            for text, now, other in zip(references, swap, others, strict=True)
        ]

    return spoiled(0.40), spoiled(0.34), references


@pytest.mark.parametrize(("kind", "ours"), [("bs", "p_bootstrap"), ("ar", "p")])
@pytest.mark.parametrize("n_rows", [37, 150])
def test_p_of_chrf_is_that_of_sacrebleu_to_the_last_digit(kind, ours, n_rows, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "31")
    base, tuned, references = chrf_rows(n_rows, seed=n_rows)
    metrics = {"chrF": CHRF(char_order=6, word_order=2, beta=2)}
    test = PairedTest([("base", base), ("tuned", tuned)], metrics, [references], kind, n_samples=400)
    _, scores = test()
    theirs = scores["chrF2++"][1]
    assert not isinstance(theirs, str)
    counts = [
        np.asarray(in_memory(ChrfPlusPlus)._compute(texts, references)["statistics"], dtype=float)
        for texts in (base, tuned)
    ]
    found = paired_bootstrap_of_sums(counts[0], counts[1], chrf_from_counts, 400, seed=31)
    assert found.tuned == pytest.approx(theirs.score, abs=1e-9)
    assert found._asdict()[ours] == theirs.p_value
    assert 0.001 < found._asdict()[ours] < 0.9  # a p that any formula would give shows nothing


def test_draws_in_parts_give_the_p_of_draws_at_once(monkeypatch):
    base, tuned = np.random.default_rng(0).random((2, 50))
    at_once = paired_bootstrap(base, tuned + 0.05, 300, seed=5)
    monkeypatch.setattr("eval.compare.CELLS_AT_ONCE", 70 * 50)
    assert paired_bootstrap(base, tuned + 0.05, 300, seed=5).p == at_once.p


def test_randomisation_of_right_and_wrong_is_mcnemars_exact_test():
    base = np.array([1.0] * 2 + [0.0] * 9 + [1.0] * 20)
    tuned = np.array([0.0] * 2 + [1.0] * 9 + [1.0] * 20)
    found = paired_bootstrap(base, tuned, 300, seed=0)
    assert (found.p, found.test) == (mcnemar_p(2, 9), "mcnemar exact")
    columns = [np.stack([one, np.ones(31)], axis=1) for one in (base, tuned)]
    drawn = randomisation_p(columns[0], columns[1], ratio_of_sums, 40_000, seed=0)
    assert drawn == pytest.approx(found.p, abs=0.005)


def test_two_rows_are_no_finding_however_far_apart():
    # All four ways to change places are as far apart as, or nearer than, the one seen: p is about one half.
    found = paired_bootstrap(np.array([0.1, 0.2]), np.array([0.8, 0.95]), 2000, seed=0)
    assert (found.test, found.p) == ("paired randomisation", pytest.approx(0.5, abs=0.05))


def test_many_changed_rows_are_tested_with_the_corrected_chi_square():
    tuned = np.arange(12_000) % 2 * 1.0
    found = paired_bootstrap(1 - tuned, tuned, 1, seed=0)
    assert (found.test, found.p) == ("mcnemar corrected", pytest.approx(1, abs=0.01))


def test_the_fewest_rows_that_can_tell_follow_from_the_exact_test():
    for n_tests in (1, 2, 5, 22):
        k = fewest_rows_to_tell(n_tests)
        assert n_tests * mcnemar_p(0, k) <= ALPHA < n_tests * mcnemar_p(0, k - 1)
    assert [rows_needed(n) for n in (1, 22)] == [6 * 20, 10 * 20]


def comparison(low, high, n=500, **more):
    return {"base": 0.5, "difference": (low + high) / 2, "low": low, "high": high, "n": n, **more}


def test_a_verdict_follows_its_rule():
    exact, bits, chrf = (facts_of(name) for name in ("exact_match", "bits_per_byte", "chrf"))
    assert verdict(comparison(0.1, 0.2), 0.05, 1, exact) == "gain"
    assert verdict(comparison(0.1, 0.2), 0.0501, 1, exact) == "too few rows to tell"
    assert verdict(comparison(-0.2, -0.1), 0.01, 1, exact) == "loss"
    assert verdict(comparison(-0.2, -0.1), 0.01, 1, bits) == "gain"
    # Five points of a share are excluded on both sides, or not; chrF++ goes to 100, bits go by the base's.
    assert verdict(comparison(-0.02, 0.05), 0.4, 1, exact) == "no difference seen"
    assert verdict(comparison(-0.051, 0.02), 0.4, 1, exact) == "too few rows to tell"
    assert verdict(comparison(-4.0, 5.0), 0.4, 1, chrf) == "no difference seen"
    assert verdict(comparison(-0.02, 0.025), 0.4, 1, bits) == "no difference seen"
    assert verdict(comparison(-0.02, 0.026), 0.4, 1, bits) == "too few rows to tell"
    # Rows that all agree have an interval without width: their number decides.
    assert verdict(comparison(0, 0, n=120), 1, 1, exact) == "no difference seen"
    assert verdict(comparison(0, 0, n=119), 1, 1, exact) == "too few rows to tell"
    assert verdict(comparison(0, 0, n=120), 1, 22, exact) == "too few rows to tell"


def test_an_unknown_metric_is_taken_for_a_share():
    assert facts_of("number_kept") == MetricFacts("Number kept", 3, True, "number kept")
    assert facts_of("brier_score,none")[2:] == (False, "brier score,none", None)


def test_languages_are_a_family_and_a_total_stands_alone():
    p = {"ta": 0.01, "hi": 0.02, "ur": 0.3}
    table = {
        "target": comparison(0.1, 0.2, p=0.04),
        "general": None,
        "by_language": {
            "target": {name: comparison(0.1, 0.2, p=one) for name, one in p.items()},
            "general": {"en": comparison(-0.2, -0.1, p=0.03)},
        },
    }
    assert judge(table, "exact_match") is table
    assert (table["target"]["p_holm"], table["target"]["verdict"]) == (0.04, "gain")
    target = table["by_language"]["target"]
    assert [target[name]["p_holm"] for name in p] == [0.03, 0.04, 0.3]
    assert [target[name]["verdict"] for name in p] == ["gain", "gain", "too few rows to tell"]
    assert table["by_language"]["general"]["en"]["verdict"] == "loss"


def test_a_table_of_a_task_is_judged_and_a_slice_without_rows_left_out():
    table = {"all": comparison(-0.2, -0.1, p=0.01), "by_language": {"ta": comparison(0.1, 0.2, p=0.04)}}
    judge(table, "exact_match")
    assert [table["all"]["verdict"], table["by_language"]["ta"]["verdict"]] == ["loss", "gain"]
    empty = {"all": None, "by_language": {}}
    assert judge(empty, "log_likelihood") == {"all": None, "by_language": {}}


@pytest.mark.parametrize(("n_tests", "n"), [(1, 19), (22, 439)])
def test_as_many_draws_are_needed_as_let_the_smallest_p_pass(n_tests, n):
    def smallest(draws):
        return holm([1 / (draws + 1)] + [1.0] * (n_tests - 1))[0]

    assert draws_needed(n_tests) == n
    assert smallest(n) <= 0.05 + 1e-12 < smallest(n - 1)


def test_the_worst_language_stands_first():
    by_name = {"b": comparison(0.0, 0.2), "c": comparison(-0.3, -0.1), "a": comparison(0.0, 0.2)}
    assert list(worst_first(by_name, "exact_match")) == ["c", "a", "b"]
    assert list(worst_first(by_name, "bits_per_byte")) == ["a", "b", "c"]


def p_of_accuracies(generator):
    """One language of 30 to 400 rows, right or wrong; a third of the answers differ, either way alike."""
    n_changed = generator.binomial(generator.integers(30, 400), 1 / 3)
    n_lost = generator.binomial(n_changed, 0.5)
    return mcnemar_p(int(n_lost), int(n_changed - n_lost))


def compared_scores(generator):
    """One language of 12 to 40 rows with skewed scores and lengths; both systems are the same by law."""
    n_rows = int(generator.integers(12, 41))
    values = generator.gamma(0.7, 1.0, (2, n_rows)) + generator.gamma(1.0, 1.0, n_rows)
    lengths = generator.integers(3, 60, n_rows).astype(float)
    return paired_bootstrap(values[0] * lengths, values[1] * lengths, 1500, 0, weights=lengths)


def n_false_runs(p_values, n_languages):
    """In how many simulated runs, in which nothing differs, some language has a finding after Holm."""
    runs = np.asarray(p_values).reshape(-1, n_languages)
    return sum(min(holm(p.tolist())) <= ALPHA for p in runs), len(runs)


def most_by_chance(n_tests):
    """Findings among so many that a rate of 5 % exceeds once in a thousand times."""
    return stats.binom.isf(0.001, n_tests, ALPHA)


def test_where_nothing_differs_at_most_5_percent_of_runs_with_22_languages_find_something():
    generator = np.random.default_rng(1)
    n_false, n_runs = n_false_runs([p_of_accuracies(generator) for _ in range(1500 * 22)], 22)
    assert n_false <= most_by_chance(n_runs)
    n_false, n_runs = n_false_runs([compared_scores(generator).p for _ in range(60 * 10)], 10)
    assert n_false <= most_by_chance(n_runs)


@pytest.mark.slow
def test_where_nothing_differs_scores_find_something_in_5_percent_and_sacrebleus_bootstrap_in_more():
    generator = np.random.default_rng(3)
    found = [compared_scores(generator) for _ in range(700 * 22)]
    p, p_bootstrap = (np.array([getattr(one, name) for one in found]) for name in ("p", "p_bootstrap"))
    n_false, n_runs = n_false_runs(p, 22)
    assert n_runs // 100 <= n_false <= most_by_chance(n_runs)  # a test that finds nothing would pass too
    assert (p <= ALPHA).sum() <= most_by_chance(len(p))
    assert (p_bootstrap <= ALPHA).mean() > 2 * ALPHA
    n_false_of_bootstrap, _ = n_false_runs(p_bootstrap, 22)
    assert n_false_of_bootstrap > most_by_chance(n_runs)
