"""Hub datasets: one commit, from this machine unless the recipe says otherwise, and nothing of it is run."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from data_recipes.artefact import UserError, sha256_folder
from data_recipes.row_sources.hub import HubOptions, read
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-4.0\n---\n# Questions\n"
RECORDS = [{"instruction": f"q{i}", "output": "ப" if i != 2 else None} for i in range(4)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection fails the test: reading what is on this machine asks nobody."""

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def put_dataset(folder, card=CARD, name="data/train.jsonl"):
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    if card:
        (folder / "README.md").write_text(card)
    return folder


def put_in_cache(cache, dataset):
    """The layout of the Hub's cache: a snapshot is a folder of links to blobs."""
    repository = cache / f"datasets--{dataset.replace('/', '--')}"
    made = put_dataset(cache / "made")
    for file in sorted(path for path in made.rglob("*") if path.is_file()):
        blob = repository / "blobs" / file.name
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link = repository / "snapshots" / COMMIT / file.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def rows_of(folder, **changes):
    settings = {"dataset": "./questions", "language": "ta", **changes}
    return list(read(HubOptions(**settings), folder))


def test_a_folder_in_the_hubs_layout_gives_rows_with_its_hash_and_the_cards_licence(tmp_path):
    put_dataset(tmp_path / "questions")
    found = rows_of(tmp_path)
    assert [r.row_id if isinstance(r, Rejected) else r["row_id"] for r in found] == [
        "default/train/0",
        "default/train/1",
        "./questions/default/train/2",
        "default/train/3",
    ]
    row, rejected = found[0], found[2]
    assert isinstance(row, dict) and isinstance(rejected, Rejected)
    assert row["messages"] == [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "ப"}]
    assert row["revision"] == f"sha256:{sha256_folder(tmp_path / 'questions')}"
    assert (row["licence"], row["licence_from"], row["may_commit"]) == ("CC-BY-4.0", "dataset card", True)
    assert rejected.reason == "fits no form"


def test_a_dataset_in_the_cache_is_read_at_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    put_in_cache(tmp_path / "cache", "someone/questions")
    found = rows_of(tmp_path, dataset="someone/questions", revision=COMMIT)
    assert len(found) == 4
    assert isinstance(found[0], dict) and found[0]["revision"] == COMMIT
    assert found[0]["id"] == "someone/questions/default/train/0"
    with pytest.raises(
        UserError, match=r"is not on this machine; fetch it with `hf download .* --revision f"
    ):
        rows_of(tmp_path, dataset="someone/questions", revision="f" * 40)


def test_a_dataset_is_streamed_and_not_written_anywhere(tmp_path):
    (tmp_path / "questions").mkdir()
    table = pa.table({"question": [f"q{i}" for i in range(500)], "answer": ["a"] * 500})
    pq.write_table(table, tmp_path / "questions" / "train.parquet", row_group_size=50)
    before = sorted(tmp_path.rglob("*"))
    rows = rows_of(tmp_path, licence="MIT", question_key="question", answer_key="answer")
    assert len(rows) == 500
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_with_a_loading_script_is_refused_and_not_run(tmp_path):
    put_dataset(tmp_path / "questions")
    (tmp_path / "questions" / "questions.py").write_text("open('run', 'w')")
    with pytest.raises(UserError, match=r"made by a loading script \(questions.py\)"):
        rows_of(tmp_path)
    assert not Path("run").exists()


def card_with(files):
    configs = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {files}"
    return f"---\nlicense: mit\n{configs}\n---\n"


