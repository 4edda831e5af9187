"""What a dataset says of itself: manifest.json, samples.json, and recipe.lock.json with all that went in.

Adds up the summaries of parts; reads no rows. No clock time: same inputs, same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_recipes.artefact import SCHEMA, UserError, sha256_file
from data_recipes.parts.chain import shares, steps_of
from data_recipes.parts.finishing import N_SHOWN
from data_recipes.parts.part_files import lowest
from data_recipes.parts.splitting import Shares
from data_recipes.parts.stage_keys import locked_packages
from data_recipes.parts.stage_runner import Outcome, Setting, StageReport
from data_recipes.recipe import RecipeConfig
from data_recipes.row_sources.source import source_identity
from data_recipes.screening.comparison import KEY
from data_recipes.settings import settings_dict
from data_recipes.sources import SOURCES
from data_recipes.tasks import SPLITS
from data_recipes.translate.step import teacher_identity
from data_recipes.variants.options import FORMS

N_SAMPLES = 5  # of each step
LOCK_FILE = "recipe.lock.json"
LOCALE_RULE = (
    "generalise: by the hash of the value, 80/10/10 %; remember: the same facts, asked in a phrasing that is "
    "kept for testing"
)


def manifest_body(setting: Setting, outcome: Outcome, content_hash: str) -> dict[str, Any]:
    """Return what the manifest says of the rows."""
    recipe = setting.recipe
    found = outcome.summaries
    n_rows = added(summary["n_rows"] for summary in found)
    return {
        "recipe": recipe_settings(recipe),
        "content_hash": content_hash,
        "n_rows": {split: n_rows.get(split, 0) for split in SPLITS},
        "counts": {split: added(one["counts"].get(split, {}) for one in found) for split in SPLITS},
        "dropped": dict(sorted(outcome.dropped.items())),
        "sources": _sources(outcome),
        "split_rule": split_rule(recipe, shares(recipe, outcome)),
        "languages": _languages(outcome, bool(setting.tokenizer)),
        "licences": added(summary["licences"] for summary in found),
        "rejected": {report.name: dict(sorted(report.rejected.items())) for report in outcome.reports},
        "steps": steps_of(outcome, recipe),
        "pii": _by_name(found, "pii") if recipe.pii else {},
        "mix": _mix(recipe, added(summary["mix"] for summary in found)),
        "translation": _translation(outcome, setting),
        "test_sets": outcome.test_sets,
        "tokenizer": _tokenizer(setting),
        "masks": _masks(outcome),
    }


def _mix(recipe: RecipeConfig, counts: Mapping[str, int]) -> dict[str, Any] | None:
    """The shares of the forms of source rows: asked for, written, measured; and why some rows stayed."""
    if recipe.variants is None:
        return None
    shares: dict[str, Any] = {"wanted": {form: getattr(recipe.variants, form) for form in FORMS}}
    for side in ("written", "measured"):
        of_form = {form: counts.get(f"{side} {form}", 0) for form in FORMS}
        n_rows = max(1, sum(of_form.values()))
        shares[side] = {form: round(n / n_rows, 4) for form, n in of_form.items()}
    kept = {name.removeprefix("kept: "): n for name, n in counts.items() if name.startswith("kept: ")}
    languages: dict[str, dict[str, int]] = {}  # rows by the form that was measured
    for code, form in (name.split(" ") for name in sorted(counts) if name.count(" ") == 1):
        if code not in ("written", "measured"):
            languages.setdefault(code, {})[form] = counts[f"{code} {form}"]
    return {**shares, "languages": languages, "kept": kept}


def recipe_settings(recipe: RecipeConfig) -> dict[str, Any]:
    """Return the recipe as plain JSON, without what changes no row."""
    return {name: value for name, value in settings_dict(recipe).items() if name != "rows_per_part"}


def split_rule(recipe: RecipeConfig, of_rows: Shares) -> str:
    """Return how rows came into their splits, for a reader."""
    if not recipe.sources:
        return LOCALE_RULE
    own = f"{of_rows.validation:.3%} validation and {of_rows.test:.3%} test"
    rule = f"source rows: by the hash of the id at the source, {own}, with all that was made from a row"
    return f"{rule}; locale tasks: {LOCALE_RULE}" if recipe.tasks and recipe.languages else rule


def samples_body(outcome: Outcome, roots: set[str], hides_before: bool) -> dict[str, Any]:
    """Return a few rows before and after each step, and a few rows of the dataset.

    Args:
        roots: of rows that are in the dataset; no others are shown.
        hides_before: whether pii ran: then no text from before it is shown.
    """
    steps = {}
    for report in outcome.reports:
        if not report.samples or (hides_before and report.name in ("sources", "licences", "text")):
            continue
        kept = lowest([one for one in report.samples if one["root"] in roots], N_SAMPLES)
        steps[report.name] = [
            {
                "row_id": one["row_id"],
                "language": one["language"],
                "before": [] if report.name == "pii" else one["before"],
                "after": one["after"],
            }
            for one in kept
        ]
    shown: dict[str, list[Any]] = {}
    for summary in outcome.summaries:
        for tag, rows in summary["shown"].items():
            shown[tag] = sorted([*shown.get(tag, []), *rows], key=lambda item: item[:2])[:N_SHOWN]
    return {"steps": steps, "rows": [row for tag in sorted(shown) for _, _, row in shown[tag]]}


def sample_roots(reports: Iterable[StageReport]) -> set[str]:
    """Return the roots of the rows that may become samples."""
    return {sample["root"] for report in reports for sample in report.samples}


def lock_body(setting: Setting, outcome: Outcome | None, content_hash: str) -> dict[str, Any]:
    """Return everything that goes into the dataset; without an outcome, what is known before the build."""
    recipe = setting.recipe
    test_sets = recipe.contamination.test_sets if recipe.contamination else {}
    where = (setting.folder, setting.allowed)
    glossary = setting.variants.glossary if setting.variants else None
    locked: dict[str, Any] = {
        "kind": "recipe_lock",
        "schema": SCHEMA,
        "recipe": recipe_settings(recipe),
        "sources": [source_identity(source, *where) for source in recipe.sources],
        "test_sets": {name: source_identity(source, *where) for name, source in sorted(test_sets.items())},
        "packages": locked_packages(),
        "comparison": KEY,
        "tokenizer": _tokenizer(setting),
        "teacher": teacher_identity(setting.translate) if setting.translate else None,
        "words_in_english": sha256_file(glossary) if glossary else None,
    }
    if outcome is not None:
        steps = steps_of(outcome, recipe)
        locked["steps"] = [{name: step[name] for name in ("name", "version", "options")} for step in steps]
        locked["content_hash"] = content_hash
    return json.loads(json.dumps(locked))


def read_lock(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the first lock file there is.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    paths = list(paths)
    for path in paths:
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read the lock file {path}: {error}") from error
            if not isinstance(found, dict) or found.get("kind") != "recipe_lock":
                raise UserError(f"{path} is no lock file of a recipe; build once without --locked")
            return found
    named = " or ".join(map(str, paths))
    raise UserError(f"--locked needs a lock file at {named}: build once without --locked, which writes it")


def refuse_other(locked: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Stop a build that would not be the one that was locked.

    Raises:
        UserError: with each thing that differs, what it was and what it is.
    """
    lines = [line for name in sorted(now) for line in _differences(locked.get(name), now[name], name)]
    if lines:
        raise UserError(
            "\n  ".join(
                [
                    "the build is locked and would differ:",
                    *lines,
                    "put these back, or build without --locked",
                ]
            )
        )


