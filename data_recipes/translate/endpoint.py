"""A teacher behind HTTP: any server that speaks OpenAI's chat completions.

Threads and a plain httpx client, no event loop: a notebook already runs one. Reads the key from the
environment variable the options name; it is sent to the server and stands in no message. Writes nothing.
"""

from __future__ import annotations

import email.utils
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from data_recipes.artefact import UserError
from data_recipes.translate.endpoint_options import EndpointConfig
from data_recipes.translate.teachers import Reply, Request

_FIRST_WAIT_S = 0.5
_BUSY = (408, 409, 425, 429)  # and 500 or above: worth another try
_FATAL = {  # what no other request will change
    401: "the server does not accept the key",
    402: "the account has no credit",
    403: "the server does not allow it",
    404: "there is no such address or model",
    405: "there is no such address",
}
_MAX_REPLY_BYTES = 8_000_000
_MAX_TOKENS = 2**40  # of one request: what is above is no count


class Retry(Exception):
    """One send that failed in a way that may pass; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Spending:
    """Tokens and money spent so far, shared by threads; replies that are under way may go over the budget."""

    def __init__(self, config: EndpointConfig, n_prompt_tokens: int = 0, n_reply_tokens: int = 0) -> None:
        self._config = config
        self._lock = threading.Lock()
        self.n_prompt_tokens, self.n_reply_tokens = n_prompt_tokens, n_reply_tokens

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        with self._lock:
            self.n_prompt_tokens += reply.n_prompt_tokens
            self.n_reply_tokens += reply.n_reply_tokens

    def reached(self) -> str:
        """Return which budget is spent, in words, or "" while there is some left."""
        config, n_tokens = self._config, self.n_prompt_tokens + self.n_reply_tokens
        money = config.amount(self.n_prompt_tokens, self.n_reply_tokens) or 0.0
        if config.budget_tokens is not None and n_tokens >= config.budget_tokens:
            return f"endpoint.budget_tokens = {config.budget_tokens} is spent ({n_tokens} tokens)"
        if config.budget_money is not None and money >= config.budget_money:
            return (
                f"endpoint.budget_money = {config.budget_money:g} is spent ({money:.4f}, {n_tokens} tokens)"
            )
        return ""


class BudgetReached(UserError):
    """The budget is spent; what was answered is in the cache."""


def endpoint_identity(config: EndpointConfig) -> dict[str, Any]:
    """Return what decides the replies; not the address, behind which the same model may move."""
    # A reply that was cut is a reply too.
    limit = {"max_tokens_ratio": config.max_tokens_ratio}
    added = {"parameters": config.parameters} if config.parameters else {}
    return {"teacher": "endpoint", "model": config.model, **limit, **added}


class Endpoint:
    """A teacher behind an OpenAI-compatible address. Close it, or use it in a `with` block."""

    def __init__(self, config: EndpointConfig, spent: tuple[int, int] = (0, 0)) -> None:
        """`spent` is what earlier runs have sent and received, in tokens: it counts for the budget."""
        headers = {}
        if config.key_variable:
            key = os.environ.get(config.key_variable, "").strip()
            if not key:
                raise UserError(
                    f"endpoint.key_variable names {config.key_variable}, and there is no such environment "
                    f"variable: export {config.key_variable}=... with the key of {config.base_url}"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._config = config
        self.spending = Spending(config, *spent)
        self.identity = endpoint_identity(config)
        self._n_failures = 0  # in a row
        self._stopping = threading.Event()
        limits = httpx.Limits(max_connections=config.concurrency)
        timeout = httpx.Timeout(config.timeout_s)
        try:
            self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        except UnicodeEncodeError as error:
            raise UserError(f"the key in {config.key_variable} has characters that no key has") from error

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Yield replies as they come, `concurrency` requests at a time.

        Raises: UserError when the server refuses all requests alike, `max_failures` requests in a row have
            failed, or the budget is spent (BudgetReached); replies that came before are yielded first.
        """
        stop: UserError | None = None
        self._stopping.clear()
        # A place is free again when the reply has been taken: what a crash loses is never more than that.
        places = threading.Semaphore(self._config.concurrency)

        def answered(request: Request) -> Reply:
            places.acquire()
            return self._answered(request)

        with ThreadPoolExecutor(self._config.concurrency) as pool:
            futures = {pool.submit(answered, request): i for i, request in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    try:
                        reply = future.result()
                    except UserError as error:
                        stop = stop or error
                    else:
                        yield futures[future], reply
                        stop = stop or self._too_many_failures(reply)
                    if stop:
                        self._stopping.set()
                    places.release()
            finally:
                # Not cancel_futures: as_completed waits for ever for those that it cancels.
                self._stopping.set()
                places.release(len(futures) + 1)
        if stop:
            raise stop

    def _too_many_failures(self, reply: Reply) -> UserError | None:
        self._n_failures = self._n_failures + 1 if reply.failure else 0
        if self._n_failures < self._config.max_failures:
            return None
        return UserError(
            f"{self._n_failures} requests in a row to {self._config.base_url} failed, the last one: "
            f"{reply.failure}. Replies so far are in the cache: see to the server and run again"
        )

    def _answered(self, request: Request) -> Reply:
        """Send a request until it is answered; a failure in the end is a reply too."""
        # The wait between tries is drawn, so that threads do not come back together.
        rng = random.Random(request.key(self.identity))
        reason = ""
        for n_tried in range(self._config.n_tries):
            if self._stopping.is_set():
                return Reply("", failure="the run was stopped")
            spent = self.spending.reached()
            if spent:
                raise BudgetReached(f"{spent}; replies so far are in the cache: raise it and run again")
            try:
                reply = self._sent(request)
            except Retry as error:
                reason = str(error)
                wait_s = error.wait_s
                if wait_s is None:
                    wait_s = _FIRST_WAIT_S * 2**n_tried * rng.uniform(0.5, 1.5)
                if n_tried + 1 < self._config.n_tries:
                    self._stopping.wait(min(wait_s, self._config.longest_wait_s))
            else:
                self.spending.add(reply)
                return reply
        return Reply("", failure=f"{reason} ({self._config.n_tries} tries)")

    def _sent(self, request: Request) -> Reply:
        """Send a request once. Raises: Retry for what may pass; UserError for what will not."""
        max_tokens = request.max_tokens or 64 + int(len(request.text) * self._config.max_tokens_ratio)
        body = {
            "model": self._config.model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "temperature": request.temperature,
            "seed": request.seed,
            "max_tokens": max_tokens,
            **self._config.parameters,
        }
        body = {name: value for name, value in body.items() if value is not None}
        address = f"{self._config.base_url.rstrip('/')}/chat/completions"
        deadline_s = time.monotonic() + 2 * self._config.timeout_s
        try:
            with self._client.stream("POST", address, json=body) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_REPLY_BYTES or time.monotonic() > deadline_s:
                        raise Retry("the reply has no end")
        except httpx.TimeoutException as error:
            raise Retry(f"no answer within {self._config.timeout_s:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Retry(f"no connection ({type(error).__name__})") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeEncodeError) as error:
            raise UserError(f"cannot send to {self._config.base_url}: {type(error).__name__}") from error
        return self._read(response, bytes(content), request)

    def _read(self, response: httpx.Response, content: bytes, request: Request) -> Reply:
        status = response.status_code
        if status in _FATAL:
            key = f"; the key is in {self._config.key_variable}" if self._config.key_variable else ""
            # The body is not shown: servers repeat the key in it.
            raise UserError(f"{self._config.base_url} answers HTTP {status}: {_FATAL[status]}{key}")
        if status in _BUSY or status >= 500:
            raise Retry(f"HTTP {status}", _asked_wait_s(response.headers.get("retry-after")))
        if status == 400:  # an unknown model too, of some servers
            return Reply("", failure="HTTP 400: the server knows no such model, or no such parameter")
        if status != 200:
            return Reply("", failure=f"HTTP {status}")
        kind = response.headers.get("content-type", "").split(";")[0].strip()
        if "json" not in kind:
            raise Retry(f"the answer is of type {kind[:40]!r}, not JSON")
        return _chat_reply(content, request)


def _chat_reply(content: bytes, request: Request) -> Reply:
    """Read a chat completion. Raises: Retry when it is none."""
    try:
        found = httpx.Response(200, content=content).json()
        choice = found["choices"][0]
        text = choice["message"]["content"]
        usage = found.get("usage") or {}
        counts: list[Any] = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        is_counted = all(type(count) is int and 0 <= count < _MAX_TOKENS for count in counts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Retry("the answer is no chat completion") from error
    cut = choice.get("finish_reason") == "length"
    if text is None and cut:  # all that was allowed went into thinking
        text = ""
    if not isinstance(text, str):
        raise Retry("the answer holds no text")
    text = text.encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair
    if not is_counted:  # three bytes a token is more than any tokenizer needs
        prompt = "".join(content for _, content in request.messages)
        counts = [len(part.encode()) // 3 + 1 for part in (prompt, text)]
    # A reply that was cut is kept, half a translation as an empty one: asked again it would be cut again.
    kept = "" if cut and request.max_tokens is None else text
    return Reply(kept, *counts, is_counted=is_counted)


def _asked_wait_s(header: str | None) -> float | None:
    """The seconds of a Retry-After header, which holds seconds or a date; None when there is none."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
