"""An endpoint as a contestant: what it is sent, costs and keeps when it fails; its key is nowhere.

The servers are real ones, on the loopback interface, in a thread of the test.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_run import answered, texts_of, with_contestants
from evaluated_run import plain as plain
from evaluated_run import run as run
from evaluated_run import saved_run as saved_run
from loopback import completion, config, serving
from test_config import SMALLEST
from test_evaluate import some_rows

from data_recipes.artefact import UserError
from data_recipes.translate.cache import ReplyCache
from eval.contestants.answer_cache import open_answers
from eval.contestants.contestants import ask_endpoints
from eval.contestants.endpoint import ask_endpoint
from eval.evaluate import evaluate_stage, main
from finetune.config import load_run_config
from finetune.eval_options import ContestantConfig

ROOT = Path(__file__).parents[1]
KEY = "sk-very-secret-0123456789"
PRICES = {"price_prompt": 2.0, "price_reply": 10.0, "currency": "USD"}


@pytest.fixture
def serve():
    """A function that starts a server; it is stopped after the test."""
    with serving() as start:
        yield start


def right(number, body):
    """The expected answer of the row that is asked."""
    question = body["messages"][-1]["content"]
    expected = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in some_rows()}
    return completion(f" {expected[question]}\n")


def contestant(server, max_tokens=50, **changes):
    return ContestantConfig(kind="endpoint", endpoint=config(server, **changes), max_tokens=max_tokens)


def asked(server, cache=None, rows=None, **changes):
    rows = some_rows() if rows is None else rows
    return ask_endpoint("far", contestant(server, **changes), rows, cache or ReplyCache(":memory:"))


def test_an_endpoint_answers_the_same_rows_and_has_no_bits_per_byte(serve, run, plain, monkeypatch, capsys):
    monkeypatch.setenv("FAR_KEY", KEY)
    server = serve(right)
    far = contestant(server, key_variable="FAR_KEY", **PRICES)
    results = answered(with_contestants(run, far=far))
    assert results["metrics"] == plain["metrics"] and results["rows"] == plain["rows"]
    assert texts_of(results, "far") == [row["expected"] for row in results["rows"]]
    found = results["others"]["far"]
    assert found["settings"] == {"model": "m", "max_tokens": 50, "parameters": {}}
    exact = found["metrics"]["exact_match"]["target"]
    assert (exact["base"], exact["tuned"], exact["n"]) == (0, 1, 10)
    exact = found["against_tuned"]["exact_match"]["target"]
    assert (exact["base"], exact["tuned"], exact["difference"]) == (1, 0, -1)
    assert found["against_tuned"]["bits_per_byte"] is None
    assert found["metrics"]["bits_per_byte"] is None and "likelihoods" in found["missing"]["bits_per_byte"]
    assert {row["bits_per_byte"] for row in found["rows"]} == {None}
    assert {row["exact"] for row in found["rows"]} == {1}
    cost = results["cost"]["far"]
    assert (cost["prompt_tokens"], cost["answer_tokens"]) == (140, 70)  # 10 and 5 a reply
    assert cost["amount"] == pytest.approx((140 * 2 + 70 * 10) / 1e6) and cost["currency"] == "USD"
    assert cost["is_counted"] and cost["seconds"] > 0
    assert set(results["cost"]) == {"base", "tuned", "far"}
    host = server.url.removeprefix("http://").removesuffix("/v1")
    assert f"far: 14 prompts of held-out rows go to {host}; 0 answers are kept" in capsys.readouterr().out
    output = Path(run.output)
    assert KEY.encode() not in b"".join(file.read_bytes() for file in output.rglob("*") if file.is_file())


def test_the_request_is_as_openai_documents_it_and_equal_questions_are_sent_once(serve):
    server = serve(right)
    rows = some_rows()[:3]
    rows[1]["messages"] = [{"role": "system", "content": "Be short."}, *rows[1]["messages"]]
    answers = asked(server, rows=[*rows, rows[0]], max_tokens=33, parameters={"seed": None, "top_p": 1})
    bodies = sorted(server.bodies, key=lambda body: len(body["messages"]))
    assert len(bodies) == 3 and answers.texts[0] == answers.texts[3]
    question = {"role": "user", "content": rows[1]["messages"][1]["content"]}
    assert bodies[2] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be short."}, question],
        "temperature": 0,
        "max_tokens": 33,
        "top_p": 1,
    }
    assert answers.usage[:2] == (30, 15), "what was sent, not what was asked"


def test_what_was_answered_is_asked_again_only_of_another_model_address_or_limit(serve):
    server, other = serve(right), serve(right)
    cache = ReplyCache(":memory:")
    first = asked(server, cache)
    assert asked(server, cache, concurrency=2, n_tries=9) == first and len(server.bodies) == 14
    for changes in ({"model": "n"}, {"max_tokens": 51}, {"parameters": {"top_p": 0.5}}):
        n_before = len(server.bodies)
        asked(server, cache, **changes)
        assert len(server.bodies) == n_before + 14
    asked(other, cache)
    assert len(other.bodies) == 14


# When it fails

MESSAGE = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
FAILURES = {
    "no key": ((401, {}, MESSAGE), "HTTP 401: the server does not accept the key; the key is in FAR_KEY"),
    "unknown model": ((404, {}, MESSAGE), "HTTP 404: there is no such address or model"),
    "unknown model, said otherwise": ((400, {}, MESSAGE), "HTTP 400: the server knows no such model"),
    "busy": ((429, {}, MESSAGE), r"HTTP 429 \(2 tries\)"),
    "broken": ((500, {}, MESSAGE), r"HTTP 500 \(2 tries\)"),
    "a web page": ((200, {"content-type": "text/html"}, b"<html>"), "type 'text/html', not JSON"),
    "junk": ((200, {}, b'{"choices": [{"mess'), "no chat completion"),
    "no text": (completion(None), "holds no text"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_one_message_without_the_key_and_nothing_answered_is_sent_again(
    serve, kind, monkeypatch, tmp_path, caplog, capfd
):
    monkeypatch.setenv("FAR_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    answer, said = FAILURES[kind]
    questions = [row["messages"][0]["content"] for row in some_rows()]
    is_well = threading.Event()

    def answered_so_far(number, body):
        is_first = questions.index(body["messages"][-1]["content"]) < 5
        return right(number, body) if is_first or is_well.is_set() else answer

    server, path = serve(answered_so_far), tmp_path / "answers.sqlite"
    changes = {"key_variable": "FAR_KEY", "n_tries": 2, "concurrency": 1, "max_failures": 3}
    with ReplyCache(path) as cache, pytest.raises(UserError, match=said) as caught:
        asked(server, cache, **changes)
    shown = [str(caught.value), repr(caught.value.__cause__), caplog.text, *capfd.readouterr()]
    assert not any(KEY in text for text in shown)
    is_well.set()
    server.bodies.clear()
    with ReplyCache(path) as cache:
        answers = asked(server, cache, **changes)
    sent = [questions.index(body["messages"][-1]["content"]) for body in server.bodies]
    assert sorted(sent) == list(range(5, 14))
    assert answers.texts == [row["messages"][1]["content"] for row in some_rows()]
    assert answers.usage[:2] == (140, 70), "of both runs"
    assert KEY.encode() not in path.read_bytes()


KILLED = """
import sys
from test_evaluate import some_rows
from data_recipes.translate.endpoint_options import EndpointConfig
from eval.contestants.answer_cache import open_answers
from eval.contestants.endpoint import ask_endpoint
from finetune.eval_options import ContestantConfig

