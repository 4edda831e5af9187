"""A translation is accepted only when what had to survive did; an oracle that made the rows judges."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from translation_rows import corruption, make_row
from translation_teachers import Honest, Hostile, word_in

from data_recipes.artefact import UserError
from data_recipes.screening.contamination import contaminated_ids, index_test_sets, keep_out
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.options import TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows
from data_recipes.translate.teachers import Glossary, Reply, read_glossary


def options(**changes):
    return TranslateOptions(
        **({"target": "ta", "teacher": "glossary", "glossary": Path("terms.json")} | changes)
    )


def translated(rows, teacher, cache=None, **changes) -> list[Any]:
    return list(translate_rows(rows, options(**changes), teacher, cache or ReplyCache(":memory:")))


def judged(n_rows, teacher, block="TAMIL", digits="keep", first=0, **changes):
    """Counts: accepted rows, rejects by reason, and what the oracle says of the accepted ones."""
    made = [make_row(seed) for seed in range(first, first + n_rows)]
    results = translated([row for row, _ in made], teacher, digits=digits, **changes)
    assert len(results) == n_rows
    counts: Counter[str] = Counter()
    corrupt = []
    for (row, truths), result in zip(made, results, strict=True):
        if isinstance(result, Rejected):
            assert result.row_id == row["id"] and result.reason
            counts[f"rejected: {result.reason}"] += 1
            continue
        counts["accepted"] += 1
        for source, target, truth in zip(row["messages"], result["messages"], truths, strict=True):
            if truth is None:
                assert target == source
            elif wrong := corruption(source["content"], target["content"], truth, block, digits):
                corrupt.append((row["id"], wrong))
    return counts, corrupt


# The figures


@pytest.mark.parametrize("digits", ["keep", "any", "native"])
def test_no_corrupt_row_of_a_hostile_teacher_is_accepted(digits):
    counts, corrupt = judged(60, Hostile(digits=digits == "any"), digits=digits, first=9000)
    assert corrupt == []
    assert 0 < counts["accepted"] < 60 and len(counts) > 4, counts


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_no_corrupt_row_of_2000_is_accepted_from_a_hostile_teacher(rate):
    counts, corrupt = judged(2000, Hostile(rate=rate))
    print(f"hostile, rate {rate}: {len(corrupt)} corrupt, {dict(counts)}")
    assert corrupt == []
    assert 0 < counts["accepted"] < 2000 and len(counts) > 8, counts


@pytest.mark.parametrize(("script", "target"), [("TAMIL", "ta"), ("DEVANAGARI", "mr")])
def test_an_honest_teacher_is_accepted(script, target):
    counts, corrupt = judged(60, Honest(script), script, target=target, first=9000)
    assert corrupt == []
    assert counts == {"accepted": 60}


@pytest.mark.slow
@pytest.mark.parametrize("digits", ["keep", "any", "native"])
def test_of_2000_rows_of_an_honest_teacher_0_99_are_accepted(digits):
    counts, corrupt = judged(2000, Honest(digits=digits == "any"), digits=digits)
    print(f"honest, digits {digits}: {len(corrupt)} corrupt, {dict(counts)}")
    assert corrupt == []
    assert counts["accepted"] >= 0.99 * 2000, counts


def test_the_oracle_sees_each_kind_of_damage():
    row, truths = next(made for made in map(make_row, range(9000, 9100)) if made[1][0] and made[1][0].opaque)
    source, truth = row["messages"][0]["content"], truths[0]
    assert truth is not None
    right = translated([row], Honest())[0]["messages"][0]["content"]
    assert corruption(source, right, truth, "TAMIL") == ""
    damaged = [
        right.replace(truth.opaque[0], ""),
        right + truth.opaque[0],
        right + " 7",
        right + " ௭",
        right + "\n",
    ]
    damaged += [right + " **", right + " Sure", "# " + right, right.replace(" ", "\n\n", 1), source]
    assert [text for text in damaged if not corruption(source, text, truth, "TAMIL")] == []


# The step


class Scripted:
    """A teacher that gives its answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Any):
        self.answers, self.asked, self.identity = list(answers), [], {"teacher": "scripted"}

    def ask(self, requests):
        for i, request in enumerate(requests):
            self.asked.append(request)
            answer: Any = self.answers.pop(0) if self.answers else ""
            yield i, Reply(str(answer(request.text) if callable(answer) else answer))


