"""Rows per second of the steps of a recipe on one core, beside datatrove's nearest on the same rows.

Writes into a temporary folder. Command, on a quiet machine:
`OMP_NUM_THREADS=1 python -m tests.data_throughput [--rows 2000] [--rounds 5]`, some two minutes. Each round
runs every step of ours and of datatrove's, by turns; CPU time is counted. Some of datatrove's need what is
not ours (`pip install ftfy orjson indic-nlp-library 'xxhash<4'`); one that is missing is named.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.chats.chat_template import ChatTemplate, read_template
from data_recipes.chats.control_tokens import without_control_tokens
from data_recipes.chats.mask_audit import audited_mask
from data_recipes.pii.step import remove_pii
from data_recipes.screening.candidates import save_signatures
from data_recipes.screening.comparison import contents
from data_recipes.screening.contamination import TestSets, index_test_sets, keep_out
from data_recipes.screening.duplicates import (
    DuplicateOptions,
    find_duplicates,
    signatures,
    without_duplicates,
)
from data_recipes.steps import Rejected, Row
from data_recipes.writing.normalisation import TextPolicy
from data_recipes.writing.text_step import normalise_rows
from tests.throughput_rows import mixed_rows, paragraph_rows, size_of

TOKENIZER = Path(__file__).parents[1] / "finetune/tiny_glm"
N_TEST_TEXTS = 500
ROWS_PER_PART = 1000
# What the two columns of a line do not share; printed under the table.
DIFFERENCES = {
    "text": "ours puts texts in NFC and takes out what nobody sees, with counts by kind, and refuses "
    "mojibake; ftfy mends mojibake and escapes, here also to NFC, and counts nothing",
    "personal data": "ours finds eleven kinds in any script's digits, with check digits and context words; "
    "datatrove e-mail and public IP addresses in ASCII",
    "exact duplicates": "ours has none apart: they are part of the next line",
    "duplicates": "both MinHash; ours on graphemes, with romanised twins, and true Jaccard similarity "
    "decides; datatrove on words of one tokenizer for all (Hindi's, of indic-nlp-library), and what "
    "shares a bucket is a duplicate",
    "contamination": "datatrove's n-gram step needs lighteval, which is not installed: not compared",
    "control tokens": "datatrove has none; beside it stands its counter, which tokenizes each text once",
    "mask and audit": "datatrove has none: rendering the chat, its mask, and what is wrong with it",
    "JSON lines": "reading and writing, by json here and by orjson there",
    "whole chain": "all of the above; of datatrove its text, personal data, duplicates, counter, JSON lines",
}


@dataclass(frozen=True)
class Setting:
    """What the steps share."""

    rows: list[Row]
    index: TestSets
    template: ChatTemplate
    folder: Path


def kept(items: Iterable[Row | Rejected]) -> list[Row]:
    return [item for item in items if not isinstance(item, Rejected)]


def text(rows: list[Row], setting: Setting) -> list[Row]:
    return kept(normalise_rows(rows, TextPolicy()))


def personal_data(rows: list[Row], setting: Setting) -> list[Row]:
    return kept(remove_pii(rows))


def duplicates(rows: list[Row], setting: Setting) -> list[Row]:
    options, paths = DuplicateOptions(), []
    for start in range(0, len(rows), ROWS_PER_PART):
        paths.append(setting.folder / f"{start}.npy")
        save_signatures(paths[-1], signatures(rows[start : start + ROWS_PER_PART], options))
    return kept(without_duplicates(rows, find_duplicates(paths, lambda: iter(rows), options), options))


def contamination(rows: list[Row], setting: Setting) -> list[Row]:
    return kept(keep_out(rows, setting.index))


def control_tokens(rows: list[Row], setting: Setting) -> list[Row]:
    return kept(without_control_tokens(rows, setting.template))


def masks(rows: list[Row], setting: Setting) -> list[Row]:
    return [row for row in rows if not audited_mask(setting.template, row)[1]]


def json_lines(rows: list[Row], setting: Setting) -> list[Row]:
    path = setting.folder / "rows.jsonl"
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        return [json.loads(line) for line in file]


OURS: dict[str, Callable[[list[Row], Setting], list[Row]]] = {
    "text": text,
    "personal data": personal_data,
    "duplicates": duplicates,
    "contamination": contamination,
    "control tokens": control_tokens,
    "mask and audit": masks,
    "JSON lines": json_lines,
}


def documents(rows: list[Row]) -> list[Any]:
    """Return the rows as datatrove has them: one text each; the rest is metadata."""
    from datatrove.data import Document

    return [
        Document("\n".join(t for _, t in contents(row)), row["id"], metadata={"language": row["language"]})
        for row in rows
    ]


def their_text(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.formatters import FTFYFormatter

    return list(FTFYFormatter(normalization="NFC").run(iter(documents)))


def their_personal_data(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.formatters import PIIFormatter

    return list(PIIFormatter().run(iter(documents)))


def their_exact_duplicates(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig

    config = ExactDedupConfig(content_getter=lambda document: document.text)
    run(ExactDedupSignature(str(folder / "exact"), config).run(iter(documents)))
    run(ExactFindDedups(str(folder / "exact"), str(folder / "exact_found"), config).run())
    return list(ExactDedupFilter(str(folder / "exact_found"), config).run(iter(documents)))


def their_duplicates(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig()
    signed, paired, removed = (str(folder / name) for name in ("signed", "paired", "removed"))
    run(MinhashDedupSignature(signed, config, language="hin_Deva").run(iter(documents)))
    for rank in range(config.num_buckets):
        run(MinhashDedupBuckets(signed, paired, config=config).run(None, rank, config.num_buckets))
    run(MinhashDedupCluster(paired, removed, config=config).run(None, 0, 1))
    return list(MinhashDedupFilter(removed).run(iter(documents)))


def their_counter(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.tokens import TokensCounter

    return list(TokensCounter(str(TOKENIZER / "tokenizer.json")).run(iter(documents)))


def their_json_lines(documents: list[Any], folder: Path) -> list[Any]:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    run(JsonlWriter(str(folder / "lines"), compression=None).run(iter(documents)))
    return list(JsonlReader(str(folder / "lines")).run())


def run(step: Iterable[Any] | None) -> None:
    deque(step or (), maxlen=0)


THEIRS: dict[str, Callable[[list[Any], Path], list[Any]]] = {
    "text": their_text,
    "personal data": their_personal_data,
    "exact duplicates": their_exact_duplicates,
    "duplicates": their_duplicates,
    "control tokens": their_counter,
    "JSON lines": their_json_lines,
}
NEEDS = {
    "text": ("ftfy",),
    "duplicates": ("indicnlp",),
    "JSON lines": ("orjson",),
}


def missing(name: str) -> list[str]:
    """Return the packages that a step of datatrove's needs and that are not here."""
    return [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, datatrove writes no log and no progress bar."""
    from loguru import logger

    logger.disable("datatrove")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def chain(rows: list[Row], setting: Setting) -> list[Row]:
    """All steps of ours, each on what the one before it left."""
    for step in OURS.values():
        rows = step(rows, setting)
    return rows


def their_chain(documents: list[Any], folder: Path) -> list[Any]:
    """All steps of datatrove's that are not compared with a part of one of ours."""
    for name, step in THEIRS.items():
        if name != "exact duplicates":
            documents = step(documents, folder)
    return documents


def measure(setting: Setting, n_rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the CPU seconds of each step on all rows by its name and whose it is, one for each round."""
    ours = {**OURS, "whole chain": chain}
    theirs = {name: step for name, step in THEIRS.items() if not missing(name)}
    if len(theirs) == len(THEIRS):
        theirs["whole chain"] = their_chain
    found: dict[tuple[str, str], list[float]] = {}
    for round_number in range(n_rounds + 1):  # the first fills caches and is not counted
        for name in DIFFERENCES:
            folder = Path(tempfile.mkdtemp(dir=setting.folder))
            taken = {}
            if name in ours:
                taken["ours"] = seconds(lambda rows, n=name: ours[n](rows, setting), setting.rows)
            if name in theirs:  # its steps change the documents: made anew for each
                rows = documents(setting.rows)
                taken["datatrove"] = seconds(lambda rows, n=name, f=folder: theirs[n](rows, f), rows)
            shutil.rmtree(folder)
            for who, value in taken.items():
                if round_number:
                    found.setdefault((name, who), []).append(value)
    return found


def seconds(step: Callable[[list[Any]], list[Any]], rows: list[Any]) -> float:
    """Return the CPU time of a step, which must leave most of the rows."""
    start = time.process_time()
    left = step(rows)
    taken = time.process_time() - start
    assert len(left) > len(rows) / 2, f"{len(left)} of {len(rows)} rows are left"
    return taken


def rate(values: list[float] | None, n_rows: int) -> str:
    """Return the rows a second: the median of the rounds, and the slowest and the fastest."""
    if not values:
        return "-"
    rates = sorted(n_rows / value for value in values)
    return f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})"


def main() -> None:
    """Print a Markdown table, and under it what the numbers do not say."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    test_texts = [row["messages"][1]["content"] for row in paragraph_rows(N_TEST_TEXTS, seed=1)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        setting = Setting(
            rows=mixed_rows(arguments.rows),
            index=index_test_sets({"other paragraphs": test_texts}),
            template=read_template(AutoTokenizer.from_pretrained(TOKENIZER)),
            folder=Path(folder),
        )
        found = measure(setting, arguments.rounds)
    size = size_of(setting.rows)
    print(
        f"{size['rows']:,} rows, half of the shipped recipes and half paragraphs, {size['megabytes']:.1f} MB "
        f"of text, {size['characters_a_row']:.0f} characters a row; one core, {arguments.rounds} rounds by "
        "turns; rows/s, median (slowest-fastest)\n\n| step | ours | datatrove |\n|---|---|---|"
    )
    for name in DIFFERENCES:
        cells = [rate(found.get((name, who)), len(setting.rows)) for who in ("ours", "datatrove")]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for name, difference in DIFFERENCES.items():
        absent = "".join(f" Not run, {package} is missing." for package in missing(name))
        print(f"- {name}: {difference}.{absent}")


if __name__ == "__main__":
    main()