url, output = sys.argv[1:]
endpoint = EndpointConfig(base_url=url, model="m", concurrency=1)
with open_answers(output) as cache:
    ask_endpoint("far", ContestantConfig(kind="endpoint", endpoint=endpoint), some_rows(), cache)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_sends_nothing_again_that_was_answered_and_kept(serve, tmp_path):
    reached, release = threading.Event(), threading.Event()

    def answer(number, body):
        if number == 9 and not release.is_set():
            reached.set()
            release.wait(60)
        return right(number, body)

    server = serve(answer)
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        assert reached.wait(120)
        process.kill()
    release.set()
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=120)
    with open_answers(tmp_path) as cache:
        answers = ask_endpoint("far", contestant(server, max_tokens=1024), some_rows(), cache)
    questions = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert len(questions) == 14 and sorted(questions.values()) == [1] * 13 + [2], "that under way alone"
    assert answers.usage[:2] == (140, 70)


def test_a_few_rows_without_an_answer_are_an_error_that_counts_them(serve):
    refused = some_rows()[2]["messages"][0]["content"]

    def answer(number, body):
        return (400, {}, b"") if body["messages"][-1]["content"] == refused else right(number, body)

    with pytest.raises(UserError, match="1 of 14 prompts got no answer from .*HTTP 400.*run again"):
        asked(serve(answer))


