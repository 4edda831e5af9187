"""Replies are kept across crashes, full disks and runs; and the teacher on this machine.

The servers are real ones, on the loopback interface, in a thread of the test.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from loopback import config, serving, tamil, translated

from data_recipes.artefact import UserError
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.local import LocalTeacher, load_local_teacher
from data_recipes.translate.options import LocalConfig, TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows
from data_recipes.translate.teachers import Reply, Request

ROOT = Path(__file__).parents[1]


@pytest.fixture
def serve():
    """A function that starts a server; it is stopped after the test."""
    with serving() as start:
        yield start


# Cache


def test_the_same_request_is_sent_once_and_another_teacher_is_asked_anew(serve):
    server = serve(tamil)
    cache = ReplyCache(":memory:")
    first = translated(server, 5, cache)
    assert translated(server, 5, cache) == first and len(server.bodies) == 5
    translated(server, 5, cache, model="another")
    assert len(server.bodies) == 10


def test_equal_texts_in_one_window_are_sent_once(serve):
    server = serve(tamil)
    options = TranslateOptions(target="ta", endpoint=config(server))
    same = [{"id": f"r{i}", "messages": [{"role": "user", "content": "Good day"}]} for i in range(9)]
    cache = ReplyCache(":memory:")
    with open_teacher(options, cache) as teacher:
        assert len(list(translate_rows(same, options, teacher, cache))) == 9
    assert len(server.bodies) == 1


KILLED = """
import sys
from loopback import rows
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.options import EndpointConfig, TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows

url, path, n = sys.argv[1:]
options = TranslateOptions(target="ta", endpoint=EndpointConfig(base_url=url, model="m", concurrency=3))
with ReplyCache(path) as cache, open_teacher(options, cache) as teacher:
    for row in translate_rows(rows(int(n)), options, teacher, cache):
        print(row["id"], flush=True)
"""


def test_a_process_killed_at_any_moment_sends_nothing_again_that_was_answered_and_kept(serve, tmp_path):
    path, n_rows, n_threads = tmp_path / "replies.sqlite", 24, 3
    reached = {7: threading.Event(), 15: threading.Event()}

    def answer(number, body):
        if number in reached:
            reached[number].set()
        return tamil(number, body)

    server = serve(answer)

    def kept():
        with sqlite3.connect(path) as database:
            return database.execute("SELECT COUNT(*) FROM replies").fetchone()[0]

    def n_received():
        """A killed client's last requests may still be on their way in the server's sockets."""
        n_bodies = -1
        while n_bodies != len(server.bodies):
            n_bodies = len(server.bodies)
            time.sleep(0.3)
        return n_bodies

    command = [sys.executable, "-c", KILLED, server.url, str(path), str(n_rows)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    n_lost = 0
    for event in reached.values():
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            seen = event.wait(60)
            process.send_signal(signal.SIGKILL)
        assert seen
        n_lost = n_received() - kept()
        assert 0 <= n_lost <= 2 * n_threads, "only what was under way is lost"
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [f"r{i}/ta" for i in range(n_rows)]
    assert len(server.bodies) == n_rows + n_lost and kept() == n_rows
    before = len(server.bodies)
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert len(server.bodies) == before


def test_a_full_disk_stops_with_one_message_and_the_replies_before_are_kept(serve, tmp_path):
    server = serve(tamil)
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    # SQLite itself says SQLITE_FULL, as it does on a full disk.
    cache._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises(UserError, match="no space left for the reply cache .*are kept"):
        translated(server, 200, cache)
    cache.close()
    n_sent = len(server.bodies)
    with ReplyCache(path) as again:
        n_kept = again.n_tokens()[0] // 10
        assert n_kept > 0
        assert len(translated(server, 200, again)) == 200
    assert len(server.bodies) == n_sent + 200 - n_kept


def test_a_cache_that_is_none_or_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be read as the head of one: " * 20)
    for path in (tmp_path / "text", tmp_path / "text" / "below", tmp_path):
        with pytest.raises(UserError, match="cannot open the reply cache"):
            ReplyCache(path)


def test_the_key_of_a_reply_is_made_of_all_that_decides_it():
    request = Request("a", (("user", "a"),), 0.0, 0)
    others = [Request("a", (("user", "b"),), 0.0, 0), Request("a", (("user", "a"),), 0.5, 0)]
    others += [Request("a", (("user", "a"),), 0.0, 1)]
    keys = [r.key({"model": "m"}) for r in (request, *others)] + [request.key({"model": "n"})]
    assert len(set(keys)) == 5 and request.key({"model": "m"}) == keys[0]


# A local model


def test_a_local_model_answers_alone_as_in_a_batch_and_drawn_replies_repeat(
    tiny_model_factory, tiny_tokenizer
):
    model = tiny_model_factory(vocab_size=262)
    settings = LocalConfig(model="tiny", batch_size=3, max_new_tokens=8)
    teacher = LocalTeacher(model, tiny_tokenizer, settings)
    texts = ("a", "some words", "more of these words", "b")
    requests = [
        Request(text, (("user", text),), temperature, 7) for text in texts for temperature in (0.0, 0.9)
    ]
    replies = dict(teacher.ask(requests))
    assert sorted(replies) == list(range(8)) and all(isinstance(reply, Reply) for reply in replies.values())
    assert all(reply.n_prompt_tokens > 0 for reply in replies.values())
    for index, request in enumerate(requests):
        assert dict(teacher.ask([request]))[0] == replies[index]


def test_a_folder_without_a_model_is_one_message(tmp_path):
    with pytest.raises(UserError, match="cannot load the teacher"):
        load_local_teacher(LocalConfig(model=str(tmp_path)))


def test_importing_the_step_imports_no_torch_and_no_transformers():
    code = "import sys, data_recipes.translate.step; print({'torch', 'transformers'} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
