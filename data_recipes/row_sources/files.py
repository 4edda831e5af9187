"""Rows from JSONL, CSV and Parquet files on disk, streamed: memory does not grow with the number of rows.

Reads the files a recipe names; writes nothing. A record that is no row is rejected with file and line, and
reading goes on; a file that cannot be read at all is one error.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES
from data_recipes.row_sources import strict_json
from data_recipes.row_sources.folders import allowed_path
from data_recipes.row_sources.instructions import Form, NoMessages, read_pair, read_record
from data_recipes.row_sources.lines import Line, lines, opened, skip_utf8_mark
from data_recipes.row_sources.options import (
    MAX_RECORD_BYTES,
    instruction_problems,
    language_problems,
    licence_problems,
)
from data_recipes.row_sources.provenance import Provenance
from data_recipes.screening.licences import spdx
from data_recipes.settings import out_of_range
from data_recipes.steps import Rejected, Row

STEP = "source"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".ndjson", *_DELIMITERS, ".parquet")
_BATCH_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Local files with one record a row, all of them under one licence."""

    paths: tuple[str, ...]  # relative to the recipe's folder
    licence: str  # SPDX
    language: str  # code of the language the rows are in
    script: str = ""  # ISO 15924; empty: the usual one of the language
    language_key: str = ""  # a key of the record that holds its language's code, instead of `language`
    attribution: str = ""  # empty: the file's name
    form: Form = "auto"
    question_key: str = ""  # with answer_key: the two keys of a record in a form of its own
    answer_key: str = ""
    max_record_bytes: int = MAX_RECORD_BYTES

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = language_problems(self.language, self.script) + licence_problems(self.licence)
        wrong += instruction_problems(self.form, self.question_key, self.answer_key)
        if not self.paths:
            wrong.append("paths: name at least one file")
        for path in self.paths:
            if Path(path).suffix.lower() not in SUFFIXES:
                wrong.append(f"paths: {path} is none of {', '.join(SUFFIXES)}; {_other_suffix(path)}")
        return wrong + out_of_range({"max_record_bytes": self.max_record_bytes})


@dataclass(frozen=True)
class Record:
    """One record of a file, before it is a row."""

    place: str  # "line 12" or "row 12"
    values: dict[str, Any]


def read(options: FileOptions, folder: Path, allowed: Sequence[Path] = ()) -> Iterator[Row | Rejected]:
    """Yield the rows of all files, in the order of the recipe and of each file.

    Raises:
        UserError: a file is outside the folders, cannot be read, or is of another kind than its name says.
    """
    paths = [(name, allowed_path(name, folder, allowed)) for name in options.paths]
    for name, path in paths:
        with opened(path) as (handle, sha256):
            provenance = Provenance(
                name, f"sha256:{sha256}", spdx(options.licence), "recipe", options.attribution or name
            )
            for record in records(handle, path, options.max_record_bytes):
                if isinstance(record, Record):
                    yield as_row(record, provenance, options)
                else:
                    yield replace(record, row_id=f"{name}/{record.row_id}")


def as_row(record: Record, provenance: Provenance, options: Any) -> Row | Rejected:
    """Return the row of a record, or why it is none; `options` are of a file or of a Hub dataset."""
    where = f"{provenance.source}/{record.place}"
    try:
        if options.question_key:
            form, messages = "pair", read_pair(record.values, options.question_key, options.answer_key)
        else:
            form, messages = read_record(record.values, options.form)
        language = _language(record, options)
    except NoMessages as error:
        return Rejected(where, STEP, error.reason, f"{where}: {error.detail}")
    n_bytes = sum(len(message["content"].encode()) for message in messages)
    if n_bytes > options.max_record_bytes:
        detail = f"{where}: {n_bytes:,} bytes, and max_record_bytes is {options.max_record_bytes:,}"
        return Rejected(where, STEP, "longer than the limit", detail)
    script = options.script if language == options.language else ""
    more = {"tools": record.values["tools"]} if record.values.get("tools") else {}
    row = provenance.row(record.place, language, script, messages, **more)
    row["transforms"] = [{"name": "read_instructions", "version": 1, "checks": {"form": form}}]
    return row


def _language(record: Record, options: Any) -> str:
    if not options.language_key:
        return options.language
    code = record.values.get(options.language_key)
    if not isinstance(code, str) or code not in LANGUAGES:
        raise NoMessages("an unknown language", f"the key {options.language_key} holds {str(code)[:40]!r}")
    return code


