"""Control tokens inside texts: `<|user|>` typed into a message becomes the role token, not its letters.

Reads rows and a chat template; writes nothing. A text that holds one is refused; it can also be escaped (a
space after the token's first sign, so that a reader still sees what it was) or rid of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import ChatTemplate, message_texts
from data_recipes.steps import Rejected, Row, with_transform

Policy = Literal["refuse", "escape", "strip"]
POLICIES = ("refuse", "escape", "strip")
STEP, VERSION = "control_tokens", 1


class Typed(NamedTuple):
    """A control token that a text holds."""

    message: int  # its number in the conversation, from 0
    role: str
    token: str


def typed_control_tokens(template: ChatTemplate, row: Mapping[str, Any]) -> list[Typed]:
    """Control tokens that the texts of a row's messages turn into, found by tokenizing each text alone.

    The assistant's own may hold those that are no special tokens: <think> and <tool_call> belong to it.
    """
    messages = row["messages"]
    texts = [(number, text) for number, message in enumerate(messages) for text in message_texts(message)]
    found: dict[Typed, None] = {}  # each once, in order
    for (number, _), ids in zip(texts, template.encode_all([text for _, text in texts]), strict=True):
        role = str(messages[number].get("role"))
        for token in (token for token in ids if token in template.control_ids):
            added = template.tokenizer.added_tokens_decoder[token]  # made anew each time: not for every row
            if role != "assistant" or added.special:
                found[Typed(number, role, added.content)] = None
    return list(found)


def without_control_tokens(
    rows: Iterable[Row], template: ChatTemplate, policy: Policy = "refuse"
) -> Iterator[Row | Rejected]:
    """A step: each row as it is, or without control tokens in its texts, or refused because of them.

    Raises: UserError for a policy that there is not.
    """
    if policy not in POLICIES:
        raise UserError(f"there is no policy {policy!r} for control tokens: use {', '.join(POLICIES)}")
    for row in rows:
        typed = typed_control_tokens(template, row)
        if not typed:
            yield with_transform(row, STEP, VERSION, {"policy": policy, "changed": 0})
            continue
        shown = ", ".join(dict.fromkeys(token.token for token in typed))
        if policy == "refuse":
            yield Rejected(row["id"], STEP, "control token in a text", shown)
            continue
        tokens = sorted({token.token for token in typed}, key=len, reverse=True)
        changed = {token.message for token in typed}
        messages = [
            {
                key: value if key == "role" else _changed(value, tokens, policy)
                for key, value in message.items()
            }
            if number in changed
            else message
            for number, message in enumerate(row["messages"])
        ]
        cleaned = {**row, "messages": messages}
        if typed_control_tokens(template, cleaned):
            yield Rejected(row["id"], STEP, "control token stays in a text", shown)
        else:
            yield with_transform(cleaned, STEP, VERSION, {"policy": policy, "changed": len(typed)})


def _changed(value: Any, tokens: list[str], policy: Policy) -> Any:
    if isinstance(value, str):
        for token in tokens:
            value = value.replace(token, "" if policy == "strip" else f"{token[0]} {token[1:]}")
        return value
    if isinstance(value, Mapping):
        return {key: _changed(part, tokens, policy) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(part, tokens, policy) for part in value]
    return value
