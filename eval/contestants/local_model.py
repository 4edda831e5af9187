"""Ask a model in memory: answers batch by batch, each kept at once, and the loss of the expected ones.

A batch is kept and found as a whole, under all that decides about it: who else is in a batch changes the last
bits of an answer, so that a run that goes on must ask in the same batches to end as an uninterrupted one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, package_versions
from data_recipes.translate.cache import ReplyCache
from eval.contestants.answer_cache import kept_or_made
from eval.contestants.answers import Answers, Usage
from eval.generate import AnswerLoss, answer_nll, batches_by_length, generate_batch, greedy, prompt_tokens
from finetune.adapters.adapter import adapter_disabled
from finetune.eval_options import EvalConfig
from finetune.model import model_fingerprint, tokenizer_fingerprint

Row = Mapping[str, Any]


def model_identity(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What decides the answers of a loaded base; what else does, as an adapter, is added to it by name."""
    return {
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
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
    """
    settings = greedy(model, tokenizer)
    tokens = [prompt_tokens(tokenizer, row["messages"][:-1]) for row in rows]
    texts, usage = [""] * len(rows), Usage()
    for indices in batches_by_length(tokens, options.batch_size, progress):
        batch = [tokens[i] for i in indices]

        def answered(batch: list[list[int]] = batch) -> dict[str, Any]:
            started_s = time.perf_counter()
            answers = generate_batch(model, tokenizer, batch, settings, options.max_new_tokens)
            n_tokens = sum(map(len, batch)), sum(answer.n_tokens for answer in answers)
            seconds = time.perf_counter() - started_s
            return {"texts": [answer.text for answer in answers], "usage": [*n_tokens, seconds]}

        found = kept_or_made(cache, [identity, options.max_new_tokens, batch], answered)
        usage = usage.plus(Usage(*found["usage"]))
        for i, text in zip(indices, found["texts"], strict=True):
            texts[i] = text
    return Answers(texts, _kept_loss(model, tokenizer, rows, options.batch_size, identity, cache), usage)


def _kept_loss(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    batch_size: int,
    identity: Mapping[str, Any],
    cache: ReplyCache,
) -> AnswerLoss:
    def computed() -> dict[str, Any]:
        loss = answer_nll(model, tokenizer, [dict(row) for row in rows], batch_size)
        return {"nll_nats": loss.nll_nats.tolist(), "n_bytes": loss.n_bytes.tolist()}

    asked = [[row["id"], row["messages"], row.get("tools")] for row in rows]
    found = kept_or_made(cache, [identity, "loss", batch_size, asked], computed)
    return AnswerLoss(np.array(found["nll_nats"]), np.array(found["n_bytes"]))


def ask_base_and_tuned(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    options: EvalConfig,
    adapter: str,
    cache: ReplyCache,
    progress: bool = False,
) -> tuple[Answers, Answers]:
    """What a model with an attached adapter answers without and with it; `adapter` is the adapter's hash."""
    base = model_identity(model, tokenizer)
    tuned = {**base, "adapter": adapter}
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
