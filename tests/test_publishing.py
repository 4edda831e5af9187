"""What is published beside a dataset: the card, the Croissant metadata, the report."""

import json
import logging
import re
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import DatasetCard
from made_up_dataset import (
    ATTRIBUTION,
    HASH,
    HINDI,
    form_numbers,
    made_up_manifest,
    made_up_row,
    made_up_samples,
    save_made_up,
)
from markdown_it import MarkdownIt

from data_recipes.artefact import UserError, sha256_file
from data_recipes.publishing.card import escape_markdown, front_matter, size_category, write_card
from data_recipes.publishing.croissant import write_croissant
from data_recipes.publishing.data_report import message_text, render_data_report
from data_recipes.publishing.publish import publish
from data_recipes.writing.written_forms import forms

HOSTILE = '</pre><script src="https://evil.example/x.js">alert(1)</script>'
MARKUP = "*a* _b_ `c` [d](javascript:e) ![f](g) <b>h</b> &amp; | ~~i~~ $j$ \\k\n# l\n- m"
VOID = {"meta", "br", "hr", "img", "link"}
LOADING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published dataset, for tests that only look."""
    folder = tmp_path_factory.mktemp("dataset")
    save_made_up(folder)
    publish(folder, made_up_manifest(), made_up_samples())
    return folder


class Page(HTMLParser):
    """Tags, text, attributes; refuses a page whose elements are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def fetched(text):
    """Everything a browser would ask for when it opens the page."""
    page = Page(text)
    found = [value for name, value in page.attributes if name in LOADING]
    found += [value for name, value in page.attributes if name == "style" and "url(" in (value or "")]
    style = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL))
    return found + re.findall(r"url\(|@import|@font-face|image-set\(", style)


# The card


def test_the_front_matter_is_read_by_the_hubs_own_reader(folder):
    data = DatasetCard.load(folder / "README.md").data.to_dict()
    assert data["language"] == ["hi", "ur"]
    assert data["language_bcp47"] == ["hi-Deva", "ur-Arab"]
    assert (data["license"], data["license_name"]) == ("other", "cc-by-4.0-and-unicode-3.0")
    assert data["license_link"] == "LICENSE.md" and (folder / "LICENSE.md").is_file()
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-generation"]
    assert data["pretty_name"] == "Localized instructions: Hindi, Urdu"
    splits = [one["split"] for one in data["configs"][0]["data_files"]]
    assert splits == ["train", "validation", "test"]


def test_both_ways_to_load_that_the_card_names_give_the_rows(folder, tmp_path):
    import datasets

    saved = datasets.load_from_disk(str(folder))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert isinstance(saved, datasets.DatasetDict) and isinstance(loaded, datasets.DatasetDict)
    assert {split: saved[split].to_list() for split in saved} == {
        split: loaded[split].to_list() for split in loaded
    }
    assert [len(loaded[split]) for split in ("train", "validation", "test")] == [3, 1, 1]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ({"CC-BY-4.0": 5}, "cc-by-4.0"),
        ({"Apache-2.0": 5}, "apache-2.0"),
        ({"Apache-2.0": 4, "MIT": 1}, "other"),
        ({"MIT OR Apache-2.0": 5}, "other"),
        ({"Unicode-3.0": 5}, "other"),
        ({"LicenseRef-mine": 5}, "other"),
    ],
)
def test_the_licence_is_the_hubs_name_only_when_it_covers_all_rows(licences, expected):
    found = yaml.safe_load(front_matter(made_up_manifest(licences=licences)))
    assert found["license"] == expected
    assert ("license_link" in found) == ("license_name" in found) == (expected == "other")
    assert re.fullmatch(r"[a-z0-9][a-z0-9.\-]*", found.get("license_name", "none"))


def test_one_known_licence_needs_no_licence_file(tmp_path):
    write_card(tmp_path, made_up_manifest(licences={"MIT": 5}))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("n", "category"),
    [
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
    ],
)
def test_sizes_are_the_hubs_categories(n, category):
    assert size_category(n) == category


