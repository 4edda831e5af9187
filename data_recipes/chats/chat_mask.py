"""A conversation as token ids, and which are trained: the answers, each with the token that ends it.

Reads messages through a chat template; writes nothing.

A template with {% generation %} marks says itself what is trained. Most have none (GLM-5.2's own, and most on
the Hub). There an assistant's turn is found by rendering again:

- It starts where the prompt ends that the model would be asked with: the messages before it and the
  generation prompt. GLM and Qwen render the past in another way than the present (earlier thinking is left
  out); then the prompt is compared from the end of the message before the turn on, and what is trained is
  what the whole conversation has there.
- It ends with the first control token after what the turn says. In ChatML that is <|im_end|>. In GLM it is
  the NEXT turn's role token, <|user|> after an answer and <|observation|> after a tool call: the tokens GLM
  stops at. GLM's template writes nothing after the last turn, so it is appended there: a stop token that is
  never trained never comes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import PLACEHOLDER, ChatTemplate, Messages, message_texts, n_shared

FindingKind = Literal["nothing_trained", "untrained_stop", "prompt_trained", "other_opening"]


class Finding(NamedTuple):
    """What is wrong with a mask."""

    kind: FindingKind
    detail: str


class Turn(NamedTuple):
    """An assistant's turn, in tokens."""

    message: int  # its number in the conversation, from 0
    prompt_end: int  # the tokens before it are given to the model
    start: int  # first trained token; after prompt_end where the template left the turn's thinking out
    end: int  # after the token that ends the turn
    stop: int | None  # that token; None when nothing ends the turn


class Span(NamedTuple):
    """Neighbouring tokens of one kind."""

    role: str  # of the message that says them; "template" for what the template adds
    start: int
    end: int
    is_trained: bool


class ChatMask(NamedTuple):
    """A conversation as the trainer sees it."""

    ids: list[int]
    is_trained: list[bool]
    turns: list[Turn]
    findings: list[Finding]


class _Rendered(NamedTuple):
    """A conversation and what was made of it."""

    template: ChatTemplate
    messages: Messages
    tools: Any
    text: str
    ids: list[int]

    def region(self, number: int) -> tuple[int, int] | None:
        return self.template.region(self.messages, self.tools, number, self.text)

    def n_tokens(self, n_characters: int) -> tuple[int, bool]:
        """How many tokens stand wholly before a character, and whether one ends just there.

        Found by tokenizing what comes before: that is what the model is given when it is asked.
        """
        before = self.template.encode(self.text[:n_characters])
        n_same = n_shared(before, self.ids)
        return n_same, n_same == len(before)


def chat_mask(template: ChatTemplate, messages: Messages, tools: Any = None) -> ChatMask:
    """Token ids of a conversation and which of them are trained; what is wrong with it is in `findings`.

    Raises: UserError when prompt and answer cannot be told apart.
    """
    if any(PLACEHOLDER in text for message in messages for text in message_texts(message)):
        raise UserError("it holds U+FDD0, a noncharacter that marks places here: take it out of the text")
    if nameless := [number for number, message in enumerate(messages) if not message.get("role")]:
        raise UserError(f"message {nameless[0] + 1} has no role: give it user, assistant, system or tool")
    text = template.render(messages, tools)
    ids, is_trained = (
        _marked(template, messages, tools) if template.has_marks else (template.encode(text), [])
    )
    chat = _Rendered(template, messages, tools, text, ids)
    findings: list[Finding] = []
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [_turn(chat, number, findings) for number in answers]
    if template.has_marks:
        findings += _findings_of_marks(template, ids, is_trained, turns)
    else:
        appended = [turn.stop for turn in turns[-1:] if turn.end > len(ids) and turn.stop is not None]
        ids = [*ids, *appended]
        trained = {position for turn in turns for position in range(turn.start, turn.end)}
        is_trained = [position in trained for position in range(len(ids))]
        findings += [
            Finding("untrained_stop", _no_stop(messages, turn)) for turn in turns if turn.stop is None
        ]
    if not answers:
        findings.append(Finding("nothing_trained", "it has no assistant message"))
    elif empty := [number for number in answers if not _says_anything(messages[number])]:
        findings.append(Finding("nothing_trained", f"message {empty[0] + 1}, the assistant's, is empty"))
    elif not any(is_trained[1:]):  # the first token of a row has nothing to be predicted from
        findings.append(Finding("nothing_trained", "the template's marks leave the answer out"))
    return ChatMask(ids, is_trained, turns, findings)


def role_spans(template: ChatTemplate, mask: ChatMask, messages: Messages, tools: Any = None) -> list[Span]:
    """All tokens of a mask in order, cut where the role changes or where training starts or ends."""
    text = template.render(messages, tools)
    chat = _Rendered(template, messages, tools, text, template.encode(text))
    roles = ["template"] * len(mask.ids)
    for number, message in enumerate(messages):
        start, end = (chat.n_tokens(place)[0] for place in chat.region(number) or (0, 0))
        roles[start:end] = [str(message["role"])] * (end - start)
    spans: list[Span] = []
    for position, (role, trained) in enumerate(zip(roles, mask.is_trained, strict=True)):
        role = "assistant" if trained and role == "template" else role
        if spans and (spans[-1].role, spans[-1].is_trained) == (role, trained):
            spans[-1] = spans[-1]._replace(end=position + 1)
        else:
            spans.append(Span(role, position, position + 1, trained))
    return spans


