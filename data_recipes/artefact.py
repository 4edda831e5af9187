"""Files that stages hand to each other: whole or absent, hashed, sorted, and refused when they do not fit.

Everything that ends up under a final name goes through `whole_file` or `whole_folder`: it is written under a
temporary name in the same folder and then renamed, so a file that exists is whole. No clock time is stored:
same inputs, same bytes.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = 1
ARTEFACT_HEAD = ("kind", "schema", "inputs", "versions")  # the keys that `write_artefact` adds to a body

# A fixed list, not "whatever is imported by now": the bytes of an artefact must not depend on who wrote it.
RECORDED_PACKAGES = (
    "local-experts",
    "accelerate",
    "babel",
    "datasets",
    "evaluate",
    "numpy",
    "peft",
    "sacrebleu",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)

MADE_BY = {
    "dataset_manifest": "local-experts data RECIPE --output DIR",
    "routing_profile": "local-experts profile --config FILE",
    "expert_plan": "local-experts select --config FILE",
    "expert_adapter": "local-experts train --config FILE",
    "train_result": "local-experts train --config FILE",
    "eval_results": "local-experts eval --config FILE",
    "report": "local-experts report --config FILE",
    "ablation": "local-experts ablate FILE",
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """One clear message for the person at the keyboard: what is wrong, the value, the way out.

    The command line prints it after "error: " and exits with 2, without a traceback.
    """


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits.

    Raises: UserError when the file is missing, a folder or unreadable.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def sha256_json(obj: Any) -> str:
    """SHA-256 of the canonical JSON of `obj`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(obj, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_hashes(path: str | Path) -> dict[str, str]:
    """SHA-256 of every file under `path`, by its path relative to it with "/"; a single file has the key ".".

    Raises: UserError when `path` does not exist.
    """
    path = Path(path)
    if not path.is_dir():
        return {".": sha256_file(path)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): sha256_file(file) for file in files}


def sha256_folder(path: str | Path) -> str:
    """One SHA-256 over the names and the bytes of all files under a folder.

    Raises: UserError when it does not exist.
    """
    return sha256_json(file_hashes(path))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means "no space left".

    Arrow raises an OSError with the number; safetensors and torch raise errors that carry only the text.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    return any(os.strerror(number) in str(error) for number in DISK_FULL)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as sorted, indented UTF-8 JSON; the file appears whole or not at all.

    Raises: UserError when the disk is full or the place cannot be written; ValueError for NaN or infinity.
    """
    write_text(path, json.dumps(obj, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text; the file appears whole or not at all.

    Raises: UserError when the disk is full or the place cannot be written.
    """
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield the name of a sibling file to write; it takes the place of `path` on success, else it is removed.

    Raises: UserError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    partial = _partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except Exception as error:
        if isinstance(error, OSError) or is_disk_full(error):
            raise _write_error(path, error) from error
        raise
    finally:
        _remove_file(partial)


@contextmanager
def whole_folder(path: str | Path, kind: str | None = None) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; it takes the place of `path` on success and is removed on error.

    An old folder is replaced only when it is empty or holds a JSON file written by `write_artefact`, of this
    `kind` when one is given: a mistyped `--output` must never delete somebody's own files. What is killed
    leaves an unfinished `.<name>.partial-*` behind, between the two renamings of the end the old folder.

    Raises: UserError when the disk is full, the place cannot be written, or the old folder is not ours.
    """
    target = Path(os.path.realpath(path))  # through a link: the folder behind it is replaced, the link stays
    _refuse_foreign(target, kind)
    partial = _partial_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise _write_error(target, error) from error
    try:
        yield partial
        _take_place(partial, target)
    except Exception as error:
        if is_disk_full(error):
            raise _write_error(target, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard_unfinished(path: str | Path) -> None:
    """Remove what killed processes left of writing `path`; no process may be writing it now."""
    target = Path(os.path.realpath(path))
    for partial in target.parent.glob(f"{glob.escape(f'.{target.name}.partial-')}*"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            _remove_file(partial)


def write_artefact(path: str | Path, kind: str, inputs: dict[str, str], body: dict[str, Any]) -> None:
    """Write one stage's result: kind, schema, `inputs` (name -> sha256 of what made it), versions and body.

    Raises: UserError as `write_json`; ValueError when the body uses a reserved key.
    """
    head = {"kind": kind, "schema": SCHEMA, "inputs": inputs, "versions": package_versions()}
    reserved = head.keys() & body.keys()
    if reserved:
        raise ValueError(f"the body of {kind} uses reserved keys {sorted(reserved)}")
    write_json(path, {**head, **body})


def read_artefact(path: str | Path, kind: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Read an artefact of this kind, head and body in one dict, in which `keys` are.

    Raises: UserError when it is missing, unreadable, not whole, or of another kind or schema.
    """
    remake = f"make it again with `{MADE_BY[kind]}`" if kind in MADE_BY else "make it again"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist ({kind}); {remake.replace(' again', '')}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it should be a {kind} file") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is not whole JSON ({error}); {remake}") from error
    found_kind = found.get("kind") if isinstance(found, dict) else None
    if found_kind != kind:
        raise UserError(f"{path} is of kind {found_kind!r}, but {kind!r} is needed; {remake}")
    if found.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {found.get('schema')!r}, this version reads {SCHEMA}; {remake}")
    for key in keys:
        if key not in found:
            raise UserError(f"{path} lacks {key!r}; {remake}")
    return found


def package_versions() -> dict[str, str]:
    """Installed versions of the packages in `RECORDED_PACKAGES`; one that is not installed is left out."""
    from importlib import metadata  # imported late: it costs a third of the command line's start-up

    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _partial_name(path: Path) -> Path:
    # A random part, so that two runs into one folder never write into each other's half-made files.
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


def _write_error(path: Path, error: BaseException) -> UserError:
    if is_disk_full(error):
        return UserError(f"no space left to write {path}: free some disk, or choose another output folder")
    return UserError(f"cannot write {path}: {error}")


def _remove_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # its folder is no folder or not ours; the error that brought us here says so


def _refuse_foreign(target: Path, kind: str | None) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file, but a folder is to be written there; choose another output")
    if any(target.iterdir()) and not any(_is_artefact(file, kind) for file in target.glob("*.json")):
        other = f" as {kind}" if kind else ""
        raise UserError(
            f"{target} holds files that local-experts did not write{other}, and would be replaced; "
            "choose another output folder or remove it yourself"
        )


def _is_artefact(path: Path, kind: str | None) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    is_ours = isinstance(found, dict) and {"kind", "schema"} <= found.keys()
    return is_ours and kind in (None, found["kind"])


def _take_place(new: Path, target: Path) -> None:
    old = _partial_name(target)
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except BaseException:  # an interrupt too
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
