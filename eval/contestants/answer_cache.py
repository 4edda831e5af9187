"""Answers kept by content: who was asked, with which settings, for what. A crash repeats none of them.

It is the cache of the translations (data_recipes/translate/cache.py); its texts are JSON here, for an answer
has seconds too. `<output>/answers.sqlite` is for all contestants of a run and of its ablation.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_recipes.artefact import sha256_json
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.teachers import Reply
from eval.contestants.answers import Usage

ANSWERS_FILE = "answers.sqlite"


def open_answers(output: str | Path) -> ReplyCache:
    """The answers of a run. Through a link: the plans of an ablation share one file.

    Raises:
        UserError: the file is damaged or cannot be written.
    """
    return ReplyCache(os.path.realpath(Path(output) / ANSWERS_FILE))


def kept_or_made(cache: ReplyCache, content: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept of this content, which is plain JSON, or what `make` gives, which is kept then."""
    key = sha256_json(content)
    reply = cache.get(key)
    if reply is None:
        made = make()
        reply = entry(made, Usage(*made.get("usage", ())))
        cache.put(key, reply)
    return json.loads(reply.text)


def entry(body: dict[str, Any], usage: Usage) -> Reply:
    """How a body of plain JSON is kept; numbers come back bit for bit."""
    return Reply(json.dumps(body, ensure_ascii=False), usage.prompt_tokens, usage.answer_tokens)
