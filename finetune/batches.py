"""Dataset rows to token batches: chat template, labels on the assistant's tokens, an order fixed by the seed.

Reads rows with `id` and `messages`; writes nothing. Every process computes the same order and takes its own
part of it, so any number of processes sees the same rows in the same step.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from data_recipes.artefact import UserError

IGNORED_LABEL = -100  # torch's cross_entropy leaves it out
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Example(NamedTuple):
    """One row as token ids; `labels` equals `tokens` where the assistant speaks, IGNORED_LABEL elsewhere."""

    row_id: str
    tokens: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Examples padded on the right to the longest, each tensor [rows, tokens]."""

    row_ids: list[str]
    tokens: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def encode_rows(tokenizer: Any, rows: Iterable[Mapping[str, Any]], max_length_tokens: int) -> list[Example]:
    """Tokenize chat rows and mark what is trained: the assistant's tokens and the stop token after them.

    Raises:
        UserError: no rows, a template without generation marks or without a trained stop token, a row with
            nothing to train, or rows longer than `max_length_tokens` (cut answers teach to stop early).
    """
    if not GENERATION_MARK.search(str(tokenizer.chat_template or "")):
        raise UserError(
            "the tokenizer's chat template has no {% generation %} marks to tell the assistant's tokens by: "
            "put {% generation %} and {% endgeneration %} around the answer and its stop token"
        )
    examples = [_encode_row(tokenizer, row) for row in rows]
    if not examples:
        raise UserError("there are no rows to train on: the dataset split is empty")
    too_long = [example for example in examples if len(example.tokens) > max_length_tokens]
    if too_long:
        longest = max(too_long, key=lambda example: len(example.tokens))
        raise UserError(
            f"{len(too_long)} of {len(examples)} rows are longer than max_length_tokens={max_length_tokens} "
            f"and rows are never cut; the longest, {longest.row_id}, needs {len(longest.tokens)}: "
            "raise it, or leave such rows out of the dataset"
        )
    return examples


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad examples on the right to the longest of them."""
    width = max(len(example.tokens) for example in examples)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (width - len(values))]

    return Batch(
        row_ids=[example.row_id for example in examples],
        tokens=torch.tensor([padded(example.tokens, pad_token_id) for example in examples]),
        attention_mask=torch.tensor([padded([1] * len(example.tokens), 0) for example in examples]),
        labels=torch.tensor([padded(example.labels, IGNORED_LABEL) for example in examples]),
    )


def n_trained_tokens(examples: Iterable[Example]) -> int:
    """How many predictions the loss counts; the first token of a row has nothing to be predicted from."""
    return sum(label != IGNORED_LABEL for example in examples for label in example.labels[1:])


def step_rows(n_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Row numbers of the global batch of `step` (from 0): shuffled epochs end to end, cut to size."""
    start = step * batch_size
    first_epoch, last_epoch = start // n_rows, (start + batch_size - 1) // n_rows
    order = [epoch_order(n_rows, seed, epoch) for epoch in range(first_epoch, last_epoch + 1)]
    offset = start - first_epoch * n_rows
    return np.concatenate(order)[offset : offset + batch_size].tolist()


def epoch_order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """A shuffle of the row numbers that depends on nothing but its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def contiguous_part(items: Sequence[Any], part: int, n_parts: int) -> Sequence[Any]:
    """The `part`-th (from 0) of `n_parts` slices that together are `items`; sizes differ by one at most."""
    return items[len(items) * part // n_parts : len(items) * (part + 1) // n_parts]


def _encode_row(tokenizer: Any, row: Mapping[str, Any]) -> Example:
    encoded = tokenizer.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = encoded["input_ids"], encoded["assistant_masks"]
    labels = [token if trained else IGNORED_LABEL for token, trained in zip(tokens, mask, strict=True)]
    trained_tokens = [label for label in labels[1:] if label != IGNORED_LABEL]
    if not trained_tokens:
        raise UserError(
            f"row {row['id']} has no token to train on: its assistant message is missing or empty"
        )
    if trained_tokens[-1] not in tokenizer.all_special_ids:
        raise UserError(
            f"row {row['id']}: the last trained token is {tokenizer.decode([trained_tokens[-1]])!r}, no stop "
            "token, so the model would never learn to stop: put it inside {% generation %} in the template"
        )
    return Example(str(row["id"]), list(tokens), labels)
