"""Characters that nobody sees: what is junk goes, with a count by kind; what shapes a letter stays.

Reads nothing, writes nothing. Zero-width joiner and non-joiner are no junk: after a virama, between Arabic
letters and inside emoji they decide what is drawn. Only where they do nothing can they be dropped.
"""

import unicodedata
from collections import Counter

import regex

ZWNJ, ZWJ = "\u200c", "\u200d"
_BIDI = regex.compile(r"\p{Bidi_Control}+")
# DI, Default_Ignorable_Code_Point, is Unicode's property of what is drawn as nothing: soft hyphen, word
# joiner, zero-width space, tags, fillers. Private use is drawn as anything, in one font only.
_JUNK_SET = (
    r"[[\p{DI}\p{Co}\p{Cs}\p{NChar}\uFFF9-\uFFFB][\p{Cc}--\p{White_Space}]--[\u200C\u200D\p{Bidi_Control}]]"
)
_ANY_JUNK = regex.compile(_JUNK_SET, flags=regex.V1)
_JUNK = regex.compile(
    rf"""(?P<keep>
          \U0001F3F4 [\U000E0061-\U000E007A]{{4,6}} \U000E007F      # the flags of England, Scotland and Wales
        | [\p{{Emoji}}--[0-9#*]] \p{{Emoji_Modifier}}? [\uFE0E\uFE0F]  # as an emoji or as a text sign
        | [0-9#*] \uFE0F \u20E3                                      # a keycap
        ) | (?P<junk> {_JUNK_SET})""",
    flags=regex.VERBOSE | regex.V1,
)
_FLAGS = ("gbeng", "gbsct", "gbwls")  # RGI_Emoji_Tag_Sequence has no others; more tags could hide a text
_NAMED = {0xAD: "soft_hyphen", 0x200B: "zero_width_space", 0x2060: "word_joiner", 0xFEFF: "byte_order_mark"}
_CATEGORIES = {"Cc": "control", "Co": "private_use", "Cs": "surrogate"}
_IDLE_JOINER = regex.compile(
    r"""(?<=\u200C)\u200C | (?<=\u200D)\u200D  # doubled
      | (?! (?<= \p{ccc=9} [\p{M}--\p{ccc=0}]* ) )  # not after a virama
        (?! [\u200C\u200D]+ \p{ccc=9} )             # nor before one
        (?: (?! (?<= [\p{jt=L}\p{jt=D}] \p{jt=T}* ) \u200C [\u200C\u200D\p{jt=T}]* [\p{jt=R}\p{jt=D}] ) \u200C
          | (?! (?<= [\p{jt=L}\p{jt=D}] \p{jt=T}* ) )
            (?! \u200D [\u200D\p{jt=T}]* [\p{jt=R}\p{jt=D}] )
            (?! (?<= \p{ExtPict} [\uFE0F\p{Emoji_Modifier}]* ) \u200D+ \p{ExtPict} )
            \u200D )""",
    flags=regex.VERBOSE | regex.V1,
)


def remove_bidi_controls(text: str) -> tuple[str, int]:
    """Return text without the controls of text direction (marks, overrides, isolates), and their number."""
    cleaned = _BIDI.sub("", text)
    return cleaned, len(text) - len(cleaned)


def remove_junk(text: str) -> tuple[str, dict[str, int]]:
    """Return text without invisible junk, and how many code points of each kind went.

    Junk is what Unicode calls ignorable by default (byte order mark, soft hyphen, zero-width space, word
    joiner, tags, fillers, variation selectors), controls that are no white space, private use, noncharacters
    and lone surrogates. Joiners and direction controls are left to their own rules; variation selectors of
    emoji and the three flags made of tags stay.
    """
    if not _ANY_JUNK.search(text):  # most texts have none, and one set is quick to look for
        return text, {}
    counts: Counter[str] = Counter()

    def replacement(match: regex.Match[str]) -> str:
        piece = match.group()
        if match["keep"] and (piece[0] != "\U0001f3f4" or _tag_text(piece) in (*_FLAGS, "")):
            return piece
        junk = piece if match["junk"] else piece[1:]
        counts.update(map(_kind, junk))
        return "" if match["junk"] else piece[0]

    return _JUNK.sub(replacement, text), dict(counts)


def drop_idle_joiners(text: str) -> tuple[str, int]:
    """Return text without the joiners that change nothing, and their number.

    A joiner stays after a virama (RFC 5892, A.1 and A.2), before one (Bengali র‍্য, Kannada ರ‍್ಕ); a non-joiner
    between two joining Arabic letters (RFC 5892, A.1), a joiner beside one; a joiner inside an emoji. One at
    the end of a word, beside white space, in Latin script or doubled goes.
    """
    dropped = _IDLE_JOINER.sub("", text)
    return dropped, len(text) - len(dropped)


def _tag_text(flag: str) -> str:
    return "".join(chr(ord(c) - 0xE0000) for c in flag[1:-1] if 0xE0000 < ord(c) < 0xE007F)


def _kind(character: str) -> str:
    point = ord(character)
    if point in _NAMED:
        return _NAMED[point]
    if 0xE0000 <= point <= 0xE007F:
        return "tag"
    if regex.match(r"\p{Variation_Selector}", character):
        return "variation_selector"
    if regex.match(r"\p{Noncharacter_Code_Point}", character):
        return "noncharacter"
    return _CATEGORIES.get(unicodedata.category(character), "other_invisible")
