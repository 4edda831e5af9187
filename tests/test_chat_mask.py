"""Which tokens of a conversation are trained: golden masks written by hand, token by token.

A golden mask is a row of pieces, tokens apart by spaces and a line end as ⏎; those in TRAINED are trained.
"""

from typing import Any, NamedTuple

import pytest
from chat_templates import (
    CHATML_STYLE,
    GLM_5_STYLE,
    GLM_45_STYLE,
    assistant,
    call,
    styled_tokenizer,
    tool,
    user,
)

from data_recipes.artefact import UserError
from data_recipes.chats.chat_mask import Span, chat_mask, role_spans
from data_recipes.chats.chat_template import read_template


class TRAINED(str):
    """Tokens that are trained."""


class Golden(NamedTuple):
    messages: list[dict[str, Any]]
    pieces: tuple[str, ...]
    options: dict[str, Any] = {}
    tools: Any = None


SYSTEM = {"role": "system", "content": "S"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
ASKED = "[gMASK] <sop> <|user|> ⏎ A <|assistant|>"
CALLED = "<tool_call> f ⏎ <arg_key> k </arg_key> ⏎ <arg_value> 7 </arg_value> ⏎ </tool_call> <|observation|>"
OBSERVED = "⏎ <tool_response> ⏎ 5 ⏎ </tool_response> <|assistant|>"
GLM_45_GOLDEN = {
    "one turn": Golden(
        [user("A"), assistant("B")],
        (ASKED, TRAINED("⏎ <think> </think> ⏎ B <|user|>")),
    ),
    "system and two turns": Golden(
        [SYSTEM, user("A"), assistant("B"), user("C"), assistant("D")],
        (
            "[gMASK] <sop> <|system|> ⏎ S <|user|> ⏎ A <|assistant|>",
            TRAINED("⏎ <think> </think> ⏎ B <|user|>"),
            "⏎ C <|assistant|>",
            TRAINED("⏎ <think> </think> ⏎ D <|user|>"),
        ),
    ),
    "ends with a question": Golden(
        [user("A"), assistant("B"), user("C")],
        (ASKED, TRAINED("⏎ <think> </think> ⏎ B <|user|>"), "⏎ C"),
    ),
    "tool call, observation and answer": Golden(
        [user("A"), assistant("", tool_calls=[call("f", k="7")]), tool("5"), assistant("B")],
        (
            "[gMASK] <sop> <|system|> ⏎ f ⏎ <|user|> ⏎ A <|assistant|>",
            TRAINED(f"⏎ <think> </think> ⏎ {CALLED}"),
            OBSERVED,
            TRAINED("⏎ <think> </think> ⏎ B <|user|>"),
        ),
        tools=TOOLS,
    ),
    "ends with a tool call": Golden(
        [user("A"), assistant("", tool_calls=[call("f", k="7")])],
        (ASKED, TRAINED(f"⏎ <think> </think> ⏎ {CALLED}")),
    ),
    "two observations of one call": Golden(
        [user("A"), assistant("", tool_calls=[call("f", k="7")]), tool("5"), tool("6"), assistant("B")],
        (
            ASKED,
            TRAINED(f"⏎ <think> </think> ⏎ {CALLED}"),
            "⏎ <tool_response> ⏎ 5 ⏎ </tool_response> ⏎ <tool_response> ⏎ 6 ⏎ </tool_response> <|assistant|>",
            TRAINED("⏎ <think> </think> ⏎ B <|user|>"),
        ),
    ),
    "thinking": Golden(
        [user("A"), assistant("B", reasoning_content="R")],
        (ASKED, TRAINED("⏎ <think> R </think> ⏎ B <|user|>")),
    ),
    "thinking is off": Golden(
        [user("A"), assistant("B"), user("C"), assistant("D")],
        (
            "[gMASK] <sop> <|user|> ⏎ A /nothink <|assistant|> ⏎ <think> </think>",
            TRAINED("⏎ B <|user|>"),
            "⏎ C /nothink <|assistant|> ⏎ <think> </think>",
            TRAINED("⏎ D <|user|>"),
        ),
        {"enable_thinking": False},
    ),
    # The template leaves the first turn's thinking out: its empty block is given, never taught.
    "earlier thinking is left out": Golden(
        [user("A"), assistant("B", reasoning_content="R"), user("C"), assistant("D", reasoning_content="E")],
        (
            f"{ASKED} ⏎ <think> </think> ⏎",
            TRAINED("B <|user|>"),
            "⏎ C <|assistant|>",
            TRAINED("⏎ <think> E </think> ⏎ D <|user|>"),
        ),
    ),
    # Here the messages before the second answer are rendered in another way alone than in the whole.
    "thinking around a tool is left out": Golden(
        [
            user("A"),
            assistant("", tool_calls=[call("f", k="7")], reasoning_content="R"),
            tool("5"),
            assistant("B", reasoning_content="E"),
            user("C"),
            assistant("D"),
        ],
        (
            f"{ASKED} ⏎ <think> </think> ⏎",
            TRAINED(CALLED),
            f"{OBSERVED} ⏎ <think> </think> ⏎",
            TRAINED("B <|user|>"),
            "⏎ C <|assistant|>",
            TRAINED("⏎ <think> </think> ⏎ D <|user|>"),
        ),
    ),
    "white space around an answer goes as the template says": Golden(
        [user("A"), assistant(" B ")],
        (ASKED, TRAINED("⏎ <think> </think> ⏎ B <|user|>")),
    ),
}
GLM_5_GOLDEN = {
    "thinking": Golden(
        [user("A"), assistant("B", reasoning_content="R")],
        ("[gMASK] <sop> <|user|> A <|assistant|> <think>", TRAINED("R </think> B <|user|>")),
    ),
    "thinking is off": Golden(
        [user("A"), assistant("B"), user("C"), assistant("D")],
        (
            "[gMASK] <sop> <|user|> A <|assistant|> </think>",
            TRAINED("B <|user|>"),
            "C <|assistant|> </think>",
            TRAINED("D <|user|>"),
        ),
        {"enable_thinking": False},
    ),
    "earlier thinking is left out": Golden(
        [user("A"), assistant("B", reasoning_content="R"), user("C"), assistant("D", reasoning_content="E")],
        (
            "[gMASK] <sop> <|user|> A <|assistant|> </think>",
            TRAINED("B <|user|>"),
            "C <|assistant|> <think>",
            TRAINED("E </think> D <|user|>"),
        ),
    ),
}
CHATML_GOLDEN = {
    "two turns": Golden(
        [user("A"), assistant("B"), user("C"), assistant("D")],
        (
            "<|im_start|> user ⏎ A <|im_end|> ⏎ <|im_start|> assistant ⏎",
            TRAINED("B <|im_end|>"),
            "⏎ <|im_start|> user ⏎ C <|im_end|> ⏎ <|im_start|> assistant ⏎",
            TRAINED("D <|im_end|>"),
            "⏎",
        ),
    ),
}
STYLES = {"glm-4.5": GLM_45_STYLE, "glm-5": GLM_5_STYLE, "chatml": CHATML_STYLE}
GOLDEN = [
    pytest.param(style, golden, id=f"{style}: {name}")
    for style, cases in (("glm-4.5", GLM_45_GOLDEN), ("glm-5", GLM_5_GOLDEN), ("chatml", CHATML_GOLDEN))
    for name, golden in cases.items()
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {style: styled_tokenizer(template) for style, template in STYLES.items()}


def words_of(tokenizer: Any, ids: list[int], is_trained: list[bool]) -> list[tuple[str, bool]]:
    """Tokens as text; those that are letters of one word are one (ChatML writes its roles as words)."""
    found: list[tuple[str, bool]] = []
    for token, trained in zip(ids, is_trained, strict=True):
        text = tokenizer.decode([token])
        if found and text.isalpha() and found[-1][0].isalpha() and found[-1][1] == trained:
            text = found.pop()[0] + text
        found.append((text, trained))
    return found


@pytest.mark.parametrize(("style", "golden"), GOLDEN)
def test_exactly_these_tokens_are_trained(tokenizers: dict[str, Any], style: str, golden: Golden) -> None:
    tokenizer = tokenizers[style]
    mask = chat_mask(read_template(tokenizer, golden.options), golden.messages, golden.tools)
    expected = [
        (word.replace("⏎", "\n"), isinstance(piece, TRAINED))
        for piece in golden.pieces
        for word in piece.split()
    ]
    assert words_of(tokenizer, mask.ids, mask.is_trained) == expected
    assert mask.findings == []


@pytest.mark.parametrize(("style", "golden"), GOLDEN)
def test_the_ids_are_the_templates_and_one_appended_stop_token_at_most(
    tokenizers: dict[str, Any], style: str, golden: Golden
) -> None:
    tokenizer = tokenizers[style]
    mask = chat_mask(read_template(tokenizer, golden.options), golden.messages, golden.tools)
    own = tokenizer.apply_chat_template(
        golden.messages, tools=golden.tools, return_dict=True, **golden.options
    )
    n_appended = len(mask.ids) - len(own["input_ids"])
    assert mask.ids[: len(own["input_ids"])] == own["input_ids"]
    assert n_appended == (style != "chatml" and golden.messages[-1]["role"] == "assistant")


def test_what_ends_a_turn_is_found_in_the_template(tokenizers: dict[str, Any]) -> None:
    found = {}
    for style, tokenizer in tokenizers.items():
        template = read_template(tokenizer)
        found[style] = tokenizer.convert_ids_to_tokens([template.after_answer, template.after_call])
    assert found["glm-4.5"] == ["<|user|>", "<|observation|>"]
    assert found["glm-5"] == ["<|user|>", "<|observation|>"]
    assert found["chatml"] == ["<|im_end|>", "<|im_end|>"]


def test_a_row_asked_with_an_open_think_block_that_it_does_not_have_is_found(
    tokenizers: dict[str, Any],
) -> None:
    mask = chat_mask(read_template(tokenizers["glm-5"]), [user("A"), assistant("B")])
    assert [finding.kind for finding in mask.findings] == ["other_opening"]
    assert "asked with '<|assistant|><think>', the row has '<|assistant|></think>'" in mask.findings[0].detail


def test_every_token_has_a_role(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["chatml"]
    template, messages = read_template(tokenizer), [user("A"), assistant("B")]
    mask = chat_mask(template, messages)
    spans = role_spans(template, mask, messages)
    texts = [
        (span.role, tokenizer.decode(mask.ids[span.start : span.end]), span.is_trained) for span in spans
    ]
    assert texts == [
        ("template", "<|im_start|>user\n", False),
        ("user", "A", False),
        ("template", "<|im_end|>\n<|im_start|>assistant\n", False),
        ("assistant", "B<|im_end|>", True),
        ("template", "\n", False),
    ]
    assert spans[0] == Span("template", 0, spans[1].start, False)


def findings_of(template: str, messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    mask = chat_mask(read_template(styled_tokenizer(template)), messages)
    return [(finding.kind, finding.detail) for finding in mask.findings]


MARKED = CHATML_STYLE.replace(
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}",
    "{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}",
)
TWO_TURNS = CHATML_GOLDEN["two turns"].messages


def test_marks_and_rendering_again_train_the_same_tokens(tokenizers: dict[str, Any]) -> None:
    by_marks = chat_mask(read_template(styled_tokenizer(MARKED)), TWO_TURNS)
    again = chat_mask(read_template(tokenizers["chatml"]), TWO_TURNS)
    assert "{% generation %}" in MARKED
    assert (by_marks.ids, by_marks.is_trained, by_marks.findings) == (again.ids, again.is_trained, [])


def test_thinking_inside_the_content_is_known_as_thinking() -> None:
    # As GLM's and Qwen's templates do: earlier answers lose what stands before </think>.
    template = CHATML_STYLE.replace(
        "message.content", "(message.content if loop.last else message.content.split('</think>')[-1])"
    )
    tokenizer = styled_tokenizer(template)
    chat = [user("A"), assistant("<think>R</think>B"), user("C"), assistant("<think>E</think>D")]
    mask = chat_mask(read_template(tokenizer), chat)
    texts = [tokenizer.decode(mask.ids[turn.start : turn.end]) for turn in mask.turns]
    assert texts == ["B<|im_end|>", "<think>E</think>D<|im_end|>"]


def test_marks_that_leave_the_stop_token_out_are_found() -> None:
    template = MARKED.replace(
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    assert findings_of(template, [user("A"), assistant("B")]) == [
        ("untrained_stop", "the last trained token is 'B', no stop token")
    ]


def test_marks_around_the_role_or_the_question_are_found() -> None:
    whole = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    whole = "{% generation %}" + whole + "{% endgeneration %}"
    found = dict(findings_of(whole, [user("A"), assistant("B")]))
    assert found["prompt_trained"].startswith(r"'<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n")
    header = MARKED.replace("{{ '<|im_start|>' + message.role + '\n' }}{% if", "{% if").replace(
        "{% generation %}", "{% generation %}{{ '<|im_start|>assistant\n' }}"
    )
    assert "prompt_trained" in dict(findings_of(header, [user("A"), assistant("B")]))


def test_marks_that_hold_no_answer_are_found() -> None:
    template = MARKED.replace(
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{% generation %}{% endgeneration %}{{ message.content + '<|im_end|>' }}",
    )
    assert findings_of(template, [user("A"), assistant("B")]) == [
        ("nothing_trained", "the template's marks leave the answer out")
    ]


def test_a_template_that_ends_no_turn_is_found() -> None:
    plain = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert ("untrained_stop", "no control token ends message 2") in findings_of(
        plain, [user("A"), assistant("B")]
    )


def test_two_answers_in_a_row_end_with_no_stop_token(tokenizers: dict[str, Any]) -> None:
    mask = chat_mask(read_template(tokenizers["glm-4.5"]), [user("A"), assistant("B"), assistant("C")])
    assert [tuple(finding) for finding in mask.findings] == [
        ("untrained_stop", "message 2 is followed by another of the assistant's: join the two")
    ]


def test_a_token_over_the_end_of_the_prompt_is_found() -> None:
    # The shipped tokenizer has " the" as one token: after "assistant: " a model could never begin with it.
    template = CHATML_STYLE.replace("message.role + '\n'", "message.role + ': '").replace(
        "assistant\n'", "assistant: '"
    )
    assert findings_of(template, [user("A"), assistant("the")]) == [
        ("prompt_trained", "token ' the' holds the prompt's end and the answer's start")
    ]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("A")], "it has no assistant message"),
        ([user("A"), assistant("")], "message 2, the assistant's, is empty"),
        ([user("A"), assistant(" \n")], "message 2, the assistant's, is empty"),
    ],
)
def test_nothing_to_train_is_found(tokenizers: dict[str, Any], messages: Any, reason: str) -> None:
    mask = chat_mask(read_template(tokenizers["glm-4.5"]), messages)
    assert ("nothing_trained", reason) in [tuple(finding) for finding in mask.findings]