@pytest.mark.parametrize("files", ["https://example.invalid/a.jsonl", "../secret.jsonl", "/etc/passwd"])
def test_a_card_that_names_files_outside_the_dataset_is_refused_before_they_are_looked_for(tmp_path, files):
    put_dataset(tmp_path / "questions", card_with(files))
    (tmp_path / "secret.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    with pytest.raises(UserError, match="the card of ./questions names data files outside the dataset"):
        rows_of(tmp_path)


def test_a_second_card_and_a_card_that_is_a_link_are_held_to_the_same(tmp_path):
    put_dataset(tmp_path / "questions")
    settings = card_with("https://example.invalid/a.jsonl").replace("---\n", "")
    (tmp_path / "questions" / ".huggingface.yaml").write_text(settings)
    with pytest.raises(UserError, match="names data files outside the dataset: https://example.invalid"):
        rows_of(tmp_path)
    (tmp_path / "questions" / ".huggingface.yaml").write_text("- not\n- a: mapping: at all\n")
    with pytest.raises(UserError, match="cannot read .huggingface.yaml of ./questions"):
        rows_of(tmp_path)
    (tmp_path / "questions" / ".huggingface.yaml").unlink()
    (tmp_path / "secret").write_text("key: 5")
    (tmp_path / "questions" / "README.md").unlink()
    (tmp_path / "questions" / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="README.md is a link out of the dataset ./questions"):
        rows_of(tmp_path)


def test_a_link_out_of_the_dataset_is_refused(tmp_path):
    put_dataset(tmp_path / "questions")
    (tmp_path / "secret.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    (tmp_path / "questions/data/train-2.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match="train-2.jsonl, which is outside the dataset"):
        rows_of(tmp_path)


@pytest.mark.parametrize("said", ["", "license: other", "license: [mit, apache-2.0]"])
def test_a_card_without_a_clear_licence_asks_for_one(tmp_path, said):
    put_dataset(tmp_path / "questions", f"---\n{said}\n---\n# Q\n" if said else "")
    with pytest.raises(UserError, match="no SPDX name; look it up and write it into the recipe as `licence`"):
        rows_of(tmp_path)
    row = rows_of(tmp_path, licence="CC-BY-SA-4.0")[0]
    assert isinstance(row, dict)
    assert (row["licence"], row["licence_from"], row["may_commit"]) == ("CC-BY-SA-4.0", "recipe", False)


def test_files_that_hold_no_records_are_refused(tmp_path):
    put_dataset(tmp_path / "questions", name="train.txt")
    with pytest.raises(UserError, match="is read by text; only arrow, csv, json, parquet hold records"):
        rows_of(tmp_path)


def test_a_split_or_subset_that_is_not_there_is_one_message(tmp_path):
    put_dataset(tmp_path / "questions")
    with pytest.raises(UserError, match="(?s)./questions: reading the split 'test'.*"):
        rows_of(tmp_path, split="test")
    with pytest.raises(UserError, match="(?s)cannot open the dataset ./questions.*hindi"):
        rows_of(tmp_path, config="hindi")


def test_a_damaged_file_ends_the_reading_with_the_row_it_came_to(tmp_path):
    put_dataset(tmp_path / "questions")
    (tmp_path / "questions/data/train.jsonl").write_text('{"instruction": "q", "outp')
    with pytest.raises(UserError, match="(?s)reading the split 'train' ended after row 0"):
        rows_of(tmp_path)


def test_a_revision_that_can_move_is_refused_while_offline(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for lines, message in [
        ("dataset: a/b\nrevision: main", "must be the full commit, 40 hex digits; a branch or tag can move"),
        ("dataset: a/b", "must be the full commit"),
        (f"dataset: a/b/c\nrevision: {COMMIT}", "must be owner/name, or a folder that begins with ./"),
        (f"dataset: ./b\nrevision: {COMMIT}", "a folder has none"),
    ]:
        recipe.write_text(f"{lines}\nlanguage: ta\n")
        with pytest.raises(UserError, match=message):
            load_settings(HubOptions, recipe)
    recipe.write_text("dataset: a/b\nonline: true\nlanguage: ta\n")
    assert load_settings(HubOptions, recipe).revision == ""


DATA = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as one public dataset needs; the paths asked for are kept."""

    asked: list[str] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        Hub.asked.append(path)
        api, files = "/api/datasets/someone/questions", {"README.md": CARD.encode(), "train.jsonl": DATA}
        listed = [
            {"type": "file", "path": name, "size": len(data), "oid": f"{i:040x}"}
            for i, (name, data) in enumerate(files.items())
        ]
        found = None
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}", api):
            siblings = [{"rfilename": name} for name in files]
            found = json.dumps({"id": "someone/questions", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            found = json.dumps(listed).encode()
        elif path.startswith(f"{api}/paths-info/{COMMIT}"):
            found = json.dumps(listed if "train" in self.path else []).encode()
        elif path.startswith(f"/datasets/someone/questions/resolve/{COMMIT}/"):
            found = files.get(path.rpartition("/")[2])
        self.send_response(200 if found is not None else 404)
        self.send_header("Content-Length", str(len(found or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(path)):x}"')
        if found is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body and found:
            self.wfile.write(found)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def loopback_hub(tmp_path):
    """A function that reads a dataset in a process whose Hub is on this machine and not offline."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code = (
        "import json, sys; from pathlib import Path; "
        "from data_recipes.row_sources.hub import HubOptions, read; "
        "rows = read(HubOptions(language='ta', **json.loads(sys.argv[1])), Path('.')); "
        "print(json.dumps([row for row in rows if isinstance(row, dict)]))"
    )

    def run(**options):
        command = [sys.executable, "-c", code, json.dumps(options)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-2000:] + "\n".join(Hub.asked)
        return json.loads(done.stdout)

    yield run
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_online_a_branch_is_resolved_once_and_the_commit_is_on_every_row(loopback_hub):
    rows = loopback_hub(dataset="someone/questions", online=True)
    assert [row["row_id"] for row in rows] == [f"default/train/{i}" for i in (0, 1, 3)]
    assert {(row["revision"], row["licence"]) for row in rows} == {(COMMIT, "CC-BY-4.0")}
    assert sum(path.endswith("/revision/main") for path in Hub.asked) == 1
    assert not any("/resolve/main/" in path for path in Hub.asked)


@pytest.mark.slow
def test_without_online_nobody_is_asked_even_where_the_hub_is_in_reach(loopback_hub, tmp_path):
    put_in_cache(tmp_path / "home" / "hub", "someone/questions")
    assert len(loopback_hub(dataset="someone/questions", revision=COMMIT)) == 3
    put_dataset(tmp_path / "questions")
    assert len(loopback_hub(dataset="./questions")) == 3
    assert Hub.asked == []
