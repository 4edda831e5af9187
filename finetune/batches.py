"""Dataset rows to token batches: chat template, labels on the assistant's tokens, an order fixed by the seed.

Reads rows with `id` and `messages`; writes nothing. Every process computes the same order and takes its own
part of it, so any number of processes sees the same rows in the same step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import read_template
from data_recipes.chats.mask_audit import audited_mask, refuse

IGNORED_LABEL = -100  # torch's cross_entropy leaves it out


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

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What the model is called with."""
        return {"input_ids": self.tokens.to(device), "attention_mask": self.attention_mask.to(device)}


def encode_rows(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> list[Example]:
    """Tokenize chat rows and mark what is trained: the assistant's tokens and the token that ends its turn.

    `stop_ids` are the tokens the model stops at; empty takes any control token of the template.

    Raises:
        UserError: no rows, no chat template, or rows that must not be trained on as they are, with all
            reasons together (`data_recipes.chats.mask_audit`): nothing to train, an untrained stop token, a
            prompt that is trained, control tokens in a text, more than `max_length_tokens`.
    """
    template = read_template(tokenizer)
    examples, problems = [], []
    for row in rows:
        mask, found = audited_mask(template, row, max_length_tokens, stop_ids)
        problems += found
        labels = [
            token if own else IGNORED_LABEL for token, own in zip(mask.ids, mask.is_trained, strict=True)
        ]
        examples.append(Example(str(row["id"]), mask.ids, labels))
    if not examples:
        raise UserError("there are no rows to train on: the dataset split is empty")
    refuse(problems, len(examples), max_length_tokens)
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
