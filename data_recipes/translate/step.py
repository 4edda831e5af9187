"""The step that translates rows: ask, restore, verify, ask again, ask for less at a time, or reject.

Reads and writes the reply cache through the teacher's requests; gives rows with `translate` among their
transforms, or the reason why there is none. The order of rows, and what becomes of each, do not depend on how
many requests run at a time.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from data_recipes.artefact import UserError
from data_recipes.steps import Rejected, Row, with_transform
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.document import Document, parse
from data_recipes.translate.endpoint import Endpoint, endpoint_identity
from data_recipes.translate.local import load_local_teacher, local_identity
from data_recipes.translate.masking import (
    Masked,
    Mismatch,
    has_prose,
    mask,
    message_elements,
    restore,
    sentences,
    trimmed,
    unused_forms,
)
from data_recipes.translate.options import LEVELS, TranslateOptions
from data_recipes.translate.patterns import Span
from data_recipes.translate.teachers import Glossary, Reply, Request, Teacher, make_request, read_glossary
from data_recipes.translate.verify import Policy, verify
from data_recipes.writing.written_forms import written_form

NAME, VERSION = "translate", 1
Counts = dict[str, float | int]


@dataclass
class Piece:
    """A part of a message that is sent in one request; when that fails it is cut into `parts`."""

    document: Document
    elements: list[Span]
    level: int  # of LEVELS
    n_tried: int = 0
    text: str | None = None  # the translation, once there is one that passed
    counts: Counts = field(default_factory=dict)  # of the whole message, where it was sent as a whole
    parts: list[Piece] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # "check: what it found", one a try

    @property
    def start(self) -> int:
        """Where the piece begins in its message."""
        return self.elements[0].start

    @property
    def end(self) -> int:
        """Where the piece ends in its message."""
        return self.elements[-1].end

    def in_message(self, text: str) -> str:
        """The message with `text` in the place of this piece."""
        return self.document.text[: self.start] + text + self.document.text[self.end :]

    def translated(self) -> str:
        """The translation, put together from its parts where it was cut; between them the source's bytes."""
        if self.text is not None:
            return self.text
        text, cursor = "", self.start
        for part in self.parts:
            text += self.document.text[cursor : part.start] + part.translated()
            cursor = part.end
        return text + self.document.text[cursor : self.end]

    def leaves(self) -> list[Piece]:
        """The pieces that are sent, in order."""
        return [leaf for part in self.parts for leaf in part.leaves()] if self.parts else [self]

    def cut(self) -> list[Piece]:
        """The parts one or two levels down; empty when it cannot be cut any more."""
        for level in range(self.level + 1, len(LEVELS)):
            parts = [p for p in self._at(level) if p]
            if len(parts) > 1:
                return [Piece(self.document, part, level) for part in parts]
        return []

    def _at(self, level: int) -> list[list[Span]]:
        document = self.document
        if LEVELS[level] == "sentence":
            return sentences(document, self.elements)
        groups = itertools.groupby(self.elements, key=lambda element: element.kind == "glue")
        return [trimmed(document, list(group)) for is_glue, group in groups if not is_glue]


@dataclass
class Job:
    """One row under way. `places` says where its texts stand: indices into messages, and into their parts."""

    row: Row
    places: list[tuple[int, int | None]] = field(default_factory=list)
    pieces: list[Piece | None] = field(default_factory=list)  # None where there is nothing to translate
    rejected: Rejected | None = None
    n_requests: int = 0
    n_retries: int = 0

    def reject(self, reason: str, detail: str = "") -> None:
        """Drop the row; the first reason stays."""
        row_id = str(self.row.get("id", "")) if isinstance(self.row, dict) else ""
        self.rejected = self.rejected or Rejected(row_id, NAME, reason, detail[:300])


@contextmanager
def open_teacher(options: TranslateOptions, cache: ReplyCache) -> Iterator[Teacher]:
    """Yield the teacher that the options name; what the cache holds counts for an endpoint's budget.

    Raises: UserError when there is no key, no model or no glossary where the options say.
    """
    if options.teacher == "endpoint":
        with Endpoint(options.endpoint, spent=cache.n_tokens()) as endpoint:
            yield endpoint
    elif options.teacher == "local":
        yield load_local_teacher(options.local)
    else:
        assert options.glossary is not None, "options.problems() asks for it"
        yield Glossary(read_glossary(options.glossary))


