"""Rows as tokens, encoded once: in memory, or as memory-mapped files for later runs and other processes.

Reads rows; writes `<folder>/` with raw little-endian arrays and store.json. Only what is looked at comes into
memory, so a dataset may be larger than it. A token that is not trained is stored as its complement (~token),
so that one array holds tokens and labels.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from data_recipes.artefact import (
    UserError,
    discard_unfinished,
    read_artefact,
    sha256_json,
    whole_folder,
    write_artefact,
)
from data_recipes.chats.chat_template import read_template
from data_recipes.progress import progress_bar
from finetune.batches import IGNORED_LABEL, Example, audited_examples
from finetune.model import tokenizer_fingerprint

KIND = "token_store"
COLUMNS = ("group", "language", "task", "source")  # by which rows can be mixed and counted
ARRAYS = {"tokens": "<i4", "token_ends": "<i8", "ids": "u1", "id_ends": "<i8"} | dict.fromkeys(COLUMNS, "<i4")
SECONDS_BEFORE_PROGRESS = 5  # most datasets are encoded by then

Arrays = Mapping[str, np.ndarray]


class TokenStore:
    """The rows of a dataset, each an `Example` when it is asked for."""

    def __init__(self, arrays: Arrays, names: Mapping[str, list[str]]) -> None:
        """`names` has for each of COLUMNS the values that rows have there, "" for rows without it."""
        self.arrays, self.names = arrays, names

    def __len__(self) -> int:
        return len(self.arrays["token_ends"])

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.arrays["token_ends"], prepend=0).astype(np.int32)

    def example(self, number: int, column: str = "group") -> Example:
        """The row of that number, counted under its value of `column`."""
        values = self._row("token", number)
        is_trained = values >= 0
        tokens = np.where(is_trained, values, ~values)
        labels = np.where(is_trained, values, IGNORED_LABEL)
        group = self.names[column][self.arrays[column][number]]
        return Example(self._row("id", number).tobytes().decode(), tokens.tolist(), labels.tolist(), group)

    def _row(self, name: str, number: int) -> np.ndarray:
        ends = self.arrays[f"{name}_ends"]
        return self.arrays[f"{name}s"][ends[number - 1] if number else 0 : ends[number]]


def encode_in_memory(
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> TokenStore:
    """The rows as tokens in memory.

    Raises:
        UserError: as `encode_rows`.
    """
    files = {name: io.BytesIO() for name in ARRAYS}
    names = _write_rows(files.__getitem__, tokenizer, rows, max_length_tokens, stop_ids)
    arrays = {name: np.frombuffer(file.getbuffer(), ARRAYS[name]) for name, file in files.items()}
    return TokenStore(arrays, names)


def encode_on_disk(
    folder: Path,
    content_hash: str,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> TokenStore:
    """The rows as tokens in `folder`, encoded only if they are not there as the same arguments give them.

    One process encodes, and the others of its machine wait for it at the lock beside the folder, which the
    system opens when that process dies.

    Args:
        content_hash: SHA-256 of the rows; none of them is read when the folder holds them already.

    Raises:
        UserError: as `encode_rows`, or the folder cannot be written.
    """
    read_template(tokenizer)  # no template is said before anything is written
    key = {
        "data": content_hash,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "options": sha256_json([max_length_tokens, sorted(stop_ids)]),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error
    try:
        found = _read(folder, key)
        if found is None:
            discard_unfinished(folder)  # of processes that were killed: who writes has the lock
            _encode_into(folder, key, tokenizer, rows, max_length_tokens, stop_ids)
            found = _read(folder, key)
    finally:
        lock.release()
    assert found is not None, "what was just written is there"
    return found


def _encode_into(
    folder: Path,
    key: dict[str, str],
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int],
) -> None:
    with whole_folder(folder, KIND) as partial:
        with ExitStack() as stack:
            files = {name: stack.enter_context((partial / f"{name}.bin").open("wb")) for name in ARRAYS}
            told = progress_bar(rows, desc="encode", unit=" rows", delay=SECONDS_BEFORE_PROGRESS)
            names = _write_rows(files.__getitem__, tokenizer, told, max_length_tokens, stop_ids)
        sizes = {name: (partial / f"{name}.bin").stat().st_size for name in ARRAYS}
        write_artefact(partial / "store.json", KIND, key, {"names": names, "n_bytes": sizes})


def _read(folder: Path, key: Mapping[str, str]) -> TokenStore | None:
    """The store of `folder`; None when there is none, another one, or one whose files are not whole."""
    try:
        head = read_artefact(folder / "store.json", KIND, ["names", "n_bytes"])
        sizes = {name: (folder / f"{name}.bin").stat().st_size for name in ARRAYS}
    except (UserError, OSError):
        return None
    if head["inputs"] != key or head["n_bytes"] != sizes:
        return None
    arrays = {name: np.memmap(folder / f"{name}.bin", ARRAYS[name], "r") for name in ARRAYS}
    return TokenStore(arrays, head["names"])


def _write_rows(
    file_of: Callable[[str], BinaryIO],
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    max_length_tokens: int,
    stop_ids: frozenset[int],
) -> dict[str, list[str]]:
    """Write every row to the files of ARRAYS; returns the values of COLUMNS in the order of their numbers."""
    numbers: dict[str, dict[str, int]] = {column: {} for column in COLUMNS}
    ends = {"token": 0, "id": 0}

    def write(name: str, values: Sequence[int] | np.ndarray) -> None:
        file_of(name).write(np.asarray(values, ARRAYS[name]).tobytes())

    for row, example in audited_examples(tokenizer, rows, max_length_tokens, stop_ids):
        tokens, labels = np.array(example.tokens, np.int32), np.array(example.labels, np.int32)
        row_id = np.frombuffer(example.row_id.encode(), np.uint8)
        for name, values in (("token", np.where(labels == IGNORED_LABEL, ~tokens, tokens)), ("id", row_id)):
            ends[name] += len(values)
            write(f"{name}s", values)
            write(f"{name}_ends", [ends[name]])
        for column, known in numbers.items():
            write(column, [known.setdefault(str(row.get(column) or ""), len(known))])
    return {column: list(known) for column, known in numbers.items()}
