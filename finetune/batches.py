"""Dataset rows to token batches: chat template, labels on the assistant's tokens, padding.

Reads rows with `id` and `messages`; writes nothing. Which rows make a step is decided in `finetune.batching`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
    group: str = ""  # what the row is counted under, as "target"; "" where nobody counts


class Batch(NamedTuple):
    """Examples padded on the right to the longest, each tensor [rows, tokens].

    A row of the tensors may hold several examples one after another, a pack. `position_ids` then begin anew
    with each, there is no attention mask, and the first token of each has no label.
    """

    row_ids: list[str]
    tokens: torch.Tensor
    attention_mask: torch.Tensor | None
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """What the model is called with."""
        named = {
            "input_ids": self.tokens,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }
        return {name: tensor.to(device) for name, tensor in named.items() if tensor is not None}


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
    return [example for _, example in audited_examples(tokenizer, rows, max_length_tokens, stop_ids)]


def audited_examples(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Iterator[tuple[Mapping[str, Any], Example]]:
    """Yield each row and its example; what is wrong with any of them is raised after the last, as one error.

    Raises:
        UserError: as `encode_rows`.
    """
    template = read_template(tokenizer)
    n_rows, problems = 0, []
    for row in rows:
        mask, found = audited_mask(template, row, max_length_tokens, stop_ids)
        problems += found
        labels = [
            token if own else IGNORED_LABEL for token, own in zip(mask.ids, mask.is_trained, strict=True)
        ]
        n_rows += 1
        yield row, Example(str(row["id"]), mask.ids, labels)
    if not n_rows:
        raise UserError("there are no rows to train on: the dataset split is empty")
    refuse(problems, n_rows, max_length_tokens)


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


def contiguous_part(items: Sequence[Any], part: int, n_parts: int) -> Sequence[Any]:
    """The `part`-th (from 0) of `n_parts` slices that together are `items`; sizes differ by one at most."""
    return items[len(items) * part // n_parts : len(items) * (part + 1) // n_parts]
