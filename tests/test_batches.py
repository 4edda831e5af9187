"""Rows become batches that train the answer and its stop token."""

from typing import Any

import pytest
import torch

from data_recipes.artefact import UserError
from finetune.batches import (
    IGNORED_LABEL,
    collate,
    contiguous_part,
    encode_rows,
    n_trained_tokens,
)


def row(row_id: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": row_id, "messages": messages}


def test_exactly_the_answer_and_its_stop_token_are_trained(tiny_tokenizer: Any) -> None:
    (example,) = encode_rows(tiny_tokenizer, [row("a", "தேதி?", "5 மே")], max_length_tokens=100)
    trained = [label for label in example.labels if label != IGNORED_LABEL]
    assert tiny_tokenizer.decode(trained) == "5 மே<|endoftext|>"
    assert example.tokens[-len(trained) :] == trained
    assert n_trained_tokens([example]) == len(trained)


def test_batches_are_padded_on_the_right_and_padding_is_never_trained(tiny_tokenizer: Any) -> None:
    rows = [row("a", "q", "long answer"), row("b", "q", "no")]
    batch = collate(encode_rows(tiny_tokenizer, rows, 100), pad_token_id=0)
    assert batch.row_ids == ["a", "b"] and batch.attention_mask is not None
    assert batch.tokens.shape == batch.labels.shape == batch.attention_mask.shape
    padding = batch.attention_mask == 0
    assert padding.sum(dim=1).tolist() == [0, len("long answer") - len("no")]
    assert bool(padding[1, -1]) and not bool(padding[1, 0])
    assert bool((batch.labels[padding] == IGNORED_LABEL).all())
    assert int((batch.labels[:, 1:] != IGNORED_LABEL).sum()) == len("long answer") + len("no") + 2


def test_a_template_without_generation_marks_trains_the_same_tokens(tiny_tokenizer: Any) -> None:
    template = tiny_tokenizer.chat_template
    rows = [row("a", "தேதி?", "5 மே")]
    marked = encode_rows(tiny_tokenizer, rows, 100)
    try:
        tiny_tokenizer.chat_template = template.replace("{% generation %}", "").replace(
            "{% endgeneration %}", ""
        )
        assert encode_rows(tiny_tokenizer, rows, 100) == marked
        tiny_tokenizer.chat_template = template.replace(
            "<|endoftext|>{% endgeneration %}", "{% endgeneration %}<|endoftext|>"
        )
        with pytest.raises(UserError, match=r"row a \(the last trained token is 'x', no stop token\)"):
            encode_rows(tiny_tokenizer, [row("a", "q", "x")], 100)
    finally:
        tiny_tokenizer.chat_template = template


def test_rows_that_cannot_be_trained_are_named(tiny_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no rows"):
        encode_rows(tiny_tokenizer, [], 100)
    question_only = {"id": "q7", "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(UserError, match="have no token to train on: row q7"):
        encode_rows(tiny_tokenizer, [question_only], 100)
    with pytest.raises(UserError, match=r"1 of 2 rows are longer than max_length_tokens=20.*long7"):
        encode_rows(tiny_tokenizer, [row("a", "q", "x"), row("long7", "q", "x" * 30)], 20)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7])
def test_parts_of_a_batch_are_the_batch(n_parts: int) -> None:
    parts = [contiguous_part(list(range(12)), part, n_parts) for part in range(n_parts)]
    assert [number for part in parts for number in part] == list(range(12))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_tensors_are_whole_numbers(tiny_tokenizer: Any) -> None:
    batch = collate(encode_rows(tiny_tokenizer, [row("a", "q", "x")], 100), 0)
    assert batch.attention_mask is not None
    assert batch.tokens.dtype == batch.labels.dtype == batch.attention_mask.dtype == torch.int64
