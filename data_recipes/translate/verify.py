"""Whether a translation kept what it had to: named checks over source and target, each parsed anew.

Nothing here knows marks or teachers: a pair of texts is judged by what stands in them. Reads nothing, writes
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from data_recipes.text import script_share
from data_recipes.translate.document import Block, Document
from data_recipes.translate.masking import Digits, Mismatch, mark_pattern
from data_recipes.translate.patterns import NUMERIC
from data_recipes.writing.digits import fold_digits, write_digits

_LETTERS = regex.compile(r"[\p{L}\p{M}]")
_WORD = regex.compile(r"[\p{L}\p{M}]+")
_SIGNS = regex.compile(r"[`*_|~<>{}\[\]\\^$@\#]")  # a lone one is no markup yet: the next reader may differ
_NUMBER = regex.compile(
    r"(?<![\p{L}\p{M}\p{N})\]])[-−]?\p{Nd}+(?:[.,٬٫]\p{Nd}+)*|\p{Nd}+(?:[.,٬٫]\p{Nd}+)*|\p{No}"
)
_NUMBER_SIGNS = str.maketrans({"٬": ",", "٫": ".", "−": "-"})
_ODD = regex.compile(r"[\p{Cc}\p{Co}\p{Cn}\ufffd--[\t\n\r]]", regex.V1)


@dataclass(frozen=True)
class Policy:
    """What a translation into one language has to fulfil."""

    script: str  # ISO 15924, of the target
    digits: Digits = "keep"
    system: str = "latn"  # CLDR's name of the target's own digits, for digits "native"
    min_script_share: float = 0.7  # of the letters of a block's prose
    min_letters: int = 12  # a block with fewer is judged with the others, not by itself
    length_ratio: tuple[float, float] = (0.3, 3.5)  # letters and marks of the target over the source's
    mask_forms: tuple[str, ...] = ()


_AS_THEY_STAND = Policy(script="Latn")  # digits "keep": all that `verify_frame` asks of it


def verify(source: Document, target: Document, policy: Policy) -> dict[str, float | int]:
    """Check a translation and return what was counted, to be kept on the row.

    Raises: Mismatch with the name of the first check that fails: "leftover" (a mark, a control or a private
        character), "markdown" (another tree), "spans" (a protected span lost, doubled or changed), "numbers",
        "signs" (a lone `*`, `|` or the like), "length", "script", "words" (words of another script that the
        source does not have) or "translated" (nothing was).
    """
    _no_leftover(source.text, target.text, policy)
    pairs = _paired_blocks(source, target)
    prose = [(source.prose(ours), target.prose(theirs)) for ours, theirs in pairs]
    n_spans = n_numbers = 0
    for number, (ours, theirs) in enumerate(pairs, start=1):
        place = f"paragraph {number} of {len(pairs)}"
        n_spans += _same_spans(source, ours, target, theirs, place)
        n_numbers += _same_numbers(source.spans(ours), target.spans(theirs), policy, place)
    for ours, theirs in prose:
        _same_signs(ours, theirs)
        _sane_length(ours, theirs, policy)
    shares = [_right_script(ours, theirs, policy) for ours, theirs in prose]
    ours, theirs = (" ".join(texts[side] for texts in prose) for side in (0, 1))
    everything = _right_script(ours, theirs, policy)
    _translated(prose)
    return {
        "spans": n_spans,
        "numbers": n_numbers,
        "blocks": len(pairs),
        "script_share": round(everything, 4),
        "least_script_share": round(min(shares, default=1.0), 4),
    }


def verify_frame(source: Document, target: Document) -> int:
    """Check what has to stay when only words are written anew, and return how many spans and numbers stayed.

    Raises: Mismatch named "markdown", "spans", "numbers" or "signs".
    """
    n_kept = 0
    for number, (ours, theirs) in enumerate(pairs := _paired_blocks(source, target), start=1):
        place = f"paragraph {number} of {len(pairs)}"
        n_kept += _same_spans(source, ours, target, theirs, place)
        n_kept += _same_numbers(source.spans(ours), target.spans(theirs), _AS_THEY_STAND, place)
        _same_signs(source.prose(ours), target.prose(theirs))
    return n_kept


def _paired_blocks(source: Document, target: Document) -> list[tuple[Block, Block]]:
    if len(source.blocks) != len(target.blocks) or source.outline != target.outline:
        raise Mismatch("markdown", _first_difference(source, target))
    return list(zip(source.blocks, target.blocks, strict=True))


def _first_difference(source: Document, target: Document) -> str:
    for ours, theirs in zip(source.outline, target.outline, strict=False):
        if ours != theirs:
            return f"{ours[0]} became {theirs[0]}" if ours[0] != theirs[0] else f"{ours[0]} was changed"
    return f"{len(source.outline)} parts became {len(target.outline)}"


def _same_spans(source: Document, ours: Block, target: Document, theirs: Block, place: str) -> int:
    kept, found = (
        Counter((kind == "markup", text) for kind, text in document.spans(block) if kind not in NUMERIC)
        for document, block in ((source, ours), (target, theirs))
    )
    if kept != found:
        changed = {text: is_markup for (is_markup, text) in [*(kept - found), *(found - kept)]}
        check = "markdown" if all(changed.values()) else "spans"
        lost, new = (
            Counter({text: n for (_, text), n in side.items()}) for side in (kept - found, found - kept)
        )
        raise Mismatch(check, f"{place}: {_counted_difference(lost, new)}")
    if ours.shape != theirs.shape:
        raise Mismatch("markdown", f"{place}: its emphasis, links, tags or lines are nested another way")
    return kept.total()


def _same_numbers(
    ours: Sequence[tuple[str, str]], theirs: Sequence[tuple[str, str]], policy: Policy, place: str
) -> int:
    kept = [text for kind, text in ours if kind in NUMERIC]
    found = [text for kind, text in theirs if kind in NUMERIC]
    if policy.digits == "native":
        kept = [write_digits(text, policy.system) for text in kept]
    elif policy.digits == "any":
        kept, found = ([n for text in texts for n in numbers(text)] for texts in (kept, found))
    if Counter(kept) != Counter(found):
        raise Mismatch("numbers", f"{place}: {_counted_difference(Counter(kept), Counter(found))}")
    return len(kept)


def numbers(text: str) -> list[str]:
    """Return the numbers of a text in order, in ASCII: sign, digits, separators. Grouping is not undone."""
    return [fold_digits(match).translate(_NUMBER_SIGNS) for match in _NUMBER.findall(text)]


def _counted_difference(kept: Counter[str], found: Counter[str]) -> str:
    lost, new = list((kept - found).elements()), list((found - kept).elements())
    return f"lost {lost[:3]}, new {new[:3]}"[:200]


def _no_leftover(ours: str, theirs: str, policy: Policy) -> None:
    for form in policy.mask_forms:
        pattern = mark_pattern(form)
        if len(pattern.findall(theirs)) > len(pattern.findall(ours)):
            raise Mismatch("leftover", f"a mark is left: {pattern.search(theirs)}"[:200])
    odd = set(_ODD.findall(theirs)) - set(_ODD.findall(ours))
    if odd:
        raise Mismatch("leftover", f"characters that are not text: {sorted(map(ascii, odd))[:5]}")


def _same_signs(ours: str, theirs: str) -> None:
    kept, found = Counter(_SIGNS.findall(ours)), Counter(_SIGNS.findall(theirs))
    if kept != found:
        raise Mismatch("signs", _counted_difference(kept, found))


def _sane_length(ours: str, theirs: str, policy: Policy) -> None:
    n_ours, n_theirs = len(_LETTERS.findall(ours)), len(_LETTERS.findall(theirs))
    low, high = policy.length_ratio
    # A short text may be one word in one language and four in the other.
    if n_theirs < low * n_ours - 4 or n_theirs > high * n_ours + 20 or bool(n_ours) != bool(n_theirs):
        raise Mismatch("length", f"{n_ours} letters became {n_theirs}")


def _right_script(ours: str, theirs: str, policy: Policy) -> float:
    """The share of the target's script; words of another script count only where the source has them too."""
    n_letters = len(_LETTERS.findall(theirs))
    share = script_share(theirs, policy.script) if n_letters else 1.0
    if share == 1.0:
        return share
    known = ours.casefold()
    foreign = [word for word in _WORD.findall(theirs) if script_share(word, policy.script) < 1.0]
    new = [word for word in foreign if word.casefold() not in known]
    if n_letters >= policy.min_letters and share < policy.min_script_share:
        raise Mismatch(
            "script", f"{share:.2f} of the letters are {policy.script}: {' '.join(foreign)[:80]!r}"
        )
    if new:
        raise Mismatch("words", f"not {policy.script} and not in the source: {' '.join(new)[:80]!r}")
    return share


def _translated(prose: Sequence[tuple[str, str]]) -> None:
    n_prose = sum(bool(_LETTERS.search(ours)) for ours, _ in prose)
    same = [ours for ours, theirs in prose if ours.split() == theirs.split() and _LETTERS.search(ours)]
    # A heading that is a name stays as it is; a sentence does not.
    wrong = [ours for ours in same if len(same) == n_prose or len(_WORD.findall(ours)) > 3]
    if wrong:
        raise Mismatch("translated", f"as in the source: {wrong[0][:80]!r}")
