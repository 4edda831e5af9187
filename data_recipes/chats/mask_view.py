"""One row's mask to read, in a terminal and in a notebook: every token, by role, trained or not.

Reads a row through a chat template; writes nothing. Nothing depends on colour: what is trained has a mark in
the terminal, and is bold and underlined in the notebook.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_recipes.chats.chat_mask import ChatMask, Span, chat_mask, role_spans
from data_recipes.chats.chat_template import ChatTemplate

TRAINED, LINE_END = ">", "\u21b5"  # a newline is shown as an arrow, and broken


@dataclass(frozen=True)
class MaskView:
    """A row's mask; `str()` is for a terminal, a notebook shows it by itself."""

    row_id: str
    mask: ChatMask
    spans: list[Span]
    texts: list[str]  # of each span

    @property
    def title(self) -> str:
        """How long the row is and how much of it is trained."""
        return f"row {self.row_id}: {len(self.mask.ids)} tokens, {sum(self.mask.is_trained)} trained"

    def __str__(self) -> str:
        lines = [self.title]
        for span, text in zip(self.spans, self.texts, strict=True):
            mark = TRAINED if span.is_trained else " "
            shown = text.replace("\n", f"{LINE_END}\n").removesuffix("\n").split("\n")
            head = f"{mark} {span.end - span.start:>5}  {span.role:<10} "
            lines += [
                (head if number == 0 else f"{mark}{' ' * 19}") + line for number, line in enumerate(shown)
            ]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        parts = []
        for span, text in zip(self.spans, self.texts, strict=True):
            shown = html.escape(text).replace("\n", f"{LINE_END}\n")
            title = f"{span.role}, {span.end - span.start} tokens"
            style = "font-weight:bold;text-decoration:underline" if span.is_trained else "color:#595959"
            parts.append(f'<bdi title="{html.escape(title)}" style="{style}">{shown}</bdi>')
        return (
            f"<div><p>{html.escape(self.title)} (bold and underlined: trained)</p>"
            f'<pre style="white-space:pre-wrap">{"".join(parts)}</pre></div>'
        )


def show(template: ChatTemplate, row: Mapping[str, Any]) -> MaskView:
    """Render, tokenize and mask a row, to be looked at.

    Raises: UserError when prompt and answer cannot be told apart.
    """
    tools = row.get("tools") or None
    mask = chat_mask(template, row["messages"], tools)
    spans = role_spans(template, mask, row["messages"], tools)
    texts = [template.tokenizer.decode(mask.ids[span.start : span.end]) for span in spans]
    return MaskView(str(row["id"]), mask, spans, texts)
