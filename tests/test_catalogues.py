"""Catalogues: plural forms, contexts, encodings; the fuzzy, obsolete and broken is counted and left out."""

import gettext
import io
import json
import re
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from babel.messages.pofile import read_po

from data_recipes.artefact import UserError, sha256_file
from data_recipes.row_sources import catalogues
from data_recipes.row_sources.catalogues import CatalogueOptions, read
from data_recipes.row_sources.gettext_files import BadCatalogue, Entry, read_mo_entries, read_po_entries
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected

HEADER = """msgid ""
msgstr ""
"Content-Type: text/plain; charset={charset}\\n"
"Plural-Forms: nplurals={rule};\\n"
"""
TWO_FORMS = HEADER.format(charset="UTF-8", rule="2; plural=(n != 1)")
BODY = """
msgid "Save"
msgstr "சேமி"

#, fuzzy, python-format
msgid "Delete %s"
msgstr "%s நீக்கு"

msgctxt "month"
msgid "May"
msgstr "மே"

msgctxt "verb"
msgid "May"
msgstr "முடியும்"

#, python-format
msgid "%d file in {folder}"
msgid_plural "%d files in {folder}"
msgstr[0] "{folder} இல் %d கோப்பு"
msgstr[1] "{folder} இல் %d கோப்புகள்"

msgid "Home"
msgstr ""

msgid "a \\"quoted\\" one\\n"
"of $1 lines"
msgstr ""
"<b>$1</b> வரிகளில்\\n"
"ஒன்று"

#~ msgid "Gone"
#~ msgstr "போனது"
"""
PO = (TWO_FORMS + BODY).encode()


def mo_of(po):
    """What msgfmt makes of it. Babel's own writer leaves the plural rule out of the header."""
    header = re.findall(rb'^"(.*)\\n"$', po.partition(b"\n\n")[0], re.MULTILINE)
    pairs = [(b"", b"\n".join([*header, b""]))]
    for message in read_po(io.BytesIO(po)):
        if message.id and message.string and not message.fuzzy:
            key, text = (
                "\0".join(part) if isinstance(part, tuple) else str(part)
                for part in (message.id, message.string)
            )
            pairs.append(
                ((f"{message.context}\x04{key}" if message.context else key).encode(), text.encode())
            )
    return mo_bytes("<", *pairs)


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


def mo_bytes(order, *pairs):
    """A .mo file by the layout in the gettext manual: header, two tables, texts."""
    keys, texts = [key for key, _ in pairs], [text for _, text in pairs]
    n, data, tables = len(pairs), b"", []
    for text in keys + texts:
        tables += [len(text), 28 + 16 * n + len(data)]
        data += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 28 + 16 * n)
    return head + struct.pack(f"{order}{4 * n}I", *tables) + data


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


# ---- where catalogues are


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def in_folder(folder, **changes):
    settings = {"folder": "po", "language": "ta", "licence": "GPL-3.0-or-later", **changes}
    found = list(read(CatalogueOptions(**settings), folder))
    return [r for r in found if isinstance(r, dict)], [r for r in found if isinstance(r, Rejected)]


def test_a_row_asks_for_the_translation_and_says_where_it_is_from(tmp_path):
    put(tmp_path / "po", {"app/ta.po": PO, "app/hi.po": PO})
    rows, rejected = in_folder(tmp_path, attribution="the translators", phrasing="{language}: {x}?")
    row = next(row for row in rows if row["pair"]["english"] == "Save")
    assert row["messages"] == [
        {"role": "user", "content": "Tamil: Save?"},
        {"role": "assistant", "content": "சேமி"},
    ]
    assert row["revision"] == f"sha256:{sha256_file(tmp_path / 'po/app/ta.po')}"
    assert (row["source"], row["attribution"], row["script"]) == ("po", "the translators", "Taml")
    assert (row["licence"], row["licence_from"], row["may_commit"]) == ("GPL-3.0-or-later", "recipe", False)
    assert row["row_id"].startswith("app/ta.po#") and row["id"] == f"po/{row['row_id']}"
    assert len({row["id"] for row in rows}) == len(rows) == 6
    assert Counter(r.reason for r in rejected) == {"fuzzy": 1, "obsolete": 1, "untranslated": 1}
    assert all("po/app/ta.po, line " in r.detail for r in rejected)
    json.dumps(rows)


