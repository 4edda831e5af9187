"""Audit of chat rows as a trainer sees them: what is trained, and every reason why a row must not be.

Reads rows through a chat template; writes nothing. What is wrong is an error, never a warning: a mask that is
wrong trains without a word (every label masked, a stop token that never comes), and shows in no loss curve.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data_recipes.artefact import UserError
from data_recipes.chats.chat_mask import ChatMask, chat_mask
from data_recipes.chats.chat_template import ChatTemplate, message_texts, read_template
from data_recipes.chats.control_tokens import typed_control_tokens
from data_recipes.writing.graphemes import graphemes, words

# What is wrong -> how it is said of some rows, and the way out.
KINDS = {
    "unreadable": (
        "cannot be told apart into prompt and answer",
        "correct the messages, or put {% generation %} and {% endgeneration %} around the answer and its "
        "stop token in the chat template",
    ),
    "nothing_trained": (
        "have no token to train on",
        "give each an assistant message with a text or a tool call, or leave such rows out",
    ),
    "untrained_stop": (
        "train no stop token, so the model would never learn to stop",
        "the token that ends a turn must be inside {% generation %} where the chat template has such marks, "
        "and the model must stop at it: name it among eos_token_id in generation_config.json",
    ),
    "prompt_trained": (
        "train tokens of the prompt",
        "put {% generation %} behind the generation prompt, and {% endgeneration %} before the next message",
    ),
    "other_opening": (
        "open the answer in another way than the model is asked",
        "set base.thinking=false for rows without thinking (true for rows with it)",
    ),
    "control_in_text": (
        "hold control tokens inside a text",
        "escape or strip them with data_recipes.chats.control_tokens.without_control_tokens, or leave the "
        "rows out",
    ),
    "too_long": (
        "are longer than max_length_tokens={limit} and rows are never cut: cut answers teach to stop early",
        "set train.max_length_tokens={longest}, or leave such rows out",
    ),
}
N_NAMED = 10  # rows named in a message for each kind of problem


class Problem(NamedTuple):
    """A reason why a row must not be trained on."""

    kind: str  # of KINDS
    row_id: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What rows are compared with."""

    max_length_tokens: int | None = None  # longer rows are a problem; None takes any
    stop_ids: frozenset[int] = frozenset()  # tokens the model stops at; empty takes any control token
    template_options: Mapping[str, Any] = field(default_factory=dict)  # passed to the template
    n_worst: int = 5  # rows shown as the longest, and as those with the least to train


class RowCount(NamedTuple):
    """How much of a row is trained."""

    row_id: str
    n_tokens: int
    n_trained: int


