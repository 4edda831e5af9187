"""The tokenizer of a recipe: what does not fit is rejected or stops the build; counting changes no row."""

import json
import shutil
from pathlib import Path

import pytest
from build_recipes import hashes, plain_rows, rows_in, stages, write_recipe
from transformers import AutoTokenizer

from data_recipes.artefact import UserError, read_artefact
from data_recipes.build import BuildOptions, build_dataset
from data_recipes.parts.tokenizers import Tokenizer
from finetune.config import SHIPPED_MODELS

TINY = Path(SHIPPED_MODELS["tiny-glm"])
NO_TEST = {"test_share": 0, "validation_share": 0}


@pytest.fixture
def tokenizer(tmp_path):
    """tiny-glm's tokenizer in the recipe's folder."""
    (tmp_path / "tokenizer").mkdir()
    for path in TINY.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def manifest_of(folder):
    return read_artefact(folder / "manifest.json", "dataset_manifest")


def chat_recipe(folder, rows, **chat):
    return write_recipe(folder, rows, chat={"tokenizer": "./tokenizer", **chat}, **NO_TEST)


def test_the_manifest_counts_with_the_recipes_tokenizer(tokenizer, tmp_path):
    folder = build_dataset(chat_recipe(tmp_path, plain_rows(12)), tmp_path / "data")
    manifest = manifest_of(folder)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    rows = rows_in(folder, "train")
    texts = [message["content"] for row in rows for message in row["messages"]]
    n_tokens = sum(len(loaded(text, add_special_tokens=False)["input_ids"]) for text in texts)
    found = manifest["languages"]["en-Latn"]
    assert found["tokens"] == n_tokens
    assert found["tokens_per_word"] == round(n_tokens / found["words"], 4)
    lengths = [
        len(loaded.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"])
        for row in rows
    ]
    masks = manifest["masks"]
    assert (masks["n_tokens"], masks["longest"]) == (sum(lengths), max(lengths))
    answers = [row["messages"][1]["content"] + "<|endoftext|>" for row in rows]
    assert masks["n_trained"] == sum(len(loaded(text)["input_ids"]) for text in answers)
    assert manifest["tokenizer"]["name"] == "./tokenizer" and len(manifest["tokenizer"]["sha256"]) == 64


def test_a_tokenizer_that_is_only_counted_with_changes_no_row(tmp_path):
    rows = [*plain_rows(10), {"instruction": "What is <|user|> for?", "output": "It opens a turn."}]
    recipe = write_recipe(tmp_path, rows, **NO_TEST)
    without = build_dataset(recipe, tmp_path / "without")
    counted = BuildOptions(tokenizer=Tokenizer("tiny-glm", str(TINY)))
    with_tokenizer = build_dataset(recipe, tmp_path / "with", [], counted)
    found = [manifest_of(folder) for folder in (without, with_tokenizer)]
    assert found[0]["content_hash"] == found[1]["content_hash"]
    assert found[0]["tokenizer"] is None and found[0]["languages"]["en-Latn"]["tokens"] is None
    assert found[1]["tokenizer"]["name"] == "tiny-glm" and found[1]["languages"]["en-Latn"]["tokens"] > 0
    loaded = AutoTokenizer.from_pretrained(TINY)
    chats = [row["messages"] for row in rows_in(with_tokenizer, "train")]
    lengths = [len(ids) for ids in loaded.apply_chat_template(chats, return_dict=True)["input_ids"]]
    assert (found[1]["masks"]["n_tokens"], found[1]["masks"]["longest"]) == (sum(lengths), max(lengths))


@pytest.mark.parametrize(
    ("policy", "content"),
    [("refuse", None), ("escape", "What is < |user|> for?"), ("strip", "What is  for?")],
)
def test_control_tokens_inside_a_text_are_treated_as_the_recipe_says(tokenizer, tmp_path, policy, content):
    rows = [*plain_rows(4), {"instruction": "What is <|user|> for?", "output": "It opens a turn."}]
    folder = build_dataset(chat_recipe(tmp_path, rows, control_tokens=policy), tmp_path / "data")
    told = [row["messages"][0]["content"] for row in rows_in(folder, "train")]
    rejected = manifest_of(folder)["rejected"]["chat"]
    if content is None:
        assert len(told) == 4 and rejected == {"control token in a text": 1}
    else:
        assert content in told and rejected == {}


def test_a_row_that_is_too_long_is_rejected_and_never_cut(tokenizer, tmp_path):
    rows = [*plain_rows(4), {"instruction": "Count.", "output": "one two three four five " * 40}]
    folder = build_dataset(chat_recipe(tmp_path, rows, max_length_tokens=100), tmp_path / "data")
    manifest = manifest_of(folder)
    assert manifest["rejected"]["chat"] == {"too_long": 1}
    assert manifest["n_rows"]["train"] == 4 and manifest["masks"]["longest"] <= 100


def test_a_chat_template_that_trains_no_stop_token_stops_the_build(tokenizer, tmp_path):
    text = "{% generation %}{{ message['content'] + '<|endoftext|>' }}{% endgeneration %}"
    wrong = "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|endoftext|>' }}"
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert text in loaded.chat_template
    loaded.chat_template = loaded.chat_template.replace(text, wrong)
    loaded.save_pretrained(tokenizer)
    recipe = chat_recipe(tmp_path, plain_rows(3))
    with pytest.raises(
        UserError, match=r"(?s)chat template of \./tokenizer does not fit.*train no stop token"
    ):
        build_dataset(recipe, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_tokenizer_redoes_the_last_stages_only(tokenizer, tmp_path, capsys):
    recipe = chat_recipe(tmp_path, plain_rows(5))
    first = hashes(build_dataset(recipe, tmp_path / "data"))
    file = tokenizer / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"model_max_length": 7}))
    capsys.readouterr()
    assert hashes(build_dataset(recipe, tmp_path / "data")) == first  # what cuts texts is the same
    assert set(stages(capsys.readouterr().out).values()) == {(0, 1)}


def test_a_chat_template_that_was_changed_is_seen_by_the_process_that_built_with_the_other(
    tokenizer, tmp_path
):
    recipe = chat_recipe(tmp_path, plain_rows(5))
    before = manifest_of(build_dataset(recipe, tmp_path / "data"))
    file = tokenizer / "chat_template.jinja"
    file.write_text("Be brief. " + file.read_text("utf-8"), "utf-8")
    after = manifest_of(build_dataset(recipe, tmp_path / "data"))
    assert after["tokenizer"]["sha256"] != before["tokenizer"]["sha256"]
    n_more = len(AutoTokenizer.from_pretrained(tokenizer)("Be brief. ")["input_ids"])
    assert after["masks"]["n_tokens"] == before["masks"]["n_tokens"] + 5 * n_more
    assert after["masks"]["n_trained"] == before["masks"]["n_trained"]


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(UserError, match=r"cannot load the tokenizer '\./tokenizer'"):
        build_dataset(chat_recipe(tmp_path, plain_rows(3)), tmp_path / "data")
