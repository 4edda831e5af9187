"""The options of a recipe: which languages, which tasks, how many rows.

Reads configs/recipes/*.yaml through `settings`; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_recipes.artefact import UserError
from data_recipes.languages import language
from data_recipes.settings import load_settings, out_of_range
from data_recipes.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """A dataset of locale instructions in the target languages, with general rows against forgetting."""

    name: str
    languages: tuple[str, ...]  # codes of the target languages, as "ta"
    general_languages: tuple[str, ...] = ("en", "hi")  # what must not be forgotten
    tasks: tuple[str, ...] = tuple(TASKS)
    train_rows_per_task: int = 160  # target rows of each language and task
    general_share: float = 0.35  # of all training rows
    validation_rows_per_task: int = 12  # of each language, target or general
    test_rows_per_task: int = 30  # of each target language
    general_test_rows_per_task: int = 12  # of each general language
    seed: int = 0

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
        if not self.languages:
            wrong.append("languages: name at least one target language")
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            wrong.append(f"tasks: unknown {', '.join(unknown)}; known are {', '.join(TASKS)}")
        if not 0 <= self.general_share < 1:
            wrong.append("general_share: must be at least 0 and below 1")
        counts = ("train_rows_per_task", "validation_rows_per_task", "test_rows_per_task")
        wrong += out_of_range({key: getattr(self, key) for key in counts})
        return wrong


def load_recipe(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> RecipeConfig:
    """Fill a RecipeConfig from a YAML file and "key=value" changes.

    Raises: UserError that lists every problem.
    """
    return load_settings(RecipeConfig, path, overrides)
