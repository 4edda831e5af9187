"""Endpoints that hang, are busy, answer junk or refuse, and budgets; the key stands in no message.

The servers are real ones, on the loopback interface, in a thread of the test.
"""

import json
import logging
import threading
import time
from email.utils import formatdate

import pytest
from loopback import completion, config, rows, serving, tamil, translated

from data_recipes.artefact import UserError
from data_recipes.steps import Rejected
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.endpoint import BudgetReached, Endpoint
from data_recipes.translate.options import TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def serve():
    """A function that starts a server; it is stopped after the test."""
    with serving() as start:
        yield start


# Endpoints


def test_an_endpoint_is_asked_as_openai_documents_it_and_several_requests_at_a_time(serve, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    gate = threading.Barrier(4, timeout=20)

    def answer(number, body):
        gate.wait()  # passes only when four requests are here together
        return tamil(number, body)

    server = serve(answer)
    results = translated(server, 8, key_variable="TEACHER_KEY", concurrency=4)
    assert [row["id"] for row in results] == [f"r{i}/ta" for i in range(8)]
    assert server.most_at_once == 4
    body = server.bodies[0]
    assert body["model"] == "m" and [m["role"] for m in body["messages"]] == ["system", "user"]
    assert "from English into Tamil" in body["messages"][0]["content"] and body["temperature"] == 0
    assert {headers["authorization"] for headers in map(lower, server.headers)} == {f"Bearer {KEY}"}


def lower(headers):
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve, status):
    server = serve(lambda number, body: (status, {}, b"{}") if number < 3 else tamil(number, body))
    assert translated(server, 1)[0]["id"] == "r0/ta"
    assert len(server.bodies) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_wait_a_server_asks_for_is_kept(serve, form):
    def answer(number, body):
        asked = "0.4" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return (429, {"retry-after": asked}, b"") if number == 1 else tamil(number, body)

    started_s = time.monotonic()
    translated(serve(answer), 1, longest_wait_s=30.0)
    assert 0.39 <= time.monotonic() - started_s < 20


HTML = (200, {"content-type": "text/html"}, b"<html>Sign in</html>")
JUNK = {
    "always busy": ((429, {"retry-after": "junk"}, b""), "HTTP 429 (2 tries)"),
    "broken": ((502, {}, b"<html>"), "HTTP 502"),
    "a web page": (HTML, "type 'text/html', not JSON"),
    "no type": ((200, {"content-type": ""}, b"{}"), "not JSON"),
    "half of it": ((200, {}, b'{"choices": [{"mess'), "no chat completion"),
    "not UTF-8": ((200, {}, b"\xff\xfe\x00"), "no chat completion"),
    "a list": ((200, {}, b"[1, 2]"), "no chat completion"),
    "no choices": ((200, {}, b'{"choices": []}'), "no chat completion"),
    "no text": (completion(None), "holds no text"),
    "deep": ((200, {}, b"[" * 100_000), "no chat completion"),
    "refused": ((400, {}, f"bad {KEY}".encode()), "HTTP 400"),
    "moved": ((302, {"location": "http://127.0.0.1:1/"}, b""), "HTTP 302"),
    "wrong length": ((200, {"content-length": "999"}, b"{}"), "no connection"),
}


