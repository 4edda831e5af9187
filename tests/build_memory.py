"""Peak memory and speed of a whole build with all default stages, at growing numbers of short rows.

Writes rows, recipe and dataset into a temporary folder; each build runs in a process of its own, with one
worker, so that its peak is that of all stages. Command:
`OMP_NUM_THREADS=1 PYTHONPATH=. python tests/build_memory.py [--rows 10000 100000]`. The last column says how
long a million rows would take; `--rows 10000 1000000` measures them. Prints a Markdown table; ends with 1
where memory grows.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from process_memory import status_bytes

from data_recipes.artefact import read_artefact
from data_recipes.build import build_dataset
from data_recipes.sources import django_catalogue

MAX_GROWTH_MB = 150  # of ten times as many rows, and of a hundred times
MILLION = 1_000_000
SHARE_COPIED = 0.02


def rows(n_rows: int) -> Iterator[dict[str, str]]:
    """Yield questions and answers of six to twelve words each; few are alike, some are copies."""
    rng = random.Random(0)
    words = sorted({word for text in django_catalogue("hi").values() for word in text.split()})
    question, answer = "", ""
    for _ in range(n_rows):
        if not question or rng.random() > SHARE_COPIED:
            question, answer = (" ".join(rng.choices(words, k=rng.randint(6, 12))) for _ in range(2))
        yield {"instruction": question, "output": answer}


def write(folder: Path, n_rows: int) -> None:
    """Write the rows and the recipe, which leaves every section at its default."""
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(n_rows):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    source = {"files": {"paths": ["rows.jsonl"], "licence": "BSD-3-Clause", "language": "hi"}}
    recipe = {
        "name": "memory",
        "languages": ["hi"],
        "general_languages": [],
        "tasks": [],
        "sources": [source],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")


def watch_own(seen: list[float]) -> None:
    """Note the memory that is no mapped file, for ever; the kernel keeps no peak of it."""
    while True:
        seen[0] = max(seen[0], status_bytes("RssAnon") / 2**20)
        time.sleep(0.02)


def measure(folder: Path) -> None:
    """Build, and print rows, seconds and the peaks of this process in MB as the last line."""
    own = [0.0]
    threading.Thread(target=watch_own, args=(own,), daemon=True).start()
    started = time.perf_counter()
    output = build_dataset(folder / "recipe.yaml", folder / "data")
    seconds = time.perf_counter() - started
    peak = status_bytes("VmHWM") / 2**20
    n_rows = read_artefact(output / "manifest.json", "dataset_manifest")["n_rows"]
    print(json.dumps({"n_rows": n_rows, "seconds": seconds, "peak_mb": peak, "own_mb": own[0]}))


def main() -> int:
    """Measure each size; 1 where the largest needs much more memory than the smallest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return 0
    # Writing a dataset reads it through a mapped file: its pages count until the kernel wants them back.
    print(
        "| rows | in the dataset | peak MB | without mapped files | seconds | rows/s | a million would take |"
    )
    print("|---|---|---|---|---|---|---|")
    peaks = []
    for n_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n_rows)
            command = [sys.executable, __file__, "--measure", folder]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(said.splitlines()[-1])
        peaks.append(found["own_mb"])
        rate = n_rows / found["seconds"]
        kept = sum(found["n_rows"].values())
        print(
            f"| {n_rows:,} | {kept:,} | {found['peak_mb']:.0f} | {found['own_mb']:.0f} "
            f"| {found['seconds']:.0f} | {rate:,.0f} "
            f"| {MILLION / rate / 60:.0f} min |",
            flush=True,
        )
    return int(max(peaks) - peaks[0] > MAX_GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
