"""Whether a further adapter may have learned test rows of this run.

Reads its train.json and the datasets that it learned from; writes nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, read_artefact
from data_recipes.dataset import read_split
from finetune.eval_options import ContestantConfig
from finetune.training.training_rows import REPLAY, question_hash

N_NAMED = 5  # rows in a message
HASH_DIGITS = 12


def require_unseen(
    contestant: ContestantConfig, output: Path, content_hash: str, test_rows: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse an adapter that learned from other data than this run's, unless no row of that asks a test row.

    `content_hash` is that of the run's data. A trainer holds replayed rows against its own test rows, so that
    of an adapter with the same data nothing is left to look at.

    Raises:
        UserError: the data it learned from is not known or not there, or asks what a test row asks.
    """
    adapter = contestant.place(str(output))
    folders = {_content_hash(Path(folder)): Path(folder) for folder in contestant.trained_on}
    if (adapter / "train.json").exists():
        inputs = read_artefact(adapter / "train.json", "train_result")["inputs"]
        if inputs["data"] == content_hash:
            return
        own = adapter.parent / "data"
        if (own / "manifest.json").exists():
            folders.setdefault(_content_hash(own), own)
        wanted = {inputs[name] for name in ("data", REPLAY) if name in inputs} - {content_hash}
        if missing := sorted(wanted - folders.keys()):
            raise UserError(
                f"{adapter} was trained on other data ({missing[0][:HASH_DIGITS]}) than {output / 'data'} "
                f"({content_hash[:HASH_DIGITS]}), and its training rows may be among the test rows: name "
                "that dataset's folder in trained_on, to have it looked through, or train on this run's data"
            )
    elif not folders:
        raise UserError(
            f"{adapter} does not say what it was trained on (it has no train.json), and that may be the test "
            f"rows of {output / 'data'}: name the folders of its data in trained_on"
        )
    else:
        wanted = set(folders) - {content_hash}
    questions = frozenset(question_hash(row) for row in test_rows)
    for found in sorted(wanted):
        _require_no_question(adapter, folders[found], questions)


def _require_no_question(adapter: Path, folder: Path, questions: Collection[str]) -> None:
    rows: Any = read_split(folder, "train")
    seen = [str(row["id"]) for row in rows if question_hash(row) in questions]
    if seen:
        raise UserError(
            f"{adapter} was trained on {folder}, where {len(seen)} rows ask what a test row of this run "
            f"asks: row {', row '.join(seen[:N_NAMED])}; its scores would be too good, so leave it out"
        )


def _content_hash(folder: Path) -> str:
    return read_artefact(folder / "manifest.json", "dataset_manifest", ["content_hash"])["content_hash"]