def teacher_identity(options: TranslateOptions) -> dict[str, Any]:
    """Return the identity of the teacher that the options name, without starting it.

    Raises: UserError when there is no glossary where the options say.
    """
    if options.teacher == "endpoint":
        return endpoint_identity(options.endpoint)
    if options.teacher == "local":
        return local_identity(options.local)
    assert options.glossary is not None, "options.problems() asks for it"
    return Glossary(read_glossary(options.glossary)).identity


def translate_rows(
    rows: Iterable[Row], options: TranslateOptions, teacher: Teacher, cache: ReplyCache
) -> Iterator[Row | Rejected]:
    """Yield each row translated, or the reason why it was rejected, in the order of `rows`.

    Messages of `options.roles` are translated, and everything else on them (tool calls, names) stays. A row
    whose messages hold no prose passes as it is.

    Raises: UserError when the teacher or the cache cannot go on (no key, a budget that is spent, a full
        disk); replies that came are in the cache, so that the next run goes on from there.
    """
    problems = options.problems()
    if problems:
        raise UserError("\n  ".join(["the options of a translation have problems", *problems]))
    rows = iter(rows)
    policy = options.policy()
    while window := list(itertools.islice(rows, options.window)):
        jobs = [_job(row, options) for row in window]
        while waiting := _next_requests(jobs, options):
            replies = _replies([request for _, _, request, _ in waiting], teacher, cache)
            for (job, piece, _, masked), reply in zip(waiting, replies, strict=True):
                _judge(job, piece, masked, reply, policy, options)
        for job in jobs:
            yield _finished(job, options, policy, teacher)


def _job(row: Row, options: TranslateOptions) -> Job:
    """Find the texts of a row and cut them into pieces; what cannot be translated is rejected here."""
    job = Job(row)
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        job.reject("no messages", f"messages is {type(messages).__name__}, not a list of messages")
        return job
    if row.get("language", options.source) != options.source:
        job.reject("language", f"the row is in {row['language']!r}, the source is {options.source!r}")
        return job
    for place, text in _texts(messages, options.roles):
        if len(text) > options.max_characters:
            job.reject("too long", f"{len(text)} characters, at most {options.max_characters} are translated")
            return job
        if not unused_forms(text, options.mask_forms):
            job.reject("marks", "the text holds marks of every form in mask_forms; add another form")
            return job
        document = parse(text)
        elements = message_elements(document)
        job.places.append(place)
        if not elements or not has_prose(document, elements):
            job.pieces.append(None)
            continue
        piece = Piece(document, elements, 0)
        first = LEVELS.index(options.first_level)
        if len(text) > options.max_sent_characters:
            first = max(first, 1)
        for _ in range(first):
            for leaf in piece.leaves():
                leaf.parts = leaf.cut()
        job.pieces.append(piece)
    return job


def _texts(
    messages: list[dict[str, Any]], roles: Sequence[str]
) -> Iterator[tuple[tuple[int, int | None], str]]:
    """Yield each text to translate and where it stands; a message's content is a text or a list of parts."""
    for number, message in enumerate(messages):
        content = message.get("content") if message.get("role") in roles else None
        if isinstance(content, str):
            yield (number, None), content
        for index, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
                yield (number, index), part["text"]


Waiting = tuple[Job, Piece, Request, Masked]


def _next_requests(jobs: list[Job], options: TranslateOptions) -> list[Waiting]:
    """What has to be asked now: each piece without a translation, of the rows still in play."""
    waiting: list[Waiting] = []
    system = options.policy().system
    for job in jobs:
        if job.rejected:
            continue
        leaves = [leaf for piece in job.pieces if piece for leaf in piece.leaves()]
        for piece in (leaf for leaf in leaves if leaf.text is None):
            forms = unused_forms(piece.document.text, options.mask_forms)
            form = forms[piece.n_tried % len(forms)]
            masked = mask(piece.document, piece.elements, form, options.digits, system, options.framed)
            waiting.append((job, piece, make_request(masked.shown, form, options, piece.n_tried), masked))
    return waiting


