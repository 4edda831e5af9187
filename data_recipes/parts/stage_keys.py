"""What decides the outcome of each stage: its version, its options, and the packages that shape it.

Reads the metadata of packages and this package's own files; writes nothing. It makes the keys of parts, and
it is what the manifest and the lock file say of the steps.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import data_recipes
from data_recipes.artefact import sha256_file, sha256_json
from data_recipes.chats import control_tokens
from data_recipes.pii import step as pii
from data_recipes.recipe import RecipeConfig
from data_recipes.screening import contamination, duplicates, licences
from data_recipes.settings import settings_dict
from data_recipes.translate import step as translate
from data_recipes.variants import step as variants
from data_recipes.writing import text_step

STAGES = (
    "sources", "licences", "text", "pii", "duplicates", "translate", "variants", "contamination", "chat",
    "finish",
)  # fmt: skip
# Rows of locale tasks are made as they must be: these stages leave them alone.
NOT_FOR_LOCALE = frozenset({"text", "duplicates", "translate", "variants"})
VERSIONS = {
    "sources": 1,
    "licences": licences.VERSION,
    "text": text_step.VERSION,
    "pii": pii.VERSION,
    "duplicates": duplicates.VERSION,
    "translate": translate.VERSION,
    "variants": variants.VERSION,
    "contamination": contamination.VERSION,
    "chat": control_tokens.VERSION,
    "finish": 1,
}
_TEXT = ("regex",)
_COMPARED = ("rensa", "anyascii", "regex")
PACKAGES = {
    "sources": ("babel", "datasets", "django", "holidays", "indic-numtowords", "pyarrow", "pyyaml"),
    "licences": ("license-expression",),
    "text": (*_TEXT, "markdown-it-py"),
    "pii": (*_TEXT, "python-stdnum", "presidio-analyzer"),
    "duplicates": _COMPARED,
    "translate": (*_TEXT, "markdown-it-py"),
    "variants": (*_TEXT, "markdown-it-py"),
    "contamination": _COMPARED,
    "chat": ("jinja2", "tokenizers", "transformers"),
    "finish": (*_TEXT, "jinja2", "tokenizers", "transformers"),
}


def stage_options(recipe: RecipeConfig, stage: str) -> Any:
    """Return the section of the recipe that a stage follows, as plain JSON; None where it is left out."""
    if stage == "sources":
        return {"n_sources": len(recipe.sources), "tasks": list(recipe.tasks if recipe.languages else ())}
    if stage == "finish":
        return {name: getattr(recipe, name) for name in ("validation_share", "test_share", "seed")}
    return settings_dict(getattr(recipe, stage))


def is_on(recipe: RecipeConfig, stage: str) -> bool:
    """Whether the recipe has the stage at all."""
    if stage == "chat":
        return bool(recipe.chat.tokenizer)
    return stage in ("sources", "finish") or getattr(recipe, stage) is not None


def made_by(recipe: RecipeConfig, stage: str, reads: Any = None) -> list[Any]:
    """Return what decides the outcome of a stage; `reads` are hashes of what it reads beside the rows."""
    versions = {name: package_version(name) for name in PACKAGES[stage]}
    return [VERSIONS[stage], stage_options(recipe, stage), versions, unicodedata.unidata_version, reads]


def locked_packages() -> dict[str, str]:
    """Return the versions of all packages that shape rows, and of the Unicode tables."""
    names = sorted({name for found in PACKAGES.values() for name in found} | {"local-experts"})
    return {name: package_version(name) for name in names} | {"unicodedata": unicodedata.unidata_version}


def package_version(name: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def code_hash() -> str:
    """Return one hash over the files of this package: other code may make other rows of the same version."""
    folder = Path(data_recipes.__file__).parent
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".yaml"))
    return sha256_json([[file.relative_to(folder).as_posix(), sha256_file(file)] for file in files])
