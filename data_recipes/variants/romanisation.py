"""A text in Latin letters, as people type it on a phone: "aap kaise hain", not a scholar's "āpa kaise haiṁ".

Reads and writes nothing. It cannot be undone, and nobody claims so: both ट and त are t. A word is read as
syllables; the unspoken inherent vowels of the northern languages are left out (the rule of Ohala 1983:
between two syllables that have a vowel, from the right); the rest is each language's table.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

import regex

from data_recipes.variants.spelling_rules import (
    BLOCKS,
    CONSONANTS,
    DOT_BELOW,
    GURMUKHI_DOUBLING,
    GURMUKHI_NASAL,
    NASAL_VOWEL,
    NASALS,
    NUKTA,
    OWN_LETTERS,
    OWN_SIGNS,
    RESPELT,
    SIGNS,
    SPELLINGS,
    VIRAMA,
    VISARGA,
    VOWELS,
    Spelling,
)
from data_recipes.writing.written_forms import WrittenForm

_NASAL_LETTERS, _LABIALS = frozenset("ङञणनऩम"), frozenset("पफबभम")
_INHERENT = "inherent"
_JOINERS = regex.compile("[\u200c\u200d]")


class Unspellable(ValueError):
    """A letter or sign without a spelling: a text with one is not romanised, since nothing may go lost."""


@dataclass
class Syllable:
    """A consonant ("" for none) in Devanagari's letter, what it is spelt with, and the vowel after it."""

    letter: str
    onset: str
    vowel: str  # a key of SIGNS' values, _INHERENT, or "" after a virama
    coda: str = ""  # "nasal", "nasal vowel" or "h"
    is_doubled: bool = False


def is_romanised(form: WrittenForm) -> bool:
    """Return whether there is a romanisation of this written form."""
    return form.code in SPELLINGS and form.script in BLOCKS and form.use == "main"


def romanise(text: str, form: WrittenForm) -> str:
    """Return a text with the words of its script in Latin letters, in lower case; all else stays.

    A danda after a word becomes a full stop. Digits stay.

    Raises: Unspellable for a letter or sign that has no spelling, and for a sign without its letter.
    """
    assert is_romanised(form), form.tag
    found = _words(form.script).sub(lambda match: romanise_word(match.group(), form.code, form.script), text)
    return regex.sub(r"(?<=\p{L})\s?[।॥]", ".", found)


def count_words(text: str, form: WrittenForm) -> int:
    """Return how many words `romanise` would write in Latin letters."""
    return len(_words(form.script).findall(text))


@lru_cache(maxsize=100_000)
def romanise_word(word: str, code: str, script: str) -> str:
    """Return one word of a language's script in Latin letters."""
    spelling = SPELLINGS[code]
    plain = _JOINERS.sub("", unicodedata.normalize("NFC", word))
    for written, spoken in RESPELT.items():
        plain = plain.replace(written, spoken)
    if plain in spelling.words:
        return spelling.words[plain]
    syllables = read_syllables(plain, script)
    _leave_unspoken_out(syllables, spelling)
    return "".join(_spelt(syllables, i, spelling) for i in range(len(syllables)))


@cache
def _words(script: str) -> regex.Pattern[str]:
    letters = rf"[\p{{Script={script}}}&&[\p{{L}}\p{{M}}]]"  # not its digits, punctuation, signs of currency
    return regex.compile(rf"{letters}[{letters}\p{{Script=Inherited}}]*", regex.V1)


def read_syllables(word: str, script: str) -> list[Syllable]:
    """Return the syllables of a word in one of the nine scripts.

    Raises: Unspellable.
    """
    syllables: list[Syllable] = []
    doubles = False
    for sign in word:
        place = ord(sign) - BLOCKS[script]
        is_own = sign in OWN_LETTERS or not 0 <= place < 0x80
        letter = sign if is_own else chr(BLOCKS["Deva"] + place)
        last = syllables[-1] if syllables else None
        if sign in OWN_LETTERS or letter in CONSONANTS:
            onset = OWN_LETTERS.get(sign) or CONSONANTS[letter]
            vowel = "" if sign in "ৎൺൻർൽൾൿ" else _INHERENT
            syllables.append(Syllable(letter, onset, vowel, is_doubled=doubles))
            doubles = False
        elif letter in VOWELS:
            syllables.append(Syllable("", "", VOWELS[letter]))
        elif sign == GURMUKHI_DOUBLING:
            doubles = True
        elif last is None:
            raise Unspellable(f"{sign} (U+{ord(sign):04X}) at the beginning of a word")
        elif sign in OWN_SIGNS or letter in SIGNS:
            if last.vowel not in (_INHERENT, "a"):  # a consonant, or अ as in अॅ
                raise Unspellable(f"a second vowel sign, {sign} (U+{ord(sign):04X})")
            last.vowel = OWN_SIGNS.get(sign) or SIGNS[letter]
        elif letter == VIRAMA and last.letter:
            last.vowel = ""
        elif letter == DOT_BELOW:
            if last.letter in NUKTA:
                last.onset, last.letter = NUKTA[last.letter], last.letter + DOT_BELOW
        elif letter in NASALS or sign == GURMUKHI_NASAL:
            last.coda = "nasal vowel" if letter == NASAL_VOWEL else "nasal"
        elif letter == VISARGA:
            last.coda = "h"
        else:
            raise Unspellable(f"{sign} (U+{ord(sign):04X})")
    return syllables


