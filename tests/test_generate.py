"""Batched generation and batched loss against the plain computation, one row at a time."""

import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, VOCABULARY, build_tiny_family, random_rows
from transformers import GenerationConfig

from data_recipes.artefact import UserError
from data_recipes.translate.cache import ReplyCache
from eval.contestants.local_model import ask_model
from eval.generate import (
    _greedy_tokens,
    _keeps_keys_alone,
    _pad_left,
    _until_stop,
    answer_batch,
    ask_rows,
    generate_answers,
    greedy,
    labelled_nll,
    reads_once,
)
from finetune.eval_options import EvalConfig

OF_BYTES = {"vocab_size": 262, "max_position_embeddings": 512}  # what the byte-level tokenizer needs
QUESTIONS = ["ab", "a longer question, with words", "x", "தமிழ் நாள்", "what is 12 + 30?", "கி.மீ", "ii"]


def rows_of(answers):
    return [
        {"id": str(i), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for i, (q, a) in enumerate(zip(QUESTIONS, answers, strict=False))
    ]


def greedy_by_hand(model, tokenizer, prompt, max_new_tokens, stop):
    """Full forward passes, no cache, no padding."""
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return greedy_tokens_by_hand(model, ids, max_new_tokens, stop)


def greedy_tokens_by_hand(model, ids, max_new_tokens, stop):
    n_prompt = len(ids)
    while len(ids) - n_prompt < max_new_tokens:
        with torch.no_grad():
            token = int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == stop:
            break
        ids = ids + [token]
    return ids[n_prompt:]


@pytest.fixture
def model(tiny_model_factory):
    # Wider weights than the default 0.02: logits far apart, so that the greedy choice is no coin toss.
    return tiny_model_factory(vocab_size=262, initializer_range=0.3, seed=1)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batched_answers_are_the_greedy_answers_computed_by_hand(model, tiny_tokenizer, batch_size):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    ids = [greedy_by_hand(model, tiny_tokenizer, prompt, 12, 0) for prompt in prompts]
    expected = [tiny_tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]
    assert len(set(expected)) >= 5  # the comparison means something
    assert generate_answers(model, tiny_tokenizer, prompts, batch_size, 12) == expected


def test_an_answer_ends_at_the_stop_token(model, tiny_tokenizer):
    prompt = [{"role": "user", "content": QUESTIONS[1]}]
    free = greedy_by_hand(model, tiny_tokenizer, prompt, 12, stop=-1)
    stop = next(token for token in free[4:] if token >= 6)
    expected = tiny_tokenizer.decode(free[: free.index(stop)], skip_special_tokens=True).strip()
    model.generation_config.eos_token_id = [stop]  # a checkpoint may name more stop tokens than its tokenizer
    assert generate_answers(model, tiny_tokenizer, [prompt], 1, 12) == [expected]


@pytest.mark.parametrize("name", ["glm_moe_dsa", "mixtral", "deepseek_v3", "gpt_oss"])
def test_a_question_read_once_gives_the_losses_and_answers_of_two_readings(name, tiny_tokenizer):
    # The last has a sliding window, which forgets keys: it is asked twice.
    model = build_tiny_family(FAMILIES[name]._replace(overrides={**FAMILIES[name].overrides, **OF_BYTES}))
    rows = rows_of(["yes", "a much longer answer", "ஆம்", "no", "42"])
    options = EvalConfig(batch_size=3, max_new_tokens=12)
    texts, loss, _ = ask_model(model, tiny_tokenizer, rows, options, {}, ReplyCache(":memory:"))
    prompts = [row["messages"][:-1] for row in rows]
    assert texts == generate_answers(model, tiny_tokenizer, prompts, 2, 12)
    asked = ask_rows(tiny_tokenizer, rows)
    assert loss and (loss.nll_nats == labelled_nll(model, asked.examples, 3)).all()
    assert (loss.n_bytes == asked.n_bytes).all()
    assert _keeps_keys_alone(model) is (name != "gpt_oss")


def test_a_question_whose_end_is_joined_to_its_answer_is_read_by_itself(model, tiny_tokenizer):
    asked = ask_rows(tiny_tokenizer, rows_of(["yes", "no", "42"]))
    # As where a tokenizer has one token for the template's last character and the answer's first.
    asked = asked._replace(questions=[question[:-1] + [100] for question in asked.questions])
    assert not reads_once(model, asked)
    settings = greedy(model, tiny_tokenizer)
    answers, nll_nats = answer_batch(model, tiny_tokenizer, asked, settings, 8, is_read_once=False)
    ids = [greedy_tokens_by_hand(model, question, 8, 0) for question in asked.questions]
    expected = [tiny_tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]
    assert [answer.text for answer in answers] == expected
    assert (nll_nats == labelled_nll(model, asked.examples, 3)).all()


@pytest.mark.parametrize("name", ["glm_moe_dsa", "gpt_oss", "nemotron_h", "minimax"])
def test_rows_that_leave_a_batch_early_change_no_answer(name, monkeypatch):
    # Full and sliding attention, states instead of keys, and a cache that rows cannot leave.
    model = build_tiny_family(FAMILIES[name])
    monkeypatch.setattr("eval.generate.ROUND_TOKENS", 3)
    prompts = [row.tokens for row in random_rows([5, 9, 12, 7])]
    input_BT, mask_BT = _pad_left(prompts, 0, model.device)
    free = _greedy_tokens(model, input_BT, mask_BT, greedy_settings([VOCABULARY]), 14)  # never stops
    stops = [free[0][2], free[2][7]]  # so that rows end in different rounds
    whole = GenerationConfig(do_sample=False, max_new_tokens=14, eos_token_id=stops, pad_token_id=0)
    output_BT = model.generate(input_ids=input_BT, attention_mask=mask_BT, generation_config=whole)
    expected = [_until_stop(row, stops) for row in output_BT[:, 12:].tolist()]
    assert len({len(answer) for answer in expected}) > 1
    assert _greedy_tokens(model, input_BT, mask_BT, greedy_settings(stops), 14) == expected


def greedy_settings(stops):
    named = {"eos_token_id": stops, "pad_token_id": 0, "return_dict_in_generate": True}
    return GenerationConfig(do_sample=False, **named)


def test_generation_config_of_a_checkpoint_cannot_turn_sampling_on(model, tiny_tokenizer):
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    likeliest = generate_answers(model, tiny_tokenizer, prompts, 4, 8)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    assert generate_answers(model, tiny_tokenizer, prompts, 4, 8) == likeliest


def test_no_stop_token_is_an_error(model, tiny_tokenizer):
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    tokenizer.chat_template = tiny_tokenizer.chat_template
    model.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="stop token"):
        generate_answers(model, tokenizer, [[{"role": "user", "content": "a"}]], 1, 4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answer_loss_is_the_loss_of_the_answer_tokens_alone(model, tiny_tokenizer, batch_size):
    rows = rows_of(["yes", "a much longer answer", "ஆம்", "no", "42"])
    asked = ask_rows(tiny_tokenizer, rows)
    nll_nats = labelled_nll(model, asked.examples, batch_size)
    for i, row in enumerate(rows):
        ids = tiny_tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        n_answer = len(row["messages"][1]["content"].encode()) + 1  # one token a byte, and the stop token
        with torch.no_grad():
            log_probability = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        by_hand = -sum(float(log_probability[t - 1, ids[t]]) for t in range(len(ids) - n_answer, len(ids)))
        assert nll_nats[i] == pytest.approx(by_hand, rel=1e-4)
        assert asked.n_bytes[i] == n_answer - 1
    assert np.argsort(nll_nats)[-1] == 1  # the order of the rows is kept


def test_a_row_with_an_empty_answer_is_named(tiny_tokenizer):
    rows = rows_of(["yes", "", "no"])
    with pytest.raises(UserError, match="row 1"):
        ask_rows(tiny_tokenizer, rows)
