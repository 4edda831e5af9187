"""One source of a recipe: its kind, its licence, what a recipe may name, and facts of packages as rows."""

from email import message_from_string
from pathlib import Path

import pytest

from data_recipes.artefact import UserError
from data_recipes.locale_facts import india_holidays
from data_recipes.row_sources.packages import PackageOptions
from data_recipes.row_sources.provenance import declared_licence, package_provenance
from data_recipes.row_sources.source import SourceConfig, open_source
from data_recipes.screening.licences import may_commit, spdx
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected


def load(folder, text):
    path = folder / "source.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(SourceConfig, path)


def rows_of(config, folder=Path(".")):
    return [row for row in open_source(config, folder) if isinstance(row, dict)]


def test_each_kind_of_source_opens_from_yaml_and_gives_rows_with_the_same_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.csv").write_text("instruction,output\nq,a\n")
    sources = [
        "files: {paths: [a.jsonl], licence: MIT, language: ta}",
        "hub: {dataset: ./hub, licence: MIT, language: ta}",
        "catalogues: {package: django, language: ta, match: ['django/contrib/auth/*']}",
        "packages: {facts: territories, language: ta}",
    ]
    rows = [rows_of(load(tmp_path, text), tmp_path)[0] for text in sources]
    columns = {
        *("id", "language", "script", "messages", "source", "revision", "row_id", "licence", "licence_from"),
        *("may_commit", "attribution", "transforms"),
    }
    for row in rows:
        assert row.keys() - {"pair"} == columns
        assert all(row[name] for name in columns - {"transforms", "may_commit"})
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "files = None: a source is one of files, hub, catalogues, packages; it has none"),
        (
            "files: {paths: [a.csv], licence: MIT, language: ta}\npackages: {facts: days, language: ta}\n",
            "it has files and packages",
        ),
        ("files: {paths: [a.csv], licence: MIT}", "files.language: is missing and has no default"),
        ("packages: {facts: holiday, language: ta}", "nearest: holidays"),
        ("packages: {facts: days, language: en}", "en is the language the names are asked in"),
    ],
)
def test_a_source_that_is_none_or_two_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch run']",
        "!!python/object:builtins.object {}",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_a_yaml_that_names_a_python_object_is_refused_and_nothing_is_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="source.yaml is not plain YAML: .*python/"):
        load(tmp_path, f"files: {value}\n")
    assert not (tmp_path / "run").exists()


# ---- licences


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND (MIT OR 0BSD)", True),
        ("CC-BY-4.0", True),
        ("CC-BY-SA-4.0", False),
        ("GPL-3.0-or-later", False),
        ("LGPL-2.1-only", False),
        ("MPL-2.0", False),
        ("MIT OR GPL-3.0-only", False),
        ("GPL-2.0-or-later WITH Classpath-exception-2.0", False),
        ("LicenseRef-own", False),
        ("Apache-2.0 WITH LLVM-exception", True),  # an exception only adds permissions
    ],
)
def test_only_permissive_licences_may_be_committed(licence, allowed):
    assert may_commit(spdx(licence)) is allowed


def test_an_expression_is_spelt_as_spdx_spells_it_and_what_is_none_is_refused():
    assert spdx("apache-2.0 or mit") == "Apache-2.0 OR MIT"
    for text in ("GPL", "", "free", "MIT OR"):
        with pytest.raises(UserError, match="is no SPDX expression .*LicenseRef-<name>"):
            spdx(text)


OSI = "Classifier: License :: OSI Approved"
METADATA = [
    ("License-Expression: MIT\nClassifier: License :: OSI Approved :: BSD License", "MIT"),
    ("License: BSD-3-Clause\n" + OSI + " :: BSD License", "BSD-3-Clause"),
    ("License: apache-2.0", "Apache-2.0"),
    (OSI + " :: GNU General Public License v3 or later (GPLv3+)", "GPL-3.0-or-later"),
    (OSI + "\n" + OSI + " :: MIT License", "MIT"),
    (OSI + " :: BSD License", None),
    (OSI + " :: MIT License\n" + OSI + " :: Apache Software License", None),
    ("License: MIT\n" + OSI + " :: GNU General Public License v3 (GPLv3)", None),
    ("License: MIT\nClassifier: License :: Other/Proprietary License", None),
    ("License: see LICENSE", None),
    ("Summary: none", None),
]


@pytest.mark.parametrize(("text", "licence"), METADATA)
def test_a_packages_licence_is_what_its_metadata_says_beyond_doubt(text, licence):
    metadata = message_from_string(f"Name: Some-App\nVersion: 1.2\n{text}\n")
    assert declared_licence(metadata) == licence
    if licence is None:
        with pytest.raises(
            UserError, match=r"licence of some-app 1.2 is unclear \(it says: .*write its SPDX"
        ):
            package_provenance(metadata, "", "")
    assert package_provenance(metadata, "mit", "").licence == "MIT"


def test_an_authors_address_stays_out_of_the_rows():
    metadata = message_from_string("Name: App\nVersion: 1\nAuthor-email: Asha Rao <asha@example.org>\n")
    assert package_provenance(metadata, "MIT", "").attribution == "app 1, Asha Rao"
    metadata = message_from_string("Name: App\nVersion: 1\nAuthor-email: asha@example.org\n")
    assert "@" not in package_provenance(metadata, "MIT", "").attribution


# ---- facts of packages


def pairs_of(facts, language, **changes):
    rows = rows_of(SourceConfig(packages=PackageOptions(facts=facts, language=language, **changes)))
    return {row["pair"]["english"]: row["pair"]["text"] for row in rows}


def test_names_are_those_of_cldr_and_not_another_languages():
    # CLDR 47, as its survey tool shows them.
    assert pairs_of("territories", "hi")["France"] == "फ़्रांस"
    assert pairs_of("days", "ta")["Monday"] == "திங்கள்"
    assert pairs_of("months", "te")["January"] == "జనవరి"
    assert pairs_of("currencies", "mr")["Indian Rupee"] == "भारतीय रुपया"
    assert pairs_of("scripts", "bn")["Bangla"] == "বাংলা"
    assert pairs_of("languages", "gu")["Gujarati"] == "ગુજરાતી"


def test_a_row_of_cldr_has_the_licence_of_its_data_and_not_of_babels_code():
    row = rows_of(SourceConfig(packages=PackageOptions(facts="days", language="ta")))[0]
    assert (row["source"], row["licence"], row["id"]) == ("babel", "Unicode-3.0", "babel/days/ta/0")
    assert row["messages"][0]["content"] == "Translate into Tamil: Monday"


def test_holidays_are_those_of_the_years_asked_for():
    found = list(
        open_source(
            SourceConfig(packages=PackageOptions(facts="holidays", language="hi", years=(2026,))), Path()
        )
    )
    assert len(found) == len(india_holidays(2026, "hi")) > 0
    days = [row["pair"]["key"] for row in found if isinstance(row, dict)]
    assert all(day.startswith("2026-") for day in days)
    assert pairs_of("holidays", "hi", years=(2026,))["Republic Day"] == "गणतंत्र दिवस"


def test_a_language_that_a_package_does_not_cover_is_unsupported():
    with pytest.raises(UserError, match=r"unsupported: holidays .* has no holidays in Santali"):
        rows_of(SourceConfig(packages=PackageOptions(facts="holidays", language="sat")))


def test_names_in_another_script_are_rejected():
    found = list(
        open_source(SourceConfig(packages=PackageOptions(facts="days", language="hi", script="Latn")), Path())
    )
    assert [r.reason for r in found if isinstance(r, Rejected)] == ["another script"] * 7
