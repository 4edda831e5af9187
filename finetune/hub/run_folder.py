"""What a finished run holds, read and held together before anything of it goes to the Hub.

Reads adapter/, data/manifest.json, results.json, report.json and the report's pages in a run's folder.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, read_artefact, sha256_file
from finetune.config import SHIPPED_MODELS, BaseConfig

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and what its files say; None is what was not asked for."""

    folder: Path
    base: BaseConfig
    hub_base: str | None  # the base's name on the Hub; None is the base that is shipped with local-experts
    manifest: dict[str, Any]
    lora: dict[str, Any] | None
    plan: dict[str, Any] | None
    train: dict[str, Any] | None
    results: dict[str, Any] | None
    report: dict[str, Any] | None


def read_run(
    folder: Path, what: Collection[str], base: BaseConfig | None, hub_base: str | None
) -> FinishedRun:
    """Read a run of which `what` ("adapter", "dataset", "report") goes; `base` None is as its report says.

    Raises:
        UserError: the run is not finished, its files are not of one run, or the base has no name to show.
    """
    manifest = read_artefact(folder / "data" / "manifest.json", "dataset_manifest")
    if not {"adapter", "report"} & set(what):
        return FinishedRun(folder, BaseConfig(), None, manifest, *(None,) * 5)
    adapter = folder / "adapter"
    lora = read_artefact(adapter / "adapter_config.json", "expert_adapter")
    plan = read_artefact(adapter / "plan.json", "expert_plan", ("experts", "n_experts", "method"))
    train = read_artefact(adapter / "train.json", "train_result", ("inputs", "steps"))
    results = read_artefact(folder / "results.json", "eval_results", ("metrics", "settings", "rows"))
    report = read_artefact(folder / "report.json", "report", ("config", "inputs", "finding", "training"))
    if not (folder / "report.html").is_file():
        raise UserError(f"{folder / 'report.html'} does not exist; make it with `local-experts report`")
    if lora.get("sha256") != sha256_file(adapter / "adapter.safetensors"):
        raise UserError(f"{adapter / 'adapter.safetensors'} is damaged (its sha256 differs): train again")
    _require_one_run(folder, manifest["content_hash"], train, results, report)
    base = base or _base_of(report)
    return FinishedRun(
        folder, base, _hub_name_of(base, hub_base), manifest, lora, plan, train, results, report
    )


def is_local(model: str) -> bool:
    """Whether a base is a folder of this machine: not shipped, and no name of the Hub."""
    if model in SHIPPED_MODELS:
        return False
    return Path(model).is_dir() or HUB_NAME.fullmatch(model) is None


def _require_one_run(
    folder: Path,
    content_hash: str,
    train: Mapping[str, Any],
    results: Mapping[str, Any],
    report: Mapping[str, Any],
) -> None:
    made_of = {
        "adapter was trained on other data: run `local-experts train`, `eval` and `report` again": (
            train["inputs"].get("data"),
            content_hash,
        ),
        "results.json was made with another adapter: run `local-experts eval` and `report` again": (
            results["inputs"].get("adapter"),
            sha256_file(folder / "adapter" / "adapter_config.json"),
        ),
        "report.json shows other results: run `local-experts report` again": (
            report["inputs"].get("results.json"),
            sha256_file(folder / "results.json"),
        ),
    }
    if wrong := [said for said, (found, needed) in made_of.items() if found != needed]:
        raise UserError(f"{folder} is not one finished run: {wrong[0]}")


def _base_of(report: Mapping[str, Any]) -> BaseConfig:
    known = {option.name for option in fields(BaseConfig)}
    said = report["config"].get("base", {})
    return BaseConfig(**{name: value for name, value in said.items() if name in known})


def _hub_name_of(base: BaseConfig, hub_base: str | None) -> str | None:
    if hub_base is not None and HUB_NAME.fullmatch(hub_base) is None:
        raise UserError(f"--base {hub_base!r} is no name on the Hub: write it as OWNER/NAME")
    if base.model in SHIPPED_MODELS:
        return None
    if hub_base is None and is_local(base.model):
        raise UserError(
            f"base.model={base.model} is a folder of this machine, which nobody else can load and whose name "
            "must not be published: say what it is on the Hub with --base OWNER/NAME"
        )
    return hub_base or base.model
