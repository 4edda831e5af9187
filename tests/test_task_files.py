"""Task files: what they hold, and that each mistake is named, all of a file in one message."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data_recipes.artefact import UserError, sha256_file
from data_recipes.languages import SCHEDULED
from eval.tasks.checkers import is_right
from eval.tasks.rows import load_tasks, tasks_sha256

SHIPPED = sorted((Path(__file__).parents[1] / "configs/eval").glob("*.yaml"))
HEAD = "name: capitals\nversion: 1\nkind: generation\nlanguage: hi\n"
ROW = "rows: {inline: [{country: भारत, capital: नई दिल्ली}]}\n"
TEMPLATES = "prompt: '{country}?'\nanswer: '{capital}'\n"
WHOLE = HEAD + ROW + TEMPLATES + "checker: reference\n"


def written(folder, text, name="task.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_row_is_asked_with_the_columns_in_their_places(tmp_path):
    system = "system: Answer in {{one}} word.\n"
    (task,) = load_tasks([written(tmp_path, WHOLE + system)])
    (row,) = task.rows
    assert row["messages"] == [
        {"role": "system", "content": "Answer in {{one}} word."},
        {"role": "user", "content": "भारत?"},
        {"role": "assistant", "content": "नई दिल्ली"},
    ]
    assert (row["id"], row["language"], row["script"], row["tag"]) == ("capitals/1", "hi", "Deva", "hi")
    assert task.options.measured == ("exact_match",)
    assert task.file_sha256 == sha256_file(tmp_path / "task.yaml")


WRONG = [
    (HEAD + ROW + TEMPLATES, "checker = '': is missing: name one of row, reference, exact"),
    (
        WHOLE + "metrics: []\n".replace("[]", "[chrff]"),
        "metrics = ('chrff',): unknown 'chrff': did you mean chrf",
    ),
    (WHOLE.replace("reference", "refrence"), "unknown 'refrence': did you mean reference"),
    (HEAD + ROW + TEMPLATES + "metrics: [exact_match]\n", "checker = '': exact_match needs one of"),
    (WHOLE.replace("language: hi", "language: ''"), "its language is empty"),
    (WHOLE.replace("language: hi", "language: xx"), "unknown language 'xx'"),
    (WHOLE.replace(ROW, ""), "rows = None: there are no rows"),
    (WHOLE.replace(ROW, "rows: {inline: []}\n"), "rows.inline = (): there are no rows"),
    (WHOLE.replace(ROW, "rows: {}\n"), "there are no rows"),
    (WHOLE.replace("version: 1\n", ""), "version: is missing"),
    (WHOLE.replace("version: 1\n", "version: 0\n"), "version = 0: must be at least 1"),
    (WHOLE.replace("{country}?", "{country"), "columns stand in braces"),
    (WHOLE.replace("{country}?", "{country.x}"), "is no column's name"),
    (
        WHOLE.replace("{country}?", "{city}"),
        "row 1: it has no column 'city'; its columns are country, capital",
    ),
    (WHOLE.replace("नई दिल्ली", "''"), "row 1: its answer is empty"),
    (WHOLE.replace("answer: '{capital}'\n", ""), "answer = '': is missing"),
    (WHOLE + "format: json\n", "nothing looks at it: add format"),
    (WHOLE + "metrics: [format]\n", "format: neither the task nor a row says which"),
    (WHOLE + "metrics: [numbers]\n", "no expected answer holds a number"),
    (WHOLE + "text: x\n", "text = 'x': generation has no use for it"),
    (WHOLE + "lm_eval: {task: arc}\n", "the section and the kind of that name belong together"),
    (WHOLE.replace(ROW, "rows: {file: ../../../etc/passwd}\n"), "outside"),
    (WHOLE.replace(ROW, "rows: {file: rows.jsonl}\n"), "does not exist"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_task_file_says_what_is_wrong(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_tasks([written(tmp_path, text)])
    assert message in str(error.value)


def test_all_problems_of_all_files_come_together(tmp_path):
    one = written(tmp_path, WHOLE.replace("reference", "nothing").replace("version: 1", "version: 0"))
    other = written(tmp_path, HEAD + TEMPLATES, "other.yaml")
    with pytest.raises(UserError) as error:
        load_tasks([one, other])
    for part in (
        "version = 0",
        "unknown 'nothing'",
        "other.yaml",
        "is missing: name one of row",
        "there are no rows",
    ):
        assert part in str(error.value)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two tasks are named 'capitals'"):
        load_tasks([written(tmp_path, WHOLE), written(tmp_path, WHOLE, "other.yaml")])


def test_the_same_rows_come_from_lines_parquet_and_a_dataset(tmp_path):
    rows = [{"id": f"r{i}", "language": "ta", "q": f"எது {i}", "a": str(i)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "data"))
    head = "version: 1\nkind: generation\nprompt: '{q}'\nanswer: '{a}'\nchecker: reference\n"
    named = {"lines": "file: rows.jsonl", "parquet": "file: rows.parquet", "data": "dataset: data"}
    paths = [
        written(tmp_path, f"name: {name}\n{head}rows: {{{where}}}\n", f"{name}.yaml")
        for name, where in named.items()
    ]
    lines, parquet, data = load_tasks(paths)
    assert lines.rows == parquet.rows == data.rows and len(lines.rows) == 3
    assert lines.rows_sha256 == sha256_file(tmp_path / "rows.jsonl")
    before = tasks_sha256(paths)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert tasks_sha256(paths) != before


def test_each_wrong_line_of_a_file_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"country": "a", "capital": "b"}\nno\n{"country": 1}\n')
    with pytest.raises(UserError, match="line 2"):
        load_tasks([written(tmp_path, WHOLE.replace(ROW, "rows: {file: rows.jsonl}\n"))])
    (tmp_path / "rows.jsonl").write_text('{"country": "a"}\n{"country": 1, "capital": true}\n')
    with pytest.raises(UserError) as error:
        load_tasks([written(tmp_path, WHOLE.replace(ROW, "rows: {file: rows.jsonl}\n"))])
    assert "2 problems in 2 rows" in str(error.value)
    assert "row 1: it has no column 'capital'" in str(error.value)
    assert "row 2: its column 'capital' holds True" in str(error.value)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="there are no rows"):
        load_tasks([written(tmp_path, WHOLE.replace(ROW, "rows: {file: rows.jsonl}\n"))])


CHOICE = (
    "name: c\nversion: 1\nkind: multiple_choice\nlanguage: en\n"
    "prompt: '{q}'\nchoices: answers\nright: right\n"
)
WRONG_CHOICES = [
    ("{q: x, answers: [a], right: a}", "two texts or more"),
    ("{q: x, answers: [a, a], right: a}", "two of its choices are the same"),
    ("{q: x, answers: [a, ''], right: a}", "two texts or more"),
    ("{q: x, answers: [a, b], right: c}", "neither one of"),
    ("{q: x, answers: [a, b], right: 2}", "neither one of"),
    ("{q: x, right: a}", "two texts or more"),
]


@pytest.mark.parametrize(("row", "message"), WRONG_CHOICES)
def test_choices_must_be_different_texts_and_one_of_them_right(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load_tasks([written(tmp_path, f"{CHOICE}rows: {{inline: [{row}]}}\n")])


def test_the_right_choice_is_named_by_its_text_or_its_number(tmp_path):
    rows = "rows: {inline: [{q: x, answers: [a, b], right: b}, {q: y, answers: [a, b], right: 0}]}\n"
    (task,) = load_tasks([written(tmp_path, CHOICE + rows)])
    assert [row["right"] for row in task.rows] == [1, 0]


def test_shipped_tasks_cover_all_scheduled_languages_and_accept_their_own_answers():
    tasks = {task.name: task for task in load_tasks([str(path) for path in SHIPPED])}
    assert len(tasks) == len(SHIPPED) == 4
    for name in ("locale_asked_in_english", "months_and_weekdays", "fertility"):
        assert {row["tag"] for row in tasks[name].rows} >= set(SCHEDULED)
        assert len({row["id"] for row in tasks[name].rows}) == len(tasks[name].rows)
    for name in ("locale_asked_in_english", "locale_own_phrasings"):
        for row in tasks[name].rows:
            assert is_right("row", row, row["expected"]), row["id"]
            assert not is_right("row", row, row["expected"] + " x"), row["id"]
    for row in tasks["months_and_weekdays"].rows:
        assert len(set(row["choices"])) == 4 and row["choices"][row["right"]] == row["expected"]
    notes = tasks["locale_asked_in_english"].notes
    assert notes["asked_in"] == "English" and notes["left_out"]["mai"] == ["time", "duration", "unit"]
    assert tasks["locale_own_phrasings"].notes == {"asked_in": "own", "left_out": {}}


def test_a_language_that_no_source_answers_for_is_named(tmp_path):
    rows = "rows: {locale: {languages: [hi, mai], tasks: [time, unit], asked_in: English}}\n"
    text = "name: t\nversion: 1\nkind: generation\nchecker: row\n" + rows
    with pytest.raises(UserError, match="the language 'mai' has no rows"):
        load_tasks([written(tmp_path, text)])
    with pytest.raises(UserError, match='a language is empty; write its code, as "ta"'):
        load_tasks([written(tmp_path, text.replace("[hi, mai]", "['']"))])
    with pytest.raises(UserError, match="unknown 'tim': did you mean time"):
        load_tasks([written(tmp_path, text.replace("[time, unit]", "[tim]"))])
    with pytest.raises(UserError, match="no phrasings in Odia"):
        load_tasks([written(tmp_path, text.replace("English", "own").replace("[hi, mai]", "[or]"))])
