"""The chain of stages: from sources to finished parts, each stage over the parts of the one before.

Reads sources and the parts that are there already; writes the parts that are not. The order is fixed; a stage
that the recipe leaves out hands its parts on as they are. Only the duplicates and the index of the recipe's
own test split look at all parts at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_recipes.artefact import UserError, sha256_file, sha256_json
from data_recipes.chats.mask_audit import Problem, problem_lines
from data_recipes.parts import contaminated, finishing, source_parts, stages
from data_recipes.parts.part_files import LOCALE, TEACHER, Part, read_rows, read_summary
from data_recipes.parts.splitting import Shares
from data_recipes.parts.stage_keys import (
    PACKAGES,
    VERSIONS,
    code_hash,
    is_on,
    made_by,
    package_version,
    stage_options,
)
from data_recipes.parts.stage_runner import (
    SIGNATURES,
    Outcome,
    Setting,
    StageReport,
    Waiting,
    add_stage,
    is_final,
    run_waiting,
)
from data_recipes.parts.stages import PartTask
from data_recipes.pii.surrogates import read_or_make_key
from data_recipes.recipe import RecipeConfig
from data_recipes.row_sources.source import open_source, source_identity
from data_recipes.screening.duplicates import find_duplicates
from data_recipes.screening.licences import refuse_build
from data_recipes.settings import settings_dict
from data_recipes.steps import Rejected
from data_recipes.translate.step import teacher_identity

# Faults of a chat template, not of a row: no row should be left out for them.
TEMPLATE_FAULTS = ("untrained_stop", "prompt_trained", "other_opening")


def run_chain(setting: Setting) -> Outcome:
    """Run all stages and return the finished parts.

    Raises:
        UserError: a source, a licence, a teacher, a tokenizer or a disk that stops the build; the parts that
            were finished stay.
    """
    recipe = setting.recipe
    outcome = Outcome([])
    _sources(setting, outcome)
    add_stage(setting, outcome, "licences", recipe.licences)
    if recipe.text:
        add_stage(setting, outcome, "text", recipe.text)
    if recipe.pii:
        _pii(setting, outcome)
    if recipe.duplicates:
        _sign(setting, outcome)
    run_waiting(setting, outcome)
    refuse_build(_rejections(outcome, "licences"))  # before anything is paid for
    if recipe.duplicates:
        _duplicates(setting, outcome)
    if recipe.translate:
        _translate(setting, outcome)
    if setting.variants:
        glossary = setting.variants.glossary
        add_stage(setting, outcome, "variants", setting.variants, sha256_file(glossary) if glossary else None)
    run_waiting(setting, outcome)
    if recipe.contamination:
        _contamination(setting, outcome)
    if is_on(recipe, "chat"):
        assert setting.tokenizer is not None, "the stage is on when the recipe names one"
        add_stage(
            setting,
            outcome,
            "chat",
            stages.ChatSetting(recipe.chat, setting.tokenizer),
            setting.tokenizer_hash,
        )
    _finish(setting, outcome)
    run_waiting(setting, outcome)
    outcome.summaries = [summary for part in outcome.parts if (summary := read_summary(part))]
    _refuse_template(setting, outcome)
    return outcome


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
        summary = read_summary(part) or {}
        report.add(summary)
        outcome.n_source_rows += 0 if part.is_locale else summary["n_out"]
    report.n_kept = len(outcome.parts) - report.n_made
    outcome.reports.append(report)
    print(report.line(), flush=True)


def _rejections(outcome: Outcome, stage: str) -> list[Rejected]:
    return [
        Rejected(**values)
        for part in outcome.made.get(stage, [])
        if (read_summary(part) or {}).get("rejected")
        for values in read_rows(Path(f"{part.name}.rejected.jsonl"))
    ]


def _pii(setting: Setting, outcome: Outcome) -> None:
    options = setting.recipe.pii
    assert options is not None
    reads = None
    if options.action == "surrogate":
        read_or_make_key(setting.key_file)  # made here, once, before several workers ask for it
        reads = sha256_json(sha256_file(setting.key_file))  # another key gives other surrogates
    add_stage(setting, outcome, "pii", stages.PiiSetting(options, str(setting.key_file)), reads)


def _sign(setting: Setting, outcome: Outcome) -> None:
    """Let the parts wait for their signatures, unless it is known already which rows go."""
    own, reads = _compared(outcome)
    made = made_by(setting.recipe, "duplicates", reads)
    if all(is_final(part.after("duplicates", made)) for part in own):
        return
    made = made_by(setting.recipe, "duplicates")
    steps = [PartTask(part, part.after(SIGNATURES, made), setting.recipe.duplicates) for part in own]
    outcome.waiting.append(Waiting(SIGNATURES, steps))


def _compared(outcome: Outcome) -> tuple[list[Part], str]:
    """The parts that are searched for duplicates, and one hash of them: a row's twin may be in any part."""
    own = [part for part in outcome.parts if not part.is_locale]
    return own, sha256_json([part.key for part in own])


