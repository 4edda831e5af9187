"""Templates without marks, rendered again, train what TRL's marked templates of the same families train.

Only with TRL installed (the `trl` extra): its templates are read as files. White space after a stop token,
which TRL's marks hold too, is left out of the comparison.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from chat_templates import assistant, call, tool, user
from conftest import build_tiny_tokenizer

from data_recipes.chats.chat_mask import chat_mask
from data_recipes.chats.chat_template import read_template

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(next(iter((SPEC and SPEC.submodule_search_locations) or ["."]))) / "chat_templates"
pytestmark = pytest.mark.skipif(SPEC is None, reason="TRL is not installed")

CONTROL = re.compile(r"<\|[^|<>]*\|>|</?[a-z_]{2,}>|\[gMASK\]|</?s>")
TOOLS = [{"type": "function", "function": {"name": "get", "description": "d", "parameters": {}}}]
CALL = assistant("", tool_calls=[call("get", city="Pune")])
CHATS = {
    "one turn": ([user("q"), assistant("ans")], None),
    "system": ([{"role": "system", "content": "s"}, user("q"), assistant("ans")], None),
    "two turns": ([user("q"), assistant("a one"), user("r"), assistant("b two")], None),
    "thinking": ([user("q"), assistant("a", reasoning_content="because")], None),
    "tool": ([user("q"), CALL, tool("31"), assistant("hot")], TOOLS),
    "ends with a call": ([user("q"), CALL], TOOLS),
}
WITH_TOOLS = ("glm4moe", "lfm2")
CASES = [
    (family, name)
    for family in (*WITH_TOOLS, "cohere2", "gemma3", "phi3")
    for name, (_, tools) in CHATS.items()
    if tools is None or family in WITH_TOOLS
]


def marked_text(tokenizer: Any, ids: list[int], is_trained: list[Any]) -> str:
    text = ""
    for token, own in zip(ids, is_trained, strict=True):
        text += f"⟦{tokenizer.decode([token])}⟧" if own else tokenizer.decode([token])
    return re.sub(r"⟧⟦", "", text).replace("\n⟧", "⟧\n")


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_tokens_that_trl_marks_are_trained(family: str, name: str) -> None:
    messages, tools = CHATS[name]
    plain, marked = (
        (FOLDER / f"{family}{ending}.jinja").read_text(encoding="utf-8") for ending in ("", "_training")
    )
    tokenizer: Any = build_tiny_tokenizer()
    tokenizer.add_tokens(sorted(set(CONTROL.findall(plain + marked))), special_tokens=True)
    tokenizer.chat_template = marked
    own: Any = tokenizer.apply_chat_template(
        messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer.chat_template = plain
    mask = chat_mask(read_template(tokenizer), messages, tools)
    assert mask.findings == []
    assert marked_text(tokenizer, mask.ids, mask.is_trained) == marked_text(
        tokenizer, own["input_ids"], own["assistant_masks"]
    )
