"""The tokenizer that rows are for, loaded once a process, and the hash that says which one it is.

Reads a tokenizer's folder or the Hub's cache; writes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from data_recipes.artefact import UserError, sha256_json
from data_recipes.chats.chat_template import ChatTemplate, read_template


@cache
def load_tokenizer(place: str, revision: str | None) -> Any:
    """Return the tokenizer in a folder or on the Hub.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    try:
        return AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"cannot load the tokenizer {place!r} ({str(error).splitlines()[0]}); give a folder that begins "
            "with . or /, or the Hub id of a model that is on this machine, or leave chat.tokenizer out"
        ) from error


@cache
def load_template(place: str, revision: str | None, thinking: bool | None) -> ChatTemplate:
    """Return the tokenizer's chat template with its options.

    Raises:
        UserError: no tokenizer, or one without a chat template.
    """
    options = {} if thinking is None else {"enable_thinking": thinking}
    return read_template(load_tokenizer(place, revision), options)


def tokenizer_hash(place: str, revision: str | None) -> str:
    """Return one hash of what cuts texts into tokens and of the chat template."""
    tokenizer = load_tokenizer(place, revision)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cuts = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return sha256_json([cuts, tokenizer.chat_template, tokenizer.eos_token])