def _differences(was: Any, now: Any, name: str) -> list[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted(was.keys() | now.keys())
        return [line for key in keys for line in _differences(was.get(key), now.get(key), f"{name}.{key}")]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return [line for i, (one, other) in pairs for line in _differences(one, other, f"{name}[{i}]")]
    return [] if was == now else [f"{name}: locked {_shown(was)}, now {_shown(now)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of counts, by name in sorted order."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _by_name(summaries: list[dict[str, Any]], key: str) -> dict[str, dict[str, int]]:
    names = sorted({name for summary in summaries for name in summary[key]})
    return {name: added(summary[key].get(name, {}) for summary in summaries) for name in names}


def _sources(outcome: Outcome) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for summary in outcome.summaries:
        for name, said in summary["sources"].items():
            first = found.setdefault(name, {**said, "n_rows": 0})
            first["n_rows"] += said["n_rows"]
    for name in found.keys() & SOURCES.keys():
        found[name] |= {"version": SOURCES[name].version(), "what": SOURCES[name].what}
    return dict(sorted(found.items()))


def _languages(outcome: Outcome, has_tokens: bool) -> dict[str, Any]:
    languages: dict[str, Any] = {}
    for tag, sums in _by_name(outcome.summaries, "languages").items():
        n_tokens = sums.get("tokens", 0) if has_tokens else None
        languages[tag] = {
            **{name: sums.get(name, 0) for name in ("rows", "messages", "words", "graphemes")},
            "tokens": n_tokens,
            "tokens_per_word": _ratio(n_tokens, sums.get("words", 0)),
            "tokens_per_grapheme": _ratio(n_tokens, sums.get("graphemes", 0)),
        }
    return languages


def _ratio(n_tokens: int | None, n: int) -> float | None:
    return round(n_tokens / n, 4) if n_tokens is not None and n else None


def _translation(outcome: Outcome, setting: Setting) -> dict[str, Any] | None:
    options = setting.translate
    if options is None:
        return None
    report = next(report for report in outcome.reports if report.name == "translate")
    return {
        "teacher": teacher_identity(options),
        "source": options.source,
        "target": options.target,
        # Rows in other languages pass the stage as they are: nobody asked for them.
        "n_in": report.n_changed + report.rejected.total(),
        "n_accepted": report.n_changed,
        "rejected": dict(sorted(report.rejected.items())),
    }


def _tokenizer(setting: Setting) -> dict[str, str] | None:
    if setting.tokenizer is None:
        return None
    return {"name": setting.tokenizer.name, "sha256": setting.tokenizer_hash}


def _masks(outcome: Outcome) -> dict[str, int] | None:
    found = [summary["masks"] for summary in outcome.summaries if summary["masks"]]
    if not found:
        return None
    sums = added({name: one.get(name, 0) for name in ("n_tokens", "n_trained")} for one in found)
    return {**sums, "longest": max(one["longest"] for one in found)}
