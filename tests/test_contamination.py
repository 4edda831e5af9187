"""Test sets are kept out: whole or in part, in every script, and with what was made from their English."""

import random

import pytest

from data_recipes.artefact import UserError
from data_recipes.screening import comparison
from data_recipes.screening.contamination import (
    ContaminationOptions,
    contaminated_ids,
    index_test_sets,
    keep_out,
)
from data_recipes.steps import Rejected
from data_recipes.writing.digits import write_digits
from tests.twin_rates import PAIRS

ENGLISH = "What is the capital of the Indian state of Kerala, and which language is spoken there?"
HINDI = "भारत के केरल राज्य की राजधानी क्या है और वहाँ कौन सी भाषा बोली जाती है? 25 शब्दों में लिखिए।"
OTHER = "आज बाज़ार में सब्ज़ी बहुत महँगी थी इसलिए हमने केवल आलू और प्याज़ लिए और घर लौट आए।"


def row(text: str, row_id: str = "r", **more: object) -> dict:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ठीक है"}]
    return {"id": row_id, "language": "hi", "messages": messages, **more}


def reason(one_row: dict, index, parents=None) -> str | None:
    (done,) = keep_out([one_row], index, parents)
    return f"{done.reason}: {done.detail}" if isinstance(done, Rejected) else None


@pytest.mark.parametrize(
    "text",
    [
        HINDI,
        "  " + HINDI.replace(" ", "  "),
        write_digits(HINDI, "deva"),
        HINDI.replace("लिखिए", "बताइए"),
        f"नीचे दिए गए प्रश्न का उत्तर दें।\n\n{HINDI}\n\nउत्तर:",
    ],
)
def test_a_test_question_is_found_changed_a_little_or_inside_more_text(text: str):
    index = index_test_sets({"quiz": [HINDI]})
    assert (reason(row(text), index) or "").startswith("in test set quiz: written form")
    assert reason(row(OTHER), index) is None


def test_a_clean_row_says_which_test_sets_it_was_checked_against():
    (clean,) = keep_out([row(OTHER)], index_test_sets({"quiz": [HINDI, ENGLISH], "exam": [ENGLISH]}))
    assert isinstance(clean, dict)
    checks = {"test_sets": {"exam": 1, "quiz": 2}}
    assert clean["transforms"] == [{"name": "contamination", "version": 1, "checks": checks}]


def test_a_part_of_a_long_test_text_is_found_by_thirteen_words():
    long = f"{OTHER} {HINDI} {ENGLISH}"
    index = index_test_sets({"long": [long]})
    thirteen = " ".join(f"{OTHER} {HINDI}".split()[3:16])
    assert reason(row(thirteen), index) == "in test set long: written form, words"
    assert reason(row(" ".join(f"{OTHER} {HINDI}".split()[3:14])), index) is None


def test_a_short_test_text_counts_only_whole():
    index = index_test_sets({"short": ["नमस्ते"]})
    assert reason(row("नमस्ते"), index) == "in test set short: written form, whole"
    assert reason(row("नमस्ते, कैसे हो?"), index) is None


def test_minimal_pairs_are_not_taken_for_each_other():
    index = index_test_sets({"short": ["कल"]})
    assert reason(row("कुल"), index) is None


@pytest.mark.parametrize(("in_test", "in_row", "n_found"), [(0, 1, 25), (1, 0, 26)])
def test_most_test_questions_are_found_in_the_other_script(in_test: int, in_row: int, n_found: int):
    pairs = [pair for of_language in PAIRS.values() for pair in of_language]
    found = [reason(row(p[in_row]), index_test_sets({"t": [p[in_test]]})) is not None for p in pairs]
    every = index_test_sets({"t": [p[in_test] for p in pairs]})
    assert len(found) == 29
    assert sum(found) >= n_found  # as measured: 25 romanised rows of 29, 26 native ones
    assert reason(row(OTHER), every) is None


def test_a_row_goes_with_its_english_parent():
    index = index_test_sets({"quiz": [ENGLISH]})
    parents = contaminated_ids([row(ENGLISH, "en/1"), row(OTHER, "en/2")], index)
    assert list(parents) == ["en/1"]
    expected = "parent in test set quiz: written form, words"
    assert reason(row(HINDI, parent="en/1"), index, parents) == expected
    assert reason(row(HINDI, parent={"id": "en/1"}), index, parents) == expected
    assert reason(row(HINDI, parent="en/2"), index, parents) is None
    assert reason(row(HINDI), index, parents) is None


def test_a_parent_that_stands_on_the_row_is_read():
    index = index_test_sets({"quiz": [ENGLISH]})
    for parent in ({"text": ENGLISH}, {"id": 3, "messages": row(ENGLISH)["messages"]}):
        assert (reason(row(HINDI, parent=parent), index) or "").startswith("parent in test set quiz")
    assert reason(row(HINDI, parent={"text": OTHER}), index) is None


def test_the_same_rows_in_parts_give_the_same():
    index = index_test_sets({"quiz": [HINDI, ENGLISH]})
    rows = [row(text, str(i)) for i, text in enumerate((HINDI, OTHER, ENGLISH, OTHER + HINDI))]
    assert [*keep_out(rows[:1], index), *keep_out(rows[1:], index)] == list(keep_out(rows, index))


def test_half_a_character_from_json_stops_nothing():
    index = index_test_sets({"quiz": [HINDI]})
    assert (reason(row("\ud83d " + HINDI), index) or "").startswith("in test set quiz")
    assert reason(row("\ud83d " + OTHER), index) is None


def test_empty_test_sets_and_wrong_options_are_errors():
    with pytest.raises(UserError, match="the test set 'quiz' has no text to keep out"):
        index_test_sets({"quiz": ["", "  "]})
    with pytest.raises(UserError, match="no test set is named"):
        index_test_sets({})
    with pytest.raises(UserError, match=r"share=0 .*words=0"):
        ContaminationOptions(share=0, words=0)


def test_rows_that_hold_a_share_of_a_test_text_are_those_of_comparing_all_pairs():
    """The oracle compares every row with every test text, without an index."""
    rng = random.Random(3)
    vocabulary = [*HINDI.split(), *OTHER.split(), *ENGLISH.split()]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(4, 12))) for _ in range(60)]
    rows = []
    for number in range(240):
        words = rng.choice(texts).split()
        for place in rng.sample(range(len(words)), rng.randint(0, 3)):
            words[place] = rng.choice(vocabulary)
        rows.append(row(" ".join([*rng.choices(vocabulary, k=rng.randint(0, 4)), *words]), str(number)))
    options = ContaminationOptions(words=1000)

    def forms(text: str) -> list[set[str]]:
        written = comparison.grapheme_shingles(text, options.graphemes)
        return [written, comparison.skeleton_shingles(text, options.letters)]

    shares, tests = (options.share, options.skeleton_share), [forms(text) for text in texts]
    expected = {
        r["id"]
        for r in rows
        for test in tests
        for own, of_test, share in zip(forms(r["messages"][0]["content"]), test, shares, strict=True)
        if len(of_test) >= options.min_runs and len(own & of_test) >= share * len(of_test)
    }
    index = index_test_sets({"made": texts}, options)
    gone = {item.row_id for item in keep_out(rows, index) if isinstance(item, Rejected)}
    whole = {r["id"] for r in rows if r["messages"][0]["content"] in texts}
    assert 40 < len(expected) < 200 and expected - whole
    assert gone == expected | whole
