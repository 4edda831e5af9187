"""The rows of a language as calibration batches: seeded order, tokens, prompt and answer told apart.

Reads rows (`messages`, `group`, and where there are any `id` and `source`) one by one from any iterable, a
stream too; writes nothing. What is in which batch depends on the rows, the seed and the config alone, never
on the number of processes.

Legend: B rows, T tokens of a row, R bootstrap replicates.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from data_recipes.artefact import UserError, sha256_json
from data_recipes.chats.chat_mask import chat_mask
from data_recipes.chats.chat_template import ChatTemplate, read_template
from finetune.config import ProfileConfig
from finetune.profiling.replicates import row_weights

Row = Mapping[str, Any]

# One row's gate mass in profile.MASS_UNIT is added up in float64, which is exact up to this many tokens.
MAX_ROW_TOKENS = 2**17


class EncodedRow(NamedTuple):
    """One row as token ids and, for each, whether it is the assistant's."""

    row_id: str
    role: str
    source: str
    ids: list[int]
    is_answer: list[bool]


class CalibrationBatch(NamedTuple):
    """Rows padded on the right, on the CPU: positions start at 0.

    `slot_BT` is where a token is counted: 2 x row for a prompt token, 2 x row + 1 for an answer token.
    `weights_RB` is how often each row counts in each replicate.
    """

    ids_BT: torch.Tensor
    attention_BT: torch.Tensor
    slot_BT: torch.Tensor
    weights_RB: torch.Tensor
    sources: list[str]


class Chunk(NamedTuple):
    """Rows between two looks at what was counted."""

    rows: list[EncodedRow]
    role: str
    n_tokens: int  # read up to its end
    ended: str  # why no chunk follows (max_tokens, or rows: there are no more); empty when one does


def in_seeded_order(rows: Iterable[Any], seed: int, buffer_rows: int) -> Iterator[Row]:
    """Each row once, in an order drawn from `seed`: of all rows where they can be indexed, else in a buffer.

    The dataset is ordered by task: its head alone would show the routing of one task only.
    """
    generator = random.Random(seed)
    if hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
        indexed: Any = rows
        for position in generator.sample(range(len(indexed)), len(indexed)):
            yield indexed[position]
        return
    buffer: list[Row] = []
    for row in rows:
        if len(buffer) < buffer_rows:
            buffer.append(row)
            continue
        position = generator.randrange(buffer_rows)
        yield buffer[position]
        buffer[position] = row
    generator.shuffle(buffer)
    yield from buffer


def encode_row(
    tokenizer: PreTrainedTokenizerBase, row: Row, template: ChatTemplate | None = None
) -> EncodedRow:
    """The row in the tokenizer's chat template, with the assistant's tokens marked as the trainer has them.

    `template` is `read_template(tokenizer)`, read once for many rows.

    Raises:
        UserError: no chat template, prompt and answer that cannot be told apart, or too long a row.
    """
    messages = row["messages"]
    row_id = str(row.get("id") or sha256_json(messages))
    template = template or read_template(tokenizer)
    try:
        mask = chat_mask(template, messages, row.get("tools") or None)
    except UserError as error:
        raise UserError(f"row {row_id}: {error}") from error
    if len(mask.ids) > MAX_ROW_TOKENS:
        raise UserError(
            f"row {row_id} has {len(mask.ids):,} tokens, at most {MAX_ROW_TOKENS:,} can be counted"
        )
    return EncodedRow(row_id, row["group"], row.get("source") or "", mask.ids, mask.is_trained)


def encoded_chunks(
    tokenizer: PreTrainedTokenizerBase, language: str, rows: Iterable[Any], config: ProfileConfig, seed: int
) -> Iterator[Chunk]:
    """Whole rows in seeded order, about `config.check_tokens` tokens a chunk and at most `max_tokens` in all.

    One row is taken however long it is. The last chunk may be empty.

    Raises:
        UserError: no rows, or rows of both roles.
    """
    chunk: list[EncodedRow] = []
    role, n_tokens, n_before_chunk = "", 0, 0
    template = read_template(tokenizer)
    for row in in_seeded_order(rows, seed, config.shuffle_rows):
        encoded = encode_row(tokenizer, row, template)
        role = role or encoded.role
        if encoded.role != role:
            raise UserError(
                f"language {language!r} has rows of role {role!r} and of role {encoded.role!r} (row "
                f"{encoded.row_id}): a language is either the target or general"
            )
        if n_tokens and n_tokens + len(encoded.ids) > config.max_tokens:
            yield Chunk(chunk, role, n_tokens, "max_tokens")
            return
        chunk.append(encoded)
        n_tokens += len(encoded.ids)
        if n_tokens - n_before_chunk >= config.check_tokens:
            yield Chunk(chunk, role, n_tokens, "")
            chunk, n_before_chunk = [], n_tokens
    if not role:
        raise UserError(f"language {language!r} has no rows to profile")
    yield Chunk(chunk, role, n_tokens, "rows")


def row_batches(rows: Sequence[EncodedRow], batch_size: int) -> Iterator[list[EncodedRow]]:
    """The rows cut into batches, rows of like length together: little padding."""
    by_length = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(by_length), batch_size):
        yield by_length[start : start + batch_size]


def collate(rows: Sequence[EncodedRow], seed: int, n_replicates: int) -> CalibrationBatch:
    """Pad the rows of one batch and draw their weights."""
    shape_BT = (len(rows), max(len(row.ids) for row in rows))
    ids_BT, attention_BT, slot_BT = (np.zeros(shape_BT, dtype=np.int64) for _ in range(3))
    for position, row in enumerate(rows):
        ids_BT[position, : len(row.ids)] = row.ids
        attention_BT[position, : len(row.ids)] = 1
        slot_BT[position, : len(row.ids)] = np.asarray(row.is_answer) + 2 * position
    return CalibrationBatch(
        ids_BT=torch.from_numpy(ids_BT),
        attention_BT=torch.from_numpy(attention_BT),
        slot_BT=torch.from_numpy(slot_BT),
        weights_RB=torch.from_numpy(row_weights([row.row_id for row in rows], seed, n_replicates)),
        sources=[row.source for row in rows],
    )
