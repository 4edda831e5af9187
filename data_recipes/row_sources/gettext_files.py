"""Entries of gettext catalogues, .po and .mo: plural forms, contexts, the encoding that the header names.

Reads bytes, writes nothing. `.po` is parsed by Babel. `.mo` is parsed here: Babel 2.18 decodes its texts
before it knows the charset, and Python's gettext forgets the English plural.
"""

from __future__ import annotations

import gettext
import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import PoFileError, PoFileParser

_MO_MAGIC = 0x950412DE
_RULE_LINE = re.MULTILINE | re.IGNORECASE
_COUNTS = range(201)  # the plural rules of all languages repeat within 200


class BadCatalogue(ValueError):
    """A catalogue that cannot be read, and the place where reading ended."""


@dataclass(frozen=True)
class Entry:
    """An English text and its translation. `skipped` says why it is no pair to learn from, if it is none."""

    english: str
    text: str
    context: str | None = None
    line: int | None = None  # of a .po file
    plural_form: int | None = None  # of an entry with plural forms: the form's number
    example_count: int | None = None  # and a count that takes it
    skipped: str = ""  # "fuzzy", "obsolete", "untranslated", "no plural rule"


def read_po_entries(data: bytes) -> Iterator[Entry]:
    """Yield the entries of a .po file in its order; obsolete ones (#~) come last.

    Raises:
        BadCatalogue: it does not parse, or its bytes are not in the encoding of its header.
    """
    try:
        catalog = _Catalog()
        PoFileParser(catalog, abort_invalid=True).parse(io.BytesIO(data))
    except PoFileError as error:
        raise BadCatalogue(f"line {error.lineno + 1}: {str(error).rpartition(' on ')[0]}") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise BadCatalogue(f"byte 0x{byte:02x} is not {error.encoding}, the header's encoding") from error
    except LookupError as error:
        raise BadCatalogue(f"{error}" if "encoding" in str(error) else "it is cut off") from error
    except (ValueError, TypeError, AttributeError) as error:  # Babel's parser trips over junk in each way
        raise BadCatalogue(f"it is no .po file ({error})") from error
    rule = _header_rule(catalog.header)
    yield from _po_entries(catalog, rule, "")
    yield from _po_entries(catalog.obsolete.values(), rule, "obsolete")


class _Catalog(Catalog):
    """Babel's catalogue with the header as it stands: Babel gives the plural rule for its own locales only.

    Where no rule can be read, room is made for nine forms: Babel would refuse the file for them.
    """

    header = ""

    def __setitem__(self, key: Any, message: Message) -> None:
        if not key:
            self.header = str(message.string)
            if _header_rule(self.header) is None:
                kept = re.sub(r"^Plural-Forms:.*\n?", "", self.header, flags=_RULE_LINE)
                message.string = f"{kept.rstrip()}\nPlural-Forms: nplurals=9; plural=0;\n"
        super().__setitem__(key, message)


def _po_entries(messages: Iterable[Message], rule: list[int] | None, skipped: str) -> Iterator[Entry]:
    for message in messages:
        if message.id:
            ids = _texts(message.id)
            texts = _texts(message.string)
            reason = skipped or ("fuzzy" if message.fuzzy else "")
            yield from _pairs(ids, texts, message.context, message.lineno, rule, reason)


def _texts(one_or_more: Any) -> tuple[str, ...]:
    return tuple(one_or_more) if isinstance(one_or_more, tuple | list) else (one_or_more or "",)


def read_mo_entries(data: bytes) -> Iterator[Entry]:
    """Yield the entries of a .mo file in its order. Fuzzy and obsolete ones are not in it: msgfmt drops them.

    Raises:
        BadCatalogue: it is cut off, no .mo file, or its bytes are not in the encoding of its header.
    """
    raw = list(_mo_strings(data))
    header = next((text for key, text in raw if not key), b"").decode("ascii", "replace")
    charset = re.search(r"charset=([\w.:-]+)", header)
    encoding = charset.group(1) if charset and charset.group(1) != "CHARSET" else "utf-8"
    rule = _header_rule(header)
    for key, text in raw:
        if not key:
            continue
        context, mark, ids = key.rpartition(b"\x04")
        try:
            said = context.decode(encoding) if mark else None
            english = tuple(part.decode(encoding) for part in ids.split(b"\0"))
            texts = tuple(part.decode(encoding) for part in text.split(b"\0"))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadCatalogue(f"byte 0x{byte:02x} is not {encoding}, the header's encoding") from error
        except (LookupError, UnicodeError) as error:  # no such codec, or one that decodes nothing
            raise BadCatalogue(str(error)) from error
        yield from _pairs(english, texts, said, None, rule, "")


def _mo_strings(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a .mo file: two tables of (length, offset), in the byte order of the magic number."""
    order = {struct.pack("<I", _MO_MAGIC): "<", struct.pack(">I", _MO_MAGIC): ">"}.get(data[:4])
    if order is None:
        raise BadCatalogue("it does not begin as a .mo file does")
    try:
        _, n_strings, keys_at, texts_at = struct.unpack_from(f"{order}4I", data, 4)
        if n_strings * 8 > len(data):
            raise BadCatalogue(f"it is cut off: {n_strings:,} strings in {len(data):,} bytes")
        for number in range(n_strings):
            found = []
            for table in (keys_at, texts_at):
                length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * number)
                if offset + length > len(data):
                    raise BadCatalogue(f"it is cut off: string {number} ends behind the end of the file")
                found.append(data[offset : offset + length])
            yield found[0], found[1]
    except struct.error as error:
        raise BadCatalogue(f"it is cut off: {error}") from error


def _header_rule(header: str) -> list[int] | None:
    """The plural form of each count of `_COUNTS`; None for a header without a rule that can be read."""
    found = re.search(
        r"^Plural-Forms:\s*nplurals\s*=\s*(\d{1,2})\s*;\s*plural\s*=\s*([^;\n]+)", header, _RULE_LINE
    )
    if not found:
        return None
    try:
        form_of = gettext.c2py(found.group(2).strip())  # a parser of its own: it takes nothing but arithmetic
        forms = [form_of(count) for count in _COUNTS]
    except (ValueError, ArithmeticError):
        return None
    return forms if all(0 <= form < int(found.group(1)) for form in forms) else None


def _pairs(
    ids: tuple[str, ...],
    texts: tuple[str, ...],
    context: str | None,
    line: int | None,
    rule: list[int] | None,
    skipped: str,
) -> Iterator[Entry]:
    """One entry, or one for each plural form.

    The form of 1 goes with the English singular and every other with the English plural; where one form
    serves all counts, it goes with the plural, which holds the number.
    """
    if len(ids) == 1:
        text = texts[0] or ""
        yield Entry(ids[0], text, context, line, skipped=skipped or ("" if text else "untranslated"))
        return
    if rule is None:
        yield Entry(ids[0], texts[0], context, line, skipped=skipped or "no plural rule")
        return
    singular = rule[1] if len(set(rule)) > 1 else None
    for form in sorted(set(rule)):
        text = texts[form] if form < len(texts) else ""
        count = 1 if form == singular else next(n for n in reversed(_COUNTS) if rule[n] == form)
        english = ids[0] if form == singular else ids[1]
        reason = skipped or ("" if text else "untranslated")
        yield Entry(english, text or "", context, line, form, count, reason)
