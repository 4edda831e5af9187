"""How likely a model finds given texts: the answers to choose from, and plain text in bits per byte.

Reads rows and a model, writes nothing. Batched; each number is that of the sequence alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import ChatTemplate, n_shared, read_template
from eval.generate import labelled_nll
from finetune.batches import IGNORED_LABEL, Example


def choice_logprobs(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], batch_size: int, progress: str | None = None
) -> list[np.ndarray]:
    """Log-likelihood in nats of each choice as what follows the chat-templated question, one array a row.

    The token that would end the answer is not counted, as in lm-evaluation-harness.

    Raises:
        UserError: no chat template, or one that refuses the roles.
    """
    template = read_template(tokenizer)
    examples = [example for row in rows for example in choice_examples(template, row)]
    logprobs = -labelled_nll(model, examples, batch_size, progress)
    ends = np.cumsum([len(row["choices"]) for row in rows])
    return np.split(logprobs, ends[:-1])


def choice_examples(template: ChatTemplate, row: dict[str, Any]) -> list[Example]:
    """The question with each of its choices after it; the choice's tokens are labelled.

    A tokenizer may join the last characters of the question with the first of an answer: the tokens that
    count begin where all choices of the row still agree, so that none is given what another must say.
    """
    asked = template.render(row["messages"], asks=True)
    question = template.encode(asked)
    encoded = template.encode_all([asked + choice for choice in row["choices"]])
    start = min(n_shared(question, tokens) for tokens in encoded)
    return [Example(str(row["id"]), tokens, _labelled_from(tokens, start)) for tokens in encoded]


def text_bits(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int,
    window_tokens: int,
    progress: str | None = None,
) -> np.ndarray:
    """Bits the model needs for each text, without a chat template, [N].

    The first token follows the tokenizer's own opening token or, where it writes none, its token for the
    beginning or the end of text. A text longer than the window is read in pieces, each token predicted once,
    the last piece with a full window before its end (lm-evaluation-harness' `get_rolling_token_windows`).

    Raises:
        UserError: the tokenizer has no such token.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or window_tokens
    window = min(window_tokens, longest - 1)
    examples, text_of = [], []
    for number, text in enumerate(texts):
        pieces = list(_windows(opened_tokens(tokenizer, text), window))
        examples += [Example(str(number), tokens, labels) for tokens, labels in pieces]
        text_of += [number] * len(pieces)
    nll_nats = labelled_nll(model, examples, batch_size, progress)
    return np.bincount(text_of, weights=nll_nats, minlength=len(texts)) / math.log(2)


def opened_tokens(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text after one opening token, which alone is not predicted."""
    with_opening = tokenizer(text)["input_ids"]
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    n_opening = len(with_opening) - len(bare)
    if n_opening > 0 and with_opening[n_opening:] == bare:
        return with_opening[n_opening - 1 :]
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if opening is None:
        raise UserError(
            "the tokenizer has neither bos_token nor eos_token, and a text's first token needs one"
        )
    return [opening, *bare]


def _windows(tokens: list[int], window: int) -> list[tuple[list[int], list[int]]]:
    """Pieces of at most `window` predictions, each with its labels."""
    pieces = []
    for start in range(1, len(tokens), window):
        end = min(start + window, len(tokens))
        first = max(0, end - window - 1)
        pieces.append((tokens[first:end], _labelled_from(tokens[first:end], start - first)))
    return pieces


def _labelled_from(tokens: list[int], start: int) -> list[int]:
    return [IGNORED_LABEL] * start + tokens[start:]
