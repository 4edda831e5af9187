"""One source of a recipe, of any kind: its options, and the rows behind them.

Reads what the options name; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from data_recipes.row_sources import catalogues, files, hub, packages
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
