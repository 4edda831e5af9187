"""Memory and seconds of training's rows, from 10,000 and 100,000 rows: encoding, and steps from the files.

Each reading runs in a process of its own. What is counted is memory of the process's own (RssAnon), which
leaves out mapped files: the system takes their pages back when it needs them.
Command: `PYTHONPATH=. python tests/train_memory.py [--rows 10000 100000]`; ends with 1 where memory grows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_from_disk
from process_memory import status_bytes
from transformers import AutoTokenizer

from data_recipes.artefact import write_json
from finetune.config import SHIPPED_MODELS
from finetune.training.training_rows import training_rows
from finetune.training_options import TrainConfig

N_STEPS = 50
# Of ends, numbers and two epochs' orders a row has 40 bytes; tokens and texts would be some 700.
MAX_GROWTH_BYTES_A_ROW = 100
FEATURES = Features(
    {
        "id": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "group": Value("string"),
    }
)


def write_dataset(folder: Path, n_rows: int) -> None:
    """A dataset of chats of some 500 bytes, never held as a whole."""

    def rows():
        for number in range(n_rows):
            question = {"role": "user", "content": f"கேள்வி எண் {number}? " * 4}
            answer = {"role": "assistant", "content": f"பதில் எண் {number}. " * (1 + number % 8)}
            group = "general" if number % 4 == 0 else "target"
            yield {"id": f"row{number}", "messages": [question, answer], "group": group}

    Dataset.from_generator(rows, features=FEATURES, cache_dir=str(folder / "cache")).save_to_disk(
        str(folder / "rows")
    )


def measure(folder: Path, grouped: bool) -> None:
    """Encode (or open) the rows and read some steps; print the figures as JSON."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODELS["tiny-glm"])
    rows: Any = load_from_disk(str(folder / "rows"))
    mixture = None if grouped else {"target": 0.7, "general": 0.3}
    config = TrainConfig(
        steps=N_STEPS, learning_rate=1e-3, max_length_tokens=1024, group_by_length=grouped, mixture=mixture
    )
    before, started = status_bytes("RssAnon"), time.perf_counter()
    data = training_rows(None, tokenizer, rows, config, 0, f"{len(rows):064x}", folder / "tokens")
    encoded, steps_started = time.perf_counter() - started, time.perf_counter()
    peak = status_bytes("RssAnon")
    n_tokens = 0
    for step in range(N_STEPS):
        n_tokens += sum(len(example.tokens) for example in data.of_step(step))
        peak = max(peak, status_bytes("RssAnon"))
    seconds = (time.perf_counter() - steps_started) / N_STEPS
    grown = {"own_bytes": peak - before, "open_s": encoded, "step_s": seconds, "n_tokens": n_tokens}
    print(json.dumps(grown))


def main() -> int:
    """Measure each number of rows twice: as rows are encoded, and as a second run finds them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--grouped", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.grouped)
        return 0
    found = {}
    for n_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            write_dataset(Path(name), n_rows)
            for run, options in (("encodes, mixture", []), ("opens, grouped", ["--grouped"])):
                line = [sys.executable, __file__, "--measure", name, *options]
                finished = subprocess.run(line, capture_output=True, text=True, check=True)
                figures = json.loads(finished.stdout.splitlines()[-1])
                found[f"{n_rows} rows, {run}"] = figures
                print(
                    f"{n_rows:>9,} rows {run:<17} {figures['own_bytes'] / 1e6:7.1f} MB, open in "
                    f"{figures['open_s']:7.2f} s, {1000 * figures['step_s']:5.1f} ms a step's rows"
                )
    few, many = arguments.rows
    grown = {
        run: found[f"{many} rows, {run}"]["own_bytes"] - found[f"{few} rows, {run}"]["own_bytes"]
        for run in ("encodes, mixture", "opens, grouped")
    }
    a_row = {run: n_bytes / (many - few) for run, n_bytes in grown.items()}
    print("more memory a row: " + ", ".join(f"{run} {n:.0f} bytes" for run, n in a_row.items()))
    if arguments.output:
        write_json(arguments.output, found)
    return int(max(a_row.values()) > MAX_GROWTH_BYTES_A_ROW)


if __name__ == "__main__":
    sys.exit(main())
