"""Text of any script in a page: marks between graphemes, the right language and direction, cuts."""

import pytest
from made_up_dataset import made_up_manifest

from data_recipes.publishing.manifest_facts import form_name, title
from data_recipes.publishing.page_frame import (
    MAX_SHOWN_BYTES,
    MAX_SHOWN_GRAPHEMES,
    cut_text,
    language_attributes,
)
from data_recipes.publishing.text_difference import split_pieces, text_difference
from data_recipes.writing.graphemes import graphemes
from data_recipes.writing.written_forms import forms


def test_a_difference_is_marked_between_graphemes_and_nothing_is_lost():
    before, after = "நான் தமிழ் பேசுவேன்", "நான் தமிழ பேசுவேன்"
    left, right = text_difference(before, after)
    for pieces, text in ((left, before), (right, after)):
        assert "".join(piece.text for piece in pieces) == text
        assert [g for piece in pieces for g in graphemes(piece.text)] == graphemes(text)
    assert [piece.text for piece in left if piece.kind == "changed"] == ["தமிழ்"]
    assert [piece.text for piece in right if piece.kind == "changed"] == ["தமிழ"]


def test_what_the_eye_cannot_see_is_told_by_code_points():
    left, right = text_difference("\u0929मक", "\u0928\u093cमक")
    assert left[0].code_points == "U+0929 U+092E U+0915"
    assert right[0].code_points == "U+0928 U+093C U+092E U+0915"
    joined, _ = text_difference("क्\u200dष", "क्ष")
    assert "U+200D" in joined[0].code_points
    assert all(piece.code_points == "" for piece in text_difference("एक", "दो")[0])


def test_long_equal_stretches_are_gaps():
    before = "अ " * 300 + "एक" + " ब" * 300
    left, _ = text_difference(before, before.replace("एक", "दो"))
    assert [piece.kind for piece in left] == ["gap", "same", "changed", "same", "gap"]
    assert sum(len(piece.text) for piece in left) < 80


@pytest.mark.parametrize("text", ["", "a  b", "हिन्दी, தமிழ்!", "\u200d\u0301", "ಕ್ಷ ಜ್ಞ"])
def test_pieces_join_back_to_the_text(text):
    assert "".join(split_pieces(text)) == text


@pytest.mark.parametrize(
    ("text", "tag", "attributes"),
    [
        ("یوم آزادی 15 اگست", "ur-Arab", 'lang="ur-Arab" dir="rtl"'),
        ("15 اگست August کو ہے", "ur-Arab", 'lang="ur-Arab" dir="rtl"'),
        ("When is Independence Day?", "ur-Arab", 'dir="ltr"'),
        ("سنڌي", "sd-Arab", 'lang="sd-Arab" dir="rtl"'),
        ("कॉशुर", "ks-Deva", 'lang="ks-Deva" dir="ltr"'),
        ("aap kaise hain", "ur-Latn", 'lang="ur-Latn" dir="ltr"'),
        ("123", "hi-Deva", 'dir="ltr"'),
    ],
)
def test_language_and_direction_are_those_of_the_text(text, tag, attributes):
    assert language_attributes(text, tag) == attributes


def test_every_written_form_has_a_script_that_can_be_matched_and_a_name():
    for tag in forms():
        assert "dir=" in language_attributes("अ", tag)
        assert form_name(tag)
    assert form_name("hi-Latn") == "Hindi, romanised" and form_name("en-Latn") == "English"
    assert form_name("ta-Taml") == "Tamil" and form_name("bn-Beng") == "Bengali"
    assert form_name("sat-Olck") == "Santali, Ol Chiki"
    assert title(made_up_manifest(languages=dict.fromkeys(forms()))).endswith(": 23 languages")


def test_a_cut_text_ends_at_a_grapheme():
    text = "க்" * 500
    assert cut_text(text) == "க்" * MAX_SHOWN_GRAPHEMES + "…"
    assert cut_text("க்" * MAX_SHOWN_GRAPHEMES) == "க்" * MAX_SHOWN_GRAPHEMES
    assert len(cut_text("e" + "\u0301" * 100_000).encode()) <= MAX_SHOWN_BYTES + 3


def test_a_change_of_the_whole_text_is_compared_in_bounded_time():
    before, after = "क्षि ज " * 5000, "ज क्षि " * 5000
    left, right = text_difference(before, after)
    assert left[-1].kind == right[-1].kind == "gap"
    assert sum(len(piece.text) for piece in left) < 600
    assert before.startswith("".join(piece.text for piece in left[:-1]).partition(" … ")[0])
