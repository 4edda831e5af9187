"""Records of instruction sets as messages: the forms of Alpaca and ShareGPT, and messages themselves.

Reads records (one dict each), writes nothing. A form is recognised by its keys; a record that fits none or
more than one is refused by name, because a guess would train on the wrong text.
"""

from __future__ import annotations

from typing import Any, Literal

Form = Literal["auto", "messages", "sharegpt", "alpaca"]
Message = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    **{role: role for role in _ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_FOLLOWS = {
    "the start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
# What a message may carry beside role and content, kept as it is for the chat template.
_KEPT_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content")


class NoMessages(ValueError):
    """A record that gives no row. `reason` is counted; `detail` names keys and places, never texts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def form_of(record: dict[str, Any]) -> Form:
    """Return the form whose keys a record has.

    Raises:
        NoMessages: it has those of none, or of several.
    """
    found: list[Form] = []
    for key in ("messages", "conversations", "conversation"):
        if record.get(key) is not None:
            found.append(_form_of_turns(record[key], key))
    if {"instruction", "output"} <= record.keys() and record["output"] is not None:
        found.append("alpaca")
    if len(found) == 1:
        return found[0]
    keys = _keys(record)
    if found:
        detail = f"its keys ({keys}) fit {' and '.join(found)}; set `form` or the keys of question and answer"
        raise NoMessages("fits more than one form", detail)
    raise NoMessages(
        "fits no form",
        f"its keys are {keys}, but a record needs messages (messages), conversations (sharegpt) or "
        "instruction and output (alpaca); for others set `question_key` and `answer_key`",
    )


def read_record(record: dict[str, Any], form: Form = "auto") -> tuple[str, list[Message]]:
    """Return the form of a record and its messages; the last one is the assistant's.

    Raises:
        NoMessages: a form that is unclear or does not fit, an unknown role, no text, turns out of order.
    """
    name = form_of(record) if form == "auto" else form
    messages = _from_alpaca(record) if name == "alpaca" else _from_turns(_turns(record, name), name)
    require_turns(messages)
    return name, messages


def read_pair(record: dict[str, Any], question_key: str, answer_key: str) -> list[Message]:
    """Return the two messages of a record whose keys the recipe names.

    Raises:
        NoMessages: a key is absent or holds no text.
    """
    question, answer = _text(record, question_key), _text(record, answer_key)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    require_turns(messages)
    return messages


def require_turns(messages: list[Message]) -> None:
    """Raise NoMessages unless the messages are a conversation that ends in an answer to learn."""
    before = "the start"
    for number, message in enumerate(messages, start=1):
        if message["role"] not in _FOLLOWS[before]:
            raise NoMessages("turns out of order", f"message {number} is {message['role']} after {before}")
        before = message["role"]
    if before != "assistant":
        raise NoMessages("no answer at the end", f"the last message is {before}'s")
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip() and not message.get("tool_calls"):
            raise NoMessages("an empty message", f"message {number} ({message['role']}) has no text")


def _form_of_turns(turns: Any, key: str) -> Form:
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict) and ("from" in first) != ("role" in first):
        return "sharegpt" if "from" in first else "messages"
    if isinstance(first, dict) and "from" in first:
        raise NoMessages("fits more than one form", f"the first turn under {key} has both `from` and `role`")
    raise NoMessages("fits no form", f"{key} must be a list of turns with `role` or `from`")


def _turns(record: dict[str, Any], form: str) -> list[Any]:
    keys = [key for key in ("messages", "conversations", "conversation") if isinstance(record.get(key), list)]
    fitting = [key for key in keys if record[key] and _form_of_turns(record[key], key) == form]
    if len(fitting) != 1:
        raise NoMessages("fits no form", f"{len(fitting)} of its keys hold turns in the form {form}, not one")
    return record[fitting[0]]


def _from_turns(turns: list[Any], form: str) -> list[Message]:
    role_key, text_key = ("from", "value") if form == "sharegpt" else ("role", "content")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or role_key not in turn:
            raise NoMessages("fits no form", f"turn {number} has no `{role_key}`")
        said = str(turn[role_key])
        roles = _SHAREGPT_ROLES if form == "sharegpt" else {role: role for role in _ROLES}
        if said not in roles:
            raise NoMessages(
                "an unknown role", f"turn {number} is from {said[:40]!r}; known are {', '.join(roles)}"
            )
        kept = {key: turn[key] for key in _KEPT_KEYS if turn.get(key) is not None}
        content = turn.get(text_key)
        if content is None and kept.get("tool_calls"):
            content = ""  # a call without words
        messages.append({"role": roles[said], "content": _content(content, number), **kept})
    return messages


def _content(content: Any, number: int) -> str:
    """The text of a message; a list of parts is joined when all of them are text."""
    if isinstance(content, list) and content:
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) == len(content) and all(isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        kind = "parts that are not text" if isinstance(content, list) else type(content).__name__
        raise NoMessages("content that is not text", f"turn {number} holds {kind}")
    return content


def _from_alpaca(record: dict[str, Any]) -> list[Message]:
    messages = [{"role": "system", "content": record["system"]}] if _optional(record, "system") else []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise NoMessages("content that is not text", "history must be a list of question and answer pairs")
    for number, pair in enumerate(history, start=1):
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        if not is_pair:
            raise NoMessages("content that is not text", f"item {number} of history is no pair of texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    extra = _optional(record, "input")
    # Stanford's template has English headings around the two; a blank line says as much in any language.
    question = _text(record, "instruction") + (f"\n\n{extra}" if extra.strip() else "")
    answer = {"role": "assistant", "content": _text(record, "output")}
    return [*messages, {"role": "user", "content": question}, answer]


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        what = f"holds {type(value).__name__}" if key in record else f"is not among {_keys(record)}"
        raise NoMessages("content that is not text", f"the key {key} {what}")
    return value


def _keys(record: dict[str, Any]) -> str:
    """The keys of a record for a message: they are its author's, and may be long and many."""
    return ", ".join(sorted(str(key)[:40] for key in record)[:12]) or "no keys"


def _optional(record: dict[str, Any], key: str) -> str:
    return _text(record, key) if record.get(key) is not None else ""