def _turn(chat: _Rendered, number: int, findings: list[Finding]) -> Turn:
    """Where the assistant's turn `number` stands; adds what is wrong with its start to `findings`."""
    template, message, is_last = chat.template, chat.messages[number], number + 1 == len(chat.messages)
    said, next_start = chat.region(number), len(chat.text)
    if said is None:
        raise UserError(f"the chat template leaves out message {number + 1}, the assistant's")
    if not is_last:
        following = chat.region(number + 1)
        if following is None or following[0] < said[1]:
            raise UserError(f"the chat template does not write message {number + 2} after the one before it")
        next_start = following[0]
    prompt_end, other_opening = _prompt_end(chat, number, said[0])
    n_prompt, is_clean = chat.n_tokens(prompt_end)
    if other_opening and all(later["role"] != "user" for later in chat.messages[number:]):
        findings.append(Finding("other_opening", other_opening))
    elif not other_opening and not is_clean:
        shown = template.tokenizer.decode(chat.ids[n_prompt : n_prompt + 1])
        findings.append(
            Finding("prompt_trained", f"token {shown!r} holds the prompt's end and the answer's start")
        )
    start = n_prompt
    if template.leaves_thinking_out(chat.messages, chat.tools, number):
        start = chat.n_tokens(said[0])[0]  # to train the empty block in its place is to unlearn thinking
    n_said = chat.n_tokens(said[1])[0]
    last = len(chat.ids) if is_last else chat.n_tokens(next_start)[0]
    stops = [place for place in range(n_said, last) if chat.ids[place] in template.control_ids]
    if stops:
        # Cohere closes a turn with two control tokens; Llama goes on at once with the next turn's.
        closes = (
            tuple(chat.ids[place] for place in stops[: len(template.closing_ids)]) == template.closing_ids
        )
        place = stops[max(len(template.closing_ids), 1) - 1] if closes else stops[0]
        stop, end = chat.ids[place], place + 1
    else:  # nothing follows: what would follow is appended
        stop = template.after_call if message.get("tool_calls") else template.after_answer
        stop = stop if is_last else None
        end = len(chat.ids) + 1
    if stop is None or stop == template.opening_id:
        return Turn(number, n_prompt, start, n_said, None)
    return Turn(number, n_prompt, start, end, stop)


def _prompt_end(chat: _Rendered, number: int, said_start: int) -> tuple[int, str]:
    """Where the prompt of a turn ends in the conversation, and how the turn opens otherwise, if it does."""
    if number == 0:
        return said_start, ""  # nothing is asked: what the template writes before it is given
    template, earlier = chat.template, chat.messages[:number]
    prompt = template.render(earlier, chat.tools, asks=True)
    if chat.text.startswith(prompt):
        return len(prompt), ""
    before = chat.region(number - 1)
    asked = template.region(earlier, chat.tools, number - 1, prompt, asks=True)
    if before is None or asked is None:
        raise UserError(f"the chat template leaves out message {number}, and the answer's start with it")
    opening, written = prompt[asked[1] :], chat.text[before[1] :]
    n_same = n_shared(opening, written)
    if n_same == len(opening):
        return before[1] + n_same, ""
    return before[1] + n_same, (
        f"the model is asked with {opening!r}, the row has {chat.text[before[1] : said_start]!r}"
    )


def _marked(template: ChatTemplate, messages: Messages, tools: Any) -> tuple[list[int], list[bool]]:
    encoded = template.tokenizer.apply_chat_template(
        list(messages),
        tools=tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **template.options,
    )
    return list(encoded["input_ids"]), [bool(mark) for mark in encoded["assistant_masks"]]


def _findings_of_marks(
    template: ChatTemplate, ids: Sequence[int], is_trained: Sequence[bool], turns: Sequence[Turn]
) -> list[Finding]:
    """What marks of the template train too much or too little. White space after a stop token is harmless."""
    findings, outside = [], set(range(len(ids)))
    for turn in turns:
        inside = range(turn.prompt_end, min(turn.end, len(ids)))
        outside -= set(inside)
        own = [ids[position] for position in inside if is_trained[position]]
        if own and own[-1] not in template.control_ids:
            shown = template.tokenizer.decode([own[-1]])
            findings.append(Finding("untrained_stop", f"the last trained token is {shown!r}, no stop token"))
    foreign = template.tokenizer.decode([ids[place] for place in sorted(outside) if is_trained[place]])
    if foreign.strip():
        findings.append(Finding("prompt_trained", f"{foreign[:60]!r} is marked and is no answer"))
    return findings


def _no_stop(messages: Messages, turn: Turn) -> str:
    if messages[turn.message + 1 : turn.message + 2] and messages[turn.message + 1]["role"] == "assistant":
        return f"message {turn.message + 1} is followed by another of the assistant's: join the two"
    return f"no control token ends message {turn.message + 1}"


def _says_anything(message: Mapping[str, Any]) -> bool:
    return any(text.strip() for text in message_texts(message))
