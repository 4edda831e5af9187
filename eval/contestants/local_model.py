"""Ask a model in memory: answers batch by batch, each kept at once, and the loss of the expected ones.

A batch is kept and found as a whole, under all that decides about it: who else is in a batch changes the last
bits of an answer, so that a run that goes on must ask in the same batches to end as an uninterrupted one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from transformers import GenerationConfig

from data_recipes.artefact import UserError, package_versions
from data_recipes.translate.cache import ReplyCache
from eval.contestants.answer_cache import kept_or_made
from eval.contestants.answers import Answers, Usage
from eval.generate import (
    AnswerLoss,
    Asked,
    answer_batch,
    ask_rows,
    batches_by_length,
    greedy,
    reads_once,
)
from finetune.adapters.adapter import adapter_disabled
from finetune.config import BaseConfig
from finetune.eval_options import EvalConfig
from finetune.model import model_fingerprint, tokenizer_fingerprint
from finetune.run import base_hash

Row = Mapping[str, Any]


def model_identity(model: Any, tokenizer: Any, base: BaseConfig) -> dict[str, Any]:
    """What decides the answers of a loaded base; what else does, as an adapter, is added to it by name.

    With a hash of the base's files: a fingerprint is of samples, and a change may lie between them.
    """
    return {
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "files": base_hash(base),
        "stops": greedy(model, tokenizer).eos_token_id,
        "dtype": str(model.dtype),
        "device": str(model.device),
        "versions": package_versions(),
    }


def ask_model(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    options: EvalConfig,
    identity: Mapping[str, Any],
    cache: ReplyCache,
    progress: str | None = None,
) -> Answers:
    """Answers and losses of the model as it stands, for dataset rows in their order.

    `identity` is that of the model with all that is switched on in it. `progress` labels a bar.

    Raises:
        UserError: as `ask_rows` and `greedy`; or the model gives a likelihood that is no number.
    """
    asked = ask_rows(tokenizer, [dict(row) for row in rows])
    settings, is_read_once = greedy(model, tokenizer), reads_once(model, asked)
    texts, nll_nats, usage = [""] * len(rows), np.zeros(len(rows)), Usage()
    tokens = [example.tokens for example in asked.examples]
    for indices in batches_by_length(tokens, options.batch_size, progress):
        batch = asked.of(indices)
        labelled = [[example.tokens, example.labels] for example in batch.examples]
        content = [identity, options.max_new_tokens, is_read_once, batch.questions, labelled]
        answer = partial(_answered, model, tokenizer, batch, settings, options.max_new_tokens, is_read_once)
        found = kept_or_made(cache, content, answer)
        usage = usage.plus(Usage(*found["usage"]))
        nll_nats[indices] = found["nll_nats"]
        for i, text in zip(indices, found["texts"], strict=True):
            texts[i] = text
    return Answers(texts, AnswerLoss(nll_nats, asked.n_bytes), usage)


def _answered(
    model: Any,
    tokenizer: Any,
    batch: Asked,
    settings: GenerationConfig,
    max_new_tokens: int,
    is_read_once: bool,
) -> dict[str, Any]:
    """What is kept of one batch."""
    started_s = time.perf_counter()
    answers, nll_nats_B = answer_batch(model, tokenizer, batch, settings, max_new_tokens, is_read_once)
    seconds = time.perf_counter() - started_s
    n_tokens = sum(map(len, batch.questions)), sum(answer.n_tokens for answer in answers)
    said = {"texts": [answer.text for answer in answers], "nll_nats": nll_nats_B.tolist()}
    return {**said, "usage": [*n_tokens, seconds]}


def ask_base_and_tuned(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    options: EvalConfig,
    identities: tuple[Mapping[str, Any], Mapping[str, Any]],
    cache: ReplyCache,
    progress: bool = False,
) -> tuple[Answers, Answers]:
    """What a model with an attached adapter answers without and with it, as `ask_model`.

    `identities` are those of the base and of the base with the adapter.
    """
    base, tuned = identities
    with adapter_disabled(model):
        of_base = ask_model(model, tokenizer, rows, options, base, cache, "base " if progress else None)
    return of_base, ask_model(model, tokenizer, rows, options, tuned, cache, "tuned" if progress else None)


@contextmanager
def of_contestant(name: str) -> Iterator[None]:
    """Let an error that is raised inside say whose it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"contestant {name}: {error}") from error
