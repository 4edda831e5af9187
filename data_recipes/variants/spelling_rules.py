"""What each language's letters become in Latin ones, as people type them: tables for `romanisation`.

Reads and writes nothing. The nine blocks of Unicode lie alike (after ISCII): a letter is known by its place
in its block, and that of Devanagari stands for all. Written by us from how words are commonly spelt in
messages; no speaker has reviewed it. `tests/romanised_words.yaml` is what the tables
were written by; `tests/romanised_unseen.yaml` measures how often they meet a common spelling.
"""

from dataclasses import dataclass, field
from typing import Any

BLOCKS = {
    "Deva": 0x900, "Beng": 0x980, "Guru": 0xA00, "Gujr": 0xA80, "Orya": 0xB00,
    "Taml": 0xB80, "Telu": 0xC00, "Knda": 0xC80, "Mlym": 0xD00,
}  # fmt: skip
CONSONANTS = {
    "क": "k", "ख": "kh", "ग": "g", "घ": "gh", "ङ": "n", "च": "ch", "छ": "chh", "ज": "j", "झ": "jh",
    "ञ": "n", "ट": "t", "ठ": "th", "ड": "d", "ढ": "dh", "ण": "n", "त": "t", "थ": "th", "द": "d",
    "ध": "dh", "न": "n", "ऩ": "n", "प": "p", "फ": "ph", "ब": "b", "भ": "bh", "म": "m", "य": "y",
    "र": "r", "ऱ": "r", "ल": "l", "ळ": "l", "ऴ": "zh", "व": "v", "श": "sh", "ष": "sh", "स": "s",
    "ह": "h",
}  # fmt: skip
# Letters with a dot below.
NUKTA = {
    "क": "q", "ख": "kh", "ग": "g", "ज": "z", "ड": "d", "ढ": "dh", "फ": "f", "य": "y", "स": "sh",
}  # fmt: skip
# Independent vowels and vowel signs -> the name of the vowel in a language's table.
VOWELS = {
    "अ": "a", "आ": "aa", "इ": "i", "ई": "ii", "उ": "u", "ऊ": "uu", "ऋ": "ri", "ऍ": "e", "ऎ": "e",
    "ए": "e", "ऐ": "ai", "ॲ": "a", "ऑ": "o", "ऒ": "o", "ओ": "o", "औ": "au",
}  # fmt: skip
SIGNS = {
    "ा": "aa", "ि": "i", "ी": "ii", "ु": "u", "ू": "uu", "ृ": "ri", "ॅ": "e", "ॆ": "e", "े": "e",
    "ै": "ai", "ॉ": "o", "ॊ": "o", "ो": "o", "ौ": "au",
}  # fmt: skip
NASALS, NASAL_VOWEL, VISARGA, VIRAMA, DOT_BELOW = "ँं", "ँ", "ः", "्", "़"
GURMUKHI_NASAL, GURMUKHI_DOUBLING = "ੰ", "ੱ"
# Letters that no other block has at that place: what they are spelt with.
OWN_LETTERS = {"ੜ": "d", "ৎ": "t", "ৰ": "r", "ৱ": "w", "ୟ": "y", "ୱ": "w"}
OWN_LETTERS |= dict.fromkeys("ൺൻ", "n") | {"ർ": "r", "ൽ": "l", "ൾ": "l", "ൿ": "k"}
OWN_SIGNS = {"ൗ": "au"}  # the usual sign since Malayalam's reform of 1971
RESPELT = {"অ্যা": "আ", "এ্যা": "আ"}  # a vowel with a virama, for the one of "app"


