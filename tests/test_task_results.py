"""Tasks answered by base and tuned: log-likelihoods by hand, batches as one by one, and the tables."""

import json

import numpy as np
import pytest
import torch
from tuned_model import OFF_AND_ON, with_drawn_adapter

from data_recipes.translate.cache import ReplyCache
from eval.generate import generate_answers
from eval.tasks.answering import choice_columns, fertility_columns, generation_columns
from eval.tasks.likelihood import choice_logprobs, opened_tokens, text_bits
from eval.tasks.results import compare_task, evaluate_tasks
from eval.tasks.rows import load_tasks
from finetune.eval_options import EvalConfig

CONFIG = EvalConfig(batch_size=4, max_new_tokens=6, n_bootstrap=50)
QUESTIONS = ["2 + 2?", "the capital of India, where parliament sits", "பச்சை"]
CHOICES = [["4", "four", "5"], ["Delhi", "New Delhi"], ["green", "blue", "red", "हरा"]]
GENERATION = """
name: words
version: 3
kind: generation
prompt: "{q}"
answer: "{a}"
checker: reference
metrics: [chrf, bits_per_byte, script_by_line, script_by_word, language_by_line, numbers]
rows:
  inline:
    - {q: one, a: "ஒன்று 1", language: ta, task: number}
    - {q: two, a: "दो 2", language: hi, task: number}
    - {q: a green leaf, a: "பச்சை இலை", language: ta, task: colour}
"""


@pytest.fixture
def model(tiny_model_factory):
    # Wider weights than the default 0.02: logits far apart, so that no choice is a coin toss.
    return tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)


@pytest.fixture
def tuned(model):
    return with_drawn_adapter(model)


def task_of(folder, text):
    path = folder / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return load_tasks([str(path)])[0]


def choice_rows():
    return [
        {"id": str(i), "messages": [{"role": "user", "content": question}], "choices": choices, "right": 0}
        for i, (question, choices) in enumerate(zip(QUESTIONS, CHOICES, strict=True))
    ]


def log_probabilities(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def test_a_choice_is_as_likely_as_a_plain_forward_says(model, tiny_tokenizer):
    found = choice_logprobs(model, tiny_tokenizer, choice_rows(), 4)
    for row, logprobs in zip(choice_rows(), found, strict=True):
        asked = tiny_tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)["input_ids"]
        for choice, logprob in zip(row["choices"], logprobs, strict=True):
            answer = tiny_tokenizer(choice)["input_ids"]  # a token a byte: nothing is joined to the question
            by_token = log_probabilities(model, asked + answer)
            by_hand = sum(float(by_token[len(asked) + i - 1, token]) for i, token in enumerate(answer))
            assert logprob == pytest.approx(by_hand, rel=1e-5)


def test_batched_choices_are_those_of_one_by_one(model, tiny_tokenizer):
    one_by_one = np.concatenate(choice_logprobs(model, tiny_tokenizer, choice_rows(), 1))
    for batch_size in (3, 9):
        batched = np.concatenate(choice_logprobs(model, tiny_tokenizer, choice_rows(), batch_size))
        assert np.abs(batched - one_by_one).max() <= 1e-5 * np.abs(one_by_one).max()


def test_the_sum_favours_short_answers_and_the_sum_per_byte_does_not():
    rows = [{"choices": ["no", "certainly"], "right": 1}, {"choices": ["हाँ", "no"], "right": 0}]
    # -4 over 2 bytes and -9 over 9; -9 over 9 bytes (three letters) and -3 over 2.
    found = choice_columns(rows, [np.array([-4.0, -9.0]), np.array([-9.0, -3.0])])
    assert found.columns["accuracy"].tolist() == [[0, 1], [0, 1]]
    assert found.columns["accuracy_per_byte"].tolist() == [[1, 1], [1, 1]]
    assert found.shown == ["no", "no"]


def test_bits_of_a_text_are_those_of_all_its_tokens_after_one_opening_token(model, tiny_tokenizer):
    texts = ["plain text", "தமிழ்", "x"]
    bits = text_bits(model, tiny_tokenizer, texts, 2, window_tokens=100)
    for text, found in zip(texts, bits, strict=True):
        ids = [tiny_tokenizer.eos_token_id, *tiny_tokenizer(text)["input_ids"]]
        by_token = log_probabilities(model, ids)
        by_hand = -sum(float(by_token[i - 1, ids[i]]) for i in range(1, len(ids))) / np.log(2)
        assert found == pytest.approx(by_hand, rel=1e-5)


def test_a_long_text_is_read_in_pieces_that_predict_each_token_once(model, tiny_tokenizer):
    text = "abcdefghij"
    ids = opened_tokens(tiny_tokenizer, text)
    assert len(ids) == 11
    # Windows of four: after the opening token; then four more; the last two with four tokens before them.
    by_hand = 0.0
    for piece, n_scored in ((ids[0:5], 4), (ids[4:9], 4), (ids[6:11], 2)):
        by_token = log_probabilities(model, piece)
        by_hand -= sum(float(by_token[i - 1, piece[i]]) for i in range(len(piece) - n_scored, len(piece)))
    assert text_bits(model, tiny_tokenizer, [text], 8, 4)[0] == pytest.approx(by_hand / np.log(2), rel=1e-5)