def _replies(requests: list[Request], teacher: Teacher, cache: ReplyCache) -> list[Reply]:
    """Answer requests from the cache, and ask the teacher for the others, each different one once."""
    keys = [request.key(teacher.identity) for request in requests]
    found = {key: cache.get(key) for key in keys}
    missing = {key: request for key, request in zip(keys, requests, strict=True) if found[key] is None}
    asked = list(missing)
    if asked:
        for index, reply in teacher.ask(list(missing.values())):
            found[asked[index]] = reply
            if not reply.failure:
                cache.put(asked[index], reply)
    silent = Reply("", failure="the teacher gave no reply")
    return [found[key] or silent for key in keys]


def _judge(
    job: Job, piece: Piece, masked: Masked, reply: Reply, policy: Policy, options: TranslateOptions
) -> None:
    """Accept a reply, or leave the piece for another try, cut it, or reject the row."""
    job.n_requests += 1
    try:
        if reply.failure:
            raise Mismatch("teacher", reply.failure)
        text = restore(masked, reply.text)
        if piece.level == 0:
            piece.counts = verify(piece.document, parse(piece.in_message(text)), policy)
        else:
            source = piece.document.text[piece.start : piece.end]
            verify(parse(source), parse(text), policy)
    except Mismatch as error:
        piece.faults.append(str(error))
        piece.n_tried += 1
        job.n_retries += 1
        if error.check == "teacher":  # it was tried often enough already
            job.reject(error.check, error.detail)
        elif piece.n_tried >= options.n_tries:
            piece.parts = piece.cut()
            if not piece.parts:
                job.reject(error.check, f"{error.detail}; in {LEVELS[piece.level]}: {source_start(piece)!r}")
    else:
        piece.text = text


def source_start(piece: Piece) -> str:
    """The first words of a piece, for a message."""
    return piece.document.text[piece.start : min(piece.end, piece.start + 60)]


def _finished(job: Job, options: TranslateOptions, policy: Policy, teacher: Teacher) -> Row | Rejected:
    """Put the row together and verify each of its messages as a whole."""
    if job.rejected:
        return job.rejected
    messages = copy.deepcopy(job.row["messages"])
    counted: list[Counts] = []
    levels: set[str] = set()
    for (number, index), piece in zip(job.places, job.pieces, strict=True):
        if piece is None:
            continue
        text = piece.in_message(piece.translated())
        try:
            counted.append(piece.counts or verify(piece.document, parse(text), policy))
        except Mismatch as error:
            job.reject(error.check, f"{error.detail}; in the whole of message {number}")
            assert job.rejected is not None
            return job.rejected
        levels |= {LEVELS[leaf.level] for leaf in piece.leaves()}
        if index is None:
            messages[number]["content"] = text
        else:
            messages[number]["content"][index]["text"] = text
    return _with_proof(job, messages, counted, levels, options, teacher)


def _with_proof(
    job: Job,
    messages: list[dict[str, Any]],
    counted: list[Counts],
    levels: set[str],
    options: TranslateOptions,
    teacher: Teacher,
) -> Row:
    """The translated row: its last transform holds what was checked, `parent` what it was made from."""
    form = written_form(options.target)
    checks: dict[str, Any] = {
        "source": options.source,
        "target": options.target,
        "teacher": teacher.identity,
        "digits": options.digits,
        "messages": len(counted),
        **{name: sum(counts[name] for counts in counted) for name in ("spans", "numbers", "blocks")},
        "least_script_share": min((counts["least_script_share"] for counts in counted), default=1.0),
        "levels": sorted(levels),
        "requests": job.n_requests,
        "retries": job.n_retries,
    }
    row = {**job.row, "messages": messages, "language": form.code, "script": form.script}
    parent_id = job.row.get("id", "")
    row["parent"] = {"id": parent_id, "messages": job.row["messages"]} if options.keep_source else parent_id
    row["id"] = f"{parent_id}/{options.target}"
    return with_transform(row, NAME, VERSION, checks)
