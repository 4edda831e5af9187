"""Replies of a teacher on disk, by the content of the request: what was paid for once is not asked again.

Reads and writes one SQLite file. Each reply is on the disk before the next one is taken, so that a process
that is killed loses at most what was still under way.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import TracebackType

from data_recipes.artefact import UserError
from data_recipes.translate.teachers import Reply

_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, text TEXT NOT NULL,
    n_prompt_tokens INTEGER NOT NULL, n_reply_tokens INTEGER NOT NULL
) WITHOUT ROWID"""


class ReplyCache:
    """Replies by key. Several processes may share a file; one object belongs to one thread."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            # Write-ahead log, and every commit forced to the disk.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            raise self._failed("open", error) from error

    def get(self, key: str) -> Reply | None:
        """Return the reply of a request, or None.

        Raises: UserError when the file cannot be read.
        """
        try:
            row = self._database.execute(
                "SELECT text, n_prompt_tokens, n_reply_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return Reply(*row) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; it is on the disk when this returns. The first of two for one key stays.

        Raises: UserError when the disk is full or the file cannot be written.
        """
        assert not reply.failure, "a failure is no reply"
        values = (key, reply.text, reply.n_prompt_tokens, reply.n_reply_tokens)
        try:
            self._database.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", values)
        except (sqlite3.Error, UnicodeEncodeError) as error:  # half a surrogate pair is no text SQLite takes
            raise self._failed("write", error) from error

    def n_tokens(self) -> tuple[int, int]:
        """Return the tokens sent and received for all replies kept: what they cost, over all runs."""
        try:
            sent, received = self._database.execute(
                "SELECT COALESCE(SUM(n_prompt_tokens), 0), COALESCE(SUM(n_reply_tokens), 0) FROM replies"
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return int(sent), int(received)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _failed(self, what: str, error: Exception) -> UserError:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        if full or os.strerror(errno.ENOSPC) in str(error):
            return UserError(
                f"no space left for the reply cache {self.path}: free some disk and run again; the replies "
                "that are in it are kept"
            )
        return UserError(
            f"cannot {what} the reply cache {self.path}: {error}; choose another file, or "
            "delete it: what it holds is then asked for again"
        )
