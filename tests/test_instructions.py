"""Instruction sets are recognised by their keys, and a record that is unclear is refused by name."""

import pytest

from data_recipes.row_sources.instructions import NoMessages, form_of, read_pair, read_record


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
# The records of published sets have these shapes: tatsu-lab/alpaca, LLaMA-Factory's alpaca with history,
# anon8231489123/ShareGPT_Vicuna_unfiltered, HuggingFaceH4/ultrachat_200k, OpenAI's fine-tuning format.
RECOGNISED = [
    ({"instruction": "q", "input": "", "output": "a", "text": "Below is ..."}, "alpaca", [USER, ANSWER]),
    (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        "alpaca",
        turns(("user", "Add.\n\n1 2"), ("assistant", "3")),
    ),
    (
        {"instruction": "q2", "input": None, "output": "a2", "system": "s", "history": [["q1", "a1"]]},
        "alpaca",
        turns(("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")),
    ),
    (
        {"id": "x", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "sharegpt",
        [USER, ANSWER],
    ),
    ({"prompt": "q", "prompt_id": "1", "messages": [USER, ANSWER]}, "messages", [USER, ANSWER]),
    ({"conversations": [USER, ANSWER]}, "messages", [USER, ANSWER]),
    ({"messages": [USER, ANSWER], "conversations": None}, "messages", [USER, ANSWER]),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        "messages",
        [USER, ANSWER],
    ),
]


@pytest.mark.parametrize(("record", "form", "messages"), RECOGNISED)
def test_each_published_form_is_recognised_and_read(record, form, messages):
    assert form_of(record) == form
    assert read_record(record) == (form, messages)
    assert read_record(record, form) == (form, messages)


def test_tool_calls_are_kept_for_the_chat_template():
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
        ANSWER,
    ]
    _, found = read_record({"messages": messages})
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert found[2] == messages[2]


BOTH = {"instruction": "q", "output": "a", "messages": [USER, ANSWER]}
REFUSED = [
    (BOTH, "fits more than one form", r"\(instruction, messages, output\) fit messages and alpaca"),
    (
        {"messages": [USER, ANSWER], "conversations": [{"from": "human", "value": "q"}]},
        "fits more than one form",
        "messages and sharegpt",
    ),
    ({"messages": [{"role": "user", "from": "human"}]}, "fits more than one form", "both `from` and `role`"),
    (
        {"question": "q", "answer": "a"},
        "fits no form",
        "its keys are answer, question, .* set `question_key`",
    ),
    ({"instruction": "q"}, "fits no form", "its keys are instruction"),
    ({}, "fits no form", "its keys are no keys"),
    ({"messages": "q"}, "fits no form", "messages must be a list of turns"),
    ({"messages": []}, "fits no form", "messages must be a list of turns"),
    ({"messages": [USER, {"content": "a"}]}, "fits no form", "turn 2 has no `role`"),
    ({"messages": [USER, "a"]}, "fits no form", "turn 2 has no `role`"),
    ({"messages": [USER, {"role": "bot", "content": "a"}]}, "an unknown role", "turn 2 is from 'bot'"),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]},
        "an unknown role",
        "'function_call'",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": 5}]},
        "content that is not text",
        "turn 2 holds int",
    ),
    ({"messages": [USER, {"role": "assistant"}]}, "content that is not text", "turn 2 holds NoneType"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "content that is not text",
        "turn 1 holds parts that are not text",
    ),
    ({"instruction": 5, "output": "a"}, "content that is not text", "the key instruction holds int"),
    ({"instruction": "q", "output": "a", "input": ["x"]}, "content that is not text", "key input holds list"),
    (
        {"instruction": "q", "output": "a", "history": "x"},
        "content that is not text",
        "history must be a list",
    ),
    (
        {"instruction": "q", "output": "a", "history": [["x"]]},
        "content that is not text",
        "item 1 of history",
    ),
    ({"messages": [ANSWER]}, "turns out of order", "message 1 is assistant after the start"),
    ({"messages": [USER, USER, ANSWER]}, "turns out of order", "message 2 is user after user"),
    ({"messages": [USER, ANSWER, ANSWER]}, "turns out of order", "message 3 is assistant after assistant"),
    (
        {"messages": [USER, ANSWER, {"role": "system", "content": "s"}]},
        "turns out of order",
        "message 3 is system after assistant",
    ),
    ({"messages": [USER]}, "no answer at the end", "the last message is user's"),
    ({"messages": [USER, ANSWER, USER]}, "no answer at the end", "user's"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "an empty message", "message 2"),
    ({"instruction": "", "output": "a"}, "an empty message", "message 1"),
]


@pytest.mark.parametrize(("record", "reason", "detail"), REFUSED)
def test_what_is_unclear_is_refused_with_a_reason_and_a_place(record, reason, detail):
    with pytest.raises(NoMessages, match=detail) as raised:
        read_record(record)
    assert raised.value.reason == reason


def test_a_form_that_the_recipe_names_settles_what_is_unclear():
    assert read_record(BOTH, "messages")[0] == "messages"
    assert read_record(BOTH, "alpaca")[0] == "alpaca"
    with pytest.raises(NoMessages, match="0 of its keys hold turns in the form sharegpt"):
        read_record(BOTH, "sharegpt")


def test_two_keys_that_the_recipe_names_make_a_row_of_any_form():
    assert read_pair({"prompt": "q", "completion": "a"}, "prompt", "completion") == [USER, ANSWER]
    with pytest.raises(NoMessages, match="the key answer is not among completion, prompt"):
        read_pair({"prompt": "q", "completion": "a"}, "prompt", "answer")
