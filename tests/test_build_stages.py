"""Sources go through the stages of a recipe: same bytes however they are cut, only what changed is redone."""

import json
import re
from pathlib import Path

import datasets
import pytest
import yaml
from build_recipes import (
    AADHAAR,
    CALL,
    PHONE,
    TOOL,
    hashes,
    plain_rows,
    rows_in,
    stages,
    write_lines,
    write_recipe,
)

from data_recipes.artefact import UserError, read_artefact, sha256_json
from data_recipes.build import BuildOptions, build_dataset
from data_recipes.dataset import FEATURES, read_split
from data_recipes.tasks import SPLITS, check
from finetune.cli import main

ROOT = Path(__file__).parents[1]
# sha256 over [id, messages] of each split, by the code before there were sources.
FORMER_ROWS = {
    "tamil_locale": {
        "train": (2684, "1b98f435fc8dc6006c4c2d674b094bb1ff8e8beeb488a000aa2fda61d2c1e7c6"),
        "validation": (252, "6dcb74e52b84fed7d52b49e8ec8217aa9ea3f74cf74feab31e6641b1995726ff"),
        "test": (582, "9131e5c64c0b32f803902a76b84d12bc3b4d0cf359c3a40e143766b2df86aab1"),
    },
    "telugu_locale": {
        "train": (2684, "a29112e7f591dd351af7189bca71ff393c452480fa015252da6c5c153be9baed"),
        "validation": (252, "6896fbd17ac428ac90bfa8f663a74539072fd628ced1157644c0fc65c976dac7"),
        "test": (582, "691fef2b112c97e2e1b987d66b4d21ade6afe34237627613b8fc5084b9b02bda"),
    },
}


def manifest_of(folder):
    return read_artefact(folder / "manifest.json", "dataset_manifest")


