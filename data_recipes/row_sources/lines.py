"""Lines of a text file with their number and byte offset, in the memory of one chunk and one line.

Reads files, writes nothing. \\n, \\r\\n and \\r end a line, also mixed in one file. The text must be UTF-8,
with or without its mark; other encodings are refused by name where a file begins with their mark.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_recipes.artefact import UserError
from data_recipes.row_sources.folders import require_regular_file
from data_recipes.writing.decoding import refuse_marks

_CHUNK = 1 << 18
_PACKED = (
    (b"\x1f\x8b", "a gzip file", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd"),
    (b"PK\x03\x04", "a zip file", "unzip"),
)


class Line(NamedTuple):
    """One line without its end. `data` is None where it is longer than the limit."""

    number: int  # from 1
    offset: int  # of its first byte in the file
    n_bytes: int
    data: bytes | None
    n_quotes: int  # bytes that are ", also in a line too long to keep


class OpenedFile(NamedTuple):
    """A file at its first byte of text, and the hash of the whole of it."""

    handle: BinaryIO
    sha256: str


@contextmanager
def opened(path: Path) -> Iterator[OpenedFile]:
    """Hash a file and open it for reading.

    Raises:
        UserError: it cannot be read, or is no regular file, or is another one after it was read.
    """
    require_regular_file(path)
    try:
        with path.open("rb") as handle:
            before = os.fstat(handle.fileno())
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            yield OpenedFile(handle, sha256)
            after = os.fstat(handle.fileno())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{path} was changed while it was read: its rows and its hash do not belong together")


def skip_utf8_mark(file: BinaryIO, path: Path) -> int:
    """Move a file behind the mark of UTF-8, if it has one, and return the offset.

    Raises:
        UserError: the first bytes are those of another encoding or of a packed file.
    """
    start = file.read(4)
    refuse_marks(start, str(path))
    for mark, kind, command in _PACKED:
        if start.startswith(mark):
            raise UserError(f"{path} is {kind}, not UTF-8 text; unpack it first, with `{command}`")
    if b"\0" in start:
        raise UserError(
            f"{path} has a zero byte at offset {start.index(0)}, as UTF-16 text without its mark has; "
            "make it UTF-8 first, with `iconv -f UTF-16LE -t UTF-8` or `iconv -f UTF-16BE -t UTF-8`"
        )
    offset = len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0
    file.seek(offset)
    return offset


def lines(file: BinaryIO, max_bytes: int, offset: int = 0) -> Iterator[Line]:
    """Yield the lines of a file from where it stands, `offset`; no more than `max_bytes` of one are held."""
    number, n_bytes, n_quotes, held, after_cr = 1, 0, 0, [], False
    while chunk := file.read(_CHUNK):
        if after_cr and chunk.startswith(b"\n"):  # the two bytes of one line end, in two chunks
            chunk, offset = chunk[1:], offset + 1
        after_cr = chunk.endswith(b"\r")
        for part in chunk.splitlines(keepends=True):  # of bytes: ends at \n, \r\n and \r only
            text = part.rstrip(b"\r\n")
            n_bytes += len(text)
            n_quotes += text.count(b'"')
            if n_bytes <= max_bytes:
                held.append(text)
            else:
                held.clear()
            if len(text) == len(part):
                continue  # the line goes on in the next chunk
            yield Line(number, offset, n_bytes, b"".join(held) if n_bytes <= max_bytes else None, n_quotes)
            number, offset = number + 1, offset + n_bytes + len(part) - len(text)
            n_bytes, n_quotes, held = 0, 0, []
    if n_bytes:
        yield Line(number, offset, n_bytes, b"".join(held) if n_bytes <= max_bytes else None, n_quotes)
