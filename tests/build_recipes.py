"""Small recipes with rows of every kind, for the tests of a build, and what they are compared by."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from data_recipes.artefact import file_hashes
from data_recipes.dataset import read_split

WORDS = (
    "river", "market", "garden", "school", "letter", "doctor",
    "winter", "summer", "window", "kitchen", "teacher", "bridge",
    "station", "harvest", "festival", "camera", "pillow", "basket",
    "ladder", "mirror", "rabbit", "thunder", "island", "pepper",
    "copper", "silver", "forest", "candle", "guitar", "village",
)  # fmt: skip
AADHAAR, PHONE = "2345 6789 0124", "+91 98765 43210"  # a valid check digit; a mobile series
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Pune"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_rows(n: int) -> list:
    """Rows that are no duplicates of each other: each names words of its own."""
    rows = []
    for i in range(n):
        a, b, c = (WORDS[(i * step + i // 30 * 7) % 30] for step in (1, 3, 7))
        rows.append(
            {"instruction": f"Tell me about the {a} {b} beside {c}.", "output": f"{b} {a}: number {i}."}
        )
    return rows


def write_recipe(folder: Path, rows: list, **changes) -> Path:
    """A recipe over one file of these rows, without locale tasks; `changes` are sections of it."""
    write_lines(folder / "rows.jsonl", rows)
    source = {"files": {"paths": ["rows.jsonl"], "licence": "CC-BY-4.0", "language": "en"}}
    recipe = {"name": "small", "tasks": [], "sources": [source], "test_share": 0.2, "validation_share": 0.1}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes, allow_unicode=True), encoding="utf-8")
    return path


def hashes(folder: Path) -> dict:
    return file_hashes(folder)


def stages(printed: str) -> dict:
    """Stage -> (parts made, parts kept), from what a build prints."""
    found = re.findall(r"^(\w+) +(\d+) parts made, (\d+) kept", printed, flags=re.M)
    return {name: (int(made), int(kept)) for name, made, kept in found}


def part_files(work: Path) -> dict:
    """The files of finished parts: path -> (inode, time of the last change)."""
    done = [path for path in work.rglob("*.json") if ".partial-" not in path.name]
    beside = [path.with_suffix(".jsonl") for path in done]
    found = [path for path in (*done, *beside) if path.exists()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def rows_in(folder: Path, split: Any) -> list[Any]:
    """The rows of a split, with plain messages."""
    return list(read_split(folder, split))
