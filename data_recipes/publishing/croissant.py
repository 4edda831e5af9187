"""Croissant metadata of a dataset: its files with their hashes, and what each column holds.

Reads the manifest's dict and the Arrow files of `save_to_disk`; writes croissant.json (JSON-LD, Croissant 1.1
by mlcommons.org/croissant/1.1). The files are Arrow streams: metadata, hashes and columns are what
mlcroissant checks, but mlcroissant 1.1.1 reads no rows from Arrow, `datasets` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_recipes.artefact import UserError, sha256_file, write_json
from data_recipes.publishing import manifest_facts as facts

ARROW_STREAM = "application/vnd.apache.arrow.stream"  # registered with IANA
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
COLUMNS = {
    "attribution": "text that names the authors as the source asks for it",
    "checker": "how an answer is checked: a task's name, or `reference` for comparison with the row's answer",
    "form": "native, romanised or code_mixed",
    "group": "target: what is trained for; general: what must not be forgotten",
    "id": "name of the row, the same in every build",
    "kind": "generalise: split by value; remember: the same facts in a phrasing that was not trained",
    "language": "BCP 47 language",
    "licence": "SPDX expression",
    "licence_from": "who says the licence",
    "may_commit": "whether the licence lets the row be committed to a repository of another licence",
    "messages": "the chat, in order",
    "messages/content": "text of the message",
    "messages/extra": "what else the message carries (tool calls, reasoning), as JSON",
    "messages/role": "system, user, assistant or tool",
    "parent": "id of the row that this one was made from",
    "phrasing": "number of the question's phrasing",
    "revision": "commit, version or file hash of the source",
    "row_id": "name of the row inside the source",
    "script": "ISO 15924",
    "source": "package, dataset or file",
    "task": "what is asked for",
    "tools": "tools that may be called, as JSON",
    "transforms": "what was done to the row: a list of name, version and checks, as JSON",
    "value": "the fact behind the answer, as JSON",
}


def write_croissant(folder: str | Path, manifest: Mapping[str, Any]) -> Path:
    """Write croissant.json and return its path.

    Raises: UserError when a split has no readable Arrow file, or the file cannot be written.
    """
    folder = Path(folder)
    path = folder / "croissant.json"
    write_json(path, croissant(folder, manifest))
    return path


def croissant(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata as JSON-LD. It has no date of publication: nobody knows it at the build."""
    name, content_hash = facts.title(manifest), manifest["content_hash"]
    files = {split: arrow_files(folder, split) for split in facts.splits(manifest)}
    rows = ", ".join(f"{n:,} {split}" for split, n in facts.splits(manifest).items())
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": f"Chat rows for fine-tuning ({rows}), built by local-experts. The files are Arrow "
        "streams: load the folder with datasets.load_from_disk. README.md names sources and limits.",
        "citeAs": f"@misc{{local_experts_{content_hash[:12]}, title = {{{name}}}, "
        f"note = {{content hash {content_hash}}}}}",
        "version": f"1.0.0+{content_hash[:12]}",
        "license": [_licence(one) for one in facts.licences(manifest)],
        "inLanguage": facts.form_tags(manifest),
        "keywords": ["instruction tuning", "localization", "Indic languages"],
        "rai:dataLimitations": "No speaker of the languages has reviewed the rows; checks are mechanical.",
        "rai:personalSensitiveInformation": _personal(facts.personal_data(manifest)),
        "distribution": [
            *(_file_object(folder, path) for paths in files.values() for path in paths),
            *(_file_set(split) for split in files),
        ],
        "recordSet": [_record_set(split, paths[0]) for split, paths in files.items()],
    }


def arrow_files(folder: Path, split: str) -> list[Path]:
    """Return the Arrow files of a split in their order.

    Raises: UserError when there is none.
    """
    found = sorted((folder / split).glob("data-*.arrow"))
    if not found:
        raise UserError(f"no {split}/data-*.arrow in {folder}: save the rows before they are described")
    return found


def _file_object(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": ARROW_STREAM,
        "sha256": sha256_file(path),
    }


def _file_set(split: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-files",
        "name": f"{split}-files",
        "description": f"All Arrow files of the {split} split.",
        "encodingFormat": ARROW_STREAM,
        "includes": f"{split}/data-*.arrow",
    }


def _record_set(split: str, file: Path) -> dict[str, Any]:
    """One record set for a split; its columns are those of the file itself."""
    try:
        with pa.ipc.open_stream(file) as reader:
            schema = reader.schema
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {file}: {error}; build the dataset again") from error
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"The rows of the {split} split.",
        "field": [_field(split, column.name, column.type) for column in schema],
    }


def _field(split: str, column: str, kind: pa.DataType) -> dict[str, Any]:
    source = {"fileSet": {"@id": f"{split}-files"}, "extract": {"column": column}}
    head = _described(split, column)
    if not isinstance(kind, pa.ListType | pa.LargeListType):
        return {**head, "dataType": _data_type(kind), "source": source}
    array = {**head, "isArray": True, "arrayShape": "-1"}
    if not isinstance(kind.value_type, pa.StructType):
        return {**array, "dataType": _data_type(kind.value_type), "source": source}
    inner = [
        {
            **_described(split, f"{column}/{part.name}"),
            "dataType": _data_type(part.type),
            "source": {**source, "transform": {"jsonPath": part.name}},
        }
        for part in kind.value_type
    ]
    return {**array, "subField": inner}


def _described(split: str, name: str) -> dict[str, Any]:
    head = {"@type": "cr:Field", "@id": f"{split}/{name}", "name": name}
    return head | ({"description": COLUMNS[name]} if name in COLUMNS else {})


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _personal(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Not looked for."
    return f"Found and replaced: {', '.join(sorted(found))}." if found else "None was found."


def _licence(expression: str) -> str:
    """The page of an SPDX licence; an expression of several is its own text."""
    single = " " not in expression and not expression.startswith("LicenseRef-")
    return f"https://spdx.org/licenses/{expression}.html" if single else expression
