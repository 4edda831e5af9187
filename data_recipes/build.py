"""Build the dataset of a recipe: sources and locale tasks, all stages, splits, Arrow files, manifest.

Reads a recipe and what it names; writes a folder with an Arrow `DatasetDict` (train, validation, test) and
what the dataset says of itself. Parts of the work lie beside it, in `<output>.parts`: a build that was killed
goes on there. The same recipe gives the same bytes, with any number of workers.
Command: `local-experts data configs/recipes/tamil_locale.yaml --output runs/tamil/data`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, whole_folder, write_artefact, write_json
from data_recipes.dataset import ContentHash, save_splits, write_arrow
from data_recipes.parts import workers
from data_recipes.parts.chain import run_chain
from data_recipes.parts.manifest import (
    LOCK_FILE,
    lock_body,
    manifest_body,
    read_lock,
    refuse_other,
    sample_roots,
    samples_body,
)
from data_recipes.parts.part_files import ORDER_PREFIX, remove_leftovers, root_id
from data_recipes.parts.splitting import OrderedRows
from data_recipes.parts.stage_runner import Engine, Outcome, Setting
from data_recipes.parts.tokenizers import Tokenizer, tokenizer_hash
from data_recipes.publishing.publish import publish
from data_recipes.recipe import RecipeConfig, load_recipe
from data_recipes.row_sources.folders import allowed_path, is_inside
from data_recipes.tasks import SPLITS, Split

ENGINES = ("processes", "datatrove", "ray")  # Ray's cluster by datatrove too


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a dataset is built, as opposed to what is in it: none of this changes a row."""

    n_workers: int = 1
    work: str | Path | None = None  # of the parts; None: `<output>.parts`
    allowed: tuple[Path, ...] = ()  # folders outside the recipe's own that it may read
    locked: bool = False  # refuse a build that would differ from the one that was locked
    engine: str = "processes"  # of ENGINES
    # Of "datatrove": what the command for each machine stands behind, as "ssh worker-1"; "" is this one. They
    # share the working folder, and `n_workers` is of each.
    nodes: tuple[str, ...] = ("",)
    tokenizer: Tokenizer | None = None  # counted with when the recipe names none


def build_dataset(
    recipe_path: str | Path,
    output: str | Path,
    overrides: Sequence[str] = (),
    options: BuildOptions | None = None,
) -> Path:
    """Build the dataset of a recipe into a folder, whole or not at all, and return the folder.

    Raises:
        UserError: a bad recipe, a source that cannot be read, licences that are not allowed, a teacher that
            stops, no rows to train on; the parts that were finished are kept for the next run.
    """
    options = options or BuildOptions()
    recipe = load_recipe(recipe_path, list(overrides))
    setting = _setting(recipe, Path(recipe_path), Path(output), options)
    locked = None
    if options.locked:
        beside = Path(recipe_path).with_suffix(".lock.json")
        locked = read_lock([beside, Path(output) / LOCK_FILE])
        refuse_other(locked, lock_body(setting, None, ""))
    outcome = run_chain(setting)
    with (
        whole_folder(output) as folder,
        tempfile.TemporaryDirectory(prefix=ORDER_PREFIX, dir=setting.work) as buckets,
    ):
        roots = sample_roots(outcome.reports)
        content_hash, kept = _save_rows(setting, outcome, folder, Path(buckets), roots)
        lock = lock_body(setting, outcome, content_hash)
        if locked is not None:
            refuse_other(locked, lock)
        body = manifest_body(setting, outcome, content_hash)
        write_artefact(
            folder / "manifest.json", "dataset_manifest", {"recipe": sha256_file(recipe_path)}, body
        )
        write_json(folder / LOCK_FILE, lock)
        samples = samples_body(outcome, kept, recipe.pii is not None)
        write_json(folder / "samples.json", samples)
        publish(folder, body, samples)
    remove_leftovers(setting.work)
    counts = ", ".join(f"{n:,} {split}" for split, n in body["n_rows"].items())
    n_rejected = sum(report.rejected.total() for report in outcome.reports)
    n_gone = sum(body["dropped"].values()) + n_rejected
    print(f"data      {counts} rows, {n_gone:,} dropped -> {output}")
    return Path(output)


