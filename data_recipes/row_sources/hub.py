"""Rows of a dataset in the Hugging Face Hub's layout, streamed, at one commit and no other.

Reads the Hub's cache on this machine, or a local folder; the Hub itself only where the recipe says
`online: true`. Writes nothing. Nothing of a dataset is ever run: a dataset with a loading script is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data_recipes.artefact import UserError, sha256_folder
from data_recipes.row_sources.files import Record, as_row
from data_recipes.row_sources.folders import allowed_path, is_inside
from data_recipes.row_sources.instructions import Form
from data_recipes.row_sources.options import (
    MAX_RECORD_BYTES,
    instruction_problems,
    language_problems,
    licence_problems,
)
from data_recipes.row_sources.provenance import Provenance
from data_recipes.screening.licences import spdx
from data_recipes.steps import Rejected, Row

_COMMIT = re.compile(r"[0-9a-f]{40}")
_RECORD_FILES = ("arrow", "csv", "json", "parquet")  # modules of `datasets`
_CARD_FILES = ("README.md", ".huggingface.yaml")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """One split of one dataset."""

    dataset: str  # owner/name, or a folder in the same layout, as ./my-dataset
    revision: str = ""  # the full commit; a branch or tag only with online, and then resolved once
    online: bool = False  # may the Hub be asked? Without it the dataset must be on this machine
    config: str = ""  # the name of a subset
    split: str = "train"
    language: str
    script: str = ""
    language_key: str = ""
    licence: str = ""  # SPDX; empty: what the dataset card says
    attribution: str = ""
    form: Form = "auto"
    question_key: str = ""
    answer_key: str = ""
    max_record_bytes: int = MAX_RECORD_BYTES

    @property
    def is_folder(self) -> bool:
        """Whether `dataset` is a folder: it begins with a dot or a slash."""
        return self.dataset.startswith((".", "/"))

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = language_problems(self.language, self.script)
        wrong += licence_problems(self.licence) if self.licence else []
        wrong += instruction_problems(self.form, self.question_key, self.answer_key)
        if self.is_folder and (self.revision or self.online):
            wrong.append("revision: a folder has none and is not online; leave revision and online out")
        elif not self.is_folder and not _REPOSITORY.fullmatch(self.dataset):
            wrong.append("dataset: must be owner/name, or a folder that begins with ./")
        elif not (self.is_folder or self.online or _COMMIT.fullmatch(self.revision)):
            wrong.append("revision: must be the full commit, 40 hex digits; a branch or tag can move")
        return wrong


def read(options: HubOptions, folder: Path, allowed: Sequence[Path] = ()) -> Iterator[Row | Rejected]:
    """Yield the rows of the split in the dataset's order.

    Raises:
        UserError: not on this machine, a loading script, data files outside the dataset, no licence, a
            damaged file.
    """
    from datasets.exceptions import DatasetsError  # imported late: it takes seconds

    if options.is_folder:
        place = allowed_path(options.dataset, folder, allowed)
        revision, roots = f"sha256:{sha256_folder(place)}", (place,)
    elif options.online:
        revision = resolve_revision(options.dataset, options.revision or "main")
        place, roots = None, ()
    else:
        place, revision = _snapshot(options.dataset, options.revision), options.revision
        roots = (place.parents[1],)  # a snapshot is links into the folder of blobs beside it
    if place is not None:
        _refuse_scripts(options, place)
    card = _card(options, revision, place, roots)
    provenance = _provenance(options, revision, card)
    _refuse_foreign_patterns(options, card)
    builder = _builder(options, revision, place)
    _refuse_foreign_files(options, builder, revision, roots)
    number = 0
    try:
        rows = builder.as_streaming_dataset(split=options.split)
        # Not decoded: an image or a sound in a row is a path that its author chose, and would be opened here.
        # Where the features are not known there is nothing to decode, and `datasets` refuses to be told.
        for values in rows.decode(False) if rows.features else rows:
            record = Record(f"{options.config or 'default'}/{options.split}/{number}", values)
            number += 1
            yield as_row(record, provenance, options)
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError) as error:
        known = ", ".join(builder.info.splits or {}) or "not stated"
        raise UserError(
            f"{options.dataset}: reading the split {options.split!r} ended after row {number}: {error} "
            f"(splits: {known})"
        ) from error


@cache
def resolve_revision(dataset: str, revision: str) -> str:
    """Ask the Hub once a run which commit a branch or tag is; a full commit is returned as it is.

    Raises:
        UserError: the Hub does not answer or does not know it.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset, revision=revision, timeout=30).sha
    except Exception as error:  # each layer below has its own errors; to the user they mean the same
        raise UserError(
            f"the Hub does not say which commit {revision!r} of {dataset} is ({error}); "
            "check the name and the connection, or give the full commit"
        ) from error
    assert commit and _COMMIT.fullmatch(commit)
    return commit


