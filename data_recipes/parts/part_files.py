"""The files of a part: its rows, the rows it lost with the reasons, and a summary that says it is whole.

Reads and writes JSON lines in the working folder of a build. The name of a file holds a key made of all that
went into it, so that what is there with its summary need not be made again.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_json, whole_file, write_json
from data_recipes.steps import Rejected, Row

LOCALE = "locale"  # the stream of the locale tasks; those of sources are source-0, source-1, ...
N_CANDIDATES = 20  # rows of a stage that may become samples: some of them do not reach the dataset
TEACHER = "teacher"  # the reason of rows that the teacher did not answer for: to be asked again
ORDER_PREFIX = "order-"  # of the folders in which a build sorts rows
LEFTOVER_S = 24 * 3600.0  # what nobody has written to for so long is of a build that was killed

Summary = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Some rows of one stream after one stage. `key` is a hash of all that they were made from."""

    folder: str  # the working folder
    stage: str
    stream: str
    number: int
    key: str
    salt: str = (
        ""  # of a part that is not final: the hash of its rows, so that what is made of it is not either
    )

    @property
    def name(self) -> str:
        """The file of its rows without the ending."""
        return str(Path(self.folder) / self.stage / f"{self.stream}-{self.number:05}-{self.key[:24]}")

    @property
    def rows(self) -> Path:
        """The file of its rows."""
        return Path(f"{self.name}.jsonl")

    @property
    def is_locale(self) -> bool:
        """Whether its rows are of the locale tasks."""
        return self.stream == LOCALE

    def after(self, stage: str, made_by: Any) -> Part:
        """The part that a stage makes of this one; `made_by` is whatever decides how."""
        return replace(self, stage=stage, key=sha256_json([self.key, self.salt, stage, made_by]), salt="")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a part.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for line in file:
                yield json.loads(line.decode("utf-8", "surrogatepass"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; remove the working folder and build again") from error


def line_of(values: Any) -> bytes:
    """Return one line of JSON, in UTF-8 that can hold half a surrogate pair too."""
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def read_summary(part: Part) -> Summary | None:
    """Return the summary of a part, or None when it is not whole."""
    try:
        return json.loads(Path(f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_part(part: Part, made: Iterable[Row | Rejected], before: Part | None = None) -> Summary:
    """Write the rows and rejections of a part and return its summary, which `finish_part` is to write.

    `before` is what it was made of: the samples show both. None takes no samples and counts no changes.

    Raises:
        UserError: a full disk, or a place that cannot be written.
    """
    reasons: Counter[str] = Counter()
    n_out = n_changed = 0
    samples: list[tuple[str, str, Row]] = []
    with (
        whole_file(part.rows) as rows_path,
        whole_file(f"{part.name}.rejected.jsonl") as rejected_path,
        open(rows_path, "wb") as rows,
        open(rejected_path, "wb") as rejected,
    ):
        for row in made:
            if isinstance(row, Rejected):
                reasons[row.reason] += 1
                rejected.write(line_of(asdict(row)))
                continue
            n_out += 1
            rows.write(line_of(row))
            if before is not None and _was_changed(row, part.stage):
                n_changed += 1
                _keep_lowest(samples, row)
        for file in (rows, rejected):
            file.flush()
            os.fsync(file.fileno())
    summary = {
        "n_out": n_out,
        "n_changed": n_changed,
        "rejected": dict(sorted(reasons.items())),
        "samples": _with_before([row for _, _, row in sorted(samples)], before),
        "is_final": not reasons[TEACHER],
    }
    return summary


def finish_part(part: Part, summary: Summary) -> Summary:
    """Write the summary of a part: from now on it is whole."""
    write_json(f"{part.name}.json", summary)
    return summary


def remove_leftovers(work: Path) -> None:
    """Remove what builds that were killed left half written in a working folder.

    Finished parts stay, of whatever recipe and options: who goes back to those goes on from them. What was
    written to within a day stays too: another build may be at it.
    """
    for path in (*work.glob(f"{ORDER_PREFIX}*"), *work.glob("*/.*.partial-*")):
        with suppress(OSError):  # another build has taken it away
            if time.time() - path.stat().st_mtime < LEFTOVER_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def root_id(row: Row) -> str:
    """Return the id of the row at its source, also of one that was made from it."""
    return f"{row['source']}/{row['row_id']}"


def draw(text: str) -> str:
    """Return the hash by which rows are ordered or drawn: it does not depend on how they were cut."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def lowest(samples: Iterable[Summary], n: int) -> list[Summary]:
    """Return the `n` samples that come first by their draw."""
    return heapq.nsmallest(n, samples, key=lambda sample: (draw(sample["root"]), sample["row_id"]))


def _was_changed(row: Row, stage: str) -> bool:
    """Whether the stage changed the text, by its own count; a step that counts nothing makes rows anew."""
    last = row["transforms"][-1] if row.get("transforms") else {"name": "", "checks": {}}
    if last["name"] not in (stage, "control_tokens"):
        return False
    checks = last["checks"]
    counts = [checks[name] for name in ("changes", "found", "changed") if name in checks]
    return bool(counts[0]) if counts else True


def _keep_lowest(samples: list[tuple[str, str, Row]], row: Row) -> None:
    entry = (draw(root_id(row)), str(row["id"]), row)
    if len(samples) < N_CANDIDATES or entry[:2] < samples[-1][:2]:
        samples.append(entry)
        samples.sort(key=lambda item: item[:2])
        del samples[N_CANDIDATES:]


def _with_before(rows: list[Row], before: Part | None) -> list[Summary]:
    wanted = {_made_from(row): None for row in rows} | {str(row["id"]): None for row in rows}
    found: dict[str, Any] = {}
    if before is not None and rows:
        found = {row["id"]: row["messages"] for row in read_rows(before.rows) if row["id"] in wanted}
    samples = []
    for row in rows:
        former = found.get(str(row["id"]), found.get(_made_from(row)))
        if former != row["messages"]:
            said = {"row_id": row["id"], "language": row["language"], "root": root_id(row)}
            samples.append({**said, "before": former or [], "after": row["messages"]})
    return samples


def _made_from(row: Row) -> str:
    parent = row.get("parent")
    return str(parent.get("id", "") if isinstance(parent, dict) else parent)