@pytest.mark.parametrize("kind", JUNK)
def test_junk_from_a_server_is_a_rejected_row_with_the_reason(serve, kind, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    answer, reason = JUNK[kind]

    def answered(number, body):
        return answer

    result = translated(serve(answered), 1, n_tries=2, key_variable="TEACHER_KEY")[0]
    assert isinstance(result, Rejected) and result.reason == "teacher"
    assert reason in result.detail and KEY not in result.detail


def test_a_server_that_hangs_is_left_after_the_timeout(serve):
    release = threading.Event()

    def hang(number, body):
        release.wait(20)
        return tamil(number, body)

    result = translated(serve(hang), 1, n_tries=2, timeout_s=0.2)[0]
    release.set()
    assert result.reason == "teacher" and "no answer within 0.2 s (2 tries)" in result.detail


def test_an_answer_without_end_is_cut_off(serve):
    server = serve(lambda number, body: (200, {"content-length": 20_000_000}, b" " * 20_000_000))
    result = translated(server, 1, n_tries=1)[0]
    assert result.reason == "teacher" and "has no end" in result.detail


@pytest.mark.parametrize(
    ("status", "words"), [(401, "does not accept the key"), (404, "no such address or model")]
)
def test_what_no_retry_will_change_stops_with_one_message_and_without_the_key(
    serve, status, words, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    error = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    server = serve(lambda number, body: (status, {}, error))
    with pytest.raises(UserError, match=words) as caught:
        translated(server, 20, key_variable="TEACHER_KEY", concurrency=2)
    assert len(server.bodies) <= 4, "the others were not sent"
    shown = [str(caught.value), repr(caught.value), caplog.text, *capfd.readouterr()]
    chain = caught.value.__cause__ or caught.value.__context__
    assert not any(KEY in text for text in [*shown, repr(chain)])
    assert "TEACHER_KEY" in str(caught.value)


def test_the_key_is_in_no_options_and_in_no_row(serve, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server = serve(tamil)
    settings = config(server, key_variable="TEACHER_KEY")
    with Endpoint(settings) as endpoint:
        assert KEY not in repr(settings) + repr(endpoint.identity) + repr(vars(endpoint))
    assert KEY not in json.dumps(translated(server, 1, key_variable="TEACHER_KEY"))


def test_a_key_that_is_not_there_is_named(serve, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UserError, match="no such environment variable: export TEACHER_KEY="):
        translated(serve(tamil), 1, key_variable="TEACHER_KEY")


def test_a_server_that_is_not_there_stops_the_run_after_some_failures():
    server = type("Nowhere", (), {"url": "http://127.0.0.1:1/v1"})()
    with pytest.raises(UserError, match="4 requests in a row .* no connection"):
        translated(server, 30, n_tries=1, max_failures=4)


def test_failures_are_not_kept_so_the_next_run_asks_again(serve):
    cache = ReplyCache(":memory:")
    server = serve(lambda number, body: (500, {}, b"") if number == 1 else tamil(number, body))
    assert translated(server, 1, cache, n_tries=1)[0].reason == "teacher"
    assert translated(server, 1, cache, n_tries=1)[0]["id"] == "r0/ta"


# Budget


@pytest.mark.parametrize(
    "budget", [{"budget_tokens": 60}, {"budget_money": 0.0001, "price_prompt": 1.0, "price_reply": 3.0}]
)
def test_a_spent_budget_stops_with_one_message_and_what_was_paid_for_is_kept(serve, tmp_path, budget):
    server = serve(tamil)
    path = tmp_path / "replies.sqlite"
    options = TranslateOptions(target="ta", endpoint=config(server, concurrency=1, **budget), window=2)
    done = []
    with ReplyCache(path) as cache, open_teacher(options, cache) as teacher:
        with pytest.raises(BudgetReached, match="is spent"):
            done += translate_rows(rows(20), options, teacher, cache)
        # 15 tokens a reply (10 sent, 5 received): four replies are 60 tokens, or 0.0001 at 1 and 3 a million.
        assert cache.n_tokens() == (40, 20)
    assert len(server.bodies) == 4
    with ReplyCache(path) as cache, open_teacher(options, cache) as teacher, pytest.raises(BudgetReached):
        done += translate_rows(rows(20), options, teacher, cache)  # over all runs with this cache
    assert len(server.bodies) == 4
    assert len(translated(server, 20, ReplyCache(path))) == 20  # without a budget
    assert len(server.bodies) == 20, "the four were not sent again"


def test_rows_before_the_budget_ended_are_given(serve):
    options = TranslateOptions(
        target="ta", endpoint=config(serve(tamil), concurrency=1, budget_tokens=60), window=2
    )
    cache, done = ReplyCache(":memory:"), []
    with open_teacher(options, cache) as teacher, pytest.raises(BudgetReached):
        for result in translate_rows(rows(20), options, teacher, cache):
            assert not isinstance(result, Rejected)
            done.append(result["id"])
    assert done == ["r0/ta", "r1/ta", "r2/ta", "r3/ta"]


def test_a_server_that_does_not_count_is_estimated(serve):
    server = serve(lambda number, body: completion("x" * 300, usage=None))
    cache = ReplyCache(":memory:")
    translated(server, 1, cache)
    assert cache.n_tokens()[1] == 101 * len(server.bodies)


def test_a_reply_that_was_cut_is_no_translation(serve):
    server = serve(lambda number, body: completion("சொல்", finish="length"))
    assert translated(server, 1)[0].reason == "reply"