def _snapshot(dataset: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{dataset} at {revision} is not on this machine; fetch it with "
            f"`hf download {dataset} --repo-type dataset --revision {revision}`, or set `online: true`"
        ) from error


def _refuse_scripts(options: HubOptions, place: Path) -> None:
    name = options.dataset.rstrip("/").rpartition("/")[2]
    if (place / f"{name}.py").exists() or (place / f"{place.name}.py").exists():
        raise UserError(_has_script(options.dataset, f"{name}.py"))


def _has_script(dataset: str, script: str) -> str:
    return (
        f"{dataset} is made by a loading script ({script}), which would run its author's code here; use a "
        "version that was converted to Parquet (on the Hub: the branch refs/convert/parquet)"
    )


def _builder(options: HubOptions, revision: str, place: Path | None) -> Any:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    path, commit = (str(place), None) if place else (options.dataset, revision)
    try:
        builder = load_dataset_builder(path, options.config or None, revision=commit)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _RECORD_FILES:
            raise UserError(
                f"{options.dataset} is read by {kind}; only {', '.join(_RECORD_FILES)} hold records"
            )
        return builder
    except RuntimeError as error:
        if "scripts are no longer supported" in str(error):
            raise UserError(_has_script(options.dataset, str(error).rpartition(" ")[2])) from error
        raise
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"cannot open the dataset {options.dataset} at {revision}: {error}") from error


def _refuse_foreign_patterns(options: HubOptions, card: dict[str, Any]) -> None:
    """Before `datasets` looks for the files that the card names, which for a URL would be a request."""
    for text in _strings(card.get("configs")):
        if "://" in text or text.startswith(("/", "~")) or ".." in Path(text).parts:
            raise UserError(f"the card of {options.dataset} names data files outside the dataset: {text}")


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _strings(item)


def _refuse_foreign_files(options: HubOptions, builder: Any, revision: str, roots: Sequence[Path]) -> None:
    """A dataset card may name data files anywhere, also on other servers: only the dataset's own are read."""
    own = f"hf://datasets/{options.dataset}@{revision}/"
    for files in (builder.config.data_files or {}).values():
        for file in files:
            is_own = is_inside(file, roots) if roots and "://" not in file else file.startswith(own)
            if not is_own:
                raise UserError(f"{options.dataset} names the data file {file}, which is outside the dataset")


def _provenance(options: HubOptions, revision: str, card: dict[str, Any]) -> Provenance:
    licence, licence_from = options.licence, "recipe"
    if not licence:
        licence, licence_from = _card_licence(options, card), "dataset card"
    name = options.dataset
    attribution = options.attribution or f"{name} at {revision}"
    return Provenance(name, revision, spdx(licence), licence_from, attribution)


def _card(options: HubOptions, revision: str, place: Path | None, roots: Sequence[Path]) -> dict[str, Any]:
    """What stands above the text of the card, with the second file in which `datasets` looks for it."""
    from huggingface_hub import DatasetCard

    found: dict[str, Any] = {}
    for name in _CARD_FILES:
        path = _card_file(options, name, revision) if place is None else place / name
        if path is None or not path.is_file():
            continue
        if place is not None and not is_inside(path, roots):
            raise UserError(f"{path} is a link out of the dataset {options.dataset}")
        try:
            is_card = name.endswith(".md")
            text = path.read_text(encoding="utf-8")
            found |= DatasetCard.load(path).data.to_dict() if is_card else yaml.safe_load(text) or {}
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {name} of {options.dataset} at {revision}: {error}") from error
    return found


def _card_file(options: HubOptions, name: str, revision: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(options.dataset, name, repo_type="dataset", revision=revision))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot fetch {name} of {options.dataset} at {revision}: {error}") from error


def _card_licence(options: HubOptions, card: dict[str, Any]) -> str:
    said = card.get("license")
    said = said[0] if isinstance(said, list) and len(said) == 1 else said
    try:
        return spdx(str(said))
    except UserError as error:
        raise UserError(
            f"the card of {options.dataset} says the licence {said!r}, which is no SPDX name; look it up and "
            "write it into the recipe as `licence`"
        ) from error
