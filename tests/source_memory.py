"""Peak memory and speed of reading JSONL, CSV and Parquet with 10,000 and 1,000,000 rows.

Writes the files into a temporary folder; each reading runs in a process of its own.
Command: `PYTHONPATH=. python tests/source_memory.py [--rows 10000 1000000]`; ends with 1 where memory grows.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from process_memory import status_bytes

from data_recipes.row_sources.files import FileOptions, read

SUFFIXES = (".jsonl", ".csv", ".parquet")
GROUP_ROWS = 10_000  # of a Parquet file: the smaller file has one whole group, the larger 100
MAX_GROWTH_MB = 16  # the allocator's noise; a million rows held would be over 1,000


def batches(n_rows: int) -> Iterator[list[dict[str, str]]]:
    """Rows as an instruction set has them, some 500 bytes each."""
    for start in range(0, n_rows, GROUP_ROWS):
        yield [
            {"instruction": f"கேள்வி எண் {i} " * 4, "output": f'பதில் எண் {i}, "மேற்கோள்"\n' * 4}
            for i in range(start, min(start + GROUP_ROWS, n_rows))
        ]


def write(path: Path, n_rows: int) -> None:
    """Write a file of rows by its ending, never holding more than a batch."""
    schema = pa.schema([("instruction", pa.string()), ("output", pa.string())])
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, schema) as writer:
            for batch in batches(n_rows):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        if path.suffix == ".csv":
            table.writerow(schema.names)
        for batch in batches(n_rows):
            for row in batch:
                if path.suffix == ".csv":
                    table.writerow(row.values())
                else:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(path: Path) -> None:
    """Read a file and print its rows, seconds and the peak of this process in MB as JSON."""
    options = FileOptions(paths=(path.name,), licence="MIT", language="ta")
    started = time.perf_counter()
    n_rows = sum(isinstance(row, dict) for row in read(options, path.parent))
    seconds = time.perf_counter() - started
    print(json.dumps({"rows": n_rows, "seconds": seconds, "peak_mb": status_bytes("VmHWM") / 2**20}))


def main() -> int:
    """Measure each format at each size; 1 where the largest needs more memory than the smallest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return 0
    grew = False
    for suffix in SUFFIXES:
        peaks = []
        for n_rows in arguments.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"rows{suffix}"
                write(path, n_rows)
                command = [sys.executable, __file__, "--measure", str(path)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            assert found["rows"] == n_rows, found
            peaks.append(found["peak_mb"])
            rate = n_rows / found["seconds"]
            print(
                f"{suffix:9} {n_rows:>9,} rows  peak {found['peak_mb']:6.1f} MB  {rate:>9,.0f} rows/s",
                flush=True,
            )
        grew |= max(peaks) - peaks[0] > MAX_GROWTH_MB
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
