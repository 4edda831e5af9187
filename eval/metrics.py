"""The four metrics as `evaluate.Metric` classes: each gives its value, n, and one value per row for pairing.

They are constructed directly, `in_memory(ChrfPlusPlus).compute(...)`: `evaluate.load` by name asks the Hub.
"""

import math
import tempfile
from typing import Any, TypeVar

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics.chrf import CHRF

from data_recipes.tasks import check
from data_recipes.text import normalise, script_share

CHAR_ORDER, WORD_ORDER, BETA = 6, 2, 2  # what makes chrF a chrF++
TEXT = datasets.Value("string")
NUMBER = datasets.Value("float64")
M = TypeVar("M", bound=evaluate.Metric)


def in_memory(metric_class: type[M]) -> M:
    """A metric of this class that leaves no file behind and needs no network.

    `evaluate` makes a cache folder for every metric, even one kept in memory, and never looks at it again: it
    is made in a temporary folder that is gone when this returns.
    """
    with tempfile.TemporaryDirectory() as folder:
        return metric_class(cache_dir=folder, keep_in_memory=True, seed=0)


class ExactMatchByChecker(evaluate.Metric):
    """Share of answers that the row's own checker accepts, recomputed from the row's value (0 to 1)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Share of answers that the checker of the row accepts.",
            {"predictions": TEXT, "checkers": TEXT, "languages": TEXT, "values": TEXT},
        )

    def _compute(
        self, predictions: list[str], checkers: list[str], languages: list[str], values: list[str]
    ) -> dict[str, Any]:
        columns = zip(checkers, languages, values, predictions, strict=True)
        per_row = [
            float(check(checker, language, value, answer)) for checker, language, value, answer in columns
        ]
        return {"exact_match": _mean(per_row), "n": len(per_row), "per_row": per_row}


class ScriptShare(evaluate.Metric):
    """Mean share of an answer's letters that are in the right script, 0 to 1; no letters counts 0."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Mean share of letters and marks in the script of the row.",
            {"predictions": TEXT, "scripts": TEXT},
        )

    def _compute(self, predictions: list[str], scripts: list[str]) -> dict[str, Any]:
        per_row = [script_share(answer, script) for answer, script in zip(predictions, scripts, strict=True)]
        return {"script_share": _mean(per_row), "n": len(per_row), "per_row": per_row}


class ChrfPlusPlus(evaluate.Metric):
    """Corpus chrF++ (0 to 100) by sacrebleu, on NFC text; the statistics per row add up to the corpus score.

    Source: Popović 2017, "chrF++: words helping character n-grams".
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info("Corpus chrF++ (sacrebleu, NFC text).", {"predictions": TEXT, "references": TEXT})

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        scorer = CHRF(char_order=CHAR_ORDER, word_order=WORD_ORDER, beta=BETA)
        answers = [normalise(text) for text in predictions]
        expected = [normalise(text) for text in references]
        # What sacrebleu's own significance test resamples; no public method gives these counts.
        statistics = scorer._extract_corpus_statistics(answers, [expected])
        statistics_NC = np.asarray(statistics, dtype=np.float64)
        return {
            "chrf": float(chrf_from_counts(statistics_NC.sum(axis=0, keepdims=True))[0]),
            "n": len(answers),
            "per_row": chrf_from_counts(statistics_NC).tolist(),
            "statistics": statistics,
            "signature": f"{scorer.get_signature()}|norm:NFC",
        }


class BitsPerByte(evaluate.Metric):
    """Bits the model needs for a UTF-8 byte of the expected answers, total over total; lower is better.

    Unlike perplexity it can be compared over tokenizers and scripts.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Negative log-likelihood of the expected answers in bits, over their length in bytes.",
            {"nll_nats": NUMBER, "n_bytes": NUMBER},
        )

    def _compute(self, nll_nats: list[float], n_bytes: list[float]) -> dict[str, Any]:
        bits = np.asarray(nll_nats, dtype=np.float64) / math.log(2)
        lengths = np.asarray(n_bytes, dtype=np.float64)
        if not (lengths > 0).all():
            raise ValueError("bits per byte needs answers of at least one byte each")
        return {
            "bits_per_byte": float(bits.sum() / lengths.sum()),
            "n": len(bits),
            "per_row": (bits / lengths).tolist(),
        }


def chrf_from_counts(counts_NC: np.ndarray) -> np.ndarray:
    """chrF++ scores [N] (0 to 100) from summed n-gram counts [N, 24].

    A row holds (in the answer, in the reference, in both) for character orders 1-6 and word orders 1-2. It is
    sacrebleu's formula with effective order, for many rows at once: a bootstrap needs thousands of them.
    """
    counts = counts_NC.reshape(len(counts_NC), CHAR_ORDER + WORD_ORDER, 3)
    n_answer, n_reference, n_match = counts[..., 0], counts[..., 1], counts[..., 2]
    counted = (n_answer > 0) & (n_reference > 0)  # an order longer than the text does not count
    n_counted = np.maximum(counted.sum(axis=1), 1)
    precision = (np.where(counted, n_match, 0) / np.where(counted, n_answer, 1)).sum(axis=1) / n_counted
    recall = (np.where(counted, n_match, 0) / np.where(counted, n_reference, 1)).sum(axis=1) / n_counted
    factor = BETA**2
    denominator = factor * precision + recall
    return 100 * (1 + factor) * precision * recall / np.where(denominator > 0, denominator, 1)


def _info(description: str, features: dict[str, datasets.Value]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(description=description, citation="", features=datasets.Features(features))


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
