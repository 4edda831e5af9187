"""Bad input to a whole build: each bad row is rejected with its reason, or one message stops the build."""

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from build_recipes import hashes, plain_rows, rows_in, write_recipe
from loopback import serving, tamil
from pyarrow import parquet

from data_recipes.artefact import UserError, read_artefact
from data_recipes.build import build_dataset
from finetune.cli import main

ROOT = Path(__file__).parents[1]
MOJIBAKE = "कखकख".encode().decode("latin-1")
# A child that may write no file larger than so many bytes: what a disk does that is full.
FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from finetune.cli import main
sys.exit(main(["data", sys.argv[2], "--output", sys.argv[3]]))
"""


def call(argument) -> dict:
    return {"type": "function", "function": {"name": "weather", "arguments": {"day": argument}}}


def rejected(folder: Path) -> dict:
    return read_artefact(folder / "manifest.json", "dataset_manifest")["rejected"]


def test_bad_lines_are_rejected_by_reason_and_the_good_ones_stay(tmp_path):
    recipe = write_recipe(tmp_path, [], test_share=0, validation_share=0)
    good = [json.dumps(row).encode() for row in plain_rows(6)]
    lines = [
        good[0] + b"\r\n",
        good[1] + b"\n",
        b'{"instruction": "Was kostet das?", "output": "F\xfcnf Euro."}\n',  # Latin-1
        good[2] + b"\r\n",
        b'{"instruction": "An open brace", "output": "never closed"\n',
        b'{"instruction": "A long line", "output": "' + b"x" * 50_000_000 + b'"}\n',
        good[3] + b"\n",
        json.dumps({"instruction": "Say it.", "output": MOJIBAKE}).encode() + b"\n",
        good[4] + b"\n",
        good[5],  # no line end
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    folder = build_dataset(recipe, tmp_path / "data")
    assert len(rows_in(folder, "train")) == 6
    assert rejected(folder)["sources"] == {"longer than the limit": 1, "not UTF-8": 1, "not JSON": 1}
    assert rejected(folder)["text"] == {"mojibake": 1}
    details = (tmp_path / "data.parts").rglob("*.rejected.jsonl")
    told = "".join(path.read_text("utf-8") for path in details)
    assert "byte 0xfc" in told and "line 6" in told


@pytest.mark.parametrize("value", [float("nan"), datetime(2026, 1, 26), b"\xff"])
def test_a_value_of_an_arrow_file_that_is_not_json_is_rejected_with_its_row(value, tmp_path):
    rows = []
    for i, row in enumerate(plain_rows(5)):
        calls = [call(value if i == 2 else None)]
        asked = {"role": "user", "content": row["instruction"], "tool_calls": None}
        answer = {"role": "assistant", "content": row["output"], "tool_calls": calls}
        rows.append({"messages": [asked, answer]})
    (tmp_path / "rows").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows" / "train.parquet")
    source = {"hub": {"dataset": "./rows", "language": "en", "licence": "CC-BY-4.0"}}
    recipe = write_recipe(tmp_path, [], sources=[source], test_share=0, validation_share=0)
    folder = build_dataset(recipe, tmp_path / "data")
    assert len(rows_in(folder, "train")) == 4 and rejected(folder)["sources"] == {"not plain JSON": 1}


def test_a_recipe_that_names_a_python_object_is_not_read(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: !!python/object/apply:os.system ['touch owned']\n")
    assert main(["data", str(recipe), "--output", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "is not plain YAML" in error and not Path("owned").exists()


def test_a_full_disk_is_one_message_and_the_next_run_goes_on(tmp_path):
    recipe = write_recipe(tmp_path, plain_rows(30), rows_per_part=10)
    whole = hashes(build_dataset(recipe, tmp_path / "whole"))
    line = [sys.executable, "-c", FULL_DISK, "6000", str(recipe), str(tmp_path / "data")]
    stopped = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.count("no space left") == 1 and "Traceback" not in stopped.stderr
    assert not (tmp_path / "data").exists()
    kept = {path: path.stat().st_ino for path in (tmp_path / "data.parts").rglob("*.jsonl")}
    assert kept
    assert hashes(build_dataset(recipe, tmp_path / "data")) == whole
    assert {path: path.stat().st_ino for path in kept} == kept


def translation(server, **changes):
    endpoint = {"base_url": server.url, "model": "m", "timeout_s": 0.5, "n_tries": 2, "longest_wait_s": 0.02}
    return {"target": "ta", "n_tries": 1, "endpoint": endpoint | changes}


def hangs(number, body):
    time.sleep(1.5)
    return tamil(number, body)


ENDPOINTS = {
    "hangs": (hangs, "no answer within 0.5 s"),
    "is busy": (lambda number, body: (429, {"retry-after": "0"}, b"slow down"), "429"),
    "gives junk": (lambda number, body: (200, {}, b"<html>no JSON</html>"), "JSON|chat completion"),
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_that_never_answers_well_stops_the_build_with_one_message(name, tmp_path):
    answer, named = ENDPOINTS[name]
    with serving() as serve:
        settings = translation(serve(answer), max_failures=2, concurrency=4)
        recipe = write_recipe(tmp_path, plain_rows(12), translate=settings)
        with pytest.raises(UserError, match=named):
            build_dataset(recipe, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert any((tmp_path / "data.parts").iterdir())  # the stages before are kept


def test_an_endpoint_that_fails_now_and_then_costs_no_row(tmp_path):
    def answer(number, body):
        return (429, {"retry-after": "0"}, b"") if number % 3 == 0 else tamil(number, body)

    with serving() as serve:
        recipe = write_recipe(tmp_path, plain_rows(12), translate=translation(serve(answer), n_tries=5))
        folder = build_dataset(recipe, tmp_path / "data")
    assert rejected(folder)["translate"] == {}
    assert sum(read_artefact(folder / "manifest.json", "dataset_manifest")["n_rows"].values()) == 12