def test_the_card_says_what_a_reader_must_know(folder):
    text = visible(MarkdownIt("commonmark").enable("table"), (folder / "README.md").read_text())
    assert ATTRIBUTION in text and "0123abcd" in text and HASH in text
    assert "3 train, 1 validation, 1 test" in text
    assert "duplicates: exact: 11" in text and "the answer fails its own checker: 2" in text
    assert "AADHAAR: 3" in text and "PHONE: 40" in text
    assert "indic-qa: 1,200 texts" in text
    assert "Left out by the recipe: translate." in text
    assert "No speaker of the languages has reviewed the rows" in text
    assert "load_from_disk" in text and "load_dataset" in text
    assert "by the hash of the id of the row it was made from" in text
    assert ATTRIBUTION in visible(MarkdownIt("commonmark"), (folder / "LICENSE.md").read_text())


def test_where_nobody_looked_for_personal_data_card_and_report_say_so(tmp_path):
    manifest = made_up_manifest(recipe={"pii": None}, pii={})
    text = write_card(tmp_path, manifest).read_text()
    assert "**Not looked for.**" in text and "Nobody looked for personal data" in text
    assert "Not looked for." in render_data_report(manifest, made_up_samples())
    nothing = made_up_manifest(pii={})
    assert "None was found." in write_card(tmp_path, nothing).read_text()
    assert "None was found." in render_data_report(nothing, made_up_samples())


def visible(parser, text):
    """The text a reader of Markdown sees; fails on HTML or a picture."""
    shown = []
    for token in parser.parse(text):
        assert token.type != "html_block", token.content
        shown.append(token.content if token.type in ("fence", "code_block") else "")
        for child in token.children or []:
            assert child.type not in ("html_inline", "image"), child.content
            shown.append(child.content if child.type != "softbreak" else " ")
    return "".join(shown)


@pytest.mark.parametrize("text", [MARKUP, HOSTILE, "- a", "1. a", "# a", "+ a", "> a", "a_b_c", "===", "a\\"])
def test_escaped_text_is_read_back_as_it_was_and_is_no_markup(text):
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    one_line = " ".join(text.split())
    assert visible(parser, escape_markdown(text)) == one_line
    assert visible(parser, f"- {escape_markdown(text)}") == one_line
    kinds = {child.type for token in parser.parse(escape_markdown(text)) for child in token.children or []}
    assert kinds <= {"text", "text_special"}
    assert {token.type for token in parser.parse(escape_markdown(text))} == {
        "paragraph_open",
        "inline",
        "paragraph_close",
    }
    cells = visible(parser, f"| a | b |\n|---|---|\n| {escape_markdown(text)} | z |")
    assert cells == f"ab{one_line}z"


def test_a_hostile_source_stays_text_in_the_card(tmp_path):
    source = {"revision": MARKUP, "licence": "MIT", "licence_from": HOSTILE, "attribution": HOSTILE}
    manifest = made_up_manifest(sources={MARKUP: source, HOSTILE: source}, dropped={HOSTILE: 1})
    text = write_card(tmp_path, manifest).read_text().partition("\n---\n")[2]
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    assert visible(parser, text).count(HOSTILE) == 6