def test_ids_stay_when_lines_move(tmp_path):
    put(tmp_path / "po", {"ta.po": PO})
    before = [row["id"] for row in in_folder(tmp_path)[0]]
    put(tmp_path / "po", {"ta.po": PO.replace(b"\n\nmsgid ", b"\n\n\n# note\nmsgid ")})
    assert [row["id"] for row in in_folder(tmp_path)[0]] == before


def test_a_mo_file_is_read_where_no_po_file_says_more(tmp_path):
    put(
        tmp_path / "po",
        {"ta/LC_MESSAGES/a.po": PO, "ta/LC_MESSAGES/a.mo": b"junk", "ta/LC_MESSAGES/b.mo": mo_of(PO)},
    )
    rows, rejected = in_folder(tmp_path)
    assert Counter(row["row_id"].partition("#")[0] for row in rows) == {
        "ta/LC_MESSAGES/a.po": 6,
        "ta/LC_MESSAGES/b.mo": 6,
    }
    assert "an unreadable catalogue" not in {r.reason for r in rejected}


def test_a_catalogue_that_cannot_be_read_is_one_rejection_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogues, "MAX_CATALOGUE_BYTES", 5000)
    outside = tmp_path / "outside.mo"
    outside.write_bytes(mo_of(PO))
    put(tmp_path / "po", {"ta/a.mo": b"junk", "ta/c.mo": mo_of(PO), "ta/d.po": b" " * 5001})
    (tmp_path / "po/ta/b.mo").symlink_to(outside)
    rows, rejected = in_folder(tmp_path)
    assert {row["row_id"].partition("#")[0] for row in rows} == {"ta/c.mo"}
    assert [(r.row_id, r.reason) for r in rejected] == [
        (f"po/ta/{name}", "an unreadable catalogue") for name in ("a.mo", "b.mo", "d.po")
    ]
    details = [r.detail.partition(": ")[2] for r in rejected]
    assert details == [
        "it does not begin as a .mo file does",
        "it leads out of its folder",
        "it is larger than 5,000 bytes",
    ]


JSON_FILES = {
    "locale/en/app.json": {"title": "Title", "menu": {"save": "Save", "new": "New"}, "only": "Only"},
    "locale/hi_IN/app.json": {"title": "शीर्षक", "menu": {"save": "{n} सहेजें"}, "only": "", "lost": "खोया"},
    "_locales/en/messages.json": {"ok": {"message": "OK", "description": "button"}},
    "_locales/hi_IN/messages.json": {"ok": {"message": "ठीक", "description": "button"}},
    "locale/hi_IN/alone.json": {"a": "अ"},
}


def test_json_messages_are_paired_with_the_english_of_the_same_key(tmp_path):
    put(tmp_path / "po", {name: json.dumps(content) for name, content in JSON_FILES.items()})
    put(tmp_path / "po", {"locale/en/twice.json": "{}", "locale/hi_IN/twice.json": '{"a": "अ", "a": "आ"}'})
    rows, rejected = in_folder(tmp_path, language="hi", locale="hi-IN")  # one name with hi_IN
    pairs = {row["pair"]["context"]: (row["pair"]["english"], row["pair"]["text"]) for row in rows}
    assert pairs == {"title": ("Title", "शीर्षक"), "menu.save": ("Save", "{n} सहेजें"), "ok": ("OK", "ठीक")}
    assert Counter(r.reason for r in rejected) == {
        "untranslated": 1,
        "no English text": 1,
        "an unreadable catalogue": 2,
    }
    unreadable = sorted(r.detail for r in rejected if r.reason == "an unreadable catalogue")
    assert "its English is not there (locale/en/alone.json); set `source_locale`" in unreadable[0]
    assert "the key 'a' is written twice" in unreadable[1]


def test_a_locale_that_is_not_there_is_never_replaced_by_another(tmp_path):
    put(tmp_path / "po", {"hi_IN/a.po": PO, "bn/a.po": PO})
    with pytest.raises(UserError, match=r"no catalogue of the locale 'hi' .* set `locale` .*: hi_IN"):
        in_folder(tmp_path, language="hi")
    with pytest.raises(UserError, match=r"no catalogue of the locale 'bn' that matches x\*"):
        in_folder(tmp_path, language="bn", match=("x*",))


