"""Rows carry what was done to their text; those decoded wrongly or empty are dropped with the reason."""

import json
import re

import pytest

from data_recipes.artefact import UserError
from data_recipes.steps import Rejected
from data_recipes.writing.normalisation import TextPolicy
from data_recipes.writing.text_step import normalise_rows


def row(*contents, language="hi", script="Deva"):
    messages = [{"role": "user", "content": content} for content in contents]
    return {"id": "r1", "language": language, "script": script, "messages": messages}


def test_rows_carry_the_policy_and_its_counts_and_the_given_rows_stay():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    given = row("\u200b\u0958 ७\r\n")
    given["messages"].append(call)
    given["transforms"] = [{"name": "translate", "version": 1, "checks": {}}]
    before = json.dumps(given)
    (done,) = normalise_rows([given], TextPolicy(digits="ascii"))
    assert isinstance(done, dict) and json.dumps(given) == before
    assert [m["content"] for m in done["messages"]] == ["\u0915\u093c 7\n", None]
    assert done["messages"][1] == call and done["id"] == "r1"
    assert done["transforms"][0] == given["transforms"][0]
    record = json.loads(json.dumps(done["transforms"][1]))
    assert record["name"] == "text" and record["version"] == 1
    assert record["checks"]["changes"] == {
        "digits": 1,
        "line_ends": 1,
        "unicode_form": 1,
        "zero_width_space": 1,
    }
    assert record["checks"]["policy"]["digits"] == "ascii"


def test_a_row_without_changes_says_so():
    (done,) = normalise_rows([row("हाँ", "")], TextPolicy())
    assert isinstance(done, dict) and done["transforms"][0]["checks"]["changes"] == {}


def test_native_digits_are_those_of_each_rows_form():
    rows = [row("7"), row("7", language="ur", script="Arab"), row("7", language="mni", script="Mtei")]
    done = list(normalise_rows(rows, TextPolicy(digits="native")))
    assert [one["messages"][0]["content"] for one in done if isinstance(one, dict)] == ["७", "۷", "꯷"]
    with pytest.raises(
        UserError, match="row r1: native digits need a known written form: unknown written form"
    ):
        list(normalise_rows([row("7", script="Taml")], TextPolicy(digits="native")))
    # Nothing else asks for the form.
    assert list(normalise_rows([row("7", language="xx", script="Zzzz")], TextPolicy()))


def test_mojibake_and_empty_rows_are_rejected_with_a_reason_in_their_place():
    rows = [row("ठीक"), row("ठीक", "à¤¹à¤¾à¤\x81"), row("\u200b\ufeff "), row("ठीक")]
    done = list(normalise_rows(rows, TextPolicy()))
    assert [one.reason if isinstance(one, Rejected) else "kept" for one in done] == [
        "kept",
        "mojibake",
        "empty",
        "kept",
    ]
    assert done[1] == Rejected("r1", "text", "mojibake", "'à¤¹' for 'ह'")
    assert done[2] == Rejected("r1", "text", "empty", "'\\u200b\\ufeff ' holds nothing that is seen")


def test_spans_of_a_text_are_left_alone():
    def code(content):
        return [match.span() for match in re.finditer("`[^`]*`", content)]

    (done,) = normalise_rows([row("“७” `“७”`")], TextPolicy(digits="ascii", quotes="ascii"), spans=code)
    assert isinstance(done, dict) and done["messages"][0]["content"] == '"7" `“७”`'


def test_rows_are_taken_one_by_one():
    def endless():
        while True:
            yield row("हाँ")

    assert next(normalise_rows(endless(), TextPolicy()))["id"] == "r1"  # type: ignore[index]