@dataclass(frozen=True)
class Spelling:
    """How a language is spelt. The long vowels have three spellings: in a word of one closed syllable, at
    the end of a word, elsewhere."""

    inherent: str = "a"
    drops_last: bool = False  # the inherent vowel at the end of a word is not spoken
    drops_inner: bool = False  # nor the one between two syllables with vowels
    aa: tuple[str, str, str] = ("aa", "a", "a")
    ii: tuple[str, str, str] = ("ee", "i", "i")
    uu: tuple[str, str, str] = ("oo", "u", "u")
    first_aa: str = "aa"  # at the beginning of a word
    last_nasal: str = "n"
    nasal: str = "n"  # before what is not spoken with the lips
    consonants: dict[str, str] = field(default_factory=dict)  # other than in `CONSONANTS`
    clusters: dict[str, str] = field(default_factory=dict)  # two consonants together
    last_virama: str = ""  # spoken after a consonant that ends a word
    between_vowels: dict[str, str] = field(default_factory=dict)
    after_nasal: dict[str, str] = field(default_factory=dict)
    after_consonant: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)  # short words that everybody spells one way


_NORTH: dict[str, Any] = {"drops_last": True, "drops_inner": True}
_SOUTH_LONG: dict[str, Any] = {"ii": ("ee", "i", "ee"), "uu": ("oo", "u", "oo")}
_CENTRE: dict[str, Any] = {**_SOUTH_LONG, "aa": ("a", "a", "a"), "first_aa": "aa", "last_nasal": "m"}
_CLUSTER = {"जञ": "gy", "चछ": "cch", "चच": "cch"}
SPELLINGS: dict[str, Spelling] = {
    "hi": Spelling(
        **_NORTH,
        clusters=_CLUSTER,
        words={"में": "mein", "नहीं": "nahi", "यह": "yeh", "वह": "woh", "और": "aur", "वो": "wo"},
    ),
    "mr": Spelling(**_NORTH, first_aa="aa", clusters={**_CLUSTER, "जञ": "dny"}, words={"मी": "mi"}),
    "gu": Spelling(**_NORTH, last_nasal="", clusters={**_CLUSTER, "जञ": "gn"}),
    "pa": Spelling(**_NORTH, clusters=_CLUSTER),
    "bn": Spelling(
        inherent="o",
        drops_last=True,
        aa=("a", "a", "a"),
        ii=("i", "i", "i"),
        uu=("u", "u", "u"),
        first_aa="a",
        last_nasal="ng",
        nasal="ng",
        consonants={"य": "j", "व": "b", "ड़": "r", "ढ़": "rh"},
        after_consonant={"य": "y"},
        clusters={**_CLUSTER, "जञ": "gg", "कष": "kkh"},
    ),
    "or": Spelling(
        aa=("a", "a", "a"), ii=("i", "i", "i"), uu=("u", "u", "u"), first_aa="a", last_nasal="m",
        consonants={"य": "j", "श": "s", "ष": "s"}, clusters=_CLUSTER,
        after_consonant={"य": "y"},
    ),
    "te": Spelling(**_CENTRE, clusters=_CLUSTER | {"जञ": "gn"}),
    "kn": Spelling(**_CENTRE, clusters=_CLUSTER | {"जञ": "gn"}),
    "ml": Spelling(
        **_SOUTH_LONG,
        aa=("a", "a", "a"),
        first_aa="aa",
        last_nasal="m",
        last_virama="u",
        consonants={"त": "th", "ञ": "nj"},
        clusters={"ऱऱ": "tt", "नऱ": "nt", "ञञ": "nj", "ङङ": "ng", "तत": "th", "चच": "cch", "ञच": "nch"},
        between_vowels={"ट": "d"},
        after_nasal={"ट": "d"},
    ),
    "ta": Spelling(
        **_SOUTH_LONG,
        aa=("aa", "a", "aa"),
        last_nasal="m",
        consonants={"त": "th", "च": "s", "ञ": "n"},
        first={"ञ": "nj"},
        clusters={"चच": "ch", "तत": "th", "ऱऱ": "tr", "ऩऱ": "ndr"},
        between_vowels={"क": "g", "ट": "d", "त": "dh", "प": "b"},
        after_nasal={"क": "g", "च": "j", "ट": "d", "त": "dh", "प": "b"},
    ),
}  # fmt: skip
