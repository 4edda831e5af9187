"""The options of a recipe: which languages, tasks and sources, and what is done with their rows.

Reads configs/recipes/*.yaml through `settings`; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_recipes.artefact import UserError, sha256_file, sha256_json
from data_recipes.chats.control_tokens import Policy
from data_recipes.languages import language
from data_recipes.pii.step import PiiOptions
from data_recipes.row_sources.folders import allowed_path
from data_recipes.row_sources.source import SourceConfig, source_identity
from data_recipes.screening.contamination import ContaminationOptions
from data_recipes.screening.duplicates import DuplicateOptions
from data_recipes.screening.licences import LicenceOptions
from data_recipes.settings import load_settings, out_of_range
from data_recipes.tasks import TASKS
from data_recipes.translate.options import TranslateOptions
from data_recipes.variants.options import VariantOptions
from data_recipes.writing.normalisation import TextPolicy


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """What is kept out of training: named test sets, and always the recipe's own test split."""

    test_sets: dict[str, SourceConfig] = field(default_factory=dict)
    options: ContaminationOptions = ContaminationOptions()


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """The tokenizer that the rows are for, and what it must be able to do with them."""

    tokenizer: str = ""  # a folder that begins with . or /, or a Hub id; empty: rows are not rendered
    revision: str | None = None  # Hub commit, tag or branch
    control_tokens: Policy = "refuse"  # of control tokens inside a text
    max_length_tokens: int | None = None  # longer rows are rejected, never cut
    thinking: bool | None = None  # enable_thinking of the chat template; None leaves it to the template

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = out_of_range({"max_length_tokens": self.max_length_tokens})
        if self.max_length_tokens is not None and not self.tokenizer:
            wrong.append("max_length_tokens: needs a tokenizer to count with; name one in `tokenizer`")
        return wrong


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """A dataset of instructions: of locale tasks in the target languages, of sources, or of both.

    Rows of sources go through all sections, in this order; a section that is null is left out. Rows of the
    locale tasks go through licences, pii, contamination (by named test sets) and chat.
    """

    name: str
    languages: tuple[str, ...] = ()  # codes of the target languages, as "ta"; may be empty with sources
    general_languages: tuple[str, ...] = ("en", "hi")  # what must not be forgotten
    tasks: tuple[str, ...] = tuple(TASKS)  # empty: no rows of locale tasks
    train_rows_per_task: int = 160  # target rows of each language and task
    general_share: float = 0.35  # of all training rows of the tasks
    validation_rows_per_task: int = 12  # of each language, target or general
    test_rows_per_task: int = 30  # of each target language
    general_test_rows_per_task: int = 12  # of each general language
    seed: int = 0
    sources: tuple[SourceConfig, ...] = ()
    licences: LicenceOptions = LicenceOptions()
    text: TextPolicy | None = TextPolicy()
    pii: PiiOptions | None = PiiOptions()
    duplicates: DuplicateOptions | None = DuplicateOptions()
    translate: TranslateOptions | None = None
    variants: VariantOptions | None = None
    contamination: ContaminationConfig | None = ContaminationConfig()
    chat: ChatConfig = ChatConfig()
    validation_share: float = 0.05  # of source rows
    test_share: float = 0.05  # of source rows
    max_test_rows: int = 5000  # about, of source rows; also for validation. All are held in memory
    private: bool = False  # the rows are for nobody else: `local-experts push` refuses to send them
    rows_per_part: int = 1000  # of what a worker takes at a time; the dataset does not depend on it

    def problems(self) -> list[str]:
        """Values no recipe can use, as "key: reason"."""
        wrong = []
        for key in ("languages", "general_languages"):
            for code in getattr(self, key):
                try:
                    language(code)
                except UserError as error:
                    wrong.append(f"{key}: {error}")
        both = sorted(set(self.languages) & set(self.general_languages))
        if both:
            wrong.append(f"general_languages: {', '.join(both)} is a target language too; name it once")
        if not (self.languages or self.sources):
            wrong.append("languages: name at least one target language, or give sources")
        if not (self.tasks or self.sources):
            wrong.append("tasks: name at least one, or give sources")
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            wrong.append(f"tasks: unknown {', '.join(unknown)}; known are {', '.join(TASKS)}")
        if not 0 <= self.general_share < 1:
            wrong.append("general_share: must be at least 0 and below 1")
        shares = {name: getattr(self, name) for name in ("validation_share", "test_share")}
        wrong += [
            f"{name}: must be from 0 to below 1" for name, share in shares.items() if not 0 <= share < 1
        ]
        if sum(shares.values()) >= 1:
            wrong.append("test_share: with validation_share it must leave some rows to train on")
        counts = ("train_rows_per_task", "validation_rows_per_task", "test_rows_per_task", "max_test_rows")
        wrong += out_of_range({key: getattr(self, key) for key in (*counts, "rows_per_part")})
        return wrong


def load_recipe(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> RecipeConfig:
    """Fill a RecipeConfig from a YAML file and "key=value" changes.

    Raises: UserError that lists every problem.
    """
    return load_settings(RecipeConfig, path, overrides)


def recipe_inputs_hash(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> str:
    """Return one hash over everything beside it that a recipe reads: sources, test sets, glossary.

    Raises: UserError when one of them is not there.
    """
    recipe, folder = load_recipe(path, overrides), Path(path).resolve().parent
    test_sets = recipe.contamination.test_sets.values() if recipe.contamination else ()
    identities: list[object] = [source_identity(source, folder) for source in (*recipe.sources, *test_sets)]
    for section in (recipe.translate, recipe.variants):
        if section and section.glossary:
            identities.append(sha256_file(allowed_path(str(section.glossary), folder, ())))
    return sha256_json(identities)
