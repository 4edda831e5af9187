"""What the card, the metadata and the report all say of a dataset, read from its manifest.

Reads nothing but the manifest's dict; writes nothing. A key that an older manifest lacks is left out, never
guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_recipes.languages import LANGUAGES

# SPDX identifier -> the Hub's name of the same licence (huggingface.co/docs/hub/repositories-licenses). The
# Hub knows no other; a licence that is not here is "other" with a link.
HUB_LICENCES = {
    "AGPL-3.0-only": "agpl-3.0",
    "AGPL-3.0-or-later": "agpl-3.0",
    "Apache-2.0": "apache-2.0",
    "BSD-2-Clause": "bsd-2-clause",
    "BSD-3-Clause": "bsd-3-clause",
    "CC-BY-2.0": "cc-by-2.0",
    "CC-BY-3.0": "cc-by-3.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0",
    "CC-BY-SA-3.0": "cc-by-sa-3.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC0-1.0": "cc0-1.0",
    "CDLA-Permissive-2.0": "cdla-permissive-2.0",
    "GPL-2.0-only": "gpl-2.0",
    "GPL-3.0-only": "gpl-3.0",
    "GPL-3.0-or-later": "gpl-3.0",
    "ISC": "isc",
    "LGPL-3.0-only": "lgpl-3.0",
    "MIT": "mit",
    "MPL-2.0": "mpl-2.0",
    "ODC-By-1.0": "odc-by",
    "PDDL-1.0": "pddl",
    "Unlicense": "unlicense",
    "Zlib": "zlib",
}
LICENCE_FILE = "LICENSE.md"
# Sections of a recipe that may be null: the step is left out then.
OPTIONAL_STEPS = ("text", "pii", "duplicates", "translate", "variants", "contamination")
# Keys of the manifest that may be null or missing.
OPTIONAL_KEYS = (
    "languages",
    "rejected",
    "steps",
    "pii",
    "mix",
    "translation",
    "test_sets",
    "tokenizer",
    "masks",
)


@dataclass(frozen=True)
class SourceFacts:
    """Where rows come from. An empty text was not said by the source."""

    name: str
    what: str
    revision: str
    licence: str
    licence_from: str
    attribution: str
    n_rows: int | None


def with_all_keys(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with None for what it does not say."""
    return {**dict.fromkeys(OPTIONAL_KEYS), **manifest}


def source_facts(manifest: Mapping[str, Any]) -> list[SourceFacts]:
    """Return the sources by name; of our own packages the version is the revision."""
    return [
        SourceFacts(
            name,
            str(one.get("what") or ""),
            str(one.get("revision") or one.get("version") or ""),
            str(one.get("licence") or ""),
            str(one.get("licence_from") or ""),
            str(one.get("attribution") or ""),
            one.get("n_rows"),
        )
        for name, one in sorted(manifest["sources"].items())
    ]


def licences(manifest: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the rows of each SPDX expression; a manifest without counts has the sources' licences."""
    if manifest.get("licences"):
        return dict(sorted(manifest["licences"].items()))
    return dict.fromkeys(sorted({one.licence for one in source_facts(manifest)}))


def hub_licence(manifest: Mapping[str, Any]) -> str:
    """Return the Hub's name of the licence: all rows under one licence that the Hub knows, or "other"."""
    found = list(licences(manifest))
    return HUB_LICENCES.get(found[0], "other") if len(found) == 1 else "other"


def form_tags(manifest: Mapping[str, Any]) -> list[str]:
    """Return the written forms of the rows ("hi-Deva"), or the languages where the manifest has no forms."""
    if manifest.get("languages"):
        return sorted(manifest["languages"])
    return sorted({key.split("/")[0] for counts in manifest["counts"].values() for key in counts})


def language_codes(manifest: Mapping[str, Any]) -> list[str]:
    """Return the languages of the rows, ISO 639-1 where there is one and ISO 639-3 else."""
    return sorted({tag.partition("-")[0] for tag in form_tags(manifest)})


def form_name(tag: str) -> str:
    """Return the English name of a form: "Hindi, Devanagari", "Hindi, romanised", "Tamil"; of a language, its
    name.
    """
    code, _, script = tag.partition("-")
    name = LANGUAGES[code].name if code in LANGUAGES else code
    written = "romanised" if script == "Latn" else _script_names().get(script, script)
    return name if written in ("", name) or tag == "en-Latn" else f"{name}, {written}"


def title(manifest: Mapping[str, Any]) -> str:
    """Return the name of the dataset: its languages, or how many when there are more than four."""
    names = [form_name(code) for code in language_codes(manifest)]
    return f"Localized instructions: {', '.join(names) if len(names) <= 4 else f'{len(names)} languages'}"


def splits(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the rows of each split that has any."""
    return {split: n for split, n in manifest["n_rows"].items() if n}


def left_out(manifest: Mapping[str, Any]) -> list[str]:
    """Return the steps that the recipe leaves out."""
    return [name for name in OPTIONAL_STEPS if name in (r := manifest["recipe"]) and r[name] is None]


def personal_data(manifest: Mapping[str, Any]) -> dict[str, dict[str, int]] | None:
    """Return what was found by kind and language; None when nobody looked."""
    return None if "pii" in left_out(manifest) else manifest.get("pii")


@cache
def _script_names() -> dict[str, str]:
    from babel import Locale

    # Unicode's name of the script; CLDR's "Bangla" would stand beside the language's "Bengali".
    return {**Locale("en").scripts, "Beng": "Bengali"}
