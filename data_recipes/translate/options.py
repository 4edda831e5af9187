"""The options of a translation, each declared once; filled from YAML and "key=value" by `settings`.

Reads nothing, writes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_recipes.artefact import UserError
from data_recipes.settings import out_of_range
from data_recipes.translate.endpoint_options import EndpointConfig
from data_recipes.translate.masking import MASK_FORMS, Digits
from data_recipes.translate.verify import Policy
from data_recipes.writing.written_forms import native_digits, written_form

LEVELS = ("message", "paragraph", "sentence")


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A model of transformers on this machine."""

    model: str = ""  # folder or Hub id of a chat model, or of an encoder-decoder
    revision: str | None = None  # Hub commit, tag or branch; None is the default branch
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"  # a torch device name
    batch_size: int = 8  # requests; those with a temperature go one by one
    max_new_tokens: int = 1024

    def problems(self) -> list[str]:
        """Values no model can use, as "key: reason"."""
        return out_of_range({"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}, 1)


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """How the messages of rows are translated, and what a translation has to fulfil."""

    source: str = "en"  # BCP-47
    target: str  # BCP-47, with a script where it is not the language's own: "hi-Latn", "ks-Deva"
    teacher: Literal["endpoint", "local", "glossary"] = "endpoint"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    glossary: Path | None = None  # JSON {"source": "target"}, or two columns (.csv, .tsv)
    roles: tuple[str, ...] = ("system", "user", "assistant")  # whose messages; others stay as they are
    digits: Digits = "keep"  # numbers: kept byte for byte, in native digits, or as the teacher writes them
    mask_forms: tuple[str, ...] = MASK_FORMS[:3]  # tried in this order, one a try
    framed: bool = True  # a mark before and after what is sent, so that chatter is seen
    first_level: Literal["message", "paragraph", "sentence"] = "message"  # what is sent first
    n_tries: int = 2  # at each level, before a smaller one
    retry_temperature: float = 0.5  # of the second try and later ones; the first is at 0
    max_characters: int = 20_000  # a longer message is rejected
    max_sent_characters: int = 6_000  # a longer message is sent by paragraph from the start
    min_script_share: float = 0.7  # letters of the target's script in each paragraph's prose
    length_ratio: tuple[float, float] = (0.3, 3.5)  # letters of the target over the source's
    window: int = 64  # rows worked on at a time
    instruction: str = ""  # added to what the teacher is told, as "Use formal address."
    keep_source: bool = True  # keep the source messages in `parent`: contamination is looked for in them too
    seed: int = 0

    def problems(self) -> list[str]:
        """Values no translation can use, as "key: reason"."""
        wrong = []
        for key in ("source", "target"):
            try:
                written_form(getattr(self, key))
                if key == "target" and self.digits == "native":
                    native_digits(self.target)
            except UserError as error:
                wrong.append(f"{key}: {error}")
        if self.source == self.target:
            wrong.append("target: is the source language")
        names = ("n_tries", "max_characters", "max_sent_characters", "window")
        wrong += out_of_range({name: getattr(self, name) for name in names}, 1)
        wrong += out_of_range({"retry_temperature": self.retry_temperature, "seed": self.seed}, 0)
        bad = [
            form
            for form in self.mask_forms
            if form.count("{n}") != 1 or len(form) < 5 or re.search(r"[\s\d]", form)
        ]
        wrong += [
            f"mask_forms: {form!r} needs {{n}} once between signs, without digits or spaces" for form in bad
        ]
        if not self.mask_forms:
            wrong.append("mask_forms: name at least one")
        if not 0 <= self.min_script_share <= 1:
            wrong.append("min_script_share: must be from 0 to 1")
        if not 0 < self.length_ratio[0] < 1 < self.length_ratio[1]:
            wrong.append("length_ratio: must be a number below 1 and one above, as [0.3, 3.5]")
        return wrong + self._teacher_problems()

    def _teacher_problems(self) -> list[str]:
        # By the full name of the key: a section shown as a whole would show what must not be shown.
        needed = {"endpoint": ("base_url", "model"), "local": ("model",), "glossary": ()}[self.teacher]
        section = getattr(self, self.teacher)
        missing = [f"{self.teacher}.{name}: is missing" for name in needed if not getattr(section, name)]
        return missing + (["glossary: name the file"] if self.teacher == "glossary" and not section else [])

    def policy(self) -> Policy:
        """What a translation has to fulfil."""
        form = written_form(self.target)
        return Policy(
            script=form.script,
            digits=self.digits,
            system=form.digits or "latn",
            min_script_share=self.min_script_share,
            length_ratio=self.length_ratio,
            mask_forms=self.mask_forms,
        )
