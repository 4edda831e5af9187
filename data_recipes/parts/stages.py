"""What each stage does with the rows of one part: functions of one task, for any engine.

A task reads the file of a part and writes that of the part after it. What is large or slow to make (an index
of test sets, a tokenizer) is read once a process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data_recipes.chats.chat_mask import ChatMask
from data_recipes.chats.control_tokens import without_control_tokens
from data_recipes.chats.mask_audit import audited_mask
from data_recipes.parts.contaminated import outside_test_texts
from data_recipes.parts.part_files import Part, Summary, finish_part, read_rows, write_part
from data_recipes.parts.tokenizers import Tokenizer, load_template
from data_recipes.pii.step import PiiOptions, remove_pii
from data_recipes.pii.surrogates import read_or_make_key
from data_recipes.recipe import ChatConfig
from data_recipes.screening.candidates import save_signatures
from data_recipes.screening.duplicates import Duplicate, DuplicateOptions, signatures, without_duplicates
from data_recipes.screening.licences import LicenceOptions, check_licences
from data_recipes.steps import Rejected, Row
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.document import kept_spans
from data_recipes.translate.options import TranslateOptions
from data_recipes.translate.step import open_teacher, translate_rows
from data_recipes.variants.step import make_variants
from data_recipes.writing.normalisation import TextPolicy
from data_recipes.writing.text_step import normalise_rows

# Samples of these stages show what they changed.
CHANGING = ("text", "pii", "translate", "variants", "chat")


@dataclass(frozen=True)
class PartTask:
    """One part for one stage. `setting` is all that the stage needs to know."""

    before: Part
    after: Part
    setting: Any


@dataclass(frozen=True)
class PiiSetting:
    """What is taken out, and the file of the surrogates' key: never the key itself."""

    options: PiiOptions
    key_file: str


@dataclass(frozen=True)
class TranslateSetting:
    """How rows are translated. The cache is a file, or ":memory:" for a teacher that costs nothing."""

    options: TranslateOptions
    cache: str


@dataclass(frozen=True)
class ChatSetting:
    """The tokenizer and what holds for the rows."""

    config: ChatConfig
    tokenizer: Tokenizer


def run_stage(task: PartTask) -> Summary:
    """Make one part of another: the function that an engine runs."""
    stage = task.after.stage
    rows = read_rows(task.before.rows)
    made = STEPS[stage](rows, task.setting)
    before = task.before if stage in CHANGING else None
    return finish_part(task.after, write_part(task.after, made, before))


def sign_part(task: PartTask) -> Summary:
    """Write the signatures and the ids of the rows of a part, for the search of duplicates."""
    ids: list[str] = []

    def noted() -> Iterator[Row]:
        for row in read_rows(task.before.rows):
            ids.append(str(row["id"]))
            yield row

    save_signatures(signature_file(task.after), signatures(noted(), task.setting))
    return finish_part(task.after, {"ids": ids})


def signature_file(part: Part) -> str:
    """The file of a part's signatures."""
    return f"{part.name}.npy"


@dataclass(frozen=True)
class DuplicateSetting:
    """What was found of one part: (id, kind, id of the row that stays)."""

    options: DuplicateOptions
    found: tuple[tuple[str, Any, str], ...]


def _licences(rows: Iterable[Row], options: LicenceOptions) -> Iterator[Row | Rejected]:
    return check_licences(rows, options)


def _text(rows: Iterable[Row], policy: TextPolicy) -> Iterator[Row | Rejected]:
    return normalise_rows(rows, policy, kept_spans)


def _pii(rows: Iterable[Row], setting: PiiSetting) -> Iterator[Row | Rejected]:
    is_secret = setting.options.action == "surrogate"
    return remove_pii(rows, setting.options, read_or_make_key(setting.key_file) if is_secret else None)


def _duplicates(rows: Iterable[Row], setting: DuplicateSetting) -> Iterator[Row | Rejected]:
    found = {row_id: Duplicate(kind, kept) for row_id, kind, kept in setting.found}
    return without_duplicates(rows, found, setting.options)


def _translate(rows: Iterable[Row], setting: TranslateSetting) -> Iterator[Row | Rejected]:
    """Translate the rows in the source language; those in others, as of a catalogue, pass in their place."""
    order: deque[Row | None] = deque()  # None stands for a row that is being translated

    def in_source_language() -> Iterator[Row]:
        for row in rows:
            is_source = row["language"] == setting.options.source
            order.append(None if is_source else row)
            if is_source:
                yield row

    with ReplyCache(setting.cache) as replies, open_teacher(setting.options, replies) as teacher:
        for made in translate_rows(in_source_language(), setting.options, teacher, replies):
            while (other := order.popleft()) is not None:
                yield other
            yield made
    yield from (row for row in order if row is not None)


def _chat(rows: Iterable[Row], setting: ChatSetting) -> Iterator[Row | Rejected]:
    template = load_template(setting.tokenizer, setting.config.thinking)
    for row in without_control_tokens(rows, template, setting.config.control_tokens):
        if not isinstance(row, Rejected):
            mask, problems = audited_mask(template, row, setting.config.max_length_tokens)
            if problems:
                row = Rejected(str(row["id"]), "chat", problems[0].kind, problems[0].detail)
            else:
                row = {**row, "mask": mask_counts(mask)}
        yield row


def mask_counts(mask: ChatMask) -> dict[str, int]:
    """Return how many tokens a row has, and how many of them are trained."""
    return {"n_tokens": len(mask.ids), "n_trained": sum(mask.is_trained)}


STEPS: dict[str, Callable[[Iterable[Row], Any], Iterator[Row | Rejected]]] = {
    "licences": _licences,
    "text": _text,
    "pii": _pii,
    "duplicates": _duplicates,
    "translate": _translate,
    "variants": make_variants,
    "contamination": outside_test_texts,
    "chat": _chat,
}
