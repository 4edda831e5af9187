"""Translations from catalogues (.po, .mo, JSON) of installed packages, wheels and folders, as rows.

Reads them without running, importing or installing the package; writes nothing. Texts stay as they are, with
their placeholders. Fuzzy, obsolete and untranslated entries are rejected with that reason, so that they are
counted; a catalogue that cannot be read is one rejection, and the others go on.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from email import message_from_bytes
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data_recipes.artefact import UserError, sha256_file, sha256_json
from data_recipes.languages import language as known_language
from data_recipes.row_sources import strict_json
from data_recipes.row_sources.folders import allowed_path, files_under, is_inside, require_regular_file
from data_recipes.row_sources.gettext_files import BadCatalogue, Entry, read_mo_entries, read_po_entries
from data_recipes.row_sources.options import (
    DEFAULT_PHRASING,
    language_problems,
    licence_problems,
    phrasing_problems,
)
from data_recipes.row_sources.provenance import Provenance, package_provenance
from data_recipes.screening.licences import spdx
from data_recipes.steps import Rejected, Row
from data_recipes.writing.decoding import decode

STEP = "source"
SYSTEM_CATALOGUES = Path("/usr/share/locale")  # public on every machine, so no permission is asked
MAX_CATALOGUE_BYTES = 64 << 20
_KINDS = (".po", ".mo", ".json")


@dataclass(frozen=True, kw_only=True)
class CatalogueOptions:
    """The translations of one locale in one package, wheel or folder."""

    package: str = ""  # the name of an installed distribution
    wheel: str = ""  # a .whl file, read as it is
    folder: str = ""  # a folder of catalogues, as /usr/share/locale
    language: str
    script: str = ""  # ISO 15924; empty: the usual one of the language
    locale: str = ""  # what the catalogue calls the language, as hi_IN; empty: the language's code
    source_locale: str = "en"  # what it calls the English of JSON messages
    match: tuple[str, ...] = ("*",)  # paths to read, as */admin/*
    licence: str = ""  # SPDX; may be empty where the package's metadata says it
    attribution: str = ""
    phrasing: str = DEFAULT_PHRASING  # {x} is the English text, {language} the language's English name

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        wrong = language_problems(self.language, self.script) + phrasing_problems(self.phrasing)
        if sum(map(bool, (self.package, self.wheel, self.folder))) != 1:
            wrong.append("package: set one of package, wheel and folder")
        if self.licence or self.folder:
            wrong += licence_problems(self.licence)
        if not self.match:
            wrong.append("match: must hold at least one pattern; leave it out to read every catalogue")
        return wrong


class Catalogues(NamedTuple):
    """The files of one source by their path in it, and how to get the bytes of one."""

    provenance: Provenance
    paths: list[str]
    data: Callable[[str], bytes]
    hash_each: bool = False  # a folder has no version: each file's hash stands for it


class Pair(NamedTuple):
    """An English text and its translation, with what makes it one of a kind inside its source."""

    english: str
    text: str
    place: str
    key: dict[str, Any]


def read(options: CatalogueOptions, folder: Path, allowed: Sequence[Path] = ()) -> Iterator[Row | Rejected]:
    """Yield one row a translated message (and plural form) of a locale, file by file in sorted order.

    Raises:
        UserError: no such package, wheel or folder, an unclear licence, no catalogue of the locale.
    """
    found = _open(options, folder, allowed)
    locale = options.locale or options.language
    chosen = _chosen(options, found)
    for path in chosen:
        provenance = found.provenance
        try:
            data = found.data(path)
            if found.hash_each:
                provenance = replace(provenance, revision=f"sha256:{hashlib.sha256(data).hexdigest()}")
            for entry in _entries(path, data, found, locale, options.source_locale):
                yield _row(entry, path, provenance, options)
        except (BadCatalogue, OSError, EOFError, zipfile.BadZipFile, zlib.error, UserError) as error:
            where = f"{provenance.source}/{path}"
            yield Rejected(where, STEP, "an unreadable catalogue", f"{where}: {error}")


def fingerprint(options: CatalogueOptions, folder: Path, allowed: Sequence[Path] = ()) -> tuple[str, str]:
    """Return the version of a source and one hash over the catalogues that `read` would read.

    Raises:
        UserError: as `read`.
    """
    found = _open(options, folder, allowed)
    hashes: dict[str, str] = {}
    for path in _chosen(options, found):
        try:
            hashes[path] = hashlib.sha256(found.data(path)).hexdigest()
        except (BadCatalogue, OSError, EOFError, zipfile.BadZipFile, zlib.error, UserError):
            hashes[path] = "unreadable"  # `read` says why
    return found.provenance.revision, sha256_json(hashes)


def _chosen(options: CatalogueOptions, found: Catalogues) -> list[str]:
    locale = options.locale or options.language
    paths = [path for path in found.paths if any(fnmatchcase(path, pattern) for pattern in options.match)]
    chosen = [path for path in paths if _with_locale(path, locale, locale) is not None]
    # A .mo is made from the .po beside it, which also says what is fuzzy.
    chosen = [p for p in chosen if not (p.endswith(".mo") and f"{p[:-3]}.po" in found.paths)]
    if not chosen:
        near = sorted({part for path in paths for part in _parts(path) if part.startswith(options.language)})
        raise UserError(
            f"{found.provenance.source} holds no catalogue of the locale {locale!r} that matches "
            f"{', '.join(options.match)}; set `locale` to the name it uses"
            + (f": {', '.join(near[:8])}" if near else "")
        )
    return chosen


def pair_row(pair: Pair, provenance: Provenance, options: Any) -> Row:
    """Return the row that asks for a translation; `options` have language, script and phrasing."""
    question = options.phrasing.replace("{language}", known_language(options.language).name)
    messages = [
        {"role": "user", "content": question.replace("{x}", pair.english)},
        {"role": "assistant", "content": pair.text},
    ]
    said = {"english": pair.english, "text": pair.text, **pair.key}
    return provenance.row(pair.place, options.language, options.script, messages, pair=said)


def _row(entry: Entry, path: str, provenance: Provenance, options: CatalogueOptions) -> Row | Rejected:
    key = {"context": entry.context, "plural_form": entry.plural_form, "example_count": entry.example_count}
    # By content and not by line: the next version of the catalogue keeps the ids of what it keeps.
    name = sha256_json([entry.english, entry.context, entry.plural_form])[:12]
    place = f"{path}#{name}"
    if entry.skipped:
        line = f", line {entry.line}" if entry.line else ""
        where = f"{provenance.source}/{place}"
        return Rejected(where, STEP, entry.skipped, f"{provenance.source}/{path}{line}")
    return pair_row(Pair(entry.english, entry.text, place, key), provenance, options)


def _parts(path: str) -> list[str]:
    """The folders of a path and its name without ending: a locale is one of these."""
    pure = PurePosixPath(path)
    return [*pure.parts[:-1], pure.stem]


def _with_locale(path: str, locale: str, other: str) -> str | None:
    """The path with its (last) part that names the locale changed to another; None when no part does."""
    parts, suffix = _parts(path), PurePosixPath(path).suffix
    same = [
        i
        for i, part in enumerate(parts)
        if part.lower().replace("-", "_") == locale.lower().replace("-", "_")
    ]
    if not same:
        return None
    parts[same[-1]] = other
    return "/".join(parts) + suffix


def _entries(path: str, data: bytes, found: Catalogues, locale: str, source_locale: str) -> Iterator[Entry]:
    if path.endswith(".po"):
        return read_po_entries(data)
    if path.endswith(".mo"):
        return read_mo_entries(data)
    english_path = _with_locale(path, locale, source_locale)
    if english_path not in found.paths:
        raise BadCatalogue(f"its English is not there ({english_path}); set `source_locale`")
    return _json_entries(_json_messages(data), _json_messages(found.data(str(english_path))))


def _json_entries(texts: dict[str, str], english: dict[str, str]) -> Iterator[Entry]:
    for key, text in texts.items():
        known = english.get(key, "")
        reason = "no English text" if not known else "" if text else "untranslated"
        yield Entry(known or key, text, context=key, skipped=reason)


def _json_messages(data: bytes) -> dict[str, str]:
    """The messages of a JSON catalogue by their keys; a section's keys are joined with a dot.

    WebExtension catalogues hold {"message": text, "description": ...} under each key.
    """
    try:
        tree = strict_json.parse(decode(data, "it"))
    except strict_json.NotStrictJson as error:
        raise BadCatalogue(f"character {error.column}: {error.detail}") from error
    if not isinstance(tree, dict):
        raise BadCatalogue("it is not one JSON object")
    messages: dict[str, str] = {}
    sections = [("", tree)]
    while sections:
        prefix, section = sections.pop()
        for key, value in section.items():
            value = value["message"] if isinstance(value, dict) and _is_message(value) else value
            if isinstance(value, dict):
                sections.append((f"{prefix}{key}.", value))
            elif isinstance(value, str):
                messages[prefix + key] = value
    return messages


def _is_message(value: dict[str, Any]) -> bool:
    return isinstance(value.get("message"), str) and value.keys() <= {
        "message",
        "description",
        "placeholders",
    }


def _open(options: CatalogueOptions, folder: Path, allowed: Sequence[Path]) -> Catalogues:
    if options.package:
        return _open_package(options)
    if options.wheel:
        return _open_wheel(allowed_path(options.wheel, folder, allowed), options)
    return _open_folder(allowed_path(options.folder, folder, [*allowed, SYSTEM_CATALOGUES]), options)


def _open_package(options: CatalogueOptions) -> Catalogues:
    try:
        found = distribution(options.package)
    except (PackageNotFoundError, ValueError) as error:
        raise UserError(
            f"the package {options.package!r} is not installed: `pip install {options.package}`, or "
            "`pip download --no-deps` it and give the file as `wheel`"
        ) from error
    # Where an installer puts files: a list that leads elsewhere is not followed.
    roots = [Path(str(found.locate_file(""))), Path(sys.prefix)]
    files = {file.as_posix(): Path(str(file.locate())) for file in found.files or [] if file.suffix in _KINDS}
    provenance = package_provenance(found.metadata, options.licence, options.attribution)  # type: ignore[arg-type]
    return Catalogues(provenance, sorted(files), lambda name: _bytes(files[name], roots))


def _open_wheel(path: Path, options: CatalogueOptions) -> Catalogues:
    require_regular_file(path)
    try:
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
        described = [name for name in names if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
        if len(described) != 1:
            raise zipfile.BadZipFile(f"it holds {len(described)} METADATA files, not one")
        metadata = message_from_bytes(archive.read(described[0]))
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"cannot read the wheel {path}: {error}; download it again") from error
    provenance = package_provenance(metadata, options.licence, options.attribution, sha256_file(path))

    def data(name: str) -> bytes:
        try:
            # The size that the archive declares may be a lie: read, then look.
            with archive.open(name) as file:
                return _within_limit(file.read(MAX_CATALOGUE_BYTES + 1))
        except RuntimeError as error:  # a password, or a compression that zipfile does not know
            raise BadCatalogue(str(error)) from error

    return Catalogues(provenance, sorted(name for name in names if name.endswith(_KINDS)), data)


def _open_folder(root: Path, options: CatalogueOptions) -> Catalogues:
    if not root.is_dir():
        raise UserError(f"{root} is no folder; give the folder that the catalogues are in")
    found = {path.relative_to(root).as_posix(): path for path in files_under(root) if path.suffix in _KINDS}
    name = options.folder.rstrip("/") or "/"
    licence = spdx(options.licence)
    provenance = Provenance(name, "", licence, "recipe", options.attribution or name)

    return Catalogues(provenance, sorted(found), lambda name: _bytes(found[name], [root]), hash_each=True)


def _bytes(path: Path, folders: Sequence[Path]) -> bytes:
    if not is_inside(path, folders):
        raise BadCatalogue("it leads out of its folder")
    require_regular_file(path)
    with path.open("rb") as file:
        return _within_limit(file.read(MAX_CATALOGUE_BYTES + 1))


def _within_limit(data: bytes) -> bytes:
    if len(data) > MAX_CATALOGUE_BYTES:
        raise BadCatalogue(f"it is larger than {MAX_CATALOGUE_BYTES:,} bytes")
    return data
