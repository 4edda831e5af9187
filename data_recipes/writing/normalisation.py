"""Declared policies for text: what is changed, what is kept, and a count of each change.

Reads nothing, writes nothing. A policy is a frozen dataclass that a recipe spells out; both sides of every
comparison go through the same one. Nothing here changes what a reader takes for a different word: there is no
NFKC, no lower case, and no visible look-alike is replaced. Applying a policy twice is applying it once.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import regex

from data_recipes.artefact import UserError
from data_recipes.writing.digits import write_digits
from data_recipes.writing.graphemes import graphemes
from data_recipes.writing.invisible import drop_idle_joiners, remove_bidi_controls, remove_junk
from data_recipes.writing.spellings import prefer_spellings
from data_recipes.writing.written_forms import WrittenForm


@dataclass(frozen=True)
class TextPolicy:
    """What to do with each trait of a text. The default removes junk and changes nothing a reader sees.

    Raises:
        UserError: a value that the field does not have; all such fields are named together.
    """

    # The letters that Unicode excludes from composition (क़ ড় ਲ਼ ଡ଼): as NFC has them, or as one code point.
    nukta: Literal["decomposed", "precomposed"] = "decomposed"
    # Two encodings of one letter (Malayalam chillus, khanda ta, eyelash ra, vowel letters from parts): one.
    spellings: Literal["keep", "preferred"] = "keep"
    joiners: Literal["keep", "drop_idle"] = "keep"  # idle: they shape nothing where they stand
    # One for one; native: those of the row's written form.
    digits: Literal["keep", "ascii", "native"] = "keep"
    quotes: Literal["keep", "ascii"] = "keep"
    dashes: Literal["keep", "ascii"] = "keep"
    danda: Literal["keep", "danda"] = "keep"  # | and || as sentence ends become danda and double danda
    invisible: Literal["keep", "remove"] = "remove"
    bidi_controls: Literal["keep", "remove"] = "remove"
    line_ends: Literal["keep", "lf"] = "lf"
    # plain: each kind of space becomes the ASCII one.
    white_space: Literal["keep", "plain", "collapse"] = "keep"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        wrong = [
            f"{field.name}={value!r} (it is {' or '.join(map(repr, get_args(hints[field.name])))})"
            for field in fields(self)
            if (value := getattr(self, field.name)) not in get_args(hints[field.name])
        ]
        if wrong:
            raise UserError(f"text policy: {'; '.join(wrong)}")


@dataclass(frozen=True)
class Normalised:
    """A text after a policy, and how often each rule changed something."""

    text: str
    changes: dict[str, int]


def _excluded_nukta_letters() -> dict[str, str]:
    # Two code points that NFC never composes, the second of them a nukta (combining class 7).
    letters = {}
    for point in range(0x0900, 0x0E00):
        pair = unicodedata.normalize("NFD", chr(point))
        if (
            len(pair) == 2
            and unicodedata.combining(pair[1]) == 7
            and unicodedata.normalize("NFC", pair) == pair
        ):
            letters[pair] = chr(point)
    return letters


NUKTA_LETTERS: dict[str, str] = _excluded_nukta_letters()
_NUKTA = regex.compile("|".join(NUKTA_LETTERS))
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»", '"') | dict.fromkeys("‘’‚‛‹›", "'"))
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))
_LINE_END = regex.compile(r"\r\n|[\r\v\f\x85\u2028\u2029]")
_SPACE = regex.compile(r"[\p{White_Space}--[ \t\n\r\v\f\x85\u2028\u2029]]", flags=regex.V1)
_SPACES = regex.compile(r"\p{White_Space}+")
# The scripts whose sentences end in a danda today. A pipe is one only where every pipe of the line closes a
# sentence and the last one closes the line, so that tables and shell commands stay.
_PIPE = regex.compile(
    r"(?<=[\p{Deva}\p{Beng}\p{Guru}\p{Orya}] ?)\|\|?(?=\s|[\"'”’)]*$)", flags=regex.MULTILINE
)
_PIPED_LINE = regex.compile(r"^[^|\n][^\n]*\|[\"'”’)]*[ \t]*$", flags=regex.MULTILINE)
_TWO_DANDAS = regex.compile(r"(?<!।)।।(?!।)")


def apply_policy(text: str, policy: TextPolicy, form: WrittenForm | None = None) -> Normalised:
    """Return `text` under a policy, with counts by rule; always in NFC but for the nukta rule.

    Code, links and placeholders are text like any other here: cut them out before, and put them back after.

    Args:
        form: the written form of the text; needed for native digits alone.

    Raises:
        UserError: native digits are asked for without a form, or of one that has none.
    """
    if policy.digits == "native" and (form is None or form.digits is None):
        raise UserError(
            f"native digits: {form.tag + ' has none of its own' if form else 'no written form is given'}; "
            "use digits=ascii or digits=keep"
        )
    changes: Counter[str] = Counter()
    before = None
    while text != before:  # a rule can make room for another one; each pass but the last takes something away
        before = text
        text = _one_pass(text, policy, form, changes)
    return Normalised(text, dict(sorted(changes.items())))


def apply_outside(
    text: str, policy: TextPolicy, form: WrittenForm | None, spans: Iterable[tuple[int, int]]
) -> Normalised:
    """Return `text` under a policy with the spans of it (start, end) left as they are, byte for byte.

    What lies between two spans is a text of its own, so white space cannot be collapsed here: it would glue
    words to spans.

    Raises:
        UserError: as `apply_policy`; spans and white_space="collapse".
    """
    ordered = sorted(spans)
    if ordered and policy.white_space == "collapse":
        raise UserError('text policy: white_space="collapse" needs the whole text; with spans use "plain"')
    changes: Counter[str] = Counter()
    pieces, at = [], 0
    for start, end in [*ordered, (len(text), len(text))]:
        done = apply_policy(text[at:start], policy, form)
        changes.update(done.changes)
        pieces += [done.text, text[max(at, start) : end]]  # spans may overlap
        at = max(at, end)
    return Normalised("".join(pieces), dict(sorted(changes.items())))


def _one_pass(text: str, policy: TextPolicy, form: WrittenForm | None, changes: Counter[str]) -> str:
    if policy.line_ends == "lf":
        text, changed = _LINE_END.subn("\n", text)
        _count("line_ends", changed, changes)
    if policy.bidi_controls == "remove":
        text, changed = remove_bidi_controls(text)
        _count("bidi_control", changed, changes)
    if policy.invisible == "remove":
        text, kinds = remove_junk(text)
        changes.update(kinds)
    text = _unicode_form(text, policy, changes)
    if policy.spellings == "preferred":
        text, changed = prefer_spellings(text)
        _count("spellings", changed, changes)
    if policy.joiners == "drop_idle":
        text, changed = drop_idle_joiners(text)
        _count("joiners", changed, changes)
    if policy.digits != "keep":
        system = form.digits if form and form.digits and policy.digits == "native" else "latn"
        text = _count_points("digits", text, write_digits(text, system), changes)
    if policy.quotes == "ascii":
        text = _count_points("quotes", text, text.translate(_QUOTES), changes)
    if policy.dashes == "ascii":
        text = _count_points("dashes", text, text.translate(_DASHES), changes)
    if policy.danda == "danda" and ("|" in text or "।।" in text):
        text = _danda(text, changes)
    return _white_space(text, policy, changes)


def _count(rule: str, n_changed: int, changes: Counter[str]) -> None:
    if n_changed:  # a rule that changed nothing is not in the counts
        changes[rule] += n_changed


def _unicode_form(text: str, policy: TextPolicy, changes: Counter[str]) -> str:
    def formed(piece: str) -> str:
        piece = unicodedata.normalize("NFC", piece)
        if policy.nukta == "precomposed":
            piece = _NUKTA.sub(lambda match: NUKTA_LETTERS[match.group()], piece)
        return piece

    result = formed(text)
    if result != text:  # counted by what a reader takes for one character
        clusters = graphemes(text)
        changes["unicode_form"] += max(1, sum(formed(cluster) != cluster for cluster in clusters))
    return result


def _count_points(rule: str, old: str, new: str, changes: Counter[str]) -> str:
    if new != old:
        changes[rule] += sum(a != b for a, b in zip(old, new, strict=True))
    return new


def _danda(text: str, changes: Counter[str]) -> str:
    def sentence_ends(match: regex.Match[str]) -> str:
        line, changed = _PIPE.subn(lambda pipe: "॥" if len(pipe.group()) == 2 else "।", match.group())
        if "|" in line:
            return match.group()
        changes["danda"] += changed
        return line

    text, changed = _TWO_DANDAS.subn("॥", _PIPED_LINE.sub(sentence_ends, text))
    _count("danda", changed, changes)
    return text


def _white_space(text: str, policy: TextPolicy, changes: Counter[str]) -> str:
    if policy.white_space == "keep":
        return text
    if policy.white_space == "plain":
        return _count_points("white_space", text, _SPACE.sub(" ", text), changes)
    result = _SPACES.sub(" ", text).strip(" ")
    if result != text:
        changes["white_space"] += sum(run != " " for run in _SPACES.findall(text)) or 1
    return result