def wheel(folder, files, metadata="License-Expression: MIT\n"):
    path = folder / "app-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "app-1.2.dist-info/METADATA", f"Metadata-Version: 2.4\nName: App\nVersion: 1.2\n{metadata}"
        )
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_wheel_is_read_without_being_unpacked(tmp_path):
    path = wheel(
        tmp_path,
        {"app/locale/ta/LC_MESSAGES/app.po": PO, "../../evil.po": PO},
        "License: MIT\nAuthor: Asha\n",
    )
    before = sorted(tmp_path.rglob("*"))
    rows = [
        r for r in read(CatalogueOptions(wheel=path.name, language="ta"), tmp_path) if isinstance(r, dict)
    ]
    assert sorted(tmp_path.rglob("*")) == before
    assert len(rows) == 6
    assert {row["revision"] for row in rows} == {f"1.2 sha256:{sha256_file(path)}"}
    assert {(row["source"], row["licence"], row["licence_from"], row["may_commit"]) for row in rows} == {
        ("app", "MIT", "package metadata", True)
    }
    assert rows[0]["attribution"] == "app 1.2, Asha"


@pytest.mark.parametrize("kind", ["cut off", "no zip file", "no metadata"])
def test_a_wheel_that_is_none_is_one_message(tmp_path, kind):
    path = wheel(tmp_path, {"app/locale/ta/LC_MESSAGES/app.po": PO})
    if kind == "no metadata":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.po", PO)
    else:
        path.write_bytes(path.read_bytes()[:-30] if kind == "cut off" else b"<html>404</html>")
    with pytest.raises(UserError, match=r"cannot read the wheel .*whl: .*download it again"):
        list(read(CatalogueOptions(wheel=path.name, language="ta"), tmp_path))


def test_an_installed_package_gives_its_licence_version_and_the_strings_of_its_own_catalogue():
    options = CatalogueOptions(package="django", language="hi", match=("django/contrib/auth/*",))
    found = list(read(options, Path(".")))
    rows = [r for r in found if isinstance(r, dict)]
    assert {(row["source"], row["licence"], row["may_commit"]) for row in rows} == {
        ("django", "BSD-3-Clause", True)
    }
    pairs = {row["pair"]["english"]: row["pair"]["text"] for row in rows}
    assert pairs["Password"] == "कूटशब्द"
    assert {r.reason for r in found if isinstance(r, Rejected)} <= {"fuzzy", "untranslated", "obsolete"}


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(UserError, match="'no-such-package' is not installed"):
        list(read(CatalogueOptions(package="no-such-package", language="hi"), Path(".")))


def test_the_options_name_one_place_and_a_folder_needs_its_licence(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("package: django\nfolder: po\nlanguage: ta\nphrasing: Translate\nmatch: []\n")
    with pytest.raises(UserError) as raised:
        load_settings(CatalogueOptions, recipe)
    for part in (
        "set one of package, wheel and folder",
        "must say the SPDX licence",
        "must hold {x}",
        "match",
    ):
        assert part in str(raised.value)


@pytest.mark.skipif(
    not any(catalogues.SYSTEM_CATALOGUES.glob("hi/*/*.mo")), reason="no system catalogues here"
)
def test_the_systems_catalogues_agree_with_pythons_gettext(tmp_path):
    path = sorted(catalogues.SYSTEM_CATALOGUES.glob("hi/*/*.mo"))[0]
    options = CatalogueOptions(
        folder=str(catalogues.SYSTEM_CATALOGUES),
        language="hi",
        licence="GPL-2.0-or-later",
        match=(f"hi/*/{path.name}",),
    )
    rows = [r for r in read(options, tmp_path) if isinstance(r, dict)]  # no permission needed for this folder
    with path.open("rb") as file:
        known = gettext.GNUTranslations(file)
    plain = [
        row["pair"] for row in rows if row["pair"]["plural_form"] is None and row["pair"]["context"] is None
    ]
    assert len(plain) > 0
    assert [pair["text"] for pair in plain] == [known.gettext(pair["english"]) for pair in plain]
