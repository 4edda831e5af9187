"""A server on the loopback interface that stands for an OpenAI-compatible endpoint in tests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from translation_teachers import Honest

from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.options import EndpointConfig, TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows
from data_recipes.translate.teachers import Request

USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


class Server(ThreadingHTTPServer):
    """Answers with `answer(number, body) -> (status, headers, bytes)` and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.lock = answer, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.n_at_once = self.most_at_once = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that went away is no error of the server."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            number = len(self.server.bodies)
            self.server.n_at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.n_at_once)
        status, headers, content = self.server.answer(number, body)
        with self.server.lock:
            self.server.n_at_once -= 1
        self.send_response(status)
        for name, value in {
            "content-type": "application/json",
            "content-length": len(content),
            **headers,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *arguments):
        pass


def completion(text, usage=USAGE, finish="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()


def tamil(number, body):
    """An honest answer."""
    text = body["messages"][-1]["content"]
    return completion(Honest().translate(Request(text, (), body["temperature"], body["seed"])))


def config(server, **changes):
    settings = {"base_url": server.url, "model": "m", "timeout_s": 5.0, "n_tries": 3, "longest_wait_s": 0.02}
    return EndpointConfig(**(settings | changes))


def rows(n):
    """Rows that differ in a word: numbers are masked, so rows that differ in a number are one request."""
    words = ["".join("abcdefghij"[int(digit)] for digit in f"{i:03d}") for i in range(n)]
    messages = [[{"role": "user", "content": f"Open {word} with `ls`."}] for word in words]
    return [{"id": f"r{i}", "messages": message} for i, message in enumerate(messages)]


def translated(server, n, cache=None, window=64, **changes) -> list[Any]:
    options = TranslateOptions(target="ta", endpoint=config(server, **changes), window=window)
    cache = cache or ReplyCache(":memory:")
    with open_teacher(options, cache) as teacher:
        return list(translate_rows(rows(n), options, teacher, cache))


@contextmanager
def serving() -> Iterator[Callable[[Any], Server]]:
    """Yield a function that starts a server; all are stopped at the end."""
    servers: list[Server] = []

    def start(answer: Any) -> Server:
        server = Server(answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