def row_of(content, **more):
    return {"id": "r1", "language": "en", "messages": [{"role": "user", "content": content}], **more}


def test_a_row_carries_its_proof_its_parent_and_its_source():
    row = row_of("Open 3 files with `ls`.", licence="CC0-1.0", transforms=[{"name": "before"}])
    result = translated([row], Honest())[0]
    assert result["id"] == "r1/ta" and result["parent"]["id"] == "r1" and result["licence"] == "CC0-1.0"
    assert (result["language"], result["script"]) == ("ta", "Taml")
    assert result["parent"]["messages"] == row["messages"]
    assert row["messages"][0]["content"].startswith("Open")
    before, proof = result["transforms"]
    assert before == {"name": "before"} and (proof["name"], proof["version"]) == ("translate", 1)
    checks = json.loads(json.dumps(proof["checks"]))
    assert checks["spans"] == checks["numbers"] == 1 and checks["least_script_share"] == 1
    assert checks["levels"] == ["message"] and checks["retries"] == 0


def test_a_failed_reply_is_asked_again_with_other_marks_a_temperature_and_a_seed():
    teacher = Scripted("junk", lambda text: text.replace("Good day to you", word_in("TAMIL", "goodday")))
    result = translated([row_of("Good day to you {name}")], teacher)[0]
    assert result["messages"][0]["content"].endswith(" {name}")
    first, second = teacher.asked
    assert first.text.startswith("⟦0⟧") and second.text.startswith("<x0/>")
    assert (first.temperature, second.temperature, second.seed) == (0.0, 0.5, 1)


def test_a_message_that_fails_is_sent_by_paragraph_and_then_by_sentence():
    class OnlySentences(Honest):
        def translate(self, request):
            too_long = request.text.count(".") > 1
            return "" if too_long else super().translate(request)

    text = "# A title\n\nFirst of all this. Then `that`. And more.\n\n- a last item"
    result = translated([row_of(text)], OnlySentences())[0]
    assert result["transforms"][-1]["checks"]["levels"] == ["paragraph", "sentence"]
    target = result["messages"][0]["content"]
    assert target.startswith("# ") and ". " in target and "`that`" in target and "\n\n- " in target


def test_a_row_is_rejected_with_the_check_that_failed_and_what_it_found():
    answers = ("⟦0⟧அது ⟦2⟧", "<x0/>அது <x1/> <x1/><x2/>")
    result = translated([row_of("It was 231 then and there.")], Scripted(*answers))[0]
    assert result == Rejected("r1", "translate", "placeholders", result.detail)
    assert "doubled [1]" in result.detail and "It was 231" in result.detail


def test_what_holds_no_prose_is_not_sent_and_other_roles_are_not_touched():
    teacher = Scripted()
    messages = [
        {"role": "user", "content": "```\ncode\n```\n\n231 {x}"},
        {"role": "tool", "content": "Some words"},
    ]
    messages += [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]
    result = translated([{"id": "r", "messages": messages}], teacher)[0]
    assert result["messages"] == messages and teacher.asked == []


def test_content_in_parts_is_translated_part_by_part():
    image = {"type": "image_url", "image_url": {"url": "http://a.b/c"}}
    row = {
        "id": "r",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "good day"}, image]}],
    }
    content = translated([row], Honest())[0]["messages"][0]["content"]
    assert (
        content[1] == image and content[0]["text"] == f"{word_in('TAMIL', 'good')} {word_in('TAMIL', 'day')}"
    )


def test_a_translated_row_goes_when_its_english_parent_is_in_a_test_set():
    question = "Which of these rivers is the longest one that flows wholly inside of the country?"
    index = index_test_sets({"quiz": [question]})
    (with_source,) = translated([row_of(question)], Honest())
    assert isinstance(with_source, dict)
    assert [getattr(r, "reason", "") for r in keep_out([with_source], index)] == ["parent in test set quiz"]
    # Without the source on the row its id alone tells.
    (without,) = translated([row_of(question)], Honest(), keep_source=False)
    assert isinstance(without, dict) and without["parent"] == "r1"
    parents = contaminated_ids([row_of(question)], index)
    kept_out = keep_out([without], index, parents)
    assert [getattr(r, "reason", "") for r in kept_out] == ["parent in test set quiz"]


