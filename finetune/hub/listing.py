"""Exactly what a push sends: each file with its bytes and hashes, as the dry run shows and the end checks it.

Reads the files once; what the Hub has afterwards is held against these hashes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.hub.contents import Repository

BLOCK_BYTES = 1 << 20


class Listed(NamedTuple):
    """One file: its path in the repository and here, its size and hashes."""

    name: str
    path: Path
    n_bytes: int
    sha256: str  # what the Hub says of a large file
    blob_id: str  # what git, and so the Hub, says of a small one


def listed(repository: Repository) -> list[Listed]:
    """The files of a repository by name."""
    return [_listed(name, path) for name, path in sorted(repository.files.items())]


def is_there(file: Listed, found: Any) -> bool:
    """Whether the Hub's entry of the same path (a RepoFile or None) holds these bytes."""
    if found is None:
        return False
    return found.lfs.sha256 == file.sha256 if found.lfs else found.blob_id == file.blob_id


def shown(repository: Repository, files: Sequence[Listed], private: bool) -> str:
    """What the dry run prints of a repository."""
    n_bytes = sum(file.n_bytes for file in files)
    visibility = "private" if private else "PUBLIC"
    head = f"{repository.kind:<9}{repository.name}  {visibility}, {len(files)} files, {n_bytes:,} bytes"
    lines = [f"  {file.sha256}  {file.n_bytes:>14,}  {file.name}" for file in files]
    if repository.owned:
        lines.append(f"  of an earlier push is removed what is not listed: {', '.join(repository.owned)}")
    return "\n".join([head, *lines])


def _listed(name: str, path: Path) -> Listed:
    n_bytes = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            blob.update(block)
    return Listed(name, path, n_bytes, sha256.hexdigest(), blob.hexdigest())
