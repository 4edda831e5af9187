"""Cuts fall where a reader sees them, in every script, and the pieces join back to the text."""

import random
import unicodedata

import pytest

from data_recipes.languages import LANGUAGES
from data_recipes.locale_facts import territories
from data_recipes.writing.graphemes import graphemes, sentences, words
from data_recipes.writing.written_forms import forms, tool_label

ZWJ, ZWNJ = "\u200d", "\u200c"


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("तमिल", ["त", "मि", "ल"]),
        ("தமிழ்", ["த", "மி", "ழ்"]),
        ("கௌ", ["கௌ"]),
        ("क्षि", ["क्षि"]),
        ("স্ত্রী", ["স্ত্রী"]),
        ("ಕ್ಷ", ["ಕ್", "ಷ"]),  # UAX 29 keeps conjuncts whole in six scripts; Kannada is not among them
        (f"क्{ZWJ}ष", [f"क्{ZWJ}ष"]),
        ("क़लम", ["क़", "ल", "म"]),
        ("ꯃꯤꯇꯩ", ["ꯃꯤ", "ꯇꯩ"]),
        ("کَل", ["کَ", "ل"]),
        ("e\u0301", ["e\u0301"]),
        ("👩\u200d🔬🇮🇳", ["👩\u200d🔬", "🇮🇳"]),
        ("a\r\nb", ["a", "\r\n", "b"]),
        ("", []),
    ],
)
def test_graphemes_are_what_a_reader_counts(text, pieces):
    assert graphemes(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),  # re's \w gives ह, न, द
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        (f"ಮೀಟರ್{ZWNJ}ಗಳು, ಹೌದು!", [f"ಮೀಟರ್{ZWNJ}ಗಳು", "ಹೌದು"]),
        (f"می{ZWNJ}خواهم، بلہ۔", [f"می{ZWNJ}خواهم", "بلہ"]),
        ("₹12,34,567.50 और ५०%", ["12,34,567.50", "और", "५०"]),
        ("it's x_y, अ-आ", ["it's", "x_y", "अ", "आ"]),
        ("ᱚᱞ ᱪᱤᱠᱤ᱾", ["ᱚᱞ", "ᱪᱤᱠᱤ"]),
        ("… — 😀", []),
    ],
)
def test_words_keep_their_signs_and_joiners_and_lose_the_punctuation(text, pieces):
    assert words(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("राम गया। वह आया॥ क्या? हाँ!", ["राम गया। ", "वह आया॥ ", "क्या? ", "हाँ!"]),
        ("یہ کتاب ہے۔ کیا؟ ہاں", ["یہ کتاب ہے۔ ", "کیا؟ ", "ہاں"]),
        ("گیا۔کیا", ["گیا۔", "کیا"]),
        ("ᱥᱟᱱᱛᱟᱲᱤ ᱾ ᱚᱞ᱿ ᱪᱤᱠᱤ", ["ᱥᱟᱱᱛᱟᱲᱤ ᱾ ", "ᱚᱞ᱿ ", "ᱪᱤᱠᱤ"]),
        ("ꯃꯤꯇꯩ꯫ ꯂꯣꯟ", ["ꯃꯤꯇꯩ꯫ ", "ꯂꯣꯟ"]),
        ("அவன் வந்தான். அவள் போனாள்.", ["அவன் வந்தான். ", "அவள் போனாள்."]),
        ("A. P. J. Kalam came. Pi is 3.14.", ["A. P. J. Kalam came. ", "Pi is 3.14."]),
        ("क. ख. शर्मा आए. वे गए.", ["क. ख. शर्मा आए. ", "वे गए."]),
        ('He said "Go!" She went.', ['He said "Go!" ', "She went."]),
        ("सही?! “हाँ।”  ठीक", ["सही?! ", "“हाँ।”  ", "ठीक"]),
        ("1. one\n2. two\n\n- three", ["1. one\n", "2. two\n\n", "- three"]),
        ("see example.com/a?b=c!d now", ["see example.com/a?b=c!d now"]),
        ("wait... what", ["wait... ", "what"]),
        ("", []),
    ],
)
def test_sentences_end_at_the_signs_of_their_script(text, pieces):
    assert sentences(text) == pieces


def test_what_is_cut_joins_back_to_the_text():
    rng = random.Random(1)
    signs = [*"अक़््िாക്ൊ।॥۔؟᱾.!? \n\r\t\"')1२a_’|", ZWJ, ZWNJ, "\u0301", "👩", "🇮", "\ud800"]
    for _ in range(3000):
        text = "".join(rng.choices(signs, k=rng.randrange(20)))
        assert "".join(graphemes(text)) == text
        assert "".join(sentences(text)) == text
        rest = text
        for word in words(text):
            assert word in rest
            rest = rest[rest.index(word) + len(word) :]


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_word_of_a_language_begins_with_a_mark(code):

    names = territories(code).values()
    assert len(names) > 0 and tool_label(code, "babel") and forms()
    pieces = [piece for name in names for piece in [*words(name), *graphemes(name)]]
    assert [piece for piece in pieces if unicodedata.category(piece[0])[0] == "M"] == []


def test_a_long_line_of_end_signs_takes_no_longer_than_its_length():
    for line in ("?" * 100_000 + "a", "?." * 50_000, "।" * 100_000, "1." * 50_000, "." * 100_000 + "x"):
        assert "".join(sentences(line)) == line
