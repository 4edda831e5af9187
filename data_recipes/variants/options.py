"""The options of variants: how many rows are written in which way. Reads nothing, writes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_recipes.artefact import UserError
from data_recipes.variants.romanisation import is_romanised
from data_recipes.writing.written_forms import written_form

Form = Literal["native", "romanised", "code_mixed"]
FORMS: tuple[Form, ...] = ("native", "romanised", "code_mixed")


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """Each row is written in one form, drawn by a hash of the seed and the row it was made from.

    Of n rows a share p is met to within sqrt(p (1 - p) / n), its standard deviation.
    """

    native: float = 1.0  # shares of the rows, which add up to 1
    romanised: float = 0.0  # in Latin letters, as people type
    code_mixed: float = 0.0  # in their own script, words of the glossary in English
    roles: tuple[str, ...] = ("user", "assistant")  # whose messages; [user] keeps answers in the own script
    languages: tuple[str, ...] = ()  # codes; empty is every language that has the form
    glossary: Path | None = None  # English and own word in two columns (.csv, .tsv), of one language
    seed: int = 0

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = [f"{name}: must be from 0 to 1" for name in FORMS if not 0 <= getattr(self, name) <= 1]
        total = sum(getattr(self, name) for name in FORMS)
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            wrong.append(f"native: native, romanised and code_mixed must add up to 1, not {total:g}")
        if self.code_mixed and self.glossary is None:
            wrong.append("glossary: code_mixed needs the file of words that are said in English")
        if not self.roles:
            wrong.append("roles: name at least one, as [user, assistant]")
        for code in self.languages:
            try:
                form = written_form(code)
            except UserError as error:
                wrong.append(f"languages: {error}")
                continue
            if self.romanised and not is_romanised(form):
                wrong.append(f"languages: unsupported: there is no romanisation of {form.tag}")
        return wrong
