"""The options of a server that speaks OpenAI's chat completions: teacher or contestant.

Its key is in an environment variable, and only the variable's name is an option: options are written into
manifests. Reads nothing, writes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from data_recipes.settings import out_of_range


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat completions."""

    base_url: str = ""  # up to and with the version, as http://localhost:8000/v1
    model: str = ""  # as the server names it
    key_variable: str | None = None  # NAME of the environment variable with the key; None sends no key
    concurrency: int = 8  # requests at a time
    timeout_s: float = 120.0  # without a byte from the server
    n_tries: int = 5  # sends of one request, when the server is busy, broken or silent
    longest_wait_s: float = 60.0  # between two tries, also when the server asks for more
    max_failures: int = 20  # requests in a row that failed for good, then the run stops
    max_tokens_ratio: float = 4.0  # longest reply, tokens for each character sent (Indic scripts: up to 3)
    # Both over all runs with this cache; of a contestant, over those that asked the questions of this run.
    budget_tokens: int | None = None  # prompt and reply
    budget_money: float | None = None  # in the currency of the prices
    price_prompt: float | None = None  # for a million tokens sent
    price_reply: float | None = None  # for a million tokens received
    currency: str = ""  # of the prices and of budget_money, as USD
    # Added to each request, as {reasoning_effort: low}; null leaves out what is sent otherwise (temperature).
    parameters: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Values no endpoint can use, as "key: reason"."""
        wrong = out_of_range({n: getattr(self, n) for n in ("concurrency", "n_tries", "max_failures")}, 1)
        positive = ("timeout_s", "longest_wait_s", "max_tokens_ratio")
        wrong += [f"{name}: must be above 0" for name in positive if getattr(self, name) <= 0]
        wrong += out_of_range({n: getattr(self, n) for n in ("price_prompt", "price_reply")}, 0)
        # Who has put the key itself here must not find it in a log: the name in brackets keeps the value out.
        if self.key_variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            wrong.append(
                "key_variable (value not shown): must be the NAME of an environment variable, not the key"
            )
        parts = urlsplit(self.base_url) if self.base_url else None
        if parts and (parts.username or parts.password):
            wrong.append("base_url (value not shown): holds a password; name a key_variable instead")
        elif parts and (parts.query or parts.fragment):
            wrong.append("base_url (value not shown): must end with the path; a key is named in key_variable")
        elif parts and (parts.scheme not in ("http", "https") or not parts.netloc):
            wrong.append("base_url: must be an http or https address, as http://localhost:8000/v1")
        wrong += out_of_range({"budget_tokens": self.budget_tokens})
        prices = {"price_prompt": self.price_prompt, "price_reply": self.price_reply}
        missing = [name for name, price in prices.items() if price is None]
        if len(missing) == 1:
            wrong.append(f"{missing[0]}: is missing; name both prices, 0 for what costs nothing")
        if self.budget_money is not None and not any(prices.values()):
            wrong.append("budget_money: needs price_prompt and price_reply")
        wrong += [
            f"parameters: {name} is an option or the question itself"
            for name in ("model", "messages", "stream")
            if name in self.parameters
        ]
        return wrong

    def amount(self, n_prompt_tokens: int, n_reply_tokens: int) -> float | None:
        """What so many tokens cost, in `currency`; None without prices."""
        if self.price_prompt is None or self.price_reply is None:
            return None
        return (n_prompt_tokens * self.price_prompt + n_reply_tokens * self.price_reply) / 1e6
