"""profiling.calibration tells prompt from answer, keeps to the token budget, and reads streams no further."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import build_tiny_tokenizer
from datasets import Dataset, IterableDataset

from data_recipes.artefact import UserError
from finetune.config import ProfileConfig
from finetune.profiling.calibration import collate, encode_row, encoded_chunks, in_seeded_order, row_batches

# As GLM's own: no generation marks, and a turn to be written opens with another token than a written one.
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|></think>{{ message.content | trim }}"
    "{% else %}<|{{ message.role }}|>{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
# The answer is nowhere in it.
DEAF_TEMPLATE = "{% for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}"


def row(question: str, *answers: str, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    messages += [{"role": "assistant", "content": answer} for answer in answers]
    return {"messages": messages, "group": "target", **columns}


@pytest.fixture
def unmarked() -> Any:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = GLM_TEMPLATE
    return tokenizer


def parts(tokenizer: Any, found: Any) -> tuple[str, str]:
    """Prompt and answer as text."""
    halves = [
        [token for token, is_answer in zip(found.ids, found.is_answer, strict=True) if is_answer == wanted]
        for wanted in (False, True)
    ]
    prompt, answer = (tokenizer.decode(half) for half in halves)
    return prompt, answer


def test_marks_tell_the_answer(tiny_tokenizer) -> None:
    found = encode_row(tiny_tokenizer, row("நாள்", "ஞாயிறு", id="ta/1", source="cldr"))
    assert parts(tiny_tokenizer, found) == ("[gMASK]<sop><|user|>\nநாள்<|assistant|>\n", "ஞாயிறு<|endoftext|>")
    assert (found.row_id, found.source, found.role) == ("ta/1", "cldr", "target")


def test_without_marks_the_answer_is_what_follows_the_prompt(unmarked) -> None:
    found = encode_row(unmarked, row("நாள்", " ஞாயிறு "))
    assert parts(unmarked, found) == ("[gMASK]<sop><|user|>நாள்<|assistant|><", "/think>ஞாயிறு<|user|>")
    only_asked = encode_row(unmarked, row("நாள்"))
    assert only_asked.is_answer == [False] * len(only_asked.ids)


def test_a_template_that_leaves_the_answer_out_is_refused(unmarked) -> None:
    unmarked.chat_template = DEAF_TEMPLATE
    with pytest.raises(UserError, match=r"row r7: .* leaves out message 2, the assistant's"):
        encode_row(unmarked, row("question", "answer", id="r7"))
    unmarked.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_row(unmarked, row("question", "answer"))


def test_a_row_without_id_is_known_by_its_messages(tiny_tokenizer) -> None:
    first, again, other = (encode_row(tiny_tokenizer, row(text, "a")).row_id for text in ("x", "x", "y"))
    assert first == again != other


def test_a_row_too_long_to_be_counted_exactly_is_refused(tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="row long has 131,080 tokens, at most 131,072"):
        encode_row(tiny_tokenizer, row("x" * 2**17, "a", id="long"))


def test_rows_that_can_be_indexed_are_shuffled_whole_and_streams_in_a_buffer() -> None:
    rows = [{"id": str(number)} for number in range(1000)]
    whole = [found["id"] for found in in_seeded_order(rows, 0, 10)]
    on_disk = [found["id"] for found in in_seeded_order(Dataset.from_list(rows), 0, 10)]
    assert (
        whole == on_disk and sorted(whole) == sorted(found["id"] for found in rows) and whole != sorted(whole)
    )
    assert whole != [found["id"] for found in in_seeded_order(rows, 1, 10)]
    streams = [IterableDataset.from_generator(lambda: iter(rows)), iter(rows), iter(rows)]
    first, second, third = ([found["id"] for found in in_seeded_order(stream, 0, 10)] for stream in streams)
    assert first == second == third and sorted(first) == sorted(whole)
    assert max(int(found) for found in first[:10]) < 10 + 10, "a buffer of ten looks ten rows ahead"


def test_a_stream_is_read_no_further_than_the_budget(tiny_tokenizer) -> None:
    n_read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal n_read
        while True:
            n_read += 1
            yield row("x" * 20, "y", id=str(n_read))

    length = len(encode_row(tiny_tokenizer, row("x" * 20, "y")).ids)
    config = ProfileConfig(max_tokens=10 * length + 3, check_tokens=4 * length, shuffle_rows=5)
    chunks = list(encoded_chunks(tiny_tokenizer, "ta", endless(), config, 0))
    assert [len(chunk.rows) for chunk in chunks] == [4, 4, 2]
    assert [chunk.n_tokens for chunk in chunks] == [4 * length, 8 * length, 10 * length]
    assert [chunk.ended for chunk in chunks] == ["", "", "max_tokens"]
    assert n_read == 10 + 5 + 1, "ten rows, the buffer, and the row that was too much"


def test_one_row_is_read_even_beyond_the_budget_and_none_is_an_error(tiny_tokenizer) -> None:
    config = ProfileConfig(max_tokens=1)
    rows = [row("question", "answer")] * 2
    assert [len(chunk.rows) for chunk in encoded_chunks(tiny_tokenizer, "ta", rows, config, 0)] == [1]
    with pytest.raises(UserError, match="'ta' has no rows"):
        list(encoded_chunks(tiny_tokenizer, "ta", [], config, 0))


def test_rows_of_both_roles_are_refused(tiny_tokenizer) -> None:
    rows = [row("a", "b", id="first"), row("a", "b", id="second") | {"group": "general"}]
    with pytest.raises(UserError, match="'ta' has rows of role .* a language is either"):
        list(encoded_chunks(tiny_tokenizer, "ta", rows, ProfileConfig(), 0))


def test_batches_hold_rows_of_like_length_padded_on_the_right(tiny_tokenizer) -> None:
    rows = [row("x" * length, "yy", id=str(length)) for length in (3, 9, 1, 5)]
    batches = list(row_batches([encode_row(tiny_tokenizer, found) for found in rows], 2))
    assert [[found.row_id for found in batch] for batch in batches] == [["1", "3"], ["5", "9"]]
    batch = collate(batches[0], seed=0, n_replicates=3)
    short, long = (len(found.ids) for found in batches[0])
    assert batch.attention_BT.tolist() == [[1] * short + [0] * (long - short), [1] * long]
    assert batch.slot_BT[0].tolist() == [0] * (short - 3) + [1] * 3 + [0] * 2, (
        "two letters and the stop token"
    )
    assert batch.slot_BT[1].tolist() == [2] * (long - 3) + [3] * 3
    assert batch.weights_RB.shape == (3, 2)