def _duplicates(setting: Setting, outcome: Outcome) -> None:
    options = setting.recipe.duplicates
    assert options is not None
    own, reads = _compared(outcome)
    signed = outcome.made.get(SIGNATURES, [])
    found: dict[str, Any] = {}
    if signed:
        rows = (row for part in own for row in read_rows(part.rows))
        found = find_duplicates([stages.signature_file(part) for part in signed], lambda: rows, options)
    settings = []
    signatures = iter(signed)
    for part in outcome.parts:
        ids = [] if part.is_locale or not signed else (read_summary(next(signatures)) or {})["ids"]
        of_part = tuple((i, found[i].kind, found[i].kept) for i in ids if i in found)
        settings.append(stages.DuplicateSetting(options, of_part))
    add_stage(setting, outcome, "duplicates", settings, reads)


def _translate(setting: Setting, outcome: Outcome) -> None:
    options = setting.translate
    assert options is not None
    is_free = options.teacher == "glossary"
    if not is_free:
        run_waiting(setting, outcome)
    cache = ":memory:" if is_free else str(setting.reply_cache)
    add_stage(
        setting, outcome, "translate", stages.TranslateSetting(options, cache), teacher_identity(options)
    )
    # What waits for a server, or holds a model, is not made faster by more processes.
    run_waiting(setting, outcome, None if is_free else 1)
    if n := outcome.reports[-1].rejected[TEACHER]:
        print(
            f"translate     {n:,} rows have no reply of the teacher: run the same command again, which asks "
            "for these alone",
            flush=True,
        )


def shares(recipe: RecipeConfig, outcome: Outcome) -> Shares:
    """Return the shares by which source rows are split: no more than about `max_test_rows` are tested on."""
    most = recipe.max_test_rows / max(1, outcome.n_source_rows)
    return Shares(min(recipe.validation_share, most), min(recipe.test_share, most))


def _contamination(setting: Setting, outcome: Outcome) -> None:
    config = setting.recipe.contamination
    assert config is not None
    options, of_rows = config.options, shares(setting.recipe, outcome)
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
    add_stage(
        setting, outcome, "contamination", contaminated.ContaminationSetting(named, own, of_rows), reads
    )


def _refuse_template(setting: Setting, outcome: Outcome) -> None:
    """Raise when the chat template does not fit: no row is left out for a fault that is not its own."""
    config = setting.recipe.chat
    faults = [
        Problem(found.reason, found.row_id, found.detail)
        for found in _rejections(outcome, "chat")
        if found.reason in TEMPLATE_FAULTS
    ]
    if faults:
        n_rows = next(report.n_in for report in outcome.reports if report.name == "chat")
        lines = problem_lines(faults, n_rows, config.max_length_tokens)
        raise UserError(
            "\n  ".join([f"the chat template of {config.tokenizer} does not fit the rows:", *lines])
        )


def _finish(setting: Setting, outcome: Outcome) -> None:
    recipe = setting.recipe
    task = finishing.FinishSetting(
        recipe.languages, shares(recipe, outcome), setting.tokenizer, recipe.chat.thinking, recipe.variants
    )
    reads = [recipe.languages, setting.tokenizer_hash, recipe.chat.thinking, shares(recipe, outcome)]
    add_stage(setting, outcome, "finish", task, reads)


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
