"""What every row says of where it comes from: source, revision, SPDX licence, attribution.

Reads the metadata of packages; writes nothing. A licence that the metadata does not say beyond doubt is asked
for, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.languages import language as known_language
from data_recipes.screening.licences import may_commit, spdx
from data_recipes.steps import Row

# Only the classifiers that name one licence: "BSD License" may be two, three or four clauses.
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
}


@dataclass(frozen=True)
class Provenance:
    """What all rows of one source, at one revision, have in common."""

    source: str  # the package, dataset or file, as the recipe names it
    revision: str  # the package's version, the commit, or sha256:<hash> of the file
    licence: str  # SPDX
    licence_from: str  # who says so: "recipe", "package metadata", "dataset card"
    attribution: str

    def row(self, place: str, language: str, script: str, messages: list[Any], **more: Any) -> Row:
        """Return a row; `place` is its name inside the source and stays the same from run to run."""
        return {
            "id": f"{self.source}/{place}",
            "language": language,
            "script": script or known_language(language).script,
            "messages": messages,
            "source": self.source,
            "revision": self.revision,
            "row_id": place,
            "licence": self.licence,
            "licence_from": self.licence_from,
            "may_commit": may_commit(self.licence),
            "attribution": self.attribution,
            "transforms": [],
            **more,
        }


def declared_licence(metadata: Message) -> str | None:
    """Return the SPDX licence a package's metadata declares; None where it is unclear."""
    if expression := metadata.get("License-Expression"):
        return _spdx_or_none(expression)
    said = set()
    if (free_text := metadata.get("License")) and _spdx_or_none(free_text):
        said.add(_spdx_or_none(free_text))
    for classifier in metadata.get_all("Classifier", []):
        if classifier.startswith("License :: OSI Approved :: ") and classifier.endswith(":: BSD License"):
            continue  # says less than a licence field that names the number of clauses
        if classifier.startswith("License :: ") and classifier != "License :: OSI Approved":
            said.add(_CLASSIFIERS.get(classifier.rpartition(" :: ")[2]))
    return said.pop() if len(said) == 1 else None


def _spdx_or_none(text: str) -> str | None:
    try:
        return spdx(text)
    except UserError:
        return None


def package_provenance(metadata: Message, licence: str, attribution: str, sha256: str = "") -> Provenance:
    """Return the provenance of an installed package or of a wheel (then with its hash in the revision).

    Raises:
        UserError: the recipe names no licence and the metadata declares none beyond doubt.
    """
    name, version = str(metadata["Name"]).lower(), str(metadata["Version"])
    found = spdx(licence) if licence else declared_licence(metadata)
    if found is None:
        said = [c for c in metadata.get_all("Classifier", []) if c.startswith("License")]
        said += [str(metadata["License"])[:60]] if metadata["License"] else []
        raise UserError(
            f"the licence of {name} {version} is unclear (it says: {'; '.join(said) or 'nothing'}); "
            "look it up and write its SPDX name into the recipe as `licence`"
        )
    # Authors by name only: an address does not belong into rows.
    author = metadata.get("Author") or (metadata.get("Author-email") or "").partition("<")[0].strip()
    author = "" if "@" in author else author
    return Provenance(
        source=name,
        revision=f"{version} sha256:{sha256}" if sha256 else version,
        licence=found,
        licence_from="recipe" if licence else "package metadata",
        attribution=attribution or f"{name} {version}" + (f", {author}" if author else ""),
    )
