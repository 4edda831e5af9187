"""Two encodings of one letter become one: the sequences that Unicode says not to write.

Reads nothing, writes nothing. These are no canonical equivalents, so NFC leaves them apart, but readers see
the same letter: legacy chillus and khanda ta with a joiner, and vowel letters put together from parts.
"""

import regex

# The Unicode Standard, core specification 17: Table 12-40 (chillus of Malayalam before Unicode 5.1), section
# 12.2 (khanda ta before 4.1), section 12.1 rule R5a (the eyelash ra of Marathi and Nepali as in Unicode 2.0).
_JOINED = {
    "ണ്\u200d": "ൺ",
    "ന്\u200d": "ൻ",
    "ര്\u200d": "ർ",
    "ല്\u200d": "ൽ",
    "ള്\u200d": "ൾ",
    "ত্\u200d": "ৎ",
    "र्\u200d": "\u0931्",
}
# The same, tables 12-1, 12-11, 12-16, 12-20, 12-22, 12-26, 12-30, 12-31, 12-32: "do not use" on the left. By
# code point, because a vowel letter followed by a sign is drawn with a dotted circle.
_VOWELS = """
0905 0946>0904  0905 093E>0906  0930 094D 0907>0908  0909 0941>090A  090F 0945>090D  090F 0946>090E
090F 0947>0910  0905 0949>0911  0906 0945>0911  0905 094A>0912  0906 0946>0912  0905 094B>0913
0906 0947>0913  0905 094C>0914  0906 0948>0914  0905 0945>0972  0905 093A>0973  0905 093B>0974
0906 093A>0974  0905 094F>0975  0905 0956>0976  0905 0957>0977
0985 09BE>0986  098B 09C3>09E0  098C 09E2>09E1
0A05 0A3E>0A06  0A72 0A3F>0A07  0A72 0A40>0A08  0A73 0A41>0A09  0A73 0A42>0A0A  0A72 0A47>0A0F
0A05 0A48>0A10  0A73 0A4B>0A13  0A05 0A4C>0A14
0A85 0ABE>0A86  0A85 0AC5>0A8D  0A85 0AC7>0A8F  0A85 0AC8>0A90  0A85 0AC9>0A91  0A85 0ACB>0A93
0A85 0ABE 0AC5>0A93  0A85 0ACC>0A94  0A85 0ABE 0AC8>0A94  0AC5 0ABE>0AC9
0B05 0B3E>0B06  0B0F 0B57>0B10  0B13 0B57>0B14
0B85 0BC2>0B86
0C12 0C55>0C13  0C12 0C4C>0C14  0C3F 0C55>0C40  0C46 0C55>0C47  0C4A 0C55>0C4B
0C89 0CBE>0C8A  0C92 0CCC>0C94  0C8B 0CBE>0CE0
0D07 0D57>0D08  0D09 0D57>0D0A  0D0E 0D46>0D10  0D12 0D3E>0D13  0D12 0D57>0D14
"""


def _sequences() -> dict[str, str]:
    pairs = [pair.split(">") for pair in regex.findall(r"[0-9A-F][0-9A-F ]*>[0-9A-F]+", _VOWELS)]
    return _JOINED | {"".join(chr(int(p, 16)) for p in old.split()): chr(int(new, 16)) for old, new in pairs}


PREFERRED: dict[str, str] = _sequences()
_LONGEST_FIRST = regex.compile("|".join(sorted(PREFERRED, key=len, reverse=True)))


def prefer_spellings(text: str) -> tuple[str, int]:
    """Return text with each discouraged sequence as the letter it stands for, and how many there were.

    The text should be in NFC. Letters that differ to a reader never meet here: a chillu is not the consonant
    with a visible virama, and ऱ is not र.
    """
    return _LONGEST_FIRST.subn(lambda match: PREFERRED[match.group()], text)