def test_what_cannot_be_told_apart_is_refused(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="noncharacter"):
        chat_mask(read_template(tokenizers["glm-4.5"]), [user("\ufdd0"), assistant("B")])
    with pytest.raises(UserError, match="message 2 has no role"):
        chat_mask(read_template(tokenizers["glm-4.5"]), [user("A"), {"content": "B"}])
    deaf = CHATML_STYLE.replace("message.content", "('' if message.role == 'assistant' else message.content)")
    with pytest.raises(UserError, match="leaves out message 2, the assistant's"):
        chat_mask(read_template(styled_tokenizer(deaf)), [user("A"), assistant("B")])
    strict = "{% for message in messages %}{{ raise_exception('no!') }}{% endfor %}"
    with pytest.raises(UserError, match=r"refuses the roles user.*no!"):
        read_template(styled_tokenizer(strict))
    tokenizer = styled_tokenizer(CHATML_STYLE)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        read_template(tokenizer)


def test_a_text_in_parts_is_found_too(tokenizers: dict[str, Any]) -> None:
    either = "(message.content if message.content is string else message.content[0].text)"
    probe = CHATML_STYLE.replace("message.content", either)
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TWO_TURNS]
    mask = chat_mask(read_template(styled_tokenizer(probe)), parts)
    plain = chat_mask(read_template(tokenizers["chatml"]), TWO_TURNS)
    assert (mask.ids, mask.is_trained) == (plain.ids, plain.is_trained)
