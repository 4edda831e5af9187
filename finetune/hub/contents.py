"""What goes to the Hub: for each repository its files, each a path there and a file here.

Reads a finished run; writes exports, cards and the texts that had to be changed into `hub/` of the run's
folder, where the next push finds them again. Nothing is sent from here.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, write_json, write_text
from data_recipes.publishing.manifest_facts import HUB_LICENCES, licences
from data_recipes.screening.licences import PERMISSIVE, judge
from finetune.hub.model_card import CardOf, model_card
from finetune.hub.report_texts import published_report
from finetune.hub.run_folder import FinishedRun
from finetune.hub.scores import eval_results_yaml

FORMATS = ("ours", "peft", "vllm", "sglang", "merged")
WHAT = ("adapter", "dataset", "report")
# Where a format lies in the repository of the adapter: PEFT's loads from the top, by the name alone.
FOLDERS = {"ours": "local-experts/", "peft": "", "vllm": "vllm/", "sglang": "sglang/"}
LOGIT_FORMATS = ("peft", "merged")  # that an export can load and compare
EVAL_RESULTS = ".eval_results/local-experts.yaml"
# At the top of the repository, so owned by name.
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors", "export.json")


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    repo: str  # OWNER/NAME of the adapter; "-data" and "-merged" are added for the others
    what: tuple[str, ...] = WHAT
    formats: tuple[str, ...] = ("ours", "peft")
    check: str = "deltas"  # of an export: "logits" loads the base
    may_publish: tuple[str, ...] = ()  # licences that the user has the right to pass on
    licence: str | None = None  # of the adapter, the Hub's name
    dataset: str | None = None  # where the rows are on the Hub, when they do not go with this push


@dataclass(frozen=True)
class Repository:
    """One repository as it is to be; of what begins with one of `owned`, only `files` may stay."""

    name: str
    kind: str  # "model" or "dataset"
    files: dict[str, Path] = field(default_factory=dict)
    owned: tuple[str, ...] = ()


def collect(run: FinishedRun, wanted: Wanted) -> list[Repository]:
    """The repositories of a push, the dataset first: the card of the adapter names it.

    Raises:
        UserError: rows may not be passed on, or an export cannot be made.
    """
    if {"dataset", "report"} & set(wanted.what):
        refuse_rows(run.manifest, wanted)
    repositories = []
    if "dataset" in wanted.what:
        repositories.append(_dataset(run, wanted))
    if "report" in wanted.what or _adapter_formats(wanted):
        repositories.append(_model(run, wanted))
    if "adapter" in wanted.what and "merged" in wanted.formats:
        repositories.append(_merged(run, wanted))
    return repositories


def dataset_name(wanted: Wanted) -> str | None:
    """The data's name on the Hub, when it is or goes there."""
    return f"{wanted.repo}-data" if "dataset" in wanted.what else wanted.dataset


def refuse_rows(manifest: dict[str, Any], wanted: Wanted) -> None:
    """Raise UserError when the rows of a dataset, of which a report shows some, may not be passed on."""
    if manifest["recipe"].get("private"):
        raise UserError(
            "the dataset's manifest says private: true, so its rows are not sent, nor the report, which "
            "shows some: push the adapter alone with --what adapter"
        )
    allowed = (*PERMISSIVE, *HUB_LICENCES, *wanted.may_publish)
    problems = [problem for licence in licences(manifest) if (problem := judge(licence, allowed)[1])]
    if problems:
        raise UserError(
            f"rows may not be passed on: {'; '.join(problems)}; leave those sources out and build again, "
            "push the adapter alone with --what adapter, or say with --may-publish LICENCE that you have the "
            "right"
        )


def exported(run: FinishedRun, to: str, check: str) -> Path:
    """The folder of an export of the run's adapter, made when it is not there or damaged."""
    # Late: they bring torch.
    from finetune.exporting.export import export_adapter
    from finetune.exporting.peft_folder import read_stamp

    exports = run.folder / "hub" / "exports"
    # The hash of the adapter's config stands for tensors, options, plan and base.
    folder = exports / sha256_file(run.folder / "adapter" / "adapter_config.json")[:16]
    for other in exports.iterdir() if exports.is_dir() else ():
        if other != folder and other.is_dir():
            shutil.rmtree(other)
    try:
        stamp = read_stamp(folder / to)
        if stamp and (check == "deltas" or to not in LOGIT_FORMATS or "logit_difference" in stamp["check"]):
            return folder / to
    except UserError:
        shutil.rmtree(folder / to)  # damaged
    return export_adapter(run.folder / "adapter", to, folder / to, run.base, check)


