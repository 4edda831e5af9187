"""What a model answers, and how likely it finds the expected answer: batched, with the results of one by one.

Rows are sorted by length so that a batch holds little padding, and put back into their order. Axes: B rows of
a batch, T tokens.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.progress import progress_bar
from finetune.batches import IGNORED_LABEL, collate, encode_rows
from finetune.training.losses import token_losses


class AnswerLoss(NamedTuple):
    """Per row, [N]: negative log-likelihood of the answer and its stop token, and its UTF-8 bytes."""

    nll_nats: np.ndarray
    n_bytes: np.ndarray


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    batch_size: int,
    max_new_tokens: int,
    progress: str | None = None,
) -> list[str]:
    """Greedy answers in the order of `prompts`; each ends at its stop token or after `max_new_tokens`.

    Args:
        model: a causal language model of transformers, in eval mode.
        tokenizer: its tokenizer, with a chat template.
        prompts: message lists that end with the user's turn.
        progress: label of a progress bar; None shows none.

    Raises:
        UserError: the tokenizer has no stop token, so that no answer would end.
    """
    settings = _greedy(model, tokenizer, max_new_tokens)
    tokens = [_prompt_tokens(tokenizer, messages) for messages in prompts]
    answers = [""] * len(tokens)
    for indices in _batches_by_length(tokens, batch_size, progress):
        input_BT, mask_BT = _pad_left([tokens[i] for i in indices], settings.pad_token_id, model.device)
        output_BT = model.generate(input_ids=input_BT, attention_mask=mask_BT, generation_config=settings)
        for i, answer_T in zip(indices, output_BT[:, input_BT.shape[1] :].tolist(), strict=True):
            answers[i] = tokenizer.decode(
                _until_stop(answer_T, settings.eos_token_id), skip_special_tokens=True
            ).strip()
    return answers


@torch.inference_mode()
def answer_nll(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], batch_size: int, progress: str | None = None
) -> AnswerLoss:
    """How unlikely the model finds each row's expected answer, given its question, which never counts.

    Args:
        rows: dataset rows; `messages` ends with the assistant's turn.

    Raises:
        UserError: an empty answer, or as `encode_rows`: rows that must not be trained on.
    """
    n_bytes = np.array([len(row["messages"][-1]["content"].encode("utf-8")) for row in rows], dtype=np.int64)
    if not n_bytes.all():
        raise UserError(f"row {rows[int(n_bytes.argmin())]['id']} has an empty answer: build the data again")
    examples = encode_rows(tokenizer, rows, sys.maxsize)
    tokens = [example.tokens for example in examples]
    nll_nats = np.zeros(len(rows))
    for indices in _batches_by_length(tokens, batch_size, progress):
        batch = collate([examples[i] for i in indices], 0)  # padding is masked: any token will do
        losses = token_losses(model, batch, model.device).double().cpu()
        row_of_loss = (batch.labels[:, 1:] != IGNORED_LABEL).nonzero()[:, 0]
        sums_B = torch.zeros(len(indices), dtype=torch.float64).index_add_(0, row_of_loss, losses)
        nll_nats[indices] = sums_B.numpy()
    return AnswerLoss(nll_nats, n_bytes)


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    """Greedy settings of our own: a checkpoint's generation_config may ask for sampling."""
    stops = stop_token_ids(model.generation_config, tokenizer)
    if not stops:
        raise UserError(
            "the tokenizer and the model name no stop token: set eos_token in tokenizer_config.json"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stops),
        pad_token_id=pad,
        use_cache=True,
    )


def _prompt_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _batches_by_length(
    tokens: Sequence[Sequence[int]], batch_size: int, progress: str | None
) -> Iterator[list[int]]:
    """Row indices, longest rows first: what does not fit into memory fails at once."""
    order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), i))
    starts = range(0, len(order), batch_size)
    for start in progress_bar(starts, desc=progress, unit="batch", disable=progress is None):
        yield order[start : start + batch_size]


def _pad_left(
    sequences: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as one tensor [B, T] that end together, and the mask of what is not padding [B, T]."""
    length = max(len(sequence) for sequence in sequences)
    n_missing = [length - len(sequence) for sequence in sequences]
    padded = [[pad_token_id] * n + list(sequence) for n, sequence in zip(n_missing, sequences, strict=True)]
    mask = [[0] * n + [1] * (length - n) for n in n_missing]
    return torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _until_stop(tokens: list[int], stops: list[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]
