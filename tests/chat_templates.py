"""Small chat templates of our own in the styles that matter, and the tokenizer they are written for."""

from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

from finetune.config import SHIPPED_MODELS

# As GLM-4.5: line ends after role tokens, /nothink, an empty think block where there is no thinking, and no
# token after the last turn. No generation marks.
GLM_45_STYLE = (
    "[gMASK]<sop>"
    "{% if tools %}{{ '<|system|>\n' }}"
    "{% for tool in tools %}{{ tool.function.name + '\n' }}{% endfor %}{% endif %}"
    "{% set seen = namespace(user=-1) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{% set seen.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '<|user|>\n' + message.content }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '/nothink' }}{% endif %}"
    "{% elif message.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{% if loop.index0 > seen.user and message.reasoning_content %}"
    "{{ '\n<think>' + message.reasoning_content + '</think>' }}"
    "{% else %}{{ '\n<think></think>' }}{% endif %}"
    "{% if message.content %}{{ '\n' + message.content | trim }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{{ '\n<tool_call>' + call.function.name }}"
    "{% for key, value in call.function.arguments.items() %}"
    "{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' + value + '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}"
    "{% elif message.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|observation|>' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% else %}{{ '<|' + message.role + '|>\n' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n<think></think>' }}{% endif %}"
    "{% endif %}"
)
# As GLM-5: no line ends, and the model is asked with an open <think> unless thinking is off.
GLM_5_STYLE = (
    "[gMASK]<sop>"
    "{% set seen = namespace(user=-1) %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{% set seen.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{% if loop.index0 > seen.user and message.reasoning_content %}"
    "{{ '<think>' + message.reasoning_content }}{% endif %}{{ '</think>' + message.content }}"
    "{% elif message.role == 'tool' %}{{ '<|observation|>' + message.content }}"
    "{% else %}{{ '<|' + message.role + '|>' + message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}{% endif %}"
)
# As ChatML: a token of its own ends every turn, and a line end follows it.
CHATML_STYLE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|observation|>", "/nothink", "<|im_start|>", "<|im_end|>")
# In GLM's own tokenizer too these are added tokens and no special ones.
ADDED = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>", "<tool_response>", "</tool_response>"),
)


def styled_tokenizer(template: str) -> Any:
    """The shipped tokenizer with the control tokens that the templates above write, and one of them."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODELS["tiny-glm"])
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL], special_tokens=True
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    tokenizer.chat_template = template
    return tokenizer


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


def call(name: str, **arguments: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
