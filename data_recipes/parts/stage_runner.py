"""Stages wait until one of them must see all parts; then each worker takes a part through all that wait.

Reads summaries of parts; the engine's tasks read and write the rows. One call of the engine for several
stages, because starting processes takes longer than most stages do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_recipes.artefact import sha256_file
from data_recipes.parts import finishing, stages
from data_recipes.parts.part_files import N_CANDIDATES, Part, Summary, lowest, read_summary
from data_recipes.parts.stage_keys import NOT_FOR_LOCALE, made_by
from data_recipes.parts.stages import PartTask
from data_recipes.parts.tokenizers import Tokenizer
from data_recipes.recipe import RecipeConfig
from data_recipes.translate.options import TranslateOptions
from data_recipes.variants.options import VariantOptions

SIGNATURES = "signatures"  # what waits for the search of duplicates; not a stage of rows
# (function, tasks, n_workers, name) -> results, in the order of the tasks
Engine = Callable[..., list[Any]]


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
    translate: TranslateOptions | None  # the recipe's, with the place of its glossary on this machine
    variants: VariantOptions | None  # likewise
    tokenizer: Tokenizer | None = None  # that is counted with
    tokenizer_hash: str = ""


@dataclass
class StageReport:
    """What a stage did."""

    name: str
    n_in: int = 0
    n_out: int = 0
    n_changed: int = 0  # rows whose text is another, of the stages that count it
    rejected: Counter[str] = field(default_factory=Counter)
    n_made: int = 0
    n_kept: int = 0
    samples: list[Summary] = field(default_factory=list)

    def add(self, summary: Summary) -> None:
        """Count one part."""
        self.rejected.update(summary["rejected"])
        self.n_out += summary["n_out"]
        self.n_changed += summary["n_changed"]
        self.n_in += summary["n_out"] + sum(summary["rejected"].values())
        self.samples = lowest([*self.samples, *summary["samples"]], N_CANDIDATES)

    def line(self) -> str:
        """What is printed of it."""
        why = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.rejected.items()))
        parts = f"{self.n_made} parts made, {self.n_kept} kept"
        return f"{self.name:<13} {parts}: {self.n_in:,} rows in, {self.n_out:,} out" + (
            f"; rejected: {why}" if why else ""
        )


@dataclass(frozen=True)
class Waiting:
    """A stage that no worker has begun; one step for each part that goes through it."""

    stage: str
    steps: list[PartTask]


@dataclass
class Outcome:
    """The finished parts, and what is known of the way there."""

    parts: list[Part]
    n_source_rows: int = 0  # as they were read, without those of locale tasks
    reports: list[StageReport] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)  # of the finished parts
    dropped: dict[str, int] = field(default_factory=dict)  # by the locale tasks
    test_sets: dict[str, int] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    made: dict[str, list[Part]] = field(default_factory=dict)  # stage -> its parts


def add_stage(setting: Setting, outcome: Outcome, stage: str, options: Any, reads: Any = None) -> None:
    """Let all parts wait for a stage. `options` is for all of them, or a list with one for each part."""
    made = made_by(setting.recipe, stage, reads)
    each = options if isinstance(options, list) else [options] * len(outcome.parts)
    takes = [not (part.is_locale and stage in NOT_FOR_LOCALE) for part in outcome.parts]
    afters = [
        part.after(stage, made) if own else part for part, own in zip(outcome.parts, takes, strict=True)
    ]
    steps = [
        PartTask(before, after, option)
        for before, after, option, own in zip(outcome.parts, afters, each, takes, strict=True)
        if own
    ]
    outcome.parts = afters
    outcome.waiting.append(Waiting(stage, steps))


def run_waiting(setting: Setting, outcome: Outcome, n_workers: int | None = None) -> None:
    """Take each part through all stages that wait, and say what each of them did.

    Raises:
        UserError: what stops a stage; the parts that were finished stay.
    """
    of_part: dict[tuple[str, int], list[PartTask]] = {}
    n_made = {}
    for one in outcome.waiting:
        unfinished = [step for step in one.steps if not is_final(step.after)]
        n_made[one.stage] = len(unfinished)
        for step in unfinished:
            of_part.setdefault((step.after.stream, step.after.number), []).append(step)
    if not outcome.waiting:
        return
    names = "+".join(one.stage for one in outcome.waiting)
    tasks = [tuple(steps) for steps in of_part.values()]
    setting.engine(run_steps, tasks, n_workers or setting.n_workers, names)
    for one in outcome.waiting:
        outcome.made[one.stage] = [step.after for step in one.steps]
        if one.stage == SIGNATURES:
            continue
        report = StageReport(one.stage, n_made=n_made[one.stage])
        report.n_kept = len(one.steps) - report.n_made
        for step in one.steps:
            report.add(read_summary(step.after) or {})
        outcome.reports.append(report)
        if one.steps:
            print(report.line(), flush=True)
    outcome.waiting = []
    outcome.parts = [part if is_final(part) else salted(part) for part in outcome.parts]


def run_steps(steps: tuple[PartTask, ...]) -> int:
    """Take one part through several stages: the function that an engine runs. Returns how many there were."""
    functions: dict[str, Callable[[PartTask], Summary]] = {
        SIGNATURES: stages.sign_part,
        finishing.STAGE: finishing.finish_part_task,
    }
    for step in steps:
        functions.get(step.after.stage, stages.run_stage)(step)
    return len(steps)


def salted(part: Part) -> Part:
    """A part that must be made again, with a salt of its rows, so that what is made of it is not kept."""
    return replace(part, salt=sha256_file(part.rows))


def is_final(part: Part) -> bool:
    """Whether a part is whole and need not be made again."""
    summary = read_summary(part)
    return summary is not None and summary.get("is_final", True)