def test_a_server_that_hangs_is_left_after_the_timeout(serve):
    release = threading.Event()

    def hang(number, body):
        release.wait(20)
        return right(number, body)

    with pytest.raises(UserError, match=r"no answer within 0.2 s \(1 tries\)"):
        asked(serve(hang), rows=some_rows()[:2], timeout_s=0.2, n_tries=1)
    release.set()


def test_a_spent_budget_stops_and_counts_what_was_paid_before(serve, tmp_path):
    server = serve(right)
    for _ in range(2):
        with ReplyCache(tmp_path / "answers.sqlite") as cache, pytest.raises(UserError, match="60 is spent"):
            asked(server, cache, concurrency=1, budget_tokens=60)
    assert len(server.bodies) == 4


def test_an_answer_that_was_cut_counts_as_far_as_it_came_and_one_of_thoughts_alone_is_empty(serve):
    assert asked(serve(lambda number, body: completion("half of", finish="length"))).texts == ["half of"] * 14
    assert asked(serve(lambda number, body: completion(None, finish="length"))).texts == [""] * 14


JUNK_COUNTS = {"prompt_tokens": -3, "completion_tokens": 1e400}


@pytest.mark.parametrize(
    "usage", [None, {"total_tokens": 15}, JUNK_COUNTS, {**JUNK_COUNTS, "prompt_tokens": 7}]
)
def test_tokens_that_a_server_does_not_count_are_told_as_an_estimate(serve, usage):
    server = serve(lambda number, body: completion("x" * 300, usage=usage))
    found = asked(server, rows=some_rows()[:2]).usage
    assert not found.is_counted and found.answer_tokens == 2 * 101


def test_a_message_that_is_more_than_text_is_not_sent(serve):
    server, rows = serve(right), some_rows()[:1]
    rows[0]["messages"][0]["tool_calls"] = []
    with pytest.raises(UserError, match="row ta-date-0 has a message that is more than text"):
        asked(server, rows=rows)
    assert not server.bodies


def test_a_key_that_is_not_there_is_named_before_anything_is_sent_or_loaded(serve, run, monkeypatch):
    monkeypatch.delenv("FAR_KEY", raising=False)
    server = serve(right)
    nowhere = replace(run, base=replace(run.base, model="/nowhere"))
    with pytest.raises(UserError, match="contestant far: .*no such environment variable: export FAR_KEY="):
        evaluate_stage(with_contestants(nowhere, far=contestant(server, key_variable="FAR_KEY")))
    assert not server.bodies


def test_only_named_endpoints_are_sent_anything(serve, run):
    server = serve(right)
    assert ask_endpoints(run, some_rows(), ReplyCache(":memory:")) == {}
    assert not server.bodies


# Options