# Croissant


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")  # of rdflib 7.6
def test_mlcroissant_accepts_the_metadata(folder, caplog):
    mlcroissant = pytest.importorskip("mlcroissant")
    with caplog.at_level(logging.WARNING):
        dataset = mlcroissant.Dataset(folder / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert issues.errors == set()
    # The only thing unknown at the build: the day somebody publishes it.
    assert [one for one in issues.warnings if "datePublished" not in one] == []
    assert "not standard" not in caplog.text
    assert str(dataset.metadata.ctx.conforms_to.value).endswith("/1.1")
    assert [record_set.uuid for record_set in dataset.metadata.record_sets] == ["train", "validation", "test"]


def test_croissant_names_every_file_with_its_size_and_hash(folder):
    found = json.loads((folder / "croissant.json").read_text())
    files = {one["contentUrl"]: one for one in found["distribution"] if one["@type"] == "cr:FileObject"}
    assert set(files) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.arrow")}
    for name, one in files.items():
        assert one["sha256"] == sha256_file(folder / name)
        assert one["contentSize"] == f"{(folder / name).stat().st_size} B"
        assert one["encodingFormat"] == "application/vnd.apache.arrow.stream"
    patterns = [one["includes"] for one in found["distribution"] if one["@type"] == "cr:FileSet"]
    assert sorted(path for pattern in patterns for path in folder.glob(pattern)) == sorted(
        folder.rglob("*.arrow")
    )
    assert found["license"] == [
        "https://spdx.org/licenses/CC-BY-4.0.html",
        "https://spdx.org/licenses/Unicode-3.0.html",
    ]


def test_croissant_fields_are_the_columns_of_the_files(folder):
    import datasets

    found = json.loads((folder / "croissant.json").read_text())
    train = datasets.load_from_disk(str(folder / "train"))
    fields = {one["name"]: one for one in found["recordSet"][0]["field"]}
    assert list(fields) == train.column_names
    assert fields["phrasing"]["dataType"] == "sc:Integer"
    assert fields["may_commit"]["dataType"] == "sc:Boolean"
    assert [one["name"] for one in fields["messages"]["subField"]] == [
        "messages/role",
        "messages/content",
        "messages/extra",
    ]


def test_rows_that_are_not_saved_cannot_be_described(tmp_path):
    with pytest.raises(UserError, match=r"no train/data-\*\.arrow .* save the rows before"):
        write_croissant(tmp_path, made_up_manifest())


def test_a_damaged_arrow_file_is_named(tmp_path):
    save_made_up(tmp_path)
    (tmp_path / "train" / "data-00000-of-00001.arrow").write_bytes(b"not arrow")
    with pytest.raises(UserError, match=r"cannot read .*train/data-00000.* build the dataset again"):
        write_croissant(tmp_path, made_up_manifest())


# The report


def test_the_report_opens_without_a_request_and_a_script(folder):
    text = (folder / "report.html").read_text()
    assert fetched(text) == []
    assert {"script", "link", "iframe", "object", "img"} & set(Page(text).tags) == set()
    assert fetched(text.replace("</main>", '<img src="https://a.example/b.png"></main>')) != []
    assert fetched(text.replace("</style>", "p { background: url(b.png) }</style>")) != []


def test_the_report_shows_the_manifests_numbers(folder):
    text = " ".join(" ".join(Page((folder / "report.html").read_text()).text).split())
    assert "Hindi, Devanagari hi-Deva 4 8 32 128 128 4.00 1.00" in text
    assert "Urdu, Arabic ur-Arab 1 2 8 32 24 3.00 0.75" in text
    assert "duplicates version 1 27 16 11" in text
    assert "AADHAAR 3 Hindi 2, Urdu 1" in text
    assert "native 0.750 0.800" in text
    assert "indic-qa 1,200 texts" in text and "of these trained 61" in text
    assert ATTRIBUTION in text and HASH in text and "zai/GLM" in text


def test_everything_in_a_report_stays_text():
    hostile = [{"role": HOSTILE, "content": HOSTILE}]
    row = {**made_up_row(1, messages=hostile), "id": HOSTILE, "source": HOSTILE}
    step = {"row_id": HOSTILE, "language": 'hi-Deva" onload="x', "before": HINDI, "after": hostile}
    text = render_data_report(
        made_up_manifest(
            sources={HOSTILE: {"licence": HOSTILE, "attribution": HOSTILE, "what": HOSTILE}},
            rejected={HOSTILE: {HOSTILE: 1}},
            pii={HOSTILE: {HOSTILE: 1}},
            test_sets={HOSTILE: 1},
            split_rule=HOSTILE,
            recipe={"name": HOSTILE},
            tokenizer={"name": HOSTILE, "sha256": HOSTILE},
            licences={HOSTILE: 5},
        ),
        {"steps": {HOSTILE: [step]}, "rows": [row]},
    )
    page = Page(text)
    assert "<script" not in text and fetched(text) == []
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "".join(page.text).count(HOSTILE) > 15


def test_what_stood_before_personal_data_was_removed_is_never_shown():
    secret = [{"role": "user", "content": "my number is 98765 43210"}]
    step = {"row_id": "a", "language": "en-Latn", "before": secret, "after": HINDI}
    text = render_data_report(made_up_manifest(), {"steps": {"pii": [step]}, "rows": []})
    assert "43210" not in text and HINDI[0]["content"] in text


def test_what_a_step_changed_is_marked_in_both_texts(folder):
    text = (folder / "report.html").read_text()
    points = "U+0928 U+093C U+092E U+0915"
    assert f'<mark>\u0928\u093cमक</mark> <span class="points">{points}</span>' in text
    assert text.count("<mark>") == 3  # the two forms of one word, and spaces that went
    assert '<div class="text" lang="ur-Arab" dir="rtl">یوم' in text
    assert '<div class="text" dir="ltr">When is' in text


def test_the_same_manifest_gives_the_same_bytes(folder, tmp_path):
    names = ("README.md", "LICENSE.md", "croissant.json", "report.html")
    before = {name: (folder / name).read_bytes() for name in names}
    save_made_up(tmp_path)
    publish(tmp_path, made_up_manifest(), made_up_samples())
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def test_a_manifest_without_the_new_stages_has_a_report_and_a_card(tmp_path):
    keys = ("recipe", "content_hash", "n_rows", "counts", "dropped", "sources", "split_rule")
    manifest = {key: value for key, value in made_up_manifest().items() if key in keys}
    manifest["recipe"] = {"languages": ["hi"]}
    text = render_data_report(manifest, {"steps": {}, "rows": []})
    assert "Not looked for." in text and "3 train" in text
    assert "Personal data" in write_card(tmp_path, manifest).read_text()


def test_22_languages_in_all_their_forms_stay_under_2_mb():
    tags = list(forms())
    assert len(tags) >= 57 and len({tag.split("-")[0] for tag in tags}) == 23
    codes = sorted({tag.split("-")[0] for tag in tags})
    long = [{"role": "user", "content": "क्षि\u200dज " * 1000}] * 9
    rows = [made_up_row(n, tag.split("-")[0], tag.split("-")[1], long) for tag in tags for n in range(3)]
    changed = [
        {"role": "user", "content": " ".join(f"क्षि{n % 97 or chr(2309)}" for n in range(1000))}
        for _ in range(9)
    ]
    step = {"row_id": "a", "language": "hi-Deva", "before": long[:2], "after": changed[:2]}
    stages = ("text", "pii", "duplicates", "translate", "variants", "contamination", "chat")
    manifest = made_up_manifest(
        languages={tag: form_numbers(1000, 30_000) for tag in tags},
        pii={f"KIND_{n}": dict.fromkeys(codes, 7) for n in range(25)},
        rejected={stage: {f"reason {n}": 9 for n in range(30)} for stage in stages},
        counts={split: {f"{c}/task-{n}": 5 for c in codes for n in range(20)} for split in ("train", "test")},
    )
    text = render_data_report(manifest, {"steps": {stage: [step] * 5 for stage in stages}, "rows": rows})
    Page(text)
    assert len(text.encode()) < 2_000_000


def test_what_a_message_carries_beside_its_text_is_shown():
    message = {"role": "assistant", "content": None, "tool_calls": [{"name": "मौसम"}], "extra": None}
    assert json.loads(message_text(message)) == {"tool_calls": [{"name": "मौसम"}]}
    assert message_text({"role": "user", "content": "a", "extra": None}) == "a"


def test_the_forms_of_each_language_are_in_the_card_and_in_the_report(folder):
    card = (folder / "README.md").read_text("utf-8")
    assert "- Hindi, rows as measured: native 1,234, romanised 310\n" in card
    assert "- Urdu, rows as measured: native 6, romanised 0\n" in card
    page = (folder / "report.html").read_text("utf-8")
    row = '<tr><th scope="row">{}</th><td data-label="native">{}</td><td data-label="romanised">{}</td></tr>'
    assert row.format("Hindi", "1,234", "310") in page and row.format("Urdu", "6", "0") in page
