"""The four metrics against sacrebleu and by hand, one value per row, offline and without litter."""

import json
import math
import socket
import tempfile

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from data_recipes.tasks import check
from eval.metrics import (
    BitsPerByte,
    ChrfPlusPlus,
    ExactMatchByChecker,
    ScriptShare,
    chrf_from_counts,
    in_memory,
)

ANSWERS = ["15 ஆகஸ்ட், 1947", "", "நன்றி", "the quick (brown) fox!", "कल", "क़िला", "same"]
EXPECTED = ["15 ஆகஸ்ட், 1950", "ஆம்", "நன்றி", "a quick brown fox", "कुल", "क़िला", "other words"]


def test_chrf_is_the_corpus_score_of_sacrebleu():
    result = in_memory(ChrfPlusPlus).compute(predictions=ANSWERS, references=EXPECTED)
    assert result is not None
    # The nukta letter of row 5 may be one code point or two: NFC makes both sides equal before counting.
    composed = [text.replace("\u0958", "\u0915\u093c") for text in ANSWERS]
    expected = [text.replace("\u0958", "\u0915\u093c") for text in EXPECTED]
    scorer = CHRF(word_order=2)
    assert result["chrf"] == pytest.approx(scorer.corpus_score(composed, [expected]).score, abs=1e-9)
    by_row = [
        scorer.sentence_score(answer, [right]).score for answer, right in zip(composed, expected, strict=True)
    ]
    assert result["per_row"] == pytest.approx(by_row, abs=1e-9)
    assert result["n"] == len(ANSWERS)
    assert result["per_row"][5] == 100
    assert (
        "nw:2" in result["signature"] and "nc:6" in result["signature"] and "version:" in result["signature"]
    )


def test_chrf_keeps_vowel_signs_apart():
    result = in_memory(ChrfPlusPlus).compute(predictions=["कल", "தல"], references=["कुल", "தலை"])
    assert result is not None
    assert max(result["per_row"]) < 100


def test_summed_row_counts_give_the_score_of_any_rows():
    result = in_memory(ChrfPlusPlus).compute(predictions=ANSWERS, references=EXPECTED)
    part = in_memory(ChrfPlusPlus).compute(predictions=ANSWERS[2:5], references=EXPECTED[2:5])
    assert result is not None and part is not None
    sums = np.array(result["statistics"])[2:5].sum(axis=0, keepdims=True)
    assert chrf_from_counts(sums)[0] == pytest.approx(part["chrf"])


def test_nothing_in_common_scores_zero_without_a_warning():
    with np.errstate(all="raise"):
        assert chrf_from_counts(np.zeros((2, 24))).tolist() == [0.0, 0.0]


def test_bits_per_byte_is_total_over_total():
    result = in_memory(BitsPerByte).compute(nll_nats=[math.log(2) * 8, math.log(2) * 2], n_bytes=[1, 9])
    assert result is not None
    assert result["bits_per_byte"] == pytest.approx(
        1.0
    )  # 10 bits over 10 bytes; the mean of rows would be 4.1
    assert result["per_row"] == pytest.approx([8, 2 / 9])
    assert result["n"] == 2


def test_bits_per_byte_refuses_an_empty_answer():
    with pytest.raises(ValueError, match="at least one byte"):
        in_memory(BitsPerByte).compute(nll_nats=[1.0], n_bytes=[0])


def test_script_share_by_row():
    answers = ["நன்றி", "thanks", "நன் abc", "123", ""]
    result = in_memory(ScriptShare).compute(predictions=answers, scripts=["Taml"] * 5)
    assert result is not None
    assert result["per_row"][0] == 1
    assert result["per_row"][1] == 0
    assert 0 < result["per_row"][2] < 1
    assert result["per_row"][3:] == [0, 0]
    assert result["script_share"] == pytest.approx(sum(result["per_row"]) / 5)


def test_exact_match_asks_the_checker_of_each_row():
    value = json.dumps({"date": "1947-08-15"})
    answers = ["15 August 1947", " 15  August 1947 ", "August 15, 1947?", "15 August 1948"]
    result = in_memory(ExactMatchByChecker).compute(
        predictions=answers, checkers=["date"] * 4, languages=["en"] * 4, values=[value] * 4
    )
    assert result is not None
    assert result["per_row"] == [float(check("date", "en", value, answer)) for answer in answers]
    assert result["per_row"] == [1, 1, 0, 0]
    assert (result["exact_match"], result["n"]) == (0.5, 4)


def test_metrics_need_no_network_and_leave_no_file(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory(ScriptShare).compute(predictions=["a"], scripts=["Latn"])
    in_memory(ChrfPlusPlus).compute(predictions=["a"], references=["a"])
    in_memory(BitsPerByte).compute(nll_nats=[1.0], n_bytes=[1.0])
    assert list(tmp_path.rglob("*")) == []


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="[Mm]ismatch"):
        in_memory(ChrfPlusPlus).compute(predictions=["a", "b"], references=["a"])
