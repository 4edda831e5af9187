"""A tokenizer's chat template: what it writes around the messages, and where each message stands in it.

Reads the template of a tokenizer, which comes in as an argument; writes nothing.

What a message itself says is found by putting a character in its place that no text has and rendering again:
all that then changes belongs to that message, all else is the template's.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_recipes.artefact import UserError

Messages = Sequence[Mapping[str, Any]]

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# A noncharacter of Unicode: it is in no text that is meant to be exchanged, and no template strips it.
PLACEHOLDER = "\ufdd0"
# A message keeps these when its text is replaced: templates look a tool's answer up by them.
KEPT_KEYS = ("role", "name", "tool_call_id")
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with its chat template, and what holds for every conversation in it."""

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)  # passed to the template, as enable_thinking
    has_marks: bool = False  # {% generation %} says what is trained
    control_ids: frozenset[int] = frozenset()  # tokens that the template writes and no text should hold
    opening_id: int | None = None  # the control token that opens an assistant's turn
    closing_ids: tuple[int, ...] = ()  # control tokens that the template itself writes after a last answer
    after_answer: int | None = None  # the one after an answer that a user's message follows
    after_call: int | None = None  # the one after a turn that a tool's answer follows

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered text, as the tokenizer's own apply_chat_template makes them."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, each alone: one call costs little more than one text does."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def render(self, messages: Messages, tools: Any = None, asks: bool = False) -> str:
        """The conversation as text; `asks` adds the generation prompt.

        Raises: UserError when the template refuses it.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=asks, **self.options
            )
        except Exception as error:  # Jinja's own errors, and TypeError or ValueError from inside a template
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = " ".join(str(message.get("role")) for message in messages)
            raise UserError(f"the chat template refuses the roles {roles}: {reason}") from error

    def region(
        self, messages: Messages, tools: Any, number: int, text: str, asks: bool = False
    ) -> tuple[int, int] | None:
        """Start and end, in characters, of what message `number` says in `text`; None when it is left out.

        `text` is the rendered conversation. Thinking and tool calls belong to what a message says.
        """
        kept = {key: messages[number][key] for key in KEPT_KEYS if messages[number].get(key) is not None}
        # Templates of models that also see images take a text in parts only.
        in_parts = isinstance(messages[number].get("content"), list | tuple)
        content = [{"type": "text", "text": PLACEHOLDER}] if in_parts else PLACEHOLDER
        replaced = [*messages[:number], {**kept, "content": content}, *messages[number + 1 :]]
        other = self.render(replaced, tools, asks)
        if PLACEHOLDER not in other:
            return None
        start = n_shared(text, other)
        n_after = min(n_shared(text[::-1], other[::-1]), len(text) - start)
        return start, len(text) - n_after

    def leaves_thinking_out(self, messages: Messages, tools: Any, number: int) -> bool:
        """Whether message `number` has thinking, in its own field or in the content, that is not shown."""
        message = messages[number]
        content = message.get("content")
        replaced = {key: PLACEHOLDER for key in THINKING_KEYS if message.get(key)}
        if not replaced and isinstance(content, str) and "</think>" in content:
            replaced = {"content": f"<think>{PLACEHOLDER}</think>{content.partition('</think>')[2]}"}
        if not replaced:
            return False
        others = [*messages[:number], {**message, **replaced}, *messages[number + 1 :]]
        return PLACEHOLDER not in self.render(others, tools)

    def first_control(self, ids: Iterable[int]) -> int | None:
        """The first control token among `ids`."""
        return next((token for token in ids if token in self.control_ids), None)


def read_template(tokenizer: Any, options: Mapping[str, Any] | None = None) -> ChatTemplate:
    """Find out what holds for every conversation: the marks, the control tokens, and what ends a turn.

    Raises: UserError when there is no chat template, or one that cannot render a question and an answer.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, so nothing says how the base is asked: "
            "set tokenizer.chat_template to the one the base was trained with"
        )
    text = str(tokenizer.chat_template)
    control_ids = frozenset(
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        # Gemma has runs of white space among its added tokens, and templates hold some.
        if token.special or (token.content in text and not token.content.isspace())
    )
    bare = ChatTemplate(tokenizer, options or {}, bool(GENERATION_MARK.search(text)), control_ids)
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}
    asked, opened = bare.render([question]), bare.render([question], asks=True)
    closing = bare.encode(bare.render([question, answer]).rpartition(PLACEHOLDER)[2])
    return replace(
        bare,
        opening_id=bare.first_control(bare.encode(opened[n_shared(asked, opened) :])),
        closing_ids=tuple(token for token in closing if token in control_ids),
        after_answer=_control_between(bare, [question, answer, {"role": "user", "content": PLACEHOLDER}]),
        after_call=_control_between(bare, [question, answer, {"role": "tool", "content": PLACEHOLDER}]),
    )


def stop_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens a model stops at: those of its generation config and the tokenizer's end of text."""
    of_model = getattr(generation_config, "eos_token_id", None)
    named = [*(of_model if isinstance(of_model, list) else [of_model]), tokenizer.eos_token_id]
    return frozenset(token for token in named if token is not None)


def n_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two texts or lists share from their start on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def message_texts(message: Mapping[str, Any]) -> list[str]:
    """Every text that somebody wrote into a message: content, thinking, names and values of tool calls."""
    return [text for key, value in message.items() if key != "role" for text in _strings(value)]


def _control_between(template: ChatTemplate, messages: Messages) -> int | None:
    """The first control token between two placeholders; None when the template refuses such a chat."""
    try:
        parts = template.render(messages).split(PLACEHOLDER)
    except UserError:
        return None
    return template.first_control(template.encode(parts[1])) if len(parts) == 3 else None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for part in value.items() for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []
