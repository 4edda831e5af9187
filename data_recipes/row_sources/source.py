"""One source of a recipe, of any kind: its options, and the rows behind them.

Reads what the options name; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_recipes.artefact import sha256_file, sha256_folder
from data_recipes.row_sources import catalogues, files, hub, packages
from data_recipes.row_sources.folders import allowed_path, require_regular_file
from data_recipes.sources import SOURCES
from data_recipes.steps import Rejected, Row


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Exactly one of the kinds."""

    files: files.FileOptions | None = None
    hub: hub.HubOptions | None = None
    catalogues: catalogues.CatalogueOptions | None = None
    packages: packages.PackageOptions | None = None

    def problems(self) -> list[str]:
        """Values that cannot be used, as "key: reason"."""
        kinds = [item.name for item in fields(self)]
        found = [name for name in kinds if getattr(self, name) is not None]
        if len(found) == 1:
            return []
        named = f"it has {' and '.join(found)}" if found else "it has none"
        return [f"{found[0] if found else kinds[0]}: a source is one of {', '.join(kinds)}; {named}"]


def open_source(config: SourceConfig, folder: Path, allowed: Sequence[Path] = ()) -> Iterator[Row | Rejected]:
    """Return the rows and rejections of a source, streamed.

    Args:
        config: the options of exactly one kind.
        folder: the recipe's folder; a recipe reads files in it and nowhere else.
        allowed: more folders, from the person who runs the recipe and never from the recipe itself.

    Raises:
        UserError: as the `read` of each kind, when the first row is asked for.
    """
    if config.files is not None:
        return files.read(config.files, folder, allowed)
    if config.hub is not None:
        return hub.read(config.hub, folder, allowed)
    if config.catalogues is not None:
        return catalogues.read(config.catalogues, folder, allowed)
    assert config.packages is not None, "problems() refuses a source without a kind"
    return packages.read(config.packages)


def source_identity(config: SourceConfig, folder: Path, allowed: Sequence[Path] = ()) -> dict[str, Any]:
    """Return what a source is read from: its kind, its name, and what changes when its rows may change.

    Raises:
        UserError: it is not there, or not to be read.
    """
    if config.files is not None:
        paths = [allowed_path(name, folder, allowed) for name in config.files.paths]
        for path in paths:
            require_regular_file(path)
        hashes = {name: sha256_file(path) for name, path in zip(config.files.paths, paths, strict=True)}
        return {"kind": "files", "name": ", ".join(config.files.paths), "revision": hashes}
    if config.hub is not None:
        options = config.hub
        if options.is_folder:
            revision = f"sha256:{sha256_folder(allowed_path(options.dataset, folder, allowed))}"
        else:
            revision = options.revision
            if options.online:
                revision = hub.resolve_revision(options.dataset, options.revision or "main")
        return {"kind": "hub", "name": options.dataset, "revision": revision}
    if config.catalogues is not None:
        named = config.catalogues.package or config.catalogues.wheel or config.catalogues.folder
        version, sha256 = catalogues.fingerprint(config.catalogues, folder, allowed)
        return {"kind": "catalogues", "name": named, "revision": f"{version} sha256:{sha256}"}
    assert config.packages is not None, "problems() refuses a source without a kind"
    package = "holidays" if config.packages.facts == "holidays" else "babel"
    return {"kind": "packages", "name": package, "revision": SOURCES[package].version()}
