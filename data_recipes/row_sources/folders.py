"""Which files a recipe may read: those in its own folder, and in folders the person at the keyboard allows.

Reads the file system, writes nothing. A recipe is often somebody else's: it must not read the keys of the
person who runs it. Links are followed before the check.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_recipes.artefact import UserError


def is_inside(path: str | Path, folders: Sequence[str | Path]) -> bool:
    """Return whether a path, after all links, lies in one of the folders (after their links)."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def allowed_path(named: str, folder: Path, allowed: Sequence[Path]) -> Path:
    """Return the path a recipe names, taken relative to the recipe's folder.

    Raises:
        UserError: it lies outside, or does not exist.
    """
    path = folder / named
    if not is_inside(path, [folder, *allowed]):
        raise UserError(
            f"{named} leads to {os.path.realpath(path)}, outside the recipe's folder {folder}; move the file "
            "there, or allow its folder explicitly when you run the recipe"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist; paths in a recipe are relative to the recipe's folder")
    return path


def require_regular_file(path: Path) -> None:
    """Raise UserError for a folder, a pipe or a device: reading one of these may never end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is no regular file; give the path of one")


def files_under(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder in sorted order; links to folders are not entered."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names))
