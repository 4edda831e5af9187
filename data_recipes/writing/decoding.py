"""Bytes into text, or an error that says where they are no UTF-8: nothing is guessed and nothing repaired.

Reads nothing, writes nothing. A wrong encoding that is read anyway gives text that trains a model on noise:
a file is refused with its first bad byte, and text that was once read as Latin-1 is refused too.
"""

import codecs
from typing import Literal

import regex

from data_recipes.artefact import UserError

# Longest first: the mark of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32 (little-endian)"),
    (codecs.BOM_UTF32_BE, "UTF-32 (big-endian)"),
    (codecs.BOM_UTF16_LE, "UTF-16 (little-endian)"),
    (codecs.BOM_UTF16_BE, "UTF-16 (big-endian)"),
)
# What a byte becomes when UTF-8 is read as Latin-1 or as Windows-1252, which differs from 0x80 to 0x9f.
_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    character: byte for byte in range(0x80, 0xA0) if (character := bytes([byte]).decode("cp1252", "ignore"))
}
_CONTINUATION = "[" + "".join(c for c, byte in _BYTES.items() if byte < 0xC0) + "]"
# Three bytes of an Indic script (U+0900 to U+0DFF: E0 A4 to E0 B7), Ol Chiki (E1 B1), Meetei Mayek (EA AF) or
# signs (E2 80 for “ and –, E2 82 for ₹, E2 84 for ™, E2 86 for →); two bytes twice over (Arabic, accented
# Latin); the "Ã" and "Â" of one accented letter. "à »" and "«Â»" are none: French has a no-break space there.
_MOJIBAKE = regex.compile(
    rf"(?:à[¤-·]|á±|ê¯|â[€‚„†\x80\x82\x84\x86]){_CONTINUATION}|(?:[Â-ß]{_CONTINUATION}){{2,}}|[ÃÂ][\x80-\x9f¡-º½-¿]"
)
_LINE_END = regex.compile(r"\r\n|\r")


def decode(data: bytes, name: str = "the input", line_ends: Literal["keep", "lf"] = "lf") -> str:
    r"""Return the text of UTF-8 bytes, without a byte order mark, with "\n" at the end of every line.

    Args:
        name: what the bytes are, for the message: a path, a row.
        line_ends: "keep" leaves "\r\n" and "\r".

    Raises:
        UserError: UTF-16 or UTF-32, a byte 0, bytes that are no UTF-8 (with the offset of the first), or text
            that was UTF-8 once and was read as Latin-1 or Windows-1252. What stays undetected: UTF-16 without
            a mark that has no space, sign or line end, and fonts that draw Indic letters over ASCII.
    """
    refuse_marks(data, name)
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(body)
        line = data.count(b"\n", 0, offset) + 1
        raise UserError(
            f"{name} is not UTF-8: byte 0x{data[offset]:02x} at offset {offset}, line {line}, is an "
            f"{error.reason}; convert it from the encoding it was written in"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{name} has a byte 0 at offset {data.index(0)}: it is no text, or UTF-16 or UTF-32 without a "
            "byte order mark; convert it to UTF-8"
        )
    refuse_mojibake(text, name)
    return _LINE_END.sub("\n", text) if line_ends == "lf" else text


def refuse_marks(start: bytes, name: str) -> None:
    """Pass the first bytes of a file that begin with no mark of UTF-16 or UTF-32.

    Raises:
        UserError: they do; the encoding is named.
    """
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            command = f"iconv -f {encoding.partition(' ')[0]} -t UTF-8"
            raise UserError(
                f"{name} is {encoding}, by its byte order mark: convert it to UTF-8, with `{command}`"
            )


def mojibake(text: str) -> tuple[str, str] | None:
    """Return the first piece of text that looks like UTF-8 read as Latin-1 or cp1252, and what it meant.

    `None` when there is none. The piece decodes as UTF-8 when its characters are taken for bytes again.
    """
    for match in _MOJIBAKE.finditer(text):
        try:
            return match.group(), bytes(_BYTES[c] for c in match.group()).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            continue
    return None


def refuse_mojibake(text: str, name: str = "the input") -> None:
    """Pass text that shows no sign of a wrong encoding.

    Raises:
        UserError: some of it is UTF-8 read as Latin-1 or Windows-1252; it is named with what it meant.
    """
    found = mojibake(text)
    if found:
        offset = text.index(found[0])
        raise UserError(
            f"{name} has {found[0]!r} at character {offset}, which is {found[1]!r} in UTF-8 read as Latin-1 "
            "or Windows-1252: read the source as UTF-8 (it is not repaired here, as bytes may be lost)"
        )