@pytest.mark.parametrize("window", [1, 3, 64])
def test_rows_and_order_do_not_depend_on_the_window_or_the_order_of_replies(window):
    rows = [make_row(seed)[0] for seed in range(9000, 9010)]
    expected = translated(rows, Hostile())
    assert translated(iter(rows), Hostile(), window=window) == expected
    assert [getattr(r, "row_id", "") or r["parent"]["id"] for r in expected] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "r"}, "no messages"),
        ({"id": "r", "messages": ["text"]}, "no messages"),
        (row_of("word " * 5000), "too long"),
        (row_of("marks ⟦1⟧ <x1/> [[1]] here"), "marks"),
        (row_of("मराठी", language="mr"), "language"),
    ],
)
def test_a_row_that_cannot_be_translated_is_rejected_before_it_is_sent(row, reason):
    teacher = Scripted()
    result = translated([row], teacher)[0]
    assert isinstance(result, Rejected) and result.reason == reason and teacher.asked == []


def test_a_text_with_marks_of_one_form_is_sent_with_another():
    teacher = Scripted()
    translated([row_of("words and ⟦1⟧ here")], teacher, n_tries=1)
    assert teacher.asked[0].text.startswith("<x0/>")


def test_deep_nesting_and_unbalanced_brackets_do_not_stop_the_run():
    texts = [
        "[" * 900 + " words",
        "{" * 900 + " words",
        "$" * 900 + " words",
        "**a " * 300,
        "> " * 200 + "words",
        "<b>" * 1500 + "words" + "</b>" * 1500,
    ]
    results = translated([row_of(text) for text in texts], Honest())
    assert len(results) == 6


# Glossary and options


def test_a_glossary_takes_the_longest_term_and_whole_words_only(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("file\tகோப்பு\nsave file\tகோப்பைச் சேமி\nnow\tஇப்போது\n", encoding="utf-8")
    rows = [row_of("Save file now"), row_of("Save files now")]
    with ReplyCache(":memory:") as cache:
        settings = options(glossary=path)
        with open_teacher(settings, cache) as teacher:
            first, second = list[Any](translate_rows(rows, settings, teacher, cache))
    assert first["messages"][0]["content"] == "கோப்பைச் சேமி இப்போது"
    assert second.reason == "script"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "holds no term"),
        ("a.json", "[1]", "not a list of terms"),
        ("a.csv", "one\n", "not a list of terms"),
        ("a.json", '{"a": "x", "a": "y"}', "translates 'a' twice"),
    ],
)
def test_a_glossary_that_is_none_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_glossary(tmp_path / name)
    with pytest.raises(UserError, match="cannot read the glossary"):
        read_glossary(tmp_path / "absent.json")


def test_an_empty_glossary_changes_nothing():
    assert [reply.text for _, reply in Glossary({}).ask(Scripted().asked)] == []


def test_all_problems_of_the_options_are_told_at_once_and_never_a_key():
    wrong = ["target=tz", "mask_forms=['<{n}']", "length_ratio=[2, 1]", "endpoint.concurrency=0"]
    wrong += ["endpoint.key_variable=sk-secret-123", "endpoint.base_url=http://me:pass@host/v1"]
    with pytest.raises(UserError) as caught:
        load_settings(TranslateOptions, None, wrong)
    message = str(caught.value)
    for part in (
        "unknown language 'tz'",
        "mask_forms",
        "length_ratio",
        "concurrency",
        "NAME of an environment",
    ):
        assert part in message
    assert "secret" not in message and "pass@" not in message


def test_a_tag_names_the_script_where_it_is_not_the_languages_own():
    policies = [TranslateOptions(target=tag).policy() for tag in ("hi", "hi-Latn", "ks", "ks-Deva", "sd")]
    assert [(policy.script, policy.system) for policy in policies] == [
        ("Deva", "deva"),
        ("Latn", "latn"),
        ("Arab", "arabext"),
        ("Deva", "deva"),
        ("Arab", "arab"),
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "hi-Xxxx"}, "target: unknown written form 'hi-Xxxx'"),
        (
            {"target": "doi-Dogr", "digits": "native"},
            "target: unsupported: doi-Dogr has no digits",
        ),
    ],
)
def test_a_form_that_is_unknown_or_has_no_digits_of_its_own_is_a_problem(options, problem):
    assert any(found.startswith(problem) for found in TranslateOptions(**options).problems())
