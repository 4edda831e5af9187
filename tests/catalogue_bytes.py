"""A small gettext catalogue as .po, and .mo files by the layout in the gettext manual."""

import io
import re
import struct

from babel.messages.pofile import read_po

HEADER = """msgid ""
msgstr ""
"Content-Type: text/plain; charset={charset}\\n"
"Plural-Forms: nplurals={rule};\\n"
"""
TWO_FORMS = HEADER.format(charset="UTF-8", rule="2; plural=(n != 1)")
BODY = """
msgid "Save"
msgstr "சேமி"

#, fuzzy, python-format
msgid "Delete %s"
msgstr "%s நீக்கு"

msgctxt "month"
msgid "May"
msgstr "மே"

msgctxt "verb"
msgid "May"
msgstr "முடியும்"

#, python-format
msgid "%d file in {folder}"
msgid_plural "%d files in {folder}"
msgstr[0] "{folder} இல் %d கோப்பு"
msgstr[1] "{folder} இல் %d கோப்புகள்"

msgid "Home"
msgstr ""

msgid "a \\"quoted\\" one\\n"
"of $1 lines"
msgstr ""
"<b>$1</b> வரிகளில்\\n"
"ஒன்று"

#~ msgid "Gone"
#~ msgstr "போனது"
"""
PO = (TWO_FORMS + BODY).encode()


def mo_of(po):
    """What msgfmt makes of it. Babel's own writer leaves the plural rule out of the header."""
    header = re.findall(rb'^"(.*)\\n"$', po.partition(b"\n\n")[0], re.MULTILINE)
    pairs = [(b"", b"\n".join([*header, b""]))]
    for message in read_po(io.BytesIO(po)):
        if message.id and message.string and not message.fuzzy:
            key, text = (
                "\0".join(part) if isinstance(part, tuple) else str(part)
                for part in (message.id, message.string)
            )
            pairs.append(
                ((f"{message.context}\x04{key}" if message.context else key).encode(), text.encode())
            )
    return mo_bytes("<", *pairs)


def mo_bytes(order, *pairs):
    """A .mo file by the layout in the gettext manual: header, two tables, texts."""
    keys, texts = [key for key, _ in pairs], [text for _, text in pairs]
    n, data, tables = len(pairs), b"", []
    for text in keys + texts:
        tables += [len(text), 28 + 16 * n + len(data)]
        data += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 28 + 16 * n)
    return head + struct.pack(f"{order}{4 * n}I", *tables) + data
