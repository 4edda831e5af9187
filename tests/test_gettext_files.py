"""Gettext files: plural forms, contexts, encodings; what is broken says where, and nothing else is raised."""

import gettext
import io
import struct

import pytest

from data_recipes.row_sources.gettext_files import BadCatalogue, Entry, read_mo_entries, read_po_entries
from tests.catalogue_bytes import HEADER, PO, TWO_FORMS, mo_bytes, mo_of


def test_every_entry_of_a_po_file_is_a_pair_or_has_its_reason():
    found = {(e.english, e.context): e for e in read_po_entries(PO)}
    assert {key: entry.text for key, entry in found.items() if not entry.skipped} == {
        ("Save", None): "சேமி",
        ("May", "month"): "மே",
        ("May", "verb"): "முடியும்",
        ("%d file in {folder}", None): "{folder} இல் %d கோப்பு",
        ("%d files in {folder}", None): "{folder} இல் %d கோப்புகள்",
        ('a "quoted" one\nof $1 lines', None): "<b>$1</b> வரிகளில்\nஒன்று",
    }
    assert {entry.english: entry.skipped for entry in found.values() if entry.skipped} == {
        "Delete %s": "fuzzy",
        "Home": "untranslated",
        "Gone": "obsolete",
    }
    assert found["Save", None].line == PO.decode().splitlines().index('msgid "Save"') + 1


def test_a_mo_file_gives_the_pairs_of_the_po_file_it_was_made_from():
    def pairs(entries):
        return {
            (e.english, e.text, e.context, e.plural_form, e.example_count) for e in entries if not e.skipped
        }

    assert pairs(read_mo_entries(mo_of(PO))) == pairs(read_po_entries(PO))


# The rules are those of the gettext manual; the counts by hand.
PLURALS = [
    ("1; plural=0", ["x"], [("files", "x", 0, 200)]),
    ("2; plural=(n != 1)", ["x", "y"], [("file", "x", 0, 1), ("files", "y", 1, 200)]),
    ("2; plural=(n > 1)", ["x", "y"], [("file", "x", 0, 1), ("files", "y", 1, 200)]),
    (
        "3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<12 || n%100>14) ? 1 : 2)",  # Polish
        ["x", "y", "z"],
        [("file", "x", 0, 1), ("files", "y", 1, 194), ("files", "z", 2, 200)],
    ),
    (
        "4; plural=(n==1) ? 1 : (n==2) ? 2 : 3",  # form 0 is for no count
        ["w", "x", "y", "z"],
        [("file", "x", 1, 1), ("files", "y", 2, 2), ("files", "z", 3, 200)],
    ),
]


@pytest.mark.parametrize(("rule", "texts", "expected"), PLURALS)
def test_each_plural_form_goes_with_the_english_of_its_counts(rule, texts, expected):
    forms = "".join(f'msgstr[{i}] "{text}"\n' for i, text in enumerate(texts))
    po = HEADER.format(charset="UTF-8", rule=rule) + f'\nmsgid "file"\nmsgid_plural "files"\n{forms}'
    for entries in (read_po_entries(po.encode()), read_mo_entries(mo_of(po.encode()))):
        assert [(e.english, e.text, e.plural_form, e.example_count) for e in entries] == expected


@pytest.mark.parametrize("rule", ["2; plural=__import__('os')", "2; plural=n/0", "2; plural=n", "2", "x"])
def test_a_plural_rule_that_is_none_leaves_the_plural_entries_out_and_runs_nothing(rule):
    header = HEADER.format(charset="UTF-8", rule=rule)
    body = '\nmsgid "a"\nmsgstr "b"\n\nmsgid "file"\nmsgid_plural "files"\nmsgstr[0] "x"\nmsgstr[1] "y"\n'
    found = [(e.english, e.skipped) for e in read_po_entries((header + body).encode())]
    assert found == [("a", ""), ("file", "no plural rule")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("charset", ["UTF-8", "ISO-8859-1", "KOI8-R", "Shift_JIS"])
def test_texts_are_decoded_as_the_header_says_in_both_byte_orders(order, charset):
    text = {"ISO-8859-1": "Löschen", "KOI8-R": "Удалить", "Shift_JIS": "表示"}.get(charset, "நீக்கு")
    header = f"Content-Type: text/plain; charset={charset}\n".encode()
    mo = mo_bytes(order, (b"", header), (b"ctx\x04Delete", text.encode(charset)))
    assert list(read_mo_entries(mo)) == [Entry("Delete", text, "ctx")]
    assert gettext.GNUTranslations(io.BytesIO(mo)).pgettext("ctx", "Delete") == text
    po = HEADER.format(charset=charset, rule="1; plural=0") + f'\nmsgid "Delete"\nmsgstr "{text}"\n'
    assert [(e.english, e.text) for e in read_po_entries(po.encode(charset))] == [("Delete", text)]


BROKEN = [
    (read_po_entries, PO.replace("சேமி".encode(), b"\xe9"), "byte 0xe9 is not utf-8, the header's encoding"),
    (read_po_entries, PO.replace(b"UTF-8", b"klingon"), "unknown encoding: klingon"),
    (read_po_entries, TWO_FORMS.encode() + b'\nmsgid "a"\nmsgid "b"\nmsgstr "c"\n', "line 6: missing msgstr"),
    (read_po_entries, b"\xff\xfem\0s\0g\0i\0d\0", "is not utf-8"),
    (read_po_entries, b"<html>404</html>\n", "line 1: Unknown or misformatted keyword"),
    (read_po_entries, b'msgstr "a"\nmsgid "b"\nmsgstr[x] "c"', "no .po file"),
    (read_mo_entries, b"", "does not begin as a .mo file"),
    (read_mo_entries, b"<html>404</html>", "does not begin as a .mo file"),
    (read_mo_entries, mo_of(PO)[:200], "cut off"),
    (read_mo_entries, mo_of(PO)[:16], "cut off"),
    (read_mo_entries, mo_bytes("<", (b"", b"charset=UTF-8"), (b"a", b"\xe9")), "byte 0xe9 is not UTF-8"),
    (read_mo_entries, mo_bytes("<", (b"", b"charset=klingon"), (b"a", b"b")), "unknown encoding: klingon"),
    (read_mo_entries, mo_bytes("<", (b"", b"charset=undefined"), (b"a", b"b")), "undefined"),
    (read_po_entries, PO.replace(b"UTF-8", b"undefined"), "undefined"),
    (read_po_entries, PO.replace(b"UTF-8", b"rot13"), "is not a text encoding"),
    (read_mo_entries, struct.pack("<7I", 0x950412DE, 0, 2**31, 28, 28, 0, 28), "cut off"),
]


@pytest.mark.parametrize(("reader", "data", "message"), BROKEN)
def test_a_broken_catalogue_says_what_is_broken(reader, data, message, capsys):
    with pytest.raises(BadCatalogue, match=message):
        list(reader(data))
    assert capsys.readouterr().out == ""  # Babel prints its warnings


@pytest.mark.parametrize("reader", [read_po_entries, read_mo_entries])
def test_a_catalogue_cut_off_anywhere_raises_nothing_but_its_own_error(reader):
    whole = PO if reader is read_po_entries else mo_of(PO)
    n_read = 0
    for end in range(0, len(whole), 7):
        try:
            list(reader(whole[:end]))
            n_read += 1
        except BadCatalogue:
            pass
    assert n_read < len(whole) // 7