def _setting(recipe: RecipeConfig, path: Path, output: Path, options: BuildOptions) -> Setting:
    folder = path.resolve().parent
    work = Path(options.work) if options.work else output.with_name(f"{output.name}.parts")
    if is_inside(work, [output]):
        raise UserError(f"--work {work} is inside the dataset's folder {output}; choose a folder beside it")
    if options.engine not in ENGINES:
        raise UserError(f"there is no engine {options.engine!r}: use {' or '.join(ENGINES)}")
    translate, variants = recipe.translate, recipe.variants
    if translate is not None and translate.glossary is not None:
        glossary = allowed_path(str(translate.glossary), folder, options.allowed)
        translate = replace(translate, glossary=glossary)
    if variants is not None and variants.glossary is not None:
        glossary = allowed_path(str(variants.glossary), folder, options.allowed)
        variants = replace(variants, glossary=glossary)
    tokenizer = options.tokenizer
    if name := recipe.chat.tokenizer:
        is_folder = name.startswith((".", "/"))
        place = str(allowed_path(name, folder, options.allowed)) if is_folder else name
        tokenizer = Tokenizer(name, place, recipe.chat.revision)
    return Setting(
        recipe=recipe,
        name=str(path),
        folder=folder,
        allowed=options.allowed,
        work=work,
        reply_cache=work.with_name(f"{output.name}.replies.sqlite"),
        key_file=work.with_name(f"{output.name}.pii-key"),
        engine=_engine(options, work),
        n_workers=options.n_workers,
        translate=translate,
        variants=variants,
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(tokenizer) if tokenizer else "",
    )


def _engine(options: BuildOptions, work: Path) -> Engine:
    if options.engine == "processes":
        return workers.run_parts
    from data_recipes.parts import datatrove_engine  # imported late: an optional extra

    executor = "ray" if options.engine == "ray" else "processes"
    cluster = datatrove_engine.Cluster(str(work / "datatrove"), executor, options.nodes)
    return partial(datatrove_engine.run_parts, cluster=cluster)


def _save_rows(
    setting: Setting, outcome: Outcome, folder: Path, buckets: Path, roots: set[str]
) -> tuple[str, set[str]]:
    """Write the Arrow files; return the content hash, and which of `roots` are in the dataset."""
    n_rows = outcome.reports[-1].n_out
    ordered = OrderedRows(outcome.parts, n_rows, setting.recipe.seed, buckets)
    content, files, kept = ContentHash(), dict[Split, Path](), set[str]()

    def noted(split: Split) -> Any:
        for record in content.split(ordered.records(split)):
            if (root := root_id(record)) in roots:
                kept.add(root)
            yield record

    for split in SPLITS:
        path = buckets / f"{split}.arrow"
        if write_arrow(noted(split), path):
            files[split] = path
        elif split == "train":
            raise UserError(f"{setting.name}: the train split is empty ({_why_empty(outcome)})")
    content_hash = content.hexdigest()
    save_splits(files, content_hash, folder)
    return content_hash, kept


def _why_empty(outcome: Outcome) -> str:
    reasons = [
        f"{report.name}: {reason} {n:,}"
        for report in outcome.reports
        for reason, n in sorted(report.rejected.items())
    ]
    return "; ".join(reasons) or "its sources and tasks gave no row"


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts data RECIPE [key=value ...] --output DIR [--workers N] [--work DIR] [--locked] ...`."""
    parser = argparse.ArgumentParser(prog="local-experts data", description="build the dataset of a recipe")
    parser.add_argument("recipe", metavar="RECIPE", help="as configs/recipes/tamil_locale.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as train_rows_per_task=40")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--work", metavar="DIR", help="folder of unfinished work (default: OUTPUT.parts)")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="DIR", help="a folder the recipe may read too"
    )
    parser.add_argument(
        "--locked", action="store_true", help="refuse a build that would differ from recipe.lock.json"
    )
    parser.add_argument("--engine", choices=ENGINES, default="processes", help="what runs the parts")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="COMMAND",
        help='of --engine datatrove: a machine, as "ssh worker-1"; "" is this one',
    )
    arguments = parser.parse_intermixed_args(argv)
    options = BuildOptions(
        n_workers=arguments.workers,
        work=arguments.work,
        allowed=tuple(Path(folder) for folder in arguments.allow),
        locked=arguments.locked,
        engine=arguments.engine,
        nodes=tuple(arguments.node) or ("",),
    )
    build_dataset(arguments.recipe, arguments.output, arguments.overrides, options)
    return 0
