"""The chain of stages: from sources to finished parts, each stage over the parts of the one before.

Reads sources and the parts that are there already; writes the parts that are not. The order is fixed; a stage
that the recipe leaves out hands its parts on as they are. Only the duplicates and the index of the recipe's
own test split look at all parts at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, sha256_json
from data_recipes.chats.mask_audit import Problem, problem_lines
from data_recipes.parts import contaminated, finishing, source_parts, stages
from data_recipes.parts.part_files import (
    LOCALE,
    N_CANDIDATES,
    TEACHER,
    Part,
    Summary,
    lowest,
    read_rows,
    read_summary,
)
from data_recipes.parts.splitting import Shares
from data_recipes.parts.stage_keys import (
    NOT_FOR_LOCALE,
    PACKAGES,
    VERSIONS,
    code_hash,
    is_on,
    made_by,
    package_version,
    stage_options,
)
from data_recipes.parts.stages import PartTask
from data_recipes.recipe import RecipeConfig
from data_recipes.row_sources.source import open_source, source_identity
from data_recipes.screening.duplicates import find_duplicates
from data_recipes.screening.licences import refuse_build
from data_recipes.settings import settings_dict
from data_recipes.steps import Rejected
from data_recipes.translate.step import teacher_identity

# (function, tasks, n_workers, name) -> results, in the order of the tasks
Engine = Callable[..., list[Any]]
# Faults of a chat template, not of a row: no row should be left out for them.
TEMPLATE_FAULTS = ("untrained_stop", "prompt_trained", "other_opening")


@dataclass(frozen=True)
class Setting:
    """Where a build reads and writes, and what runs it; none of it changes the rows."""

    recipe: RecipeConfig
    name: str  # of the recipe, in messages
    folder: Path  # the recipe's own: it reads files there
    allowed: tuple[Path, ...]
    work: Path
    reply_cache: Path
    key_file: Path  # of the surrogates
    engine: Engine
    n_workers: int
    tokenizer: str = ""  # where the one that is counted with lies; "": none
    tokenizer_name: str = ""
    tokenizer_hash: str = ""


@dataclass
class StageReport:
    """What a stage did."""

    name: str
    n_in: int = 0
    n_out: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    n_made: int = 0
    n_kept: int = 0
    samples: list[Summary] = field(default_factory=list)

    def add(self, summary: Summary) -> None:
        """Count one part."""
        self.rejected.update(summary["rejected"])
        self.n_out += summary["n_out"]
        self.n_in += summary["n_out"] + sum(summary["rejected"].values())
        self.samples = lowest([*self.samples, *summary["samples"]], N_CANDIDATES)

    def line(self) -> str:
        """What is printed of it."""
        why = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.rejected.items()))
        parts = f"{self.n_made} parts made, {self.n_kept} kept"
        return f"{self.name:<13} {parts}: {self.n_in:,} rows in, {self.n_out:,} out" + (
            f"; rejected: {why}" if why else ""
        )


@dataclass
class Outcome:
    """The finished parts, and what is known of the way there."""

    parts: list[Part]
    reports: list[StageReport] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)  # of the finished parts
    dropped: dict[str, int] = field(default_factory=dict)  # by the locale tasks
    test_sets: dict[str, int] = field(default_factory=dict)


def run_chain(setting: Setting) -> Outcome:
    """Run all stages and return the finished parts.

    Raises:
        UserError: a source, a licence, a teacher, a tokenizer or a disk that stops the build; the parts that
            were finished stay.
    """
    recipe = setting.recipe
    outcome = Outcome([])
    _sources(setting, outcome)
    _stage(setting, outcome, "licences", recipe.licences)
    refuse_build(_rejections(outcome, "licences"))
    if recipe.text:
        _stage(setting, outcome, "text", recipe.text)
    if recipe.pii:
        _pii(setting, outcome)
    if recipe.duplicates:
        _duplicates(setting, outcome)
    if recipe.translate:
        _translate(setting, outcome)
    if recipe.contamination:
        _contamination(setting, outcome)
    if is_on(recipe, "chat"):
        _chat(setting, outcome)
    _finish(setting, outcome)
    return outcome


def _stage(
    setting: Setting,
    outcome: Outcome,
    stage: str,
    options: Any,
    reads: Any = None,
    *,
    function: Callable[[PartTask], Summary] = stages.run_stage,
    n_workers: int | None = None,
) -> None:
    """Take all parts through a stage. `options` is for all of them, or a list with one for each part."""
    report = StageReport(stage)
    made = made_by(setting.recipe, stage, reads)
    each = options if isinstance(options, list) else [options] * len(outcome.parts)
    takes = [not (part.is_locale and stage in NOT_FOR_LOCALE) for part in outcome.parts]
    afters = [
        part.after(stage, made) if own else part for part, own in zip(outcome.parts, takes, strict=True)
    ]
    tasks = [
        PartTask(part, after, option)
        for part, after, option, own in zip(outcome.parts, afters, each, takes, strict=True)
        if own and not is_final(after)
    ]
    setting.engine(function, tasks, n_workers or setting.n_workers, stage)
    parts = []
    for after, own in zip(afters, takes, strict=True):
        if own:
            summary = read_summary(after)
            assert summary is not None, "the stage has made it"
            report.add(summary)
            if not summary["is_final"]:  # what is made of it must be made again with it
                after = replace(after, salt=sha256_file(after.rows))
        parts.append(after)
    outcome.parts, report.n_made, report.n_kept = parts, len(tasks), sum(takes) - len(tasks)
    outcome.reports.append(report)
    if any(takes):
        print(report.line(), flush=True)


def is_final(part: Part) -> bool:
    """Whether a part is whole and need not be made again."""
    summary = read_summary(part)
    return summary is not None and summary.get("is_final", True)


def _sources(setting: Setting, outcome: Outcome) -> None:
    recipe = setting.recipe
    versions = {name: package_version(name) for name in PACKAGES["sources"]}
    common = [VERSIONS["sources"], code_hash(), versions, recipe.rows_per_part]
    tasks: list[Any] = []
    if recipe.tasks and recipe.languages:
        names = ("languages", "general_languages", "tasks", "train_rows_per_task", "general_share", "seed")
        names += ("validation_rows_per_task", "test_rows_per_task", "general_test_rows_per_task")
        key = sha256_json([common, {name: getattr(recipe, name) for name in names}])
        first = Part(str(setting.work), source_parts.STAGE, LOCALE, 0, key)
        tasks.append(source_parts.LocaleTask(recipe, setting.name, first))
    for stream, config in source_parts.numbered_streams(recipe):
        identity = source_identity(config, setting.folder, setting.allowed)
        key = sha256_json([common, settings_dict(config), identity])
        first = Part(str(setting.work), source_parts.STAGE, stream, 0, key)
        tasks.append(
            source_parts.SourceTask(config, setting.folder, setting.allowed, first, recipe.rows_per_part)
        )
    report = StageReport("sources")
    waiting = [task for task in tasks if source_parts.parts_of(task.first) is None]
    report.n_made = sum(setting.engine(source_parts.read_stream, waiting, setting.n_workers, "sources"))
    for task in tasks:
        found = source_parts.parts_of(task.first)
        assert found is not None, "the stage has made it"
        outcome.parts += found[0]
        outcome.dropped |= found[1].get("dropped", {})
    for part in outcome.parts:
        report.add(read_summary(part) or {})
    report.n_kept = len(outcome.parts) - report.n_made
    outcome.reports.append(report)
    print(report.line(), flush=True)


def _rejections(outcome: Outcome, stage: str) -> list[Rejected]:
    if not outcome.reports[-1].rejected:
        return []
    return [
        Rejected(**values)
        for part in outcome.parts
        if part.stage == stage
        for values in read_rows(Path(f"{part.name}.rejected.jsonl"))
    ]


def _pii(setting: Setting, outcome: Outcome) -> None:
    options = setting.recipe.pii
    assert options is not None
    reads = None
    if options.action == "surrogate":
        stages.read_or_make_key(setting.key_file)  # made here, once, before several workers ask for it
        reads = sha256_json(sha256_file(setting.key_file))  # another key gives other surrogates
    _stage(setting, outcome, "pii", stages.PiiSetting(options, str(setting.key_file)), reads)


def _duplicates(setting: Setting, outcome: Outcome) -> None:
    options = setting.recipe.duplicates
    assert options is not None
    own = [part for part in outcome.parts if not part.is_locale]
    made = made_by(setting.recipe, "duplicates")
    signed = [part.after("signatures", made) for part in own]
    waiting = [
        PartTask(part, after, options) for part, after in zip(own, signed, strict=True) if not is_final(after)
    ]
    reads = sha256_json([one.key for one in own])  # a row that goes may have its twin in any part
    outcome_is_known = all(
        is_final(part.after("duplicates", made_by(setting.recipe, "duplicates", reads))) for part in own
    )
    found: dict[str, Any] = {}
    if not outcome_is_known:
        setting.engine(stages.sign_part, waiting, setting.n_workers, "signatures")
        files = [stages.signature_file(part) for part in signed]
        rows = (row for part in own for row in read_rows(part.rows))
        if files:
            found = find_duplicates(files, lambda: rows, options)
    settings = []
    signatures = iter(signed)
    for part in outcome.parts:
        ids = [] if part.is_locale else (read_summary(next(signatures)) or {"ids": []})["ids"]
        of_part = tuple((i, found[i].kind, found[i].kept) for i in ids if i in found)
        settings.append(stages.DuplicateSetting(options, of_part))
    _stage(setting, outcome, "duplicates", settings, reads)


def _translate(setting: Setting, outcome: Outcome) -> None:
    options = setting.recipe.translate
    assert options is not None
    identity = teacher_identity(options)
    is_free = options.teacher == "glossary"
    cache = ":memory:" if is_free else str(setting.reply_cache)
    # What waits for a server, or holds a model, is not made faster by more processes.
    n_workers = None if is_free else 1
    task = stages.TranslateSetting(options, cache)
    _stage(setting, outcome, "translate", task, identity, n_workers=n_workers)
    if n := outcome.reports[-1].rejected[TEACHER]:
        print(
            f"translate     {n:,} rows have no reply of the teacher: run the same command again, which asks for "
            "these alone",
            flush=True,
        )


def shares(recipe: RecipeConfig) -> Shares:
    """Return the shares by which source rows are split."""
    return Shares(recipe.validation_share, recipe.test_share)


def _contamination(setting: Setting, outcome: Outcome) -> None:
    config = setting.recipe.contamination
    assert config is not None
    options, of_rows = config.options, shares(setting.recipe)
    folder = setting.work / "test-sets"
    identities = {
        name: source_identity(source, setting.folder, setting.allowed)
        for name, source in sorted(config.test_sets.items())
    }
    keys = [part.key + part.salt for part in outcome.parts if not part.is_locale]
    made = made_by(setting.recipe, "contamination", identities)
    named, own = "", ""
    if config.test_sets:
        named = str(folder / f"named-{sha256_json(made)[:24]}")
        if not Path(named).exists():
            texts = {
                name: contaminated.named_texts(open_source(source, setting.folder, setting.allowed), options)
                for name, source in sorted(config.test_sets.items())
            }
            contaminated.write_index(Path(named), texts, options)
        outcome.test_sets = contaminated.n_texts(named)
    reads = [identities, of_rows, keys if of_rows.test else None]
    if keys and of_rows.test:
        own = str(folder / f"own-{sha256_json([made, reads])[:24]}")
        if not Path(own).exists():
            rows = (row for part in outcome.parts if not part.is_locale for row in read_rows(part.rows))
            contaminated.write_own_index(Path(own), contaminated.own_texts(rows, of_rows, options), options)
    _stage(setting, outcome, "contamination", contaminated.ContaminationSetting(named, own, of_rows), reads)


def _chat(setting: Setting, outcome: Outcome) -> None:
    config = setting.recipe.chat
    task = stages.ChatSetting(config, setting.tokenizer)
    _stage(setting, outcome, "chat", task, setting.tokenizer_hash)
    faults = [
        Problem(found.reason, found.row_id, found.detail)
        for found in _rejections(outcome, "chat")
        if found.reason in TEMPLATE_FAULTS
    ]
    if faults:
        lines = problem_lines(faults, outcome.reports[-1].n_in, config.max_length_tokens)
        raise UserError(
            "\n  ".join([f"the chat template of {config.tokenizer} does not fit the rows:", *lines])
        )


def _finish(setting: Setting, outcome: Outcome) -> None:
    recipe = setting.recipe
    task = finishing.FinishSetting(
        recipe.languages, shares(recipe), setting.tokenizer, recipe.chat.revision, recipe.chat.thinking
    )
    reads = [recipe.languages, setting.tokenizer_hash, recipe.chat.thinking]
    _stage(setting, outcome, "finish", task, reads, function=finishing.finish_part_task)
    outcome.summaries = [summary for part in outcome.parts if (summary := read_summary(part))]


def steps_of(outcome: Outcome, recipe: RecipeConfig) -> list[dict[str, Any]]:
    """Return what the manifest says of the stages."""
    return [
        {
            "name": report.name,
            "version": VERSIONS[report.name],
            "options": json.loads(json.dumps(stage_options(recipe, report.name))),
            "n_in": report.n_in,
            "n_out": report.n_out,
            "n_rejected": report.n_in - report.n_out,
        }
        for report in outcome.reports
    ]
