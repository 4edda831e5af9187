"""What a model answers, and how likely it finds the expected answer: batched, with the results of one by one.

Rows are sorted by length so that a batch holds little padding, and put back into their order. Axes: B rows of
a batch, T tokens.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.progress import progress_bar
from finetune.batches import IGNORED_LABEL, Batch, Example, collate, encode_rows
from finetune.training.losses import token_losses
from finetune.training.vocabulary_loss import chunk_length

ROUND_TOKENS = 8  # made for a batch before the rows whose answers have ended leave it


class GeneratedAnswer(NamedTuple):
    """An answer, and how many tokens the model made for it, with the one that it stopped at."""

    text: str
    n_tokens: int


class Asked(NamedTuple):
    """Rows as tokens: the questions up to where the assistant speaks, and all with the answer labelled."""

    questions: list[list[int]]
    examples: list[Example]
    n_bytes: np.ndarray  # of the expected answer in UTF-8, [N]

    def of(self, indices: Sequence[int]) -> "Asked":
        """Some of the rows."""
        chosen = [self.questions[i] for i in indices], [self.examples[i] for i in indices]
        return Asked(*chosen, self.n_bytes[list(indices)])


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
    settings = greedy(model, tokenizer)
    tokens = [prompt_tokens(tokenizer, messages) for messages in prompts]
    answers = [""] * len(tokens)
    for indices in batches_by_length(tokens, batch_size, progress):
        batch = [tokens[i] for i in indices]
        made = generate_batch(model, tokenizer, batch, settings, max_new_tokens)
        for i, answer in zip(indices, made, strict=True):
            answers[i] = answer.text
    return answers


@torch.inference_mode()
def generate_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    max_new_tokens: int,
) -> list[GeneratedAnswer]:
    """Answers to the tokens of a few prompts at once, in their order; `settings` are those of `greedy`."""
    input_BT, mask_BT = _pad_left(prompts, settings.pad_token_id, model.device)
    made = _greedy_tokens(model, input_BT, mask_BT, settings, max_new_tokens)
    return [_as_answer(tokenizer, tokens, max_new_tokens) for tokens in made]


def _as_answer(tokenizer: Any, tokens: list[int], max_new_tokens: int) -> GeneratedAnswer:
    text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return GeneratedAnswer(text, len(tokens) + (len(tokens) < max_new_tokens))


def _greedy_tokens(
    model: Any,
    input_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    settings: GenerationConfig,
    max_new_tokens: int,
    cache: Any = None,
) -> list[list[int]]:
    """The answer of each row, without its stop token.

    `generate` computes a batch until its longest answer ends. Here it stops after every few tokens and goes
    on, from the same cache, with the rows whose answers have not ended. A `cache` from before holds all of
    the input but its last token.
    """
    answers: list[list[int]] = [[] for _ in input_BT]
    rows, has_ended = list(range(len(answers))), set()
    for n_before in range(0, max_new_tokens, ROUND_TOKENS):
        settings.max_new_tokens = min(ROUND_TOKENS, max_new_tokens - n_before)
        output = model.generate(
            input_ids=input_BT, attention_mask=mask_BT, past_key_values=cache, generation_config=settings
        )
        new_BT, cache = output.sequences[:, input_BT.shape[1] :], output.past_key_values
        for row, new_T in zip(rows, new_BT.tolist(), strict=True):
            if row not in has_ended:
                answer_T = _until_stop(new_T, settings.eos_token_id)
                answers[row] += answer_T
                has_ended |= {row} if len(answer_T) < len(new_T) else set()
        if len(has_ended) == len(answers):
            break
        input_BT, mask_BT = output.sequences, torch.cat([mask_BT, torch.ones_like(new_BT)], dim=1)
        if type(cache) is DynamicCache:  # a family's own, as MiniMax', may not let rows go
            places = [place for place, row in enumerate(rows) if row not in has_ended]
            chosen: Any = torch.tensor(places, device=input_BT.device)
            cache.reorder_cache(chosen)
            rows, input_BT, mask_BT = [rows[place] for place in places], input_BT[chosen], mask_BT[chosen]
    return answers


def _answer_bytes(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """UTF-8 bytes of each expected answer, [N]; UserError when one is empty."""
    n_bytes = np.array([len(row["messages"][-1]["content"].encode("utf-8")) for row in rows], dtype=np.int64)
    if not n_bytes.all():
        raise UserError(f"row {rows[int(n_bytes.argmin())]['id']} has an empty answer: build the data again")
    return n_bytes


def ask_rows(tokenizer: Any, rows: Sequence[dict[str, Any]]) -> Asked:
    """Rows as tokens, made once for all models with this tokenizer.

    Args:
        rows: dataset rows; `messages` ends with the assistant's turn.

    Raises:
        UserError: an empty answer, or as `encode_rows`: rows that must not be trained on.
    """
    n_bytes = _answer_bytes(rows)
    questions = [prompt_tokens(tokenizer, row["messages"][:-1]) for row in rows]
    return Asked(questions, encode_rows(tokenizer, rows, sys.maxsize), n_bytes)


@torch.inference_mode()
def answer_batch(
    model: Any,
    tokenizer: Any,
    asked: Asked,
    settings: GenerationConfig,
    max_new_tokens: int,
    is_read_once: bool,
) -> tuple[list[GeneratedAnswer], np.ndarray]:
    """Answers to a few rows at once and the losses of the expected ones in nats, [B], in their order.

    The losses come first, as alone; answers go on from the keys that attention then keeps of the question.

    Args:
        settings: those of `greedy`.
        is_read_once: `reads_once` of all rows; each question is read twice without it.
    """
    batch = collate(asked.examples, 0)  # padding is masked: any token will do
    if not is_read_once:
        answers = generate_batch(model, tokenizer, asked.questions, settings, max_new_tokens)
        return answers, _sums_of_losses(model, batch)
    cache = DynamicCache(config=model.config)
    nll_nats = _sums_of_losses(model, batch, cache)
    last_B1 = torch.tensor([len(question) - 1 for question in asked.questions])[:, None]
    # A question's last token is read again. Its keys and those of what follows are in the cache unseen.
    is_seen_BT = torch.arange(batch.tokens.shape[1])[None] < last_B1
    input_BT = torch.cat([batch.tokens, batch.tokens.gather(1, last_B1)], dim=1).to(model.device)
    mask_BT = torch.cat([is_seen_BT, torch.ones_like(last_B1)], dim=1).long().to(model.device)
    made = _greedy_tokens(model, input_BT, mask_BT, settings, max_new_tokens, cache)
    return [_as_answer(tokenizer, tokens, max_new_tokens) for tokens in made], nll_nats


def reads_once(model: Any, asked: Asked) -> bool:
    """Whether a question need be read only once, for its answer and for the loss of the expected one.

    Not by a model that keeps something else of a text than keys, nor where a tokenizer joins the end of a
    question to its answer.
    """
    return _keeps_keys_alone(model) and _is_prefix_of_each(asked)


def _is_prefix_of_each(asked: Asked) -> bool:
    pairs = zip(asked.questions, asked.examples, strict=True)
    return all(example.tokens[: len(question)] == question for question, example in pairs)


def _keeps_keys_alone(model: Any) -> bool:
    """Whether all that the model keeps of a text are keys and values that a mask can leave out."""
    if model.config.get_text_config() is not model.config:
        return False  # positions of text among images are the family's own
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicIndexedLayer) for layer in layers)


@torch.inference_mode()
def labelled_nll(
    model: Any, examples: Sequence[Example], batch_size: int, progress: str | None = None
) -> np.ndarray:
    """How unlikely the model finds the labelled tokens of each example, in nats and all together, [N]."""
    tokens = [example.tokens for example in examples]
    nll_nats = np.zeros(len(examples))
    for indices in batches_by_length(tokens, batch_size, progress):
        batch = collate([examples[i] for i in indices], 0)  # padding is masked: any token will do
        nll_nats[indices] = _sums_of_losses(model, batch)
    return nll_nats


def _sums_of_losses(model: Any, batch: Batch, cache: Any = None) -> np.ndarray:
    """Each row's losses added up, [B]. Most tokens are of questions: only labelled ones get logits."""
    n_chunk = chunk_length(model, "auto", sys.maxsize)
    assert n_chunk is not None  # of so many positions
    losses = token_losses(model, batch, model.device, n_chunk, cache).double().cpu()
    row_of_loss = (batch.labels[:, 1:] != IGNORED_LABEL).nonzero()[:, 0]
    sums_B = torch.zeros(len(batch.row_ids), dtype=torch.float64).index_add_(0, row_of_loss, losses)
    if not torch.isfinite(sums_B).all():
        row = batch.row_ids[int((~torch.isfinite(sums_B)).nonzero()[0])]
        raise UserError(
            f"row {row}: the likelihood of its expected answer is no finite number: the weights hold NaN or "
            "infinity, or overflow in this dtype; set base.dtype=float32, or train or merge again"
        )
    return sums_B.numpy()


def greedy(model: Any, tokenizer: Any) -> GenerationConfig:
    """Greedy settings of our own: a checkpoint's generation_config may ask for sampling.

    Raises:
        UserError: neither model nor tokenizer names a stop token.
    """
    stops = stop_token_ids(model.generation_config, tokenizer)
    if not stops:
        raise UserError(
            "the tokenizer and the model name no stop token: set eos_token in tokenizer_config.json"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    return GenerationConfig(
        do_sample=False,
        eos_token_id=sorted(stops),
        pad_token_id=pad,
        use_cache=True,
        return_dict_in_generate=True,
    )


def prompt_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a question, with those that open the assistant's turn."""
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def batches_by_length(
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
