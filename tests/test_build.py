"""A recipe gives the same bytes every time, no answer leaks, and bad input leaves nothing behind."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from build_recipes import rows_in
from datasets import load_from_disk

from data_recipes.artefact import UserError, file_hashes, read_artefact, sha256_file, sha256_json
from data_recipes.build import build_dataset
from data_recipes.dataset import ContentHash, read_split
from data_recipes.locale_rows import make_row, refuse_leaks, split_rows
from data_recipes.recipe import load_recipe
from data_recipes.tasks import TASKS, check
from finetune.cli import main

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*_locale.yaml"))
TAMIL = ROOT / "configs" / "recipes" / "tamil_locale.yaml"
SMALL = (
    "train_rows_per_task=4",
    "validation_rows_per_task=2",
    "test_rows_per_task=4",
    "general_test_rows_per_task=2",
)
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tamil(tmp_path_factory):
    """The dataset of the shipped Tamil recipe as it is."""
    return build_dataset(TAMIL, tmp_path_factory.mktemp("tamil") / "data")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_dataset(TAMIL, tmp_path_factory.mktemp("small") / "data", SMALL)


@pytest.fixture(scope="module")
def rows(tamil):
    return {split: rows_in(tamil, split) for split in SPLITS}


@pytest.fixture(scope="module")
def manifest(tamil):
    return read_artefact(tamil / "manifest.json", "dataset_manifest")


def question(row):
    return row["messages"][0]["content"]


def answer(row):
    return row["messages"][1]["content"]


def recipe_file(folder, **changes):
    """A copy of the Tamil recipe with other values."""
    path = folder / "recipe.yaml"
    text = yaml.safe_dump(yaml.safe_load(TAMIL.read_text()) | changes, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_another_process_with_another_hash_seed_writes_the_same_bytes(small, tmp_path):
    # Python orders sets by a random seed: what leaned on that would differ here.
    command = [
        sys.executable,
        "-m",
        "finetune.cli",
        "data",
        str(TAMIL),
        *SMALL,
        "--output",
        str(tmp_path / "d"),
    ]
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    hashes = file_hashes(small)
    assert {"manifest.json", "train/data-00000-of-00001.arrow", "test/dataset_info.json"} <= hashes.keys()
    assert file_hashes(tmp_path / "d") == hashes


def test_another_seed_gives_other_rows_under_another_hash(small, tmp_path):
    other = build_dataset(TAMIL, tmp_path / "data", [*SMALL, "seed=1"])
    ids = [{row["id"] for row in read_split(folder, "train").to_list()} for folder in (small, other)]
    hashes = [read_artefact(f / "manifest.json", "dataset_manifest")["content_hash"] for f in (small, other)]
    assert ids[0] != ids[1]
    assert hashes[0] != hashes[1]


def hash_in_a_stream(records):
    content = ContentHash()
    for split in SPLITS:
        assert list(content.split(records[split])) == records[split]
    return content.hexdigest()


def test_the_content_hash_is_that_of_the_stored_rows_and_one_changed_letter_changes_it(tamil, manifest):
    records = {split: read_split(tamil, split).to_list() for split in SPLITS}
    assert manifest["content_hash"] == sha256_json([records[split] for split in SPLITS])
    assert hash_in_a_stream(records) == manifest["content_hash"]
    records["validation"][3]["messages"][1]["content"] += "x"
    assert hash_in_a_stream(records) != manifest["content_hash"]


def test_the_manifest_says_what_the_data_is(tamil, rows, manifest):
    assert manifest["inputs"] == {"recipe": sha256_file(TAMIL)}
    assert manifest["n_rows"] == {split: len(rows[split]) for split in SPLITS}
    for split in SPLITS:
        counted = Counter(f"{row['language']}/{row['task']}" for row in rows[split])
        assert manifest["counts"][split] == counted
        assert len(load_from_disk(str(tamil))[split]) == len(rows[split])
    assert manifest["recipe"]["languages"] == ["ta"]
    assert set(manifest["sources"]) == {row["source"] for split in SPLITS for row in rows[split]}


def test_every_row_says_its_licence_script_and_checker_and_passes_it(rows, manifest):
    licences = {name: source["licence"] for name, source in manifest["sources"].items()}
    every = [row for split in SPLITS for row in rows[split]]
    assert len({row["id"] for row in every}) == len(every) > 3000
    for row in every:
        assert row["licence"] == licences[row["source"]]
        assert row["script"] == {"ta": "Taml", "hi": "Deva", "en": "Latn"}[row["language"]]
        assert row["group"] == ("target" if row["language"] == "ta" else "general")
        assert row["kind"] == TASKS[row["task"]].kind
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert check(row["checker"], row["language"], row["value"], answer(row))


def test_no_question_of_the_test_split_is_in_another_split(rows):
    asked = {question(row) for row in rows["test"]}
    assert len(asked) == len(rows["test"])
    assert asked.isdisjoint(question(row) for split in ("train", "validation") for row in rows[split])


def test_no_value_or_answer_to_generalise_to_is_in_two_splits_in_any_language(rows):
    def facts(split, of):
        return {(row["task"], of(row)) for row in rows[split] if row["kind"] == "generalise"}

    for of in (lambda row: row["value"], answer):
        train, validation, test = (facts(split, of) for split in SPLITS)
        assert len(test) > 200
        assert test.isdisjoint(train | validation)
        assert train.isdisjoint(validation)


def test_the_kept_phrasing_is_asked_in_the_test_alone_and_trained_ones_there_too(rows):
    kept = {
        code: {
            name: listed[-1].split("{x}") for name, listed in yaml.safe_load(path.read_text("utf-8")).items()
        }
        for code in ("ta", "en", "hi")
        for path in [ROOT / "data_recipes" / "phrasings" / f"{code}.yaml"]
    }

    def is_kept(row):
        before, after = kept[row["language"]][row["task"]]
        return question(row).startswith(before) and question(row).endswith(after)

    assert not any(is_kept(row) for split in ("train", "validation") for row in rows[split])
    remember = [is_kept(row) for row in rows["test"] if row["kind"] == "remember"]
    generalise = [is_kept(row) for row in rows["test"] if row["kind"] == "generalise"]
    assert all(remember) and len(remember) > 100
    assert sum(generalise) == len(generalise) / 2


def test_each_trained_phrasing_is_trained_equally_often(rows):
    numbers = Counter(row["phrasing"] for row in rows["train"])
    assert set(numbers) == {0, 1, 2, 3}
    assert max(numbers.values()) == min(numbers.values())


@pytest.mark.parametrize(("dataset", "n_names"), [("tamil", 30), ("small", 1)])
def test_a_target_name_in_the_test_was_shown_in_training_in_every_trained_phrasing(dataset, n_names, request):
    shown, asked = (
        Counter(
            (row["task"], row["value"])
            for row in read_split(request.getfixturevalue(dataset), split).to_list()
            if row["kind"] == "remember" and row["group"] == "target"
        )
        for split in ("train", "test")
    )
    assert len(asked) == 4 * n_names
    assert all(shown[fact] == 4 for fact in asked)


def test_the_share_of_general_rows_is_near_what_the_recipe_says(rows):
    n_general = sum(row["group"] == "general" for row in rows["train"])
    # One task less than the target has (no English `ui`), and whole rows: within two points of 0.35.
    assert abs(n_general / len(rows["train"]) - 0.35) < 0.02


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_another_share_of_general_rows_is_met_too(share):
    tasks = ("date", "duration", "unit")
    recipe = replace(load_recipe(TAMIL), tasks=tasks, general_share=share, train_rows_per_task=80)
    train = split_rows(recipe, "train", Counter())
    assert sum(row["group"] == "target" for row in train) == 240
    assert sum(row["group"] == "general" for row in train) / len(train) == share


def test_drops_are_counted_by_language_task_and_reason(tmp_path):
    # CLDR's Gujarati names of Hong Kong and Macau hold "SAR" in Latin letters; all territories are asked for.
    changes = {"languages": ["gu"], "tasks": ["date", "territory"], "train_rows_per_task": 1200}
    recipe = recipe_file(tmp_path, test_rows_per_task=400, **changes)
    manifest = read_artefact(build_dataset(recipe, tmp_path / "d") / "manifest.json", "dataset_manifest")
    # Two names in four training phrasings and in the kept one.
    reason = "gu/territory: the answer is not wholly in the script of the language"
    assert manifest["dropped"] == {reason: 10}
    codes = {row["value"] for row in read_split(tmp_path / "d", "train").to_list() if row["language"] == "gu"}
    assert '{"code":"LK"}' in codes
    assert not {'{"code":"HK"}', '{"code":"MO"}'} & codes


def test_a_row_without_an_answer_or_in_the_wrong_script_is_dropped_with_its_reason():
    fact = {"code": "QQ"}
    assert (
        make_row(TASKS["territory"], "ta", "target", fact, 0) == "the source has no answer in this language"
    )
    latin = replace(TASKS["territory"], answer=lambda value, code: "Ilankai")
    reason = "the answer is not wholly in the script of the language"
    assert make_row(latin, "ta", "target", {"code": "LK"}, 0) == reason
    wrong = replace(TASKS["territory"], answer=lambda value, code: "இந்தியா")
    assert make_row(wrong, "ta", "target", {"code": "LK"}, 0) == "the answer fails its own checker"


@pytest.mark.parametrize("of", ["question", "value"])
def test_a_leaked_row_stops_the_build(rows, of):
    leaked = next(row for row in rows["test"] if row["kind"] == "generalise")
    if of == "value":
        leaked = leaked | {
            "messages": [{"role": "user", "content": "asked otherwise"}, leaked["messages"][1]]
        }
    refuse_leaks(rows)
    with pytest.raises(UserError, match="is in the train split too"):
        refuse_leaks(rows | {"train": [*rows["train"], leaked]})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_builds_rows_of_its_language_and_the_general_ones(recipe, tmp_path):
    folder = build_dataset(recipe, tmp_path / "data", SMALL)
    code = {"gujarati": "gu", "marathi": "mr", "tamil": "ta", "telugu": "te"}[recipe.stem.split("_")[0]]
    for split in SPLITS:
        found = read_split(folder, split).to_list()
        assert {row["language"] for row in found} == {code, "en", "hi"}
    tasks = {row["task"] for row in found if row["group"] == "target"}
    assert tasks == set(TASKS) - ({"ui"} if code == "gu" else set())  # Django has no Gujarati


def test_four_recipes_of_locale_tasks_alone_ship():
    assert [path.stem.split("_")[0] for path in RECIPES] == ["gujarati", "marathi", "tamil", "telugu"]


def test_a_dataset_is_built_again_in_its_place(small, tmp_path):
    shutil.copytree(small, tmp_path / "data")
    build_dataset(TAMIL, tmp_path / "data", [*SMALL, "tasks=[date,unit]"])
    assert set(read_split(tmp_path / "data", "train")["task"]) == {"date", "unit"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.parts"]


BAD_RECIPES = {
    "an unknown language": ({"languages": ["tamill"]}, "did you mean 'ta'?"),
    "an unknown general language": ({"general_languages": ["en", "hindi"]}, "did you mean 'hi'?"),
    "a language without phrasings": ({"languages": ["as"]}, "no phrasings in Assamese"),
    "a misspelt key": ({"trian_rows_per_task": 4}, "train_rows_per_task"),
    "an unknown task": ({"tasks": ["dates"]}, "known are date, time"),
    "overlap of target and general": ({"general_languages": ["ta", "en"]}, "ta is a target language too"),
    "no target language": ({"languages": []}, "at least one target language"),
    "a share of one": ({"general_share": 1.0}, "general_share"),
    "no rows wanted": ({"train_rows_per_task": 0}, "train_rows_per_task"),
    "a task without any row": ({"languages": ["gu"], "tasks": ["ui"]}, "split is empty"),
    "nothing to validate on": ({"tasks": ["territory"]}, "the validation split is empty"),
    "a bare no": ({"languages": [False]}, "languages"),
}


@pytest.mark.parametrize("bad", BAD_RECIPES)
def test_a_bad_recipe_is_one_message_exit_code_2_and_nothing_left_behind(bad, tmp_path, capsys):
    changes, named = BAD_RECIPES[bad]
    recipe = recipe_file(tmp_path, **changes)
    assert main(["data", str(recipe), "--output", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [recipe]


def test_all_problems_of_a_recipe_are_told_at_once(tmp_path):
    recipe = recipe_file(tmp_path, languages=["tamill"], tasks=["dates"], general_share=-0.5)
    with pytest.raises(UserError, match="(?s)did you mean 'ta'.*dates.*general_share"):
        load_recipe(recipe)


def test_somebody_elses_folder_is_not_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="would be replaced"):
        build_dataset(TAMIL, tmp_path / "data", SMALL)
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


def damage(folder, kind):
    arrow = next((folder / "train").glob("*.arrow"))
    if kind == "no folder":
        shutil.rmtree(folder)
    elif kind == "no split":
        shutil.rmtree(folder / "train")
    elif kind == "no rows file":
        arrow.unlink()
    elif kind == "truncated":
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    elif kind == "not arrow":
        arrow.write_bytes(b"x" * 5000)
    elif kind == "empty file":
        arrow.write_bytes(b"")
    elif kind == "broken state":
        (folder / "train" / "state.json").write_text('{"_data_files": [')


@pytest.mark.parametrize(
    "kind",
    ["no folder", "no split", "no rows file", "truncated", "not arrow", "empty file", "broken state"],
)
def test_a_damaged_split_is_refused_with_the_command_that_builds_it_again(small, tmp_path, kind):
    folder = Path(shutil.copytree(small, tmp_path / "data"))
    damage(folder, kind)
    with pytest.raises(UserError, match="cannot read the train split .*`local-experts data`") as raised:
        read_split(folder, "train")
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize("n_files", [0, 1])
def test_a_split_without_rows_is_refused(small, tmp_path, n_files):
    read_split(small, "train").with_format(None).select([]).save_to_disk(
        str(tmp_path / "train"), num_shards=n_files or None
    )
    with pytest.raises(UserError, match="the train split of .* is empty"):
        read_split(tmp_path, "train")
