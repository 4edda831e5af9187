"""Catalogues of packages, wheels and folders as rows; the fuzzy, obsolete and broken is counted, not read."""

import gettext
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_recipes.artefact import UserError, sha256_file
from data_recipes.row_sources import catalogues
from data_recipes.row_sources.catalogues import CatalogueOptions, read
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected
from tests.catalogue_bytes import PO, mo_of


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
