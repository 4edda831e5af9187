"""The dataset card: README.md as the Hub reads it, and LICENSE.md where no one licence covers all rows.

Reads the manifest's dict and the templates beside this file. What comes from a source is escaped: a name may
hold Markdown or HTML.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_recipes.artefact import write_text
from data_recipes.publishing import manifest_facts as facts

_MARKDOWN = re.compile(r"[\\`*_\[\]<>|&~$!]")
_BLOCK_START = re.compile(r"^(\d*)([-+=#.)])")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGE_SIZES = ((10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"))


def write_card(folder: str | Path, manifest: Mapping[str, Any]) -> Path:
    """Write README.md, and LICENSE.md when the front matter refers to it; return the README's path.

    Raises: UserError when the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": escape_markdown,
        "rows": rows_text,
        "form": facts.form_name,
        "options": options_text,
    }
    given = {
        "manifest": facts.with_all_keys(manifest),
        "sources": facts.source_facts(manifest),
        "licences": facts.licences(manifest),
        "left_out": facts.left_out(manifest),
        "splits": facts.splits(manifest),
        "tags": facts.form_tags(manifest),
        "title": facts.title(manifest),
        "personal": facts.personal_data(manifest),
        "romanised": any(t.endswith("-Latn") and t != "en-Latn" for t in facts.form_tags(manifest)),
        "mixed": facts.hub_licence(manifest) == "other",
    }
    if given["mixed"]:
        write_text(folder / facts.LICENCE_FILE, environment.get_template("licence.md.jinja").render(given))
    text = environment.get_template("card.md.jinja").render(given)
    path = folder / "README.md"
    write_text(path, f"---\n{front_matter(manifest)}---\n\n{text}")
    return path


def front_matter(manifest: Mapping[str, Any]) -> str:
    """Return the metadata of the card as YAML.

    The licence is the Hub's name of it when all rows have one licence that the Hub knows. Else it is `other`,
    its name lists the licences, and its link is LICENSE.md, which says which sources are under which.
    """
    codes = facts.language_codes(manifest)
    licence: dict[str, str] = {"license": facts.hub_licence(manifest)}
    if licence["license"] == "other":
        names = [re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") for name in facts.licences(manifest)]
        licence |= {"license_name": "-and-".join(names)[:96].rstrip("-."), "license_link": facts.LICENCE_FILE}
    files = [{"split": split, "path": f"{split}/data-*.arrow"} for split in facts.splits(manifest)]
    body = {
        "pretty_name": facts.title(manifest),
        "language": codes,
        "language_bcp47": [tag for tag in facts.form_tags(manifest) if "-" in tag],
        **licence,
        "multilinguality": ["multilingual" if len(codes) > 1 else "monolingual"],
        "size_categories": [size_category(sum(facts.splits(manifest).values()))],
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "chat", "localization", "indic", "local-experts"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return yaml.safe_dump({key: one for key, one in body.items() if one}, sort_keys=False, allow_unicode=True)


def size_category(n_rows: int) -> str:
    """Return the Hub's category of a number of rows."""
    return next((name for limit, name in _SIZES + _LARGE_SIZES if n_rows < limit), "n>1T")


def escape_markdown(value: object) -> str:
    """Return a text that Markdown shows as it is, on one line: no markup, no HTML, no formula.

    An address in it may become a link to itself, as the Hub does with any address.
    """
    escaped = _MARKDOWN.sub(r"\\\g<0>", " ".join(str(value).split()))
    return _BLOCK_START.sub(r"\1\\\2", escaped)


def rows_text(n: int) -> str:
    """Return a number of rows in words: "1 row", "1,200 rows"."""
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


def options_text(options: Mapping[str, Any] | None) -> str:
    """Return the options of a step as `name=value`, values as JSON."""
    return ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False, sort_keys=True)}"
        for name, value in sorted((options or {}).items())
    )