def records(handle: BinaryIO, path: Path, max_bytes: int) -> Iterator[Record | Rejected]:
    """Yield the records of an open file, by the ending of its name."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_records(handle, path)
    if suffix in _DELIMITERS:
        return csv_records(handle, path, max_bytes, _DELIMITERS[suffix])
    return json_records(handle, path, max_bytes)


def json_records(handle: BinaryIO, path: Path, max_bytes: int) -> Iterator[Record | Rejected]:
    """Yield one record a line; empty lines are passed over."""
    offset = skip_utf8_mark(handle, path)
    for line in lines(handle, max_bytes, offset):
        place = f"line {line.number}"
        if line.data is None:
            yield _too_long(path, place, line.n_bytes, max_bytes)
            continue
        try:
            text = line.data.decode()
            if not text.strip():
                continue
            values = strict_json.parse(text)
        except UnicodeDecodeError as error:
            yield _not_utf8(path, place, line, error)
        except strict_json.NotStrictJson as error:
            if line.number == 1 and text.lstrip().startswith("["):
                raise UserError(_one_array(path)) from error
            column = f", column {error.column}" if error.column else ""
            yield _rejected(path, place, error.reason, error.detail, column)
        else:
            if isinstance(values, dict):
                yield Record(place, values)
            elif line.number == 1 and isinstance(values, list):
                raise UserError(_one_array(path))
            else:
                yield _rejected(path, place, "no object", f"it holds {type(values).__name__}, not an object")


class _CsvText:
    """The lines a CSV reader asks for, which knows where the record began and what is wrong in it."""

    def __init__(self, source: Iterator[Line], path: Path, max_bytes: int) -> None:
        self.source, self.path, self.max_bytes = source, path, max_bytes
        self.first = self.last = self.n_bytes = 0
        self.fault: Rejected | None = None

    def begin_record(self) -> None:
        self.first, self.n_bytes, self.fault = 0, 0, None

    @property
    def place(self) -> str:
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"

    def __iter__(self) -> _CsvText:
        return self

    def __next__(self) -> str:
        line = next(self.source)
        self.first, self.last = self.first or line.number, line.number
        self.n_bytes += line.n_bytes
        if line.data is None or self.n_bytes > self.max_bytes:
            self.fault = _too_long(self.path, self.place, self.n_bytes, self.max_bytes)
            # Nothing is kept but whether it opens or closes a quote, so that what follows is read right.
            return ('"' if line.n_quotes % 2 else "") + "\n"
        try:
            return line.data.decode() + "\n"
        except UnicodeDecodeError as error:
            self.fault = self.fault or _not_utf8(self.path, f"line {line.number}", line, error)
            return line.data.decode(errors="replace") + "\n"


def csv_records(handle: BinaryIO, path: Path, max_bytes: int, delimiter: str) -> Iterator[Record | Rejected]:
    """Yield one record a row of CSV (RFC 4180) under the names in its first row; all values are text.

    A line end inside quotes is read as "\\n". The standard library reads it and not Arrow, which has no line
    numbers and ends at the first bad byte.

    Raises:
        UserError: the first row is no list of different names.
    """
    text = _CsvText(lines(handle, max_bytes, skip_utf8_mark(handle, path)), path, max_bytes)
    # A setting of the whole process, 128 KiB at first: only ever raised, for `text` keeps our limit.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * max_bytes))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        text.begin_record()
        fault: Rejected | None = None
        values: list[str] = []
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            reason = "a quote that is never closed" if open_quote else "not CSV"
            fault = _rejected(path, text.place, reason, f"{error}; a quote inside quotes is written twice")
        fault = text.fault or fault
        if header is None:
            header = _header(path, values, fault)
        elif fault is not None:
            yield fault
        elif values and len(values) != len(header):
            detail = f"{len(values)} fields, and the first row names {len(header)}"
            yield _rejected(path, text.place, "a wrong number of fields", detail)
        elif values:
            yield Record(f"line {text.first}", dict(zip(header, values, strict=True)))
    if header is None:
        raise UserError(f"{path} is empty: its first row must name the fields")


def _header(path: Path, values: list[str], fault: Rejected | None) -> list[str]:
    if fault is not None:
        raise UserError(f"the first row of {path} must name the fields: {fault.detail}")
    twice = sorted({name for name in values if values.count(name) > 1})
    if twice or not all(values) or not values:
        wrong = f"{', '.join(twice)} twice" if twice else "an empty name"
        raise UserError(f"the first row of {path} must name the fields, each differently; it has {wrong}")
    return values


def parquet_records(handle: BinaryIO, path: Path) -> Iterator[Record | Rejected]:
    """Yield one record a row of a Parquet file, a few dozen at a time.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa  # imported late: most recipes read no Parquet
    import pyarrow.parquet as pq

    number = 0
    try:
        # Without pre_buffer and with a small buffer a row group is read in pieces and never held whole.
        file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=1 << 20)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist():
                number += 1
                yield Record(f"row {number}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no Parquet file, after row {number}: {error}") from error


def _rejected(path: Path, place: str, reason: str, detail: str, column: str = "") -> Rejected:
    return Rejected(place, STEP, reason, f"{path}, {place}{column}: {detail}")


def _too_long(path: Path, place: str, n_bytes: int, max_bytes: int) -> Rejected:
    quote = "; was a quote left open?" if " to " in place else ""
    detail = f"{n_bytes:,} bytes, and max_record_bytes is {max_bytes:,}{quote}"
    return _rejected(path, place, "longer than the limit", detail)


def _not_utf8(path: Path, place: str, line: Line, error: UnicodeDecodeError) -> Rejected:
    byte = f"byte 0x{error.object[error.start]:02x} at offset {line.offset + error.start} of the file"
    return _rejected(
        path, place, "not UTF-8", f"{byte}; convert the file, as with `iconv -f LATIN1 -t UTF-8`"
    )


def _one_array(path: Path) -> str:
    return f"{path} is one JSON array, not one object a line; make it lines with `jq -c '.[]' {path.name}`"


def _other_suffix(path: str) -> str:
    if Path(path).suffix.lower() == ".json":
        return "make one JSON array into lines with `jq -c '.[]'`"
    return "the ending says how it is read"
