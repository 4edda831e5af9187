"""Text cut where a reader sees a cut: graphemes, words and sentences of any script.

Reads nothing, writes nothing. Everything goes by Unicode's segmentation (UAX 29) as `regex` has it: a vowel
sign, a nukta or a joiner never comes off its letter. What is cut joins back to the text.
"""

import regex

_GRAPHEME = regex.compile(r"\X")
_WORD_BOUNDARY = regex.compile(r"\b", flags=regex.WORD | regex.V1)
_WORD_CHARACTER = regex.compile(r"[\p{L}\p{M}\p{N}]")
# Unicode's Sentence_Terminal has the danda, the double danda, the Urdu full stop, the Ol Chiki mucaad and the
# Meetei Mayek cheikhei: these end a sentence with or without a space after them; "?", "!" and "." only before
# one, as they stand in addresses too. No full stop ends it after one letter ("A. P. J.") or a list's number.
_SENTENCE_END = regex.compile(
    r"""(?: (?: (?<! [\p{Sentence_Terminal}--.!?] ) [\p{Sentence_Terminal}--.!?]+
                (?= [\p{Sentence_Terminal}\p{Pe}\p{Pf}"'\s\p{L}] | $ )
              | (?: (?<! [!?] ) [!?]+ | (?<! \. | (?: ^ | [\s(] ) \X | ^ [\s#>*-]* \p{Nd}+ ) \.+ )
                (?= [\p{Sentence_Terminal}\p{Pe}\p{Pf}"']{0,8} (?: \s | $ ) )
            ) [\p{Sentence_Terminal}]* [\p{Pe}\p{Pf}"']* \s*
        ) | \n\s*""",
    flags=regex.VERBOSE | regex.V1 | regex.MULTILINE,
)


def graphemes(text: str) -> list[str]:
    """Return the user-perceived characters of a text: தமிழ் has three.

    A conjunct is one where UAX 29 says so: क्षि in Devanagari, Bengali, Gujarati, Odia, Telugu and Malayalam;
    ಕ್ಷ in Kannada and Gurmukhi's are two.
    """
    return _GRAPHEME.findall(text)


def words(text: str) -> list[str]:
    """Return the words and numbers of a text, without white space and punctuation.

    A joiner inside a word is part of it, and so are the signs inside a number (12,34,567) or between letters
    (it's). An apostrophe at the end is taken for a quotation mark, as in Bodo's own name बर’.
    """
    return [piece for piece in _WORD_BOUNDARY.split(text) if _WORD_CHARACTER.search(piece)]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with its end sign and the white space after it.

    They end at a danda, an Urdu full stop, a mucaad and the like, at a full stop, "?" or "!" before white
    space, and at a line's end. Abbreviations of several letters (डॉ., Rs.) are not known and end one too.
    """
    pieces, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        pieces.append(text[start : match.end()])
        start = match.end()
    return [*pieces, text[start:]] if start < len(text) else pieces