def _dataset(run: FinishedRun, wanted: Wanted) -> Repository:
    data = run.folder / "data"
    for name in ("README.md", "croissant.json"):
        if not (data / name).is_file():
            raise UserError(
                f"{data / name} does not exist: build the dataset again with `local-experts data`"
            )
    files = _files_of(data, "")
    said = json.loads((data / "croissant.json").read_text(encoding="utf-8"))["distribution"]
    hashes = {one["contentUrl"]: one["sha256"] for one in said if "sha256" in one}
    if wrong := [name for name, sha256 in hashes.items() if sha256_file(data / name) != sha256]:
        raise UserError(
            f"{data / wrong[0]} is damaged or was changed (croissant.json has another sha256): build the "
            "dataset again with `local-experts data`"
        )
    splits = sorted({name.partition("/")[0] + "/" for name in files if "/" in name})
    return Repository(f"{wanted.repo}-data", "dataset", files, (*splits, "LICENSE.md"))


def _model(run: FinishedRun, wanted: Wanted) -> Repository:
    staged = run.folder / "hub" / "model"
    files: dict[str, Path] = {}
    formats = _adapter_formats(wanted)
    for name in formats:
        files |= _adapter_files(run, name, wanted.check, staged)
    if formats:
        files |= _card_files(run, wanted, staged, formats)
    if "report" in wanted.what:
        files |= published_report(run, staged / "report")
    # A format that does not go this time would stay there of an older adapter, under the new card.
    of_adapter = (*filter(None, FOLDERS.values()), *PEFT_FILES, EVAL_RESULTS) if formats else ()
    of_report = ("report/",) if "report" in wanted.what else ()
    return Repository(wanted.repo, "model", files, (*of_adapter, *of_report))


def _adapter_formats(wanted: Wanted) -> list[str]:
    """The formats that lie beside each other in the adapter's repository."""
    return [name for name in wanted.formats if name in FOLDERS] if "adapter" in wanted.what else []


def _merged(run: FinishedRun, wanted: Wanted) -> Repository:
    staged = run.folder / "hub" / "merged"
    files = _files_of(exported(run, "merged", wanted.check), "")
    files.pop("README.md", None)  # the base's card
    files |= _card_files(run, wanted, staged, ["merged"])
    return Repository(f"{wanted.repo}-merged", "model", files, ("model-", "model.safetensors", EVAL_RESULTS))


def _adapter_files(run: FinishedRun, name: str, check: str, staged: Path) -> dict[str, Path]:
    place = FOLDERS[name]
    if name == "ours":
        return _files_of(run.folder / "adapter", place)
    folder = exported(run, name, check)
    files = _files_of(folder, place)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    # The place of the base on this machine is nobody else's.
    config["base_model_name_or_path"] = run.hub_base or run.base.model
    files[f"{place}adapter_config.json"] = staged / name / "adapter_config.json"
    write_json(files[f"{place}adapter_config.json"], config)
    return files


def _card_files(run: FinishedRun, wanted: Wanted, staged: Path, formats: Sequence[str]) -> dict[str, Path]:
    files = {"README.md": staged / "README.md"}
    is_merged, dataset = list(formats) == ["merged"], dataset_name(wanted)
    merged = f"{wanted.repo}-merged"
    card = CardOf(
        repo=merged if is_merged else wanted.repo,
        formats=formats,
        dataset=dataset,
        merged=merged if "merged" in wanted.formats and not is_merged else None,
        has_report="report" in wanted.what and not is_merged,
        licence=wanted.licence,
    )
    write_text(files["README.md"], model_card(run, card))
    if dataset:
        assert run.results is not None, "a card has results"
        files[EVAL_RESULTS] = staged / EVAL_RESULTS
        write_text(files[EVAL_RESULTS], eval_results_yaml(run.results, dataset))
    return files


def _files_of(folder: Path, place: str) -> dict[str, Path]:
    """All files of a folder but hidden ones, by their path in the repository."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        place + name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }
