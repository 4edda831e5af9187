"""Rows from files: every way a file is bad gives one rejection with its place; the rows around it stay."""

import csv
import io
import json
import os
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_recipes.artefact import UserError, sha256_file
from data_recipes.row_sources import files, lines, strict_json
from data_recipes.row_sources.files import FileOptions, read
from data_recipes.row_sources.options import language_problems
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected

GOOD = {"instruction": "கேள்வி", "output": "பதில்"}


def options(*paths, **changes):
    return FileOptions(**{"paths": paths, "licence": "CC-BY-4.0", "language": "ta", **changes})


def read_bytes(folder, name, data, **changes):
    (folder / name).write_bytes(data)
    found = list(read(options(name, **changes), folder))
    return [r for r in found if isinstance(r, dict)], [r for r in found if isinstance(r, Rejected)]


def as_lines(*records, end="\n"):
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records).encode()


def test_a_row_carries_all_of_its_provenance(tmp_path):
    (row,), rejected = read_bytes(tmp_path, "a.jsonl", as_lines(GOOD), attribution="Asha")
    assert rejected == []
    assert row == {
        "id": "a.jsonl/line 1",
        "language": "ta",
        "script": "Taml",
        "messages": [{"role": "user", "content": "கேள்வி"}, {"role": "assistant", "content": "பதில்"}],
        "source": "a.jsonl",
        "revision": f"sha256:{sha256_file(tmp_path / 'a.jsonl')}",
        "row_id": "line 1",
        "licence": "CC-BY-4.0",
        "licence_from": "recipe",
        "may_commit": True,
        "attribution": "Asha",
        "transforms": [{"name": "read_instructions", "version": 1, "checks": {"form": "alpaca"}}],
    }
    json.dumps(row)


def test_mixed_line_ends_and_empty_lines_are_read_with_the_line_numbers_of_an_editor(tmp_path):
    record = as_lines(GOOD, end="")
    rows, rejected = read_bytes(tmp_path, "a.jsonl", record + b"\r\n" + record + b"\r\r\n\n" + record)
    assert rejected == []
    assert [row["row_id"] for row in rows] == ["line 1", "line 2", "line 5"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_lines_are_those_of_splitlines_wherever_a_chunk_ends(monkeypatch, chunk):
    monkeypatch.setattr(lines, "_CHUNK", chunk)
    data = b'ab\r\ncd\re"f\n\r\n\n\rgh\r\n\r\n"i"'
    found = list(lines.lines(io.BytesIO(data), 100))
    assert [line.data for line in found] == data.splitlines()
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert [data[line.offset : line.offset + line.n_bytes] for line in found] == data.splitlines()
    assert [line.n_quotes for line in found] == [line.count(b'"') for line in data.splitlines()]


def test_a_line_of_50_megabytes_is_rejected_with_its_number_and_never_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(as_lines(GOOD) + b'{"instruction": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + as_lines(GOOD))
    tracemalloc.start()
    try:
        found = list(read(options("a.jsonl", max_record_bytes=1 << 20), tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [r["row_id"] for r in found if isinstance(r, dict)] == ["line 1", "line 3"]
    rejected = found[1]
    assert isinstance(rejected, Rejected) and rejected.row_id == "a.jsonl/line 2"
    assert rejected.reason == "longer than the limit"
    assert "50,000,019 bytes" in rejected.detail
    assert peak < 5_000_000


DEEP = '{"a":' * 70 + "1" + "}" * 70
BAD_LINES = [
    ('{"instruction": "q", "output": "a"', "not JSON", r"line 2, column 35: Expecting ',' delimiter"),
    ('{"instruction": "q" "output"}', "not JSON", "line 2, column 21"),
    ('{"instruction": "q", "output": NaN}', "NaN or Infinity", "line 2: NaN is no JSON"),
    ('{"instruction": "q", "output": [-Infinity]}', "NaN or Infinity", "-Infinity"),
    ('{"score": 1e999}', "a number too large", "beyond a float"),
    ('{"score": ' + "9" * 5000 + "}", "a number too large", "4300 digits"),
    ('{"output": "a", "x": {"k": 1, "k": 2}}', "a key written twice", "'k'"),
    ('{"output": "\\ud800"}', "a lone surrogate", "line 2"),
    (DEEP, "nested too deep", "deeper than 64"),
    ("[" * 200_000, "nested too deep", "deeper than 64"),
    ('"' + '\\"' * 100_000, "not JSON", "Unterminated string"),
    ("{" * 65 + '"' + '\\"' * 100_000, "nested too deep", "deeper than 64"),
    ("5", "no object", "it holds int"),
    ('[{"instruction": "q"}]', "no object", "it holds list"),
    ('{"instruction": "a\0b"}', "not JSON", "Invalid control character"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES, ids=[line[:24] for line, *_ in BAD_LINES])
def test_a_line_that_is_no_strict_json_is_rejected_with_its_place_and_the_rest_is_read(
    tmp_path, line, reason, detail
):
    data = as_lines(GOOD) + line.encode() + b"\n" + as_lines(GOOD)
    rows, (rejected,) = read_bytes(tmp_path, "a.jsonl", data)
    assert [row["row_id"] for row in rows] == ["line 1", "line 3"]
    assert (rejected.row_id, rejected.step, rejected.reason) == ("a.jsonl/line 2", "source", reason)
    assert re.search(detail, rejected.detail), rejected.detail


def test_strict_json_reads_what_json_writes():
    value = {"a": ['{"[', 'q"\\', "😀", {"b": [1, -2.5e-3, None, True]}], "தமிழ்": "\u2028"}
    assert strict_json.parse(json.dumps(value)) == value
    assert strict_json.parse(json.dumps(value, ensure_ascii=False)) == value
    assert strict_json.parse("[" * 64 + "]" * 64) is not None


def test_bytes_that_are_not_utf8_are_rejected_with_their_offset_in_the_file(tmp_path):
    data = b"\xef\xbb\xbf" + as_lines(GOOD) + b'{"output": "caf\xe9"}\n' + as_lines(GOOD)
    rows, (rejected,) = read_bytes(tmp_path, "a.jsonl", data)
    assert [row["row_id"] for row in rows] == ["line 1", "line 3"]  # and the mark of UTF-8 is no text
    assert rejected.reason == "not UTF-8"
    assert f"byte 0xe9 at offset {data.index(0xE9, 60)} of the file" in rejected.detail


REFUSED = [
    (
        json.dumps(GOOD).encode("utf-16"),
        r"is UTF-16 \(little-endian\), .*: convert it to UTF-8, with `iconv -f UTF-16",
    ),
    (b"\xfe\xff" + "{}".encode("utf-16-be"), r"is UTF-16 \(big-endian\)"),
    (json.dumps(GOOD).encode("utf-32"), r"is UTF-32 \(little-endian\)"),
    ("{}".encode("utf-16-le"), "a zero byte at offset 1, as UTF-16 text without its mark"),
    (b"\x1f\x8b\x08\x00" + bytes(20), "is a gzip file.*gunzip"),
    (b"PK\x03\x04" + bytes(20), "is a zip file"),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize(("data", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_other_encodings_and_packed_files_are_refused_by_name(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message):
        read_bytes(tmp_path, name, data)


@pytest.mark.parametrize("text", [json.dumps([GOOD, GOOD]), json.dumps([GOOD, GOOD], indent=1)])
def test_one_json_array_is_refused_with_the_command_that_makes_lines(tmp_path, text):
    with pytest.raises(UserError, match=r"is one JSON array.*jq -c '\.\[\]' a\.jsonl"):
        read_bytes(tmp_path, "a.jsonl", text.encode())


def test_csv_with_quotes_and_line_ends_inside_is_what_was_written(tmp_path):
    texts = ['He said "no"', "two\nlines", "a, b", " leading", "தமிழ்", '"', '",\n"']
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(["instruction", "output", "input"])
    writer.writerows([text, text, ""] for text in texts)
    rows, rejected = read_bytes(tmp_path, "a.csv", b"\xef\xbb\xbf" + buffer.getvalue().encode())
    assert rejected == []
    assert [[message["content"] for message in row["messages"]] for row in rows] == [[t, t] for t in texts]
    assert [row["row_id"] for row in rows] == [f"line {n}" for n in (2, 3, 6, 7, 8, 9, 10)]


def test_numbers_dates_and_na_in_csv_stay_text(tmp_path):
    data = b"q\ta\n007\tNA\n1e5\t2026-01-26\n"
    rows, _ = read_bytes(tmp_path, "a.tsv", data, question_key="q", answer_key="a")
    contents = [[message["content"] for message in row["messages"]] for row in rows]
    assert contents == [["007", "NA"], ["1e5", "2026-01-26"]]


def csv_outcome(folder, body, **changes):
    data = b"instruction,output\n" + body
    rows, rejected = read_bytes(folder, "a.csv", data, **changes)
    return [row["messages"][0]["content"] for row in rows], [(r.row_id, r.reason) for r in rejected]


def test_bad_rows_of_csv_are_rejected_with_their_lines_and_the_rest_is_read(tmp_path):
    assert csv_outcome(tmp_path, b'a,b\nc\n\n"d"e,f\ng,h,i\nj,k\n') == (
        ["a", "j"],
        [
            ("a.csv/line 3", "a wrong number of fields"),
            ("a.csv/line 5", "not CSV"),
            ("a.csv/line 6", "a wrong number of fields"),
        ],
    )
    assert csv_outcome(tmp_path, b'a,b\n"c,d\ne,f\n') == (
        ["a"],
        [("a.csv/lines 3 to 4", "a quote that is never closed")],
    )
    assert csv_outcome(tmp_path, b'a,b\n"c\n\xff\nd",e\nf,g\n') == (
        ["a", "f"],
        [("a.csv/line 4", "not UTF-8")],
    )


@pytest.mark.parametrize("quoted", [False, True])
def test_a_csv_row_over_the_limit_is_dropped_alone_whatever_its_quotes(tmp_path, quoted):
    long = b'"' + b"x" * 300 + b'\n""' + b"y" * 300 + b'"' if quoted else b"x" * 600
    body = b"a,b\n" + long + b",c\n" + b'"d\ne",f\n'
    rows, rejected = csv_outcome(tmp_path, body, max_record_bytes=100)
    assert rows == ["a", "d\ne"]
    assert [reason for _, reason in rejected] == ["longer than the limit"]


def test_a_quote_never_closed_does_not_fill_the_memory(tmp_path):
    body = b'instruction,output\na,b\n"' + (b"c,d" * 500 + b"\n") * 10_000
    (tmp_path / "a.csv").write_bytes(body)  # 15 MB
    tracemalloc.start()
    try:
        found = list(read(options("a.csv", max_record_bytes=10_000), tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    row, rejected = found
    assert isinstance(row, dict) and isinstance(rejected, Rejected)
    assert (row["row_id"], rejected.row_id) == ("line 2", "a.csv/lines 3 to 10002")
    assert "was a quote left open?" in rejected.detail
    assert peak < 3_000_000


@pytest.mark.parametrize("head", [b"a,a\n", b"a,\n", b'"a\n', b"\n", b"", b"\xff,a\n"])
def test_a_first_row_that_names_no_fields_is_refused(tmp_path, head):
    with pytest.raises(UserError, match="first row"):
        read_bytes(tmp_path, "a.csv", head)


def test_parquet_gives_the_rows_that_were_written(tmp_path):
    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "ப"}] for i in range(1000)
    ]
    pq.write_table(pa.table({"messages": turns}), tmp_path / "a.parquet", row_group_size=300)
    rows = [row for row in read(options("a.parquet"), tmp_path) if isinstance(row, dict)]
    assert [row["messages"] for row in rows] == turns
    assert rows[-1]["row_id"] == "row 1000"


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_no_more_than_a_batch_of_rows_is_held(tmp_path, suffix):
    records = [{"instruction": f"{i} " * 100, "output": f"{i}"} for i in range(5000)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, compression="none", use_dictionary=False)
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0].keys(), delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_bytes(as_lines(*records))
    tracemalloc.start()
    try:
        n_rows = sum(isinstance(row, dict) for row in read(options(path.name), tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_rows == 5000
    assert peak < 2_000_000 < path.stat().st_size


def test_a_damaged_parquet_file_is_one_message(tmp_path):
    pq.write_table(pa.table({"a": ["x" * 1000] * 100}), tmp_path / "a.parquet", compression="none")
    whole = (tmp_path / "a.parquet").read_bytes()
    for data in (whole[:-20], b"not parquet", b"", whole[:100] + b"\xff" * 60 + whole[160:]):
        with pytest.raises(UserError, match="a.parquet is damaged or no Parquet file, after row 0"):
            read_bytes(tmp_path, "a.parquet", data, question_key="a", answer_key="a")


def test_a_record_in_its_own_language_is_checked_against_the_known_ones(tmp_path):
    data = as_lines({**GOOD, "lang": "hi"}, {**GOOD, "lang": "xx"}, {**GOOD, "lang": "ta"}, GOOD)
    rows, rejected = read_bytes(tmp_path, "a.jsonl", data, language_key="lang", script="Latn")
    assert [(row["language"], row["script"]) for row in rows] == [("hi", "Deva"), ("ta", "Latn")]
    assert [r.reason for r in rejected] == ["an unknown language"] * 2


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(GOOD, GOOD))
    rows = read(options("a.jsonl"), tmp_path)
    next(rows)
    path.write_bytes(as_lines(GOOD) * 3)
    with pytest.raises(UserError, match="a.jsonl was changed while it was read"):
        list(rows)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl is no regular file"):
        list(read(options("a.jsonl"), tmp_path))


@pytest.mark.parametrize("named", ["../secret.jsonl", "link.jsonl", "folder/secret.jsonl", "{absolute}"])
def test_a_path_outside_the_recipes_folder_is_refused_also_behind_a_link(tmp_path, named):
    recipe, outside = tmp_path / "recipe", tmp_path / "secret.jsonl"
    recipe.mkdir()
    outside.write_bytes(as_lines(GOOD))
    (recipe / "link.jsonl").symlink_to(outside)
    (recipe / "folder").symlink_to(tmp_path)
    named = named.format(absolute=outside)
    with pytest.raises(UserError, match=r"leads to .*secret\.jsonl, outside the recipe's folder"):
        list(read(options(named), recipe))
    assert len(list(read(options(named), recipe, [tmp_path]))) == 1  # the person who runs it may allow it


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(UserError, match="a.jsonl does not exist; paths in a recipe are relative"):
        list(read(options("a.jsonl"), tmp_path))


def test_all_problems_of_the_options_are_said_at_once(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "paths: [a.json]\nlicence: GPL\nlanguage: ta\nscript: tamil\nquestion_key: q\nmax_record_bytes: 0\n"
    )
    with pytest.raises(UserError) as raised:
        load_settings(FileOptions, recipe)
    for part in (
        "5 problems",
        "a.json is none of .jsonl, .ndjson, .csv, .tsv, .parquet; make one JSON array into lines",
        "licence 'GPL' is no SPDX expression",
        "unknown written form 'ta-tamil': did you mean 'ta-Taml'?",
        "set question_key and answer_key together",
        "max_record_bytes",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("language", "script", "problem"),
    [
        ("tam", "Taml", "language: unknown language 'tam'"),
        ("ta", "Deva", "script: unknown written form"),
    ],
)
def test_a_language_and_a_script_it_is_not_written_in_are_problems(language, script, problem):
    assert [found.startswith(problem) for found in language_problems(language, script)] == [True]
    assert language_problems("ta", "") == language_problems("ta", "Latn") == []


def test_every_ending_that_is_promised_has_a_reader(tmp_path):
    pq.write_table(pa.table({"instruction": ["q"], "output": ["a"]}), tmp_path / "a.parquet")
    bodies = {".csv": b"instruction,output\nq,a\n", ".tsv": b"instruction\toutput\nq\ta\n"}
    for suffix in files.SUFFIXES:
        if suffix != ".parquet":
            (Path(tmp_path) / f"a{suffix}").write_bytes(bodies.get(suffix, as_lines(GOOD)))
        assert len(list(read(options(f"a{suffix}"), tmp_path))) == 1