def _leave_unspoken_out(syllables: list[Syllable], spelling: Spelling) -> None:
    if spelling.drops_last and len(syllables) > 1:
        last = syllables[-1]
        after_cluster = not syllables[-2].vowel and (spelling.inherent == "o" or last.letter in "रयव")
        if last.vowel == _INHERENT and not last.coda and not after_cluster:
            last.vowel = ""
    if not spelling.drops_inner:
        return
    for i in range(len(syllables) - 2, 0, -1):
        before, this, after = syllables[i - 1 : i + 2]
        if this.vowel == _INHERENT and not this.coda and before.vowel and after.vowel and after.letter:
            this.vowel = ""


def _spelt(syllables: list[Syllable], i: int, spelling: Spelling) -> str:
    return _onset(syllables, i, spelling) + _vowel(syllables, i, spelling) + _coda(syllables, i, spelling)


def _onset(syllables: list[Syllable], i: int, spelling: Spelling) -> str:
    this, before = syllables[i], syllables[i - 1] if i else None
    after = syllables[i + 1] if i + 1 < len(syllables) else None
    if not this.letter:
        return ""
    if after and not this.vowel and this.letter + after.letter in spelling.clusters:
        return ""  # the second of the two is spelt for both
    if before and not before.vowel and before.letter + this.letter in spelling.clusters:
        return spelling.clusters[before.letter + this.letter]
    onset = spelling.consonants.get(this.letter, this.onset)
    ends_word = after is None and bool(spelling.last_virama)  # and a vowel is spoken after it
    if before is None:
        onset = spelling.first.get(this.letter, onset)
    elif not before.vowel and this.letter in spelling.after_consonant:
        onset = spelling.after_consonant[this.letter]
    elif before.coda == "nasal" or (not before.vowel and before.letter in _NASAL_LETTERS):
        onset = spelling.after_nasal.get(this.letter, onset)
    elif before.vowel and (this.vowel or ends_word):
        onset = spelling.between_vowels.get(this.letter, onset)
    # Of a doubled kh or th only the first letter is doubled, and ch is not.
    return (onset[0] if this.is_doubled and not onset.startswith("ch") else "") + onset


def _vowel(syllables: list[Syllable], i: int, spelling: Spelling) -> str:
    this, is_last = syllables[i], i == len(syllables) - 1
    if not this.vowel:
        return spelling.last_virama if is_last and this.letter and this.letter not in OWN_LETTERS else ""
    if this.vowel == _INHERENT:
        return spelling.inherent
    if this.vowel == "aa" and not this.letter and i == 0:
        return spelling.first_aa
    if this.vowel in ("aa", "ii", "uu"):
        is_open = is_last and not this.coda
        is_alone = sum(bool(one.vowel) for one in syllables) == 1 and not is_open
        return getattr(spelling, this.vowel)[0 if is_alone else 1 if is_open else 2]
    if this.vowel == "a":  # the letter अ, which Bengali speaks as it does its inherent vowel
        return spelling.inherent
    return this.vowel


def _coda(syllables: list[Syllable], i: int, spelling: Spelling) -> str:
    this, after = syllables[i], syllables[i + 1] if i + 1 < len(syllables) else None
    if not this.coda.startswith("nasal"):
        return this.coda
    if after is None:
        return "n" if this.coda == "nasal vowel" and spelling.last_nasal else spelling.last_nasal
    if this.coda == "nasal vowel" or after.letter == "न":
        return "" if after.letter == "न" else "n"
    return "m" if after.letter in _LABIALS else spelling.nasal