class Fertility(NamedTuple):
    """How many tokens a tokenizer takes for the texts of a language."""

    n_tokens: int
    n_words: int
    n_graphemes: int


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; `str()` of it is a page to read."""

    counts: list[RowCount]
    n_turns: int
    fertility: dict[str, Fertility]  # language -> over the texts of all messages
    problems: list[Problem]
    options: AuditOptions

    def refuse(self) -> None:
        """Raise: UserError with all problems together, when there are any."""
        refuse(self.problems, len(self.counts), self.options.max_length_tokens)

    def __str__(self) -> str:
        limit = self.options.max_length_tokens
        problems = problem_lines(self.problems, len(self.counts), limit) or ["no problems"]
        return "\n".join([*self.summary_lines(), *problems])

    def summary_lines(self) -> list[str]:
        """How much is trained, how the tokenizer cuts each language, and the rows at both ends."""
        n_tokens = sum(count.n_tokens for count in self.counts)
        n_trained = sum(count.n_trained for count in self.counts)
        share = n_trained / n_tokens if n_tokens else 0.0
        lines = [
            f"{len(self.counts)} rows, {self.n_turns} answers, {n_tokens} tokens, "
            f"{n_trained} of them trained ({share:.0%})"
        ]
        for language, found in sorted(self.fertility.items()):
            per_word, per_grapheme = (
                f"{found.n_tokens / n:.2f}" if n else "-" for n in (found.n_words, found.n_graphemes)
            )
            lines.append(f"  {language:<8} {per_word} tokens a word, {per_grapheme} a grapheme")
        longest = sorted(self.counts, key=lambda count: -count.n_tokens)[: self.options.n_worst]
        least = sorted(self.counts, key=lambda count: count.n_trained)[: self.options.n_worst]
        lines.append("longest: " + ", ".join(f"{count.row_id} ({count.n_tokens})" for count in longest))
        lines.append("least trained: " + ", ".join(f"{count.row_id} ({count.n_trained})" for count in least))
        return lines


def audit(
    rows: Iterable[Mapping[str, Any]], tokenizer: Any, options: AuditOptions | None = None
) -> AuditReport:
    """Render, tokenize and mask every row, and collect what is wrong with each.

    Raises: UserError when the tokenizer has no chat template that can be used at all.
    """
    options = options or AuditOptions()
    template = read_template(tokenizer, options.template_options)
    counts, problems, n_turns = [], [], 0
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        mask, found = audited_mask(template, row, options.max_length_tokens, options.stop_ids)
        problems += found
        counts.append(RowCount(str(row["id"]), len(mask.ids), sum(mask.is_trained)))
        n_turns += len(mask.turns)
        texts = [text for message in row["messages"] for text in message_texts(message)]
        sums[str(row.get("language") or "?")].update(
            tokens=sum(map(len, template.encode_all(texts))),
            words=sum(len(words(text)) for text in texts),
            graphemes=sum(len(graphemes(text)) for text in texts),
        )
    fertility = {
        language: Fertility(found["tokens"], found["words"], found["graphemes"])
        for language, found in sums.items()
    }
    return AuditReport(counts, n_turns, fertility, problems, options)


def audited_mask(
    template: ChatTemplate,
    row: Mapping[str, Any],
    max_length_tokens: int | None = None,
    stop_ids: frozenset[int] = frozenset(),
) -> tuple[ChatMask, list[Problem]]:
    """The mask of a row and every reason why it must not be trained on; an empty mask where there is none."""
    row_id = str(row["id"])
    problems = [
        Problem(
            "control_in_text", row_id, f"{typed.token} in message {typed.message + 1}, the {typed.role}'s"
        )
        for typed in typed_control_tokens(template, row)
    ]
    try:
        mask = chat_mask(template, row["messages"], row.get("tools") or None)
    except UserError as error:
        return ChatMask([], [], [], []), [*problems, Problem("unreadable", row_id, str(error))]
    problems += [Problem(finding.kind, row_id, finding.detail) for finding in mask.findings]
    for turn in mask.turns:
        if stop_ids and turn.stop is not None and turn.stop not in stop_ids:
            stop = template.tokenizer.decode([turn.stop])
            problems.append(
                Problem("untrained_stop", row_id, f"ends with {stop!r}, where the model does not stop")
            )
            break
    if max_length_tokens is not None and len(mask.ids) > max_length_tokens:
        problems.append(Problem("too_long", row_id, f"{len(mask.ids)} tokens"))
    return mask, problems


def problem_lines(problems: Sequence[Problem], n_rows: int, max_length_tokens: int | None) -> list[str]:
    """One line for each kind of problem: how many rows, which, what is wrong with each, and the way out."""
    lines = []
    for kind, (what, way_out) in KINDS.items():
        found = [problem for problem in problems if problem.kind == kind]
        if not found:
            continue
        values = {"limit": str(max_length_tokens), "longest": ""}
        if kind == "too_long":
            found.sort(key=lambda problem: -int(problem.detail.split()[0]))
            values["longest"] = found[0].detail.split()[0]
        for name, value in values.items():
            what, way_out = (text.replace(f"{{{name}}}", value) for text in (what, way_out))
        by_row: dict[str, list[str]] = {}
        for problem in found:
            by_row.setdefault(problem.row_id, []).append(problem.detail)
        named = [f"row {row_id} ({'; '.join(details)})" for row_id, details in by_row.items()][:N_NAMED]
        more = f" and {len(by_row) - N_NAMED} more" if len(by_row) > N_NAMED else ""
        lines.append(f"{len(by_row)} of {n_rows} rows {what}: {', '.join(named)}{more}; {way_out}")
    return lines


def refuse(problems: Sequence[Problem], n_rows: int, max_length_tokens: int | None) -> None:
    """Raise: UserError with all problems together, when there are any."""
    if problems:
        raise UserError("\n  ".join(problem_lines(problems, n_rows, max_length_tokens)))
