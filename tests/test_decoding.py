"""Only UTF-8 is read; what is something else, or once was read as something else, is refused by place."""

import pytest

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES
from data_recipes.locale_facts import language_names, territories
from data_recipes.writing.decoding import decode, mojibake, refuse_mojibake

SAMPLES = [row.native_name for row in LANGUAGES.values() if not row.native_name.isascii()]
SAMPLES += ["“quoted”", "it’s", "a – b", "café", "naïve", "₹500", "São Tomé"]


def test_text_comes_back_without_a_mark_and_with_one_kind_of_line_end():
    assert decode("हिन्दी\r\nاردو\rతెలుగు\n".encode()) == "हिन्दी\nاردو\nతెలుగు\n"
    assert decode(b"\xef\xbb\xbfab") == "ab"
    assert decode(b"a\r\nb\rc", line_ends="keep") == "a\r\nb\rc"
    assert decode(b"") == ""


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "is UTF-16 (little-endian), by its byte order mark"),
        ("utf-32", "is UTF-32 (little-endian), by its byte order mark"),
        ("utf-16-le", "has a byte 0 at offset 1: it is no text, or UTF-16"),
        ("utf-16-be", "has a byte 0 at offset 0: it is no text, or UTF-16"),
        ("utf-32-be", "has a byte 0 at offset 0: it is no text, or UTF-16"),
    ],
)
def test_other_encodings_of_unicode_are_named(encoding, named):
    with pytest.raises(UserError) as raised:
        decode("name,उत्तर\n1,हाँ\n".encode(encoding), "rows.csv")
    assert str(raised.value).startswith(f"rows.csv {named}")


@pytest.mark.parametrize("mark", [b"\xfe\xff\x09\x15", b"\x00\x00\xfe\xff\x00\x00\x09\x15"])
def test_big_endian_marks_are_named_too(mark):
    with pytest.raises(UserError, match="big-endian"):
        decode(mark)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"one\ntwo \x93three", "byte 0x93 at offset 8, line 2, is an invalid start byte"),
        (b"\xef\xbb\xbf\n\n\xff", "byte 0xff at offset 5, line 3, is an invalid start byte"),
        ("क".encode()[:2], "byte 0xe0 at offset 0, line 1, is an unexpected end of data"),
        # a lone surrogate
        (b"\xed\xa0\x80", "byte 0xed at offset 0, line 1, is an invalid continuation byte"),
        (b"ab\xc0\x80", "byte 0xc0 at offset 2, line 1, is an invalid start byte"),  # an overlong NUL
    ],
)
def test_bytes_that_are_no_utf_8_are_refused_with_the_first_bad_one(data, place):
    with pytest.raises(UserError) as raised:
        decode(data, "rows.jsonl")
    assert str(raised.value).startswith("rows.jsonl is not UTF-8: byte") and place in str(raised.value)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_utf_8_that_was_read_as_latin_1_is_refused_and_not_repaired(sample, encoding):
    data = sample.encode()
    # The five bytes that Windows-1252 does not have pass through as controls, as browsers read them.
    wrong = "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in data)
    found = mojibake(f"ok: {wrong}")
    assert found is not None and found[0] in wrong and found[1] in sample
    with pytest.raises(
        UserError, match="the input has '.*' at character .* in UTF-8 read as Latin-1"
    ) as raised:
        decode(wrong.encode())
    assert repr(found[1]) in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "Là, « voilà » : à « demain »",
        "« à\u00a0» «Â» «Ã»",
        "MENÜ“ für „Größe“ – Ä…",
        "NÃO, SÃO, ÂNGULO, Âge, CAFÉ™",
        "5 °C ± 2 µm × 3, ½ ¾ §5",
        "Ångström Ærø Ðað ÿ",
        "à, à. à) à… à–",
    ],
)
def test_european_text_is_no_mojibake(text):
    assert mojibake(text) is None
    assert decode(text.encode()) == text


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_name_in_any_language_is_taken_for_mojibake(code):
    names = [*territories(code).values(), *language_names(code).values(), LANGUAGES[code].native_name]
    assert len(names) > 10
    refuse_mojibake(" ".join(names))
