"""The tokenizer that rows are for, loaded once a process, and the hash that says which one it is.

Reads a tokenizer's folder or the Hub's cache; writes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from data_recipes.artefact import UserError, sha256_json
from data_recipes.chats.chat_template import ChatTemplate, read_template


class Tokenizer(NamedTuple):
    """A tokenizer by its name, the folder or Hub id where it is, and its revision there."""

    name: str
    place: str
    revision: str | None = None


@cache
def load_tokenizer(tokenizer: Tokenizer) -> Any:
    """Return the tokenizer in a folder or on the Hub.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer  # imported late: it takes seconds

    try:
        return AutoTokenizer.from_pretrained(tokenizer.place, revision=tokenizer.revision)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"cannot load the tokenizer {tokenizer.name!r} ({str(error).splitlines()[0]}); give a folder "
            "that begins with . or /, or the Hub id of a model that is on this machine, or leave "
            "chat.tokenizer out"
        ) from error


@cache
def load_template(tokenizer: Tokenizer, thinking: bool | None) -> ChatTemplate:
    """Return the tokenizer's chat template with its options.

    Raises:
        UserError: no tokenizer, or one without a chat template.
    """
    options = {} if thinking is None else {"enable_thinking": thinking}
    return read_template(load_tokenizer(tokenizer), options)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return one hash of what cuts texts into tokens and of the chat template, read anew: in a notebook one
    process builds again after its folder was changed.

    Raises:
        UserError: there is no tokenizer, or it cannot be read.
    """
    load_tokenizer.cache_clear()
    load_template.cache_clear()
    loaded = load_tokenizer(tokenizer)
    backend = getattr(loaded, "backend_tokenizer", None)
    cuts = backend.to_str() if backend is not None else sorted(loaded.get_vocab().items())
    return sha256_json([cuts, loaded.chat_template, loaded.eos_token])