ENDPOINT = "{kind: endpoint, endpoint: {base_url: 'http://a/v1', model: m"
PASSWORD = "{kind: endpoint, endpoint: {base_url: 'http://a:secret-1@b', model: m}}"
MEANING = "far.plan (value not shown): has no meaning for kind=merged"
WRONG = {
    "negative": (
        ENDPOINT + ", price_prompt: -1, price_reply: 1, currency: E}}",
        "price_prompt = -1.0: must be",
    ),
    "one price": (
        ENDPOINT + ", price_prompt: 1, currency: E}}",
        "endpoint.price_reply = None: is missing; name",
    ),
    "other price": (ENDPOINT + ", price_reply: 1}}", "endpoint.price_prompt = None: is missing; name"),
    "text": (ENDPOINT + ", price_prompt: free, price_reply: 1}}", "'free': must be a finite number"),
    "no currency": (ENDPOINT + ", price_prompt: 1, price_reply: 2}}", "far.endpoint.currency: is missing"),
    "a key": (ENDPOINT + f", key_variable: {KEY}}}}}", "must be the NAME of an environment variable"),
    "a password": (PASSWORD, "holds a password"),
    "a key in the address": (PASSWORD.replace("a:secret-1@b", "b/v1?key=secret-1"), "must end with the path"),
    "no address": ("{kind: endpoint}", "far.endpoint.base_url: is missing"),
    "no kind": ("{folder: a}", "far.kind: is missing"),
    "unknown kind": ("{kind: adaptor, folder: a}", "nearest: adapter"),
    "no folder": ("{kind: merged}", "far.folder = '': is missing"),
    "neither": ("{kind: adapter}", "name either the folder"),
    "both": ("{kind: adapter, folder: a, plan: all}", "name either the folder"),
    "another kind's": ("{kind: merged, folder: a, plan: all}", MEANING),
    "no limit": (ENDPOINT + "}, max_tokens: 0}", "far.max_tokens = 0: must be at least 1"),
    "a parameter": (ENDPOINT + ", parameters: {model: n}}}", "model is an option or the question"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_option_of_a_contestant_is_named_by_its_key(tmp_path, kind):
    text, said = WRONG[kind]
    (tmp_path / "run.yaml").write_text(f"{SMALLEST}eval: {{contestants: {{far: {text}}}}}\n")
    with pytest.raises(UserError) as caught:
        load_run_config(tmp_path / "run.yaml")
    assert said in str(caught.value) and "eval.contestants.far" in str(caught.value)
    assert KEY not in str(caught.value) and "secret-1" not in str(caught.value)


@pytest.mark.parametrize("name", ["base", "tuned", "a b", "''"])
def test_a_name_that_no_contestant_can_have_is_refused(tmp_path, name):
    (tmp_path / "run.yaml").write_text(
        f"{SMALLEST}eval: {{contestants: {{{name}: {{kind: adapter, folder: a}}}}}}\n"
    )
    with pytest.raises(UserError, match="cannot be a name"):
        load_run_config(tmp_path / "run.yaml")


def test_the_example_of_the_readme_is_read_as_it_stands(tmp_path):
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("## Contestants")[1].split("```")[1]
    (tmp_path / "run.yaml").write_text(SMALLEST + block.removeprefix("yaml\n"), encoding="utf-8")
    found = load_run_config(tmp_path / "run.yaml").eval.contestants
    assert [one.kind for one in found.values()] == ["adapter", "adapter", "merged", "endpoint"]


def test_a_contestant_can_be_named_on_the_command_line(tmp_path):
    (tmp_path / "run.yaml").write_text(SMALLEST)
    changes = ["eval.contestants.every.kind=adapter", "eval.contestants.every.plan=all"]
    found = load_run_config(tmp_path / "run.yaml", changes).eval.contestants
    assert found == {"every": ContestantConfig(kind="adapter", plan="all")}
    assert found["every"].place("runs/x") == Path("runs/x/ablation/all/adapter")


def test_the_command_prints_each_contestant_and_what_is_not_known_of_it(serve, run, tmp_path, capsys):
    server, file = serve(right), tmp_path / "run.yaml"
    file.write_text(
        f"name: tiny\noutput: {run.output}\nbase: {{model: {run.base.model}, device: cpu}}\n"
        "data: {recipe: none.yaml}\ntrain: {steps: 1, learning_rate: 0.1}\n"
        "eval: {batch_size: 8, max_new_tokens: 4, n_bootstrap: 50, contestants: {far: {kind: endpoint, "
        f"endpoint: {{base_url: '{server.url}', model: m, price_prompt: 2, price_reply: 10, currency: USD}}"
        "}}}\n"
    )
    assert main(["--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert "far target   exact match 0.000 -> 1.000, difference +1.000" in out
    assert "far bits_per_byte: none, for an endpoint gives no likelihoods" in out
    assert "far cost 0.0010 USD" in out  # (140 x 2 + 70 x 10) / a million
