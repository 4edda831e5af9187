"""Random chats in GLM-4.5's style train what a renderer written by hand, turn by turn, says."""

import random
from typing import Any

import pytest
from chat_templates import GLM_45_STYLE, assistant, call, styled_tokenizer, tool, user

from data_recipes.chats.chat_mask import chat_mask
from data_recipes.chats.chat_template import read_template

ODD_TEXTS = (
    *("A", "AA", "assistant", "5", "think", "observation", "B\nB", "\nB", "f", "A <b>B</b>"),
    *("தேதி என்ன?", "हिन्दी में\n१२", "क्‍ष", "مئی", "👩‍🌾", "e\u0301"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return styled_tokenizer(GLM_45_STYLE)


def random_chat(generator: random.Random) -> list[dict[str, Any]]:
    def text() -> str:
        return " ".join(generator.choices(ODD_TEXTS, k=generator.randint(1, 3)))

    chat = [{"role": "system", "content": text()}] if generator.random() < 0.3 else []
    for _ in range(generator.randint(1, 3)):
        chat.append(user(text()))
        for _ in range(generator.randint(0, 2)):
            thinks = {"reasoning_content": text().strip()} if generator.random() < 0.5 else {}
            chat.append(assistant(generator.choice(["", text()]), tool_calls=[call("f", k=text())], **thinks))
            chat += [tool(text()) for _ in range(generator.randint(1, 2))]
        chat.append(assistant(text(), **({"reasoning_content": "R"} if generator.random() < 0.5 else {})))
    return chat


def trained_texts(chat: list[dict[str, Any]]) -> list[str]:
    """What GLM-4.5's style trains of a chat, written down turn by turn."""
    last_user = max(number for number, message in enumerate(chat) if message["role"] == "user")
    texts = []
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        thinking, content = message.get("reasoning_content"), message["content"]
        parts = [f"<think>{thinking if thinking and number > last_user else ''}</think>"]
        parts += [content.strip()] if content else []
        for made in message.get("tool_calls", []):
            value = made["function"]["arguments"]["k"]
            pair = f"<arg_key>k</arg_key>\n<arg_value>{value}</arg_value>"
            parts.append(f"<tool_call>f\n{pair}\n</tool_call>")
        # Thinking that is left out takes its empty block, and the line end after it, out of training.
        shown = "\n".join(parts[1:]) if thinking and number < last_user else "\n" + "\n".join(parts)
        texts.append(shown + ("<|observation|>" if message.get("tool_calls") else "<|user|>"))
    return texts


@pytest.mark.parametrize("seed", range(60))
def test_random_chats_train_the_answers_and_what_ends_them(tokenizer: Any, seed: int) -> None:
    chat = random_chat(random.Random(seed))
    mask = chat_mask(read_template(tokenizer), chat)
    assert mask.findings == []
    assert [tokenizer.decode(mask.ids[turn.start : turn.end]) for turn in mask.turns] == trained_texts(chat)
    in_turns = {place for turn in mask.turns for place in range(turn.start, turn.end)}
    assert [place in in_turns for place in range(len(mask.ids))] == mask.is_trained
