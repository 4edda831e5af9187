"""Catalogues inside packages are read without importing the package, and only what is fit to ask is kept."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from data_recipes.artefact import UserError
from data_recipes.sources import (
    SOURCES,
    django_catalogue,
    interface_strings,
    kolibri_catalogue,
    short_strings,
)
from data_recipes.tasks import TASKS

ROOT = Path(__file__).parents[1]
CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Save"
msgstr "சேமி"

#, fuzzy
msgid "Delete"
msgstr "நீக்கு"

msgctxt "month"
msgid "May"
msgstr "மே"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d கோப்பு"
msgstr[1] "%d கோப்புகள்"

msgid "Home"
msgstr ""
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a tiny distribution named django, with one catalogue, into the import path."""

    def install(catalogue, code="ta"):
        path = f"django/contrib/admin/locale/{code}/LC_MESSAGES/django.po"
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(catalogue, encoding="utf-8")
        info = tmp_path / "django-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Django\nVersion: 9.9\n")
        (info / "RECORD").write_text(f"{path},,\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        django_catalogue.cache_clear()
        interface_strings.cache_clear()

    yield install
    django_catalogue.cache_clear()
    interface_strings.cache_clear()


def test_reading_a_catalogue_does_not_import_django():
    code = (
        "import sys; from data_recipes.sources import django_catalogue; "
        "assert django_catalogue('ta')['Delete'] == 'நீக்குக'; assert 'django' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_fuzzy_contextual_plural_and_empty_entries_are_left_out(installed):
    installed(CATALOGUE)
    assert django_catalogue("ta") == {"Save": "சேமி"}


def test_a_language_that_django_lacks_has_no_strings():
    assert django_catalogue("sat") == {}
    assert interface_strings("sat") == {}


def test_known_translations_come_from_the_installed_catalogues():
    assert django_catalogue("hi")["Home"] == "गृह"
    assert len(interface_strings("hi")) > 300


def test_placeholders_long_texts_and_other_scripts_are_left_out():
    pairs = {
        "Save": "சேமி",
        "Open": "  திற \n",
        "%s files": "கோப்புகள்",
        "Hello {name}": "வணக்கம்",
        "<b>Bold</b>": "தடித்த",
        "two\nlines": "இரண்டு வரிகள்",
        "Log in": "Login செய்க",
        "A": "அ",
        "A sentence of more than thirty characters": "நீளம்",
        "OK": "OK",
        "5": "5",
    }
    assert short_strings(pairs, "Taml", 30) == {"Save": "சேமி", "Open": "திற"}


def test_without_django_the_message_names_the_extra(tmp_path, monkeypatch):
    django_catalogue.cache_clear()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # as on a machine where nothing is installed
    assert SOURCES["django"].version() == "not installed"
    with pytest.raises(UserError, match=r"pip install 'local-experts\[catalogues\]'.*`ui`"):
        django_catalogue("ta")


def kolibri_wheel(folder, files):
    path = folder / "kolibri-0.0.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_kolibri_messages_of_one_locale_come_from_all_its_files(tmp_path):
    base = "kolibri/locale/hi_IN/LC_MESSAGES/"
    wheel = kolibri_wheel(
        tmp_path,
        {
            base + "learn-messages.json": json.dumps({"Learn.title": "सीखें"}),
            base + "coach-messages.json": json.dumps({"Coach.title": "कोच"}, ensure_ascii=False),
            base + "django.po": "not json",
            "kolibri/locale/mr/LC_MESSAGES/learn-messages.json": json.dumps({"Learn.title": "शिका"}),
        },
    )
    assert kolibri_catalogue(wheel, "hi_IN") == {"Learn.title": "सीखें", "Coach.title": "कोच"}


def damaged(tmp_path, kind):
    base = "kolibri/locale/hi_IN/LC_MESSAGES/messages.json"
    content = json.dumps({f"key{i}": "सीखें" * (i % 7) for i in range(200)})
    if kind == "broken json":
        return kolibri_wheel(tmp_path, {base: content[: len(content) // 2]})
    if kind == "not utf-8":
        return kolibri_wheel(tmp_path, {base: b'{"a": "\xff\xfe"}'})
    if kind == "another wheel":
        return kolibri_wheel(tmp_path, {"other/locale/hi_IN/messages.json": content})
    path = kolibri_wheel(tmp_path, {base: content})
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "not a zip file":
        path.write_bytes(b"<html>404</html>")
    elif kind == "flipped bytes":
        path.write_bytes(whole[:120] + b"\xff" * 40 + whole[160:])
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "truncated",
        "not a zip file",
        "flipped bytes",
        "broken json",
        "not utf-8",
        "another wheel",
    ],
)
def test_a_damaged_kolibri_wheel_is_refused_with_the_command_that_fetches_it(tmp_path, kind):
    wheel = damaged(tmp_path, kind)
    with pytest.raises(UserError, match="pip download --no-deps kolibri") as raised:
        kolibri_catalogue(wheel, "hi_IN")
    assert str(wheel) in str(raised.value)


def test_every_task_names_a_source_with_a_licence_and_a_version():
    assert {task.source for task in TASKS.values()} <= set(SOURCES)
    assert {name: source.licence for name, source in SOURCES.items()} == {
        "babel": "Unicode-3.0",
        "indic-numtowords": "MIT",
        "holidays": "MIT",
        "django": "BSD-3-Clause",
        "local-experts": "Apache-2.0",
    }
    for name in ("babel", "indic-numtowords", "holidays", "django"):
        assert SOURCES[name].version() == distribution(name).version