def rows_of(folder):
    present = [split for split in SPLITS if (folder / split).exists()]
    return [row for split in present for row in rows_in(folder, split)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A recipe of 40 rows, and its dataset built in one part."""
    folder = tmp_path_factory.mktemp("plain")
    recipe = write_recipe(folder, plain_rows(40))
    return recipe, build_dataset(recipe, folder / "data")


@pytest.mark.parametrize("name", FORMER_ROWS)
def test_rows_of_the_locale_tasks_are_what_they_were_before_there_were_sources(name, tmp_path):
    folder = build_dataset(ROOT / "configs" / "recipes" / f"{name}.yaml", tmp_path / "data")
    for split, (n_rows, sha256) in FORMER_ROWS[name].items():
        rows = rows_in(folder, split)
        assert len(rows) == n_rows
        assert sha256_json([[row["id"], row["messages"]] for row in rows]) == sha256


def test_the_size_of_parts_changes_no_byte(plain, tmp_path):
    recipe, folder = plain
    other = build_dataset(recipe, tmp_path / "data", ["rows_per_part=7"])
    assert len(list((tmp_path / "data.parts" / "finish").glob("*.jsonl"))) == 12  # 6 parts, with rejections
    assert hashes(other) == hashes(folder)


def test_four_workers_write_the_same_bytes(plain, tmp_path):
    recipe, folder = plain
    other = build_dataset(recipe, tmp_path / "data", ["rows_per_part=11"], BuildOptions(n_workers=4))
    assert hashes(other) == hashes(folder)


def test_a_dataset_in_the_hubs_layout_gives_the_rows_of_its_file(plain, tmp_path):
    _, folder = plain
    write_lines(tmp_path / "set" / "train.jsonl", plain_rows(40))
    source = {"hub": {"dataset": "./set", "licence": "CC-BY-4.0", "language": "en"}}
    recipe = write_recipe(tmp_path, [], sources=[source])
    built = [build_dataset(recipe, tmp_path / f"d{n}", [f"rows_per_part={n}"]) for n in (7, 1000)]
    assert hashes(built[0]) == hashes(built[1])
    said = [sorted(json.dumps(row["messages"]) for row in rows_of(f)) for f in (built[0], folder)]
    assert abs(len(said[0]) - len(said[1])) <= 4  # other ids: other rows are the test that is kept out
    assert len(set(said[0]) & set(said[1])) > 30


def test_a_second_build_keeps_every_part(plain, tmp_path, capsys):
    recipe, _ = plain
    first = hashes(build_dataset(recipe, tmp_path / "data", ["rows_per_part=10"]))
    made = stages(capsys.readouterr().out)
    assert made["sources"] == (4, 0) and made["finish"] == (4, 0)
    again = hashes(build_dataset(recipe, tmp_path / "data", ["rows_per_part=10"]))
    assert set(stages(capsys.readouterr().out).values()) == {(0, 4)}
    assert again == first


@pytest.mark.parametrize(
    ("change", "first_redone"),
    [
        ("licences.allowed=[CC-BY-4.0]", "licences"),
        ("text.digits=ascii", "text"),
        ("pii.kinds=[PHONE]", "pii"),
        ("duplicates.similarity=0.9", "duplicates"),
        ("contamination.options.words=12", "contamination"),
        ("seed=3", "finish"),
    ],
)
def test_a_changed_stage_redoes_itself_and_what_comes_after(plain, tmp_path, capsys, change, first_redone):
    recipe, _ = plain
    build_dataset(recipe, tmp_path / "data", ["rows_per_part=20"])
    order = list(stages(capsys.readouterr().out))
    build_dataset(recipe, tmp_path / "data", ["rows_per_part=20", change])
    done = stages(capsys.readouterr().out)
    at = order.index(first_redone)
    assert [done[name] for name in order[:at]] == [(0, 2)] * at
    assert [done[name] for name in order[at:]] == [(2, 0)] * (len(order) - at)


def test_a_changed_file_is_read_again(tmp_path, capsys):
    recipe = write_recipe(tmp_path, plain_rows(20))
    build_dataset(recipe, tmp_path / "data")
    write_recipe(tmp_path, plain_rows(21))
    capsys.readouterr()
    build_dataset(recipe, tmp_path / "data")
    assert stages(capsys.readouterr().out)["sources"] == (1, 0)


def test_what_messages_carry_comes_back_as_it_was(tmp_path):
    messages = [
        {"role": "user", "content": "How is the weather in Pune?"},
        {"role": "assistant", "content": "", "reasoning_content": "I ask.", "tool_calls": [CALL]},
        {"role": "tool", "content": "31 degrees", "name": "weather"},
        {"role": "assistant", "content": "It is 31 degrees."},
    ]
    recipe = write_recipe(
        tmp_path, [{"messages": messages, "tools": [TOOL]}], test_share=0, validation_share=0
    )
    folder = build_dataset(recipe, tmp_path / "data")
    (row,) = rows_in(folder, "train")
    assert row["messages"] == messages
    assert row["tools"] == [TOOL]
    assert read_split(folder, "train")[0]["messages"] == messages
    stored = datasets.load_from_disk(str(folder))["train"][0]["messages"]
    assert [set(message) for message in stored] == [{"role", "content", "extra"}] * 4


def test_the_columns_are_those_that_push_to_hub_can_describe(plain):
    for split in datasets.DatasetDict.load_from_disk(str(plain[1])).values():
        assert split.features == FEATURES
        assert datasets.Features._from_yaml_list(split.features._to_yaml_list()) == FEATURES


def test_an_empty_split_is_left_out_and_reading_it_says_so(tmp_path):
    recipe = write_recipe(tmp_path, plain_rows(10), test_share=0, validation_share=0)
    folder = build_dataset(recipe, tmp_path / "data")
    assert list(datasets.load_from_disk(str(folder))) == ["train"]
    with pytest.raises(UserError, match="the test split of .* is empty: the recipe must give it at least"):
        read_split(folder, "test")


def test_test_rows_are_checked_against_their_answer(plain):
    rows = rows_in(plain[1], "test")
    assert rows and {row["checker"] for row in rows} == {"reference"}
    for row in rows:
        answer = row["messages"][-1]["content"]
        assert check(row["checker"], row["language"], row["value"], f" {answer} ")
        assert not check(row["checker"], row["language"], row["value"], "something else")


def test_rows_of_sources_and_locale_tasks_are_mixed_in_proportion_and_keep_their_order(tmp_path):
    tasks = {"languages": ["ta"], "general_languages": ["en"], "tasks": ["date", "unit"]}
    alone = build_dataset(write_recipe(tmp_path / "a", [], sources=[], **tasks), tmp_path / "alone")
    both = build_dataset(write_recipe(tmp_path / "b", plain_rows(60), **tasks), tmp_path / "both")
    for split in SPLITS:
        mixed = [row["id"] for row in rows_in(both, split)]
        locale = [row["id"] for row in rows_in(alone, split)]
        assert [row_id for row_id in mixed if not row_id.startswith("rows.jsonl")] == locale
        half = len(mixed) // 2
        in_half = sum(not row_id.startswith("rows.jsonl") for row_id in mixed[:half])
        assert abs(in_half - len(locale) * half / len(mixed)) <= 1


def test_a_licence_that_is_not_allowed_stops_the_build_and_lists_the_rows(tmp_path):
    source = {"files": {"paths": ["rows.jsonl"], "licence": "GPL-3.0-only", "language": "en"}}
    recipe = write_recipe(tmp_path, plain_rows(3), sources=[source])
    with pytest.raises(UserError, match=r"3 rows, .*GPL-3\.0-only.*rows\.jsonl/line 1"):
        build_dataset(recipe, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("action", ["tag", "surrogate"])
def test_personal_data_is_in_no_file_of_the_dataset(tmp_path, action):
    told = [
        {"instruction": f"\u200bMy Aadhaar is {AADHAAR}, where do I go?", "output": "To the centre."},
        {"instruction": "Whom do I call?", "output": f"Call {PHONE}\u200b in the morning, not {AADHAAR}."},
    ]
    recipe = write_recipe(tmp_path, [*told, *plain_rows(20)], pii={"action": action}, test_share=0)
    folder = build_dataset(recipe, tmp_path / "data")
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    digits = PHONE.replace("+91 ", "")
    for value in (AADHAAR, AADHAAR.replace(" ", ""), digits, digits.replace(" ", "")):
        assert value.encode() not in everything
    assert not list(folder.rglob("*pii-key*"))
    assert (tmp_path / "data.pii-key").exists() == (action == "surrogate")
    counts = manifest_of(folder)["pii"]
    assert {kind: sum(found.values()) for kind, found in counts.items()} == {"AADHAAR": 2, "PHONE": 1}
    samples = json.loads((folder / "samples.json").read_text("utf-8"))
    assert len(samples["steps"]["pii"]) == 2 and "text" not in samples["steps"]
    assert all(one["before"] == [] for one in samples["steps"]["pii"])


def test_rejections_are_counted_and_their_texts_stay_in_the_working_folder(tmp_path):
    rows = [*plain_rows(20), plain_rows(1)[0], {"instruction": "Secret?", "output": "à¤¹à¤¾à¤\x81"}]
    write_lines(tmp_path / "kept.jsonl", [plain_rows(6)[5]])
    kept = {"files": {"paths": ["kept.jsonl"], "licence": "MIT", "language": "en"}}
    test_sets = {"test_sets": {"kept": kept}}
    recipe = write_recipe(tmp_path, rows, contamination=test_sets, test_share=0, validation_share=0)
    manifest = manifest_of(build_dataset(recipe, tmp_path / "data"))
    assert manifest["rejected"]["text"] == {"mojibake": 1}
    assert manifest["rejected"]["duplicates"] == {"exact duplicate": 1}
    assert manifest["rejected"]["contamination"] == {"in test set kept": 1}
    assert manifest["test_sets"] == {"kept": 2}  # the question, and an answer long enough
    assert manifest["n_rows"]["train"] == 19
    flow = {step["name"]: (step["n_in"], step["n_out"]) for step in manifest["steps"]}
    assert flow["text"] == (22, 21) and flow["duplicates"] == (21, 20) and flow["finish"] == (19, 19)
    assert not list((tmp_path / "data").rglob("*rejected*"))


def test_a_section_that_is_null_is_left_out_and_the_manifest_says_so(tmp_path):
    off = dict.fromkeys(("text", "pii", "duplicates", "contamination"))
    manifest = manifest_of(build_dataset(write_recipe(tmp_path, plain_rows(8), **off), tmp_path / "data"))
    assert [step["name"] for step in manifest["steps"]] == ["sources", "licences", "finish"]
    assert all(manifest["recipe"][name] is None for name in off)


def test_there_are_no_more_test_rows_than_can_be_held(tmp_path):
    recipe = write_recipe(tmp_path, plain_rows(400), test_share=0.5, max_test_rows=20, duplicates=None)
    manifest = manifest_of(build_dataset(recipe, tmp_path / "data"))
    assert 8 <= manifest["n_rows"]["test"] <= 35  # a hash decides: 20 of 400, with four standard deviations
    assert "5.000% validation and 5.000% test" in manifest["split_rule"]


def test_two_rows_with_one_id_are_named_without_a_search_for_duplicates_too(tmp_path):
    source = {"files": {"paths": ["rows.jsonl"], "licence": "MIT", "language": "en"}}
    recipe = write_recipe(tmp_path, plain_rows(3), sources=[source, source], duplicates=None, test_share=0)
    with pytest.raises(UserError, match=r"two rows have the id 'rows.jsonl/line \d'"):
        build_dataset(recipe, tmp_path / "data")


def test_the_recipe_that_uses_everything_builds(tmp_path):
    recipe = ROOT / "configs" / "recipes" / "hindi_everyday.yaml"
    folder = build_dataset(recipe, tmp_path / "data", ["tasks=[]"])
    manifest = manifest_of(folder)
    assert set(manifest["sources"]) == {"babel", "django", "hindi_everyday/phrases.jsonl"}
    assert set(manifest["languages"]) == {"hi-Deva", "hi-Latn"}
    assert manifest["mix"]["wanted"] == {"native": 0.6, "romanised": 0.3, "code_mixed": 0.1}
    assert abs(manifest["mix"]["measured"]["romanised"] - 0.3) < 0.1  # of some 400 rows
    assert manifest["mix"]["written"]["code_mixed"] > 0
    # The English phrases alone: the rows of Babel and Django are in Hindi already.
    assert manifest["translation"]["n_in"] == manifest["translation"]["n_accepted"] == 24
    assert manifest["rejected"]["contamination"]["parent in test set kept_for_testing"] == 1
    phrases = [row for row in rows_of(folder) if row["source"].startswith("hindi_everyday")]
    assert len(phrases) == 23 and all(row["parent"] for row in phrases)
    every = [message["content"] for row in phrases for message in row["messages"]]
    assert sum("`ls -l`" in text for text in every) == 1
    roots = {f"{row['source']}/{row['row_id']}" for row in phrases}
    assert len(roots) == 23  # variants keep the root that decides their split
    assert {path.name for path in folder.iterdir()} >= {"README.md", "croissant.json", "report.html"}
    for path in folder.rglob("*.json"):  # the glossary is named as the recipe names it
        assert str(ROOT) not in path.read_text("utf-8") and str(tmp_path) not in path.read_text("utf-8")


BAD = {
    "an option that its class refuses": ({"pii": {"action": "hide"}}, [], "pii.*action"),
    "a similarity": ({"duplicates": {"similarity": 0.1}}, [], "similarity=0.1"),
    "shares of one": ({"test_share": 0.6, "validation_share": 0.5}, [], "leave some rows to train on"),
    "a length without a tokenizer": ({"chat": {"max_length_tokens": 5}}, [], "needs a tokenizer"),
    "no source and no language": ({"sources": []}, [], "at least one target language, or give sources"),
    "a missing file": ({"sources": [{"files": {"paths": ["no.jsonl"], "licence": "MIT", "language": "en"}}]},
                       [], "does not exist"),
    "no tokenizer there": ({"chat": {"tokenizer": "./none"}}, [], "does not exist"),
    "work inside the dataset": ({}, ["--work", "{output}/work"], "inside the dataset's folder"),
    "no workers": ({}, ["--workers", "0"], "0 workers: at least 1 is needed"),
    "nothing locked": ({}, ["--locked"], "--locked needs a lock file at"),
    "nothing to train on": ({"text": None, "pii": None, "contamination": None, "sources": [
        {"files": {"paths": ["empty.jsonl"], "licence": "MIT", "language": "en"}}]}, [],
        "the train split is empty"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_message_and_leaves_no_dataset(bad, tmp_path, capsys):
    changes, arguments, named = BAD[bad]
    recipe = write_recipe(tmp_path, plain_rows(4), **changes)
    (tmp_path / "empty.jsonl").write_text("")
    output = tmp_path / "data"
    arguments = [argument.format(output=output) for argument in arguments]
    assert main(["data", str(recipe), "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(named, error, re.S) and "Traceback" not in error
    assert not output.exists()


def test_a_file_outside_the_recipes_folder_needs_permission(tmp_path):
    write_lines(tmp_path / "other" / "rows.jsonl", plain_rows(5))
    source = {"files": {"paths": ["../other/rows.jsonl"], "licence": "MIT", "language": "en"}}
    recipe = write_recipe(tmp_path / "own", [], sources=[source], test_share=0)
    with pytest.raises(UserError, match="outside the recipe's folder"):
        build_dataset(recipe, tmp_path / "data")
    assert (
        main(["data", str(recipe), "--output", str(tmp_path / "data"), "--allow", str(tmp_path / "other")])
        == 0
    )


def test_a_locked_recipe_is_built_again_and_refused_by_name_when_something_differs(tmp_path):
    recipe = write_recipe(tmp_path, plain_rows(20))
    folder = build_dataset(recipe, tmp_path / "data")
    lock = json.loads((folder / "recipe.lock.json").read_text())
    assert lock["content_hash"] == manifest_of(folder)["content_hash"]
    assert lock["packages"].keys() >= {"rensa", "anyascii", "regex", "python-stdnum", "babel", "unicodedata"}
    before = hashes(folder)
    locked = BuildOptions(locked=True)
    assert hashes(build_dataset(recipe, folder, ["rows_per_part=5"], locked)) == before
    with pytest.raises(UserError, match=r"recipe\.seed: locked 0, now 4"):
        build_dataset(recipe, folder, ["seed=4"], locked)
    write_recipe(tmp_path, plain_rows(21))
    with pytest.raises(UserError, match=r"sources\[0\]\.revision\.rows\.jsonl: locked"):
        build_dataset(recipe, folder, [], locked)
    write_recipe(tmp_path, plain_rows(20))
    lock["packages"]["rensa"] = "0.0.1"
    recipe.with_suffix(".lock.json").write_text(json.dumps(lock))
    with pytest.raises(UserError, match=r'packages\.rensa: locked "0\.0\.1", now'):
        build_dataset(recipe, folder, [], locked)
    assert hashes(folder) == before


def test_the_words_that_are_said_in_english_are_locked(tmp_path):
    variants = {"native": 0.5, "code_mixed": 0.5, "glossary": "words.tsv"}
    (tmp_path / "words.tsv").write_text("bank\tबैंक\n", "utf-8")
    recipe = write_recipe(tmp_path, plain_rows(8), variants=variants, test_share=0)
    folder = build_dataset(recipe, tmp_path / "data")
    locked = BuildOptions(locked=True)
    build_dataset(recipe, folder, [], locked)
    (tmp_path / "words.tsv").write_text("meeting\tबैठक\n", "utf-8")
    with pytest.raises(UserError, match=r'words_in_english: locked "\w+", now "\w+"'):
        build_dataset(recipe, folder, [], locked)


def test_rows_that_call_the_same_tool_are_not_each_others_test_texts(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
            ],
            "tools": [TOOL],
        }
        for row in plain_rows(20)
    ]
    recipe = write_recipe(tmp_path, rows, duplicates=None)
    manifest = manifest_of(build_dataset(recipe, tmp_path / "data"))
    assert manifest["n_rows"]["test"] > 0 and sum(manifest["n_rows"].values()) == 20


def test_recipes_of_the_repository_read_as_settings():
    for path in (ROOT / "configs" / "recipes").glob("*.yaml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == path.stem