def test_generation_is_scored_row_by_row(tmp_path):
    task = task_of(tmp_path, GENERATION.replace("bits_per_byte, ", ""))
    found = generation_columns(task, ["ஒன்று ௧", "two 2 3", ""], None)
    assert found.columns["exact_match"].tolist() == [[1, 1], [0, 1], [0, 1]]
    assert found.columns["numbers"].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert found.columns["script_by_word"].tolist() == [[1, 1], [0, 1], [0, 1]]
    # Hindi's script does not tell it from Marathi: no language is claimed.
    assert found.columns["language_by_line"].tolist() == [[1, 1], [0, 0], [0, 1]]
    assert found.signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2")


def test_tables_hold_what_each_model_scored(tmp_path):
    task = task_of(tmp_path, GENERATION.replace("bits_per_byte, ", ""))
    base = generation_columns(task, ["no", "दो 2", "பச்சை இலை"], None)
    tuned = generation_columns(task, ["ஒன்று 1", "दो 2", "no"], None)
    found = compare_task(task, base, tuned, 200, seed=0)
    exact = found["metrics"]["exact_match"]
    assert (exact["all"]["base"], exact["all"]["tuned"], exact["all"]["n"]) == (2 / 3, 2 / 3, 3)
    same = {"base": 1, "tuned": 1, "difference": 0, "low": 0, "high": 0, "n": 1}
    assert exact["by_language"]["hi"].items() >= same.items()
    assert exact["by_task"]["number"]["difference"] == 0.5
    assert found["metrics"]["numbers"]["all"]["n"] == 2
    assert set(found["metrics"]["language_by_line"]["by_language"]) == {"ta"}
    assert found["notes"]["language_by_line"] == {
        "hi": "script check only",
        "ta": "the script tells the language",
    }
    assert (found["rows"][0]["base"], found["rows"][0]["tuned_exact_match"]) == ("no", 1)
    assert found["rows"][2]["base_numbers"] is None


def test_romanised_answers_are_judged_by_their_script_alone(tmp_path):
    rows = "rows: {inline: [{q: x, a: mera naam, language: hi-Latn}, {q: y, a: एक, language: hi}]}\n"
    head = 'name: r\nversion: 1\nkind: generation\nprompt: "{q}"\nanswer: "{a}"\n'
    task = task_of(tmp_path, f"{head}metrics: [script_by_word, language_by_line]\n{rows}")
    base = generation_columns(task, ["मेरा नाम", "एक"], None)
    found = compare_task(task, base, generation_columns(task, ["mera naam", "ek"], None), 50, seed=0)
    by_word = found["metrics"]["script_by_word"]["by_language"]
    assert {tag: (one["base"], one["tuned"]) for tag, one in by_word.items()} == {
        "hi-Latn": (0, 1),
        "hi": (1, 0),
    }
    assert found["metrics"]["language_by_line"]["all"] is None
    assert found["notes"]["language_by_line"] == {"hi": "script check only", "hi-Latn": "script check only"}


def test_fertility_counts_tokens_by_words_and_by_characters(tiny_tokenizer):
    # A token a byte: தமிழ் has 15 bytes and three characters, "ab cd" five and five.
    found = fertility_columns(tiny_tokenizer, ["தமிழ்", "ab cd", "!"])
    assert found.columns["tokens_per_word"].tolist() == [[15, 1], [5, 2], [0, 0]]
    assert found.columns["tokens_per_character"].tolist() == [[15, 3], [5, 5], [1, 1]]


def test_base_and_tuned_are_one_model_with_its_adapter_off_and_on(
    tmp_path, tuned, tiny_tokenizer, tiny_model_factory
):
    task = task_of(tmp_path, GENERATION)
    found = evaluate_tasks(
        tuned, tiny_tokenizer, [task], CONFIG, 0, False, OFF_AND_ON, ReplyCache(":memory:")
    )["words"]
    assert (found["version"], found["kind"], found["file_sha256"]) == (3, "generation", task.file_sha256)
    plain = tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)
    prompts = [row["messages"][:-1] for row in task.rows]
    assert [row["base"] for row in found["rows"]] == generate_answers(plain, tiny_tokenizer, prompts, 4, 6)
    on = generate_answers(tuned, tiny_tokenizer, prompts, 4, 6)
    assert [row["tuned"] for row in found["rows"]] == on
    assert on != [row["base"] for row in found["rows"]]
    bits = found["metrics"]["bits_per_byte"]["all"]
    assert bits["n"] == 3 and bits["difference"] != 0
    json.dumps(found, allow_nan=False)
