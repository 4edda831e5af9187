"""The report of a run as it may be published: with the base's Hub name where its folder stood.

Reads results.json, report.json, report.html, report.md (where there is one) and plan.json of a run's folder;
writes those that had to be changed beside each other.
"""

import json
import re
from pathlib import Path

from data_recipes.artefact import UserError, sha256_file, write_text
from finetune.config import SHIPPED_MODELS
from finetune.hub.run_folder import FinishedRun, is_local

# In this order: a later one holds the hashes of earlier ones.
REPORT_FILES = ("plan.json", "results.json", "report.json", "report.html", "report.md")


def published_report(run: FinishedRun, staged: Path) -> dict[str, Path]:
    """The files of `report/` in the repository; what has to be changed is written into `staged`.

    Raises:
        UserError: the base's folder has a name that cannot be told from an ordinary word.
    """
    replaced = _folder_names(run)
    files: dict[str, Path] = {}
    for name in REPORT_FILES:
        path = run.folder / name
        if not path.is_file():
            continue
        files[f"report/{name}"] = path
        text = path.read_text(encoding="utf-8")
        changed = text
        for old, new in replaced.items():
            changed = re.sub(rf"(?<![\w./-]){re.escape(old)}(?![\w-])", lambda _, new=new: new, changed)
        if changed != text:
            old_hash = sha256_file(path)
            write_text(staged / name, changed)
            files[f"report/{name}"] = staged / name
            replaced[old_hash] = sha256_file(staged / name)
    return files


def _folder_names(run: FinishedRun) -> dict[str, str]:
    """Folders of this machine that a report may name, and what stands there instead."""
    model, output = run.base.model, str(run.folder.absolute())
    names = {output: run.folder.name}
    if model in SHIPPED_MODELS or not is_local(model):
        return names
    if "/" not in model:
        raise UserError(
            f"base.model={model} is a folder whose name cannot be told from a word in the report: leave the "
            f"report out with --what adapter dataset, or run eval and report again with base.model=./{model}"
        )
    assert run.hub_base is not None, "a local base has a name on the Hub"
    # As it stands in JSON, and so in the page's data.
    spelled = {model, json.dumps(model)[1:-1], str(Path(model).absolute()), str(Path(model).resolve())}
    return names | dict.fromkeys(sorted(spelled, key=len, reverse=True), run.hub_base)
