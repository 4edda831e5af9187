"""The last stage: rows become records of the dataset, and are counted for the manifest.

A task reads the file of a part and writes that of the finished part; its summary holds sums that add up over
parts, so that no manifest needs all rows at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_recipes.chats.chat_template import ChatTemplate, message_texts
from data_recipes.chats.mask_audit import audited_mask
from data_recipes.languages import language
from data_recipes.parts.part_files import Summary, draw, finish_part, read_rows, root_id, write_part
from data_recipes.parts.splitting import Shares, split_of_row
from data_recipes.parts.stages import PartTask, mask_counts
from data_recipes.parts.tokenizers import Tokenizer, load_template, load_tokenizer
from data_recipes.pii.step import count_pii
from data_recipes.records import as_record
from data_recipes.steps import Rejected, Row
from data_recipes.tasks import REFERENCE, canonical
from data_recipes.variants.options import VariantOptions
from data_recipes.variants.step import count_mix
from data_recipes.writing.graphemes import graphemes, words

STAGE = "finish"
N_SHOWN = 3  # rows of each written form in samples.json


@dataclass(frozen=True)
class FinishSetting:
    """How source rows are split and named, and the tokenizer to count with."""

    target_languages: tuple[str, ...]
    shares: Shares
    tokenizer: Tokenizer | None
    thinking: bool | None
    variants: VariantOptions | None


def finish_part_task(task: PartTask) -> Summary:
    """Make the records of a part, and the sums of what is in them."""
    counter = Counts(task.setting)
    summary = write_part(task.after, _finished(task, counter))
    return finish_part(task.after, summary | counter.summary())


def _finished(task: PartTask, counter: Counts) -> Iterator[Row | Rejected]:
    setting: FinishSetting = task.setting
    for row in read_rows(task.before.rows):
        split = split_of_row(row, setting.shares)
        if "split" not in row:
            row = row | _told(row, setting)
            if split == "test":
                answer = row["messages"][-1]
                if answer.get("role") != "assistant" or not isinstance(answer.get("content"), str):
                    yield Rejected(row["id"], STAGE, "a test row without an answer in text", "")
                    continue
                row |= {"checker": REFERENCE, "value": canonical({"answer": answer["content"]})}
        row = row | {"form": row.get("form") or _form(row)}
        record = as_record(row)
        counter.add(row, record, split)
        yield {"split": split, "record": record}


def _told(row: Row, setting: FinishSetting) -> Row:
    """What a source row is called where the rows of locale tasks have a task."""
    is_target = not setting.target_languages or row["language"] in setting.target_languages
    return {
        "task": "translation" if "pair" in row else "instruction",
        "kind": "generalise",
        "group": "target" if is_target else "general",
        "phrasing": None,
        "value": None,
        "checker": None,
    }


def _form(row: Row) -> str:
    is_romanised = row["script"] == "Latn" and language(row["language"]).script != "Latn"
    return "romanised" if is_romanised else "native"


class Counts:
    """Sums over the rows of a part."""

    def __init__(self, setting: FinishSetting) -> None:
        self._tokenizer = load_tokenizer(setting.tokenizer) if setting.tokenizer else None
        self._template: ChatTemplate | None = None
        if setting.tokenizer and self._tokenizer is not None and self._tokenizer.chat_template:
            self._template = load_template(setting.tokenizer, setting.thinking)
        self._n_rows: Counter[str] = Counter()
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._languages: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._licences: Counter[str] = Counter()
        self._variants, self._mix = setting.variants, Counter[str]()
        self._sources: dict[str, dict[str, Any]] = {}
        self._pii: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._masks: Counter[str] = Counter()
        self._longest = 0
        self._shown: defaultdict[str, list[Any]] = defaultdict(list)

    def add(self, row: Row, record: dict[str, Any], split: str) -> None:
        """Count one row."""
        tag = f"{row['language']}-{row['script']}"
        self._n_rows[split] += 1
        self._counts[split][f"{row['language']}/{row['task']}"] += 1
        self._licences[row["licence"]] += 1
        if self._variants:
            self._mix.update(count_mix(row, self._variants))
        texts = [text for message in row["messages"] for text in message_texts(message)]
        sums = self._languages[tag]
        sums["rows"] += 1
        sums["messages"] += len(row["messages"])
        sums["words"] += sum(len(words(text)) for text in texts)
        sums["graphemes"] += sum(len(graphemes(text)) for text in texts)
        if self._tokenizer is not None and texts:
            ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
            sums["tokens"] += sum(map(len, ids))
        if self._template is not None:
            # Counted already by the stage `chat`, which a recipe without a tokenizer has not.
            counted = row.get("mask") or mask_counts(audited_mask(self._template, row)[0])
            self._masks.update(counted)
            self._longest = max(self._longest, counted["n_tokens"])
        for kind, by_language in count_pii([row]).items():
            self._pii[kind].update(by_language)
        self._add_source(row)
        self._shown[tag].append((draw(root_id(row)), row["id"], {**record, "messages": row["messages"]}))
        self._shown[tag] = sorted(self._shown[tag], key=lambda item: item[:2])[:N_SHOWN]

    def _add_source(self, row: Row) -> None:
        said = {name: row[name] for name in ("revision", "licence", "licence_from", "attribution")}
        found = self._sources.setdefault(row["source"], {**said, "n_rows": 0})
        found["n_rows"] += 1

    def summary(self) -> Summary:
        """The sums as plain JSON."""
        return {
            "n_rows": dict(self._n_rows),
            "counts": {split: dict(found) for split, found in self._counts.items()},
            "languages": {tag: dict(found) for tag, found in self._languages.items()},
            "licences": dict(self._licences),
            "mix": dict(self._mix),
            "sources": self._sources,
            "pii": {kind: dict(found) for kind, found in self._pii.items()},
            "masks": {**self._masks, "longest": self._longest} if self._template is not None else None,
            "shown": {tag: [list(item) for item in found] for tag, found in self._shown.items()},
        }
