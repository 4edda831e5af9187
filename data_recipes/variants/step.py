"""The step that writes some rows as people also write: in Latin letters, or with English words among them.

Rows go in, one row or rejection comes out for each. What is protected in a translation (code, links, numbers,
placeholders) stays byte for byte here too, and that is checked on the finished text. Reads a glossary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from data_recipes.steps import Rejected, Row, with_transform
from data_recipes.translate.document import parse
from data_recipes.translate.masking import Mismatch
from data_recipes.translate.teachers import read_glossary
from data_recipes.translate.verify import verify_frame
from data_recipes.variants.code_mixing import mix, mixing_index, term_pattern, word_counts
from data_recipes.variants.options import FORMS, Form, VariantOptions
from data_recipes.variants.romanisation import Unspellable, count_words, is_romanised, romanise
from data_recipes.writing.written_forms import WrittenForm, written_form

NAME, VERSION = "variants", 2
Rewrite = Callable[[str], tuple[str, int]]  # a text, and how many words of it were changed


def make_variants(rows: Iterable[Row], options: VariantOptions) -> Iterator[Row | Rejected]:
    """Yield each row in its form, which stands in `form`; a changed row has a new id and names its `parent`.

    A row that cannot be written in the form that was drawn stays native, and its transform says why.

    Raises: UserError for a glossary that cannot be read.
    """
    own_words = (
        {own: english for english, own in read_glossary(options.glossary).items()} if options.glossary else {}
    )
    pattern = term_pattern(own_words) if own_words else None
    for row in rows:
        wanted = drawn_form(first_id(row), options)
        form = written_form(f"{row['language']}-{row['script']}")
        reason = _why_not(wanted, form, options)
        if wanted == "native" or reason:
            yield _native(row, wanted, reason)
        elif wanted == "romanised":
            yield _variant(row, wanted, options, lambda text, form=form: _romanised(text, form))
        else:
            assert pattern is not None, "options.problems() asks for the glossary"
            yield _variant(row, wanted, options, lambda text, known=pattern: mix(text, own_words, known))


def first_id(row: Row) -> str:
    """Return the id of the row that this one was made from, or its own."""
    parent = row.get("parent")
    found = parent.get("id") if isinstance(parent, dict) else parent
    return str(found or row["id"])


def drawn_form(row_id: str, options: VariantOptions) -> Form:
    """Return the form of a row: of one seed always the same, whatever rows stand around it."""
    digest = hashlib.sha256(f"{options.seed}:{row_id}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for form in FORMS:
        place -= getattr(options, form)
        if place < 0:
            return form
    return next(form for form in reversed(FORMS) if getattr(options, form))


def measured_form(row: Row, options: VariantOptions) -> Form:
    """Return the form of a row as its text shows it, whatever was drawn: by the words in Latin letters.

    Nine in ten words of the answers: romanised; one in ten: code-mixed; else native. Where answers are left
    alone, the messages of `options.roles` tell.
    """
    told_by = ("assistant",) if "assistant" in options.roles else options.roles
    pairs = [_words(message) for message in row["messages"] if message["role"] in told_by]
    n_latin, n_other = (sum(pair[side] for pair in pairs) for side in (0, 1))
    share = n_latin / (n_latin + n_other) if n_latin + n_other else 0.0
    return "romanised" if share >= 0.9 else "code_mixed" if share >= 0.1 else "native"


def count_mix(row: Row, options: VariantOptions) -> Counter[str]:
    """Return what the manifest adds up of a row: "written romanised", "measured code_mixed", "kept: <why>".

    "hi code_mixed" is what was measured once more, by language.

    A row of English has one form and is not counted, nor one that did not pass this step.
    """
    checks = next((one["checks"] for one in row.get("transforms", []) if one["name"] == NAME), None)
    if checks is None or row["language"] == "en":
        return Counter()
    measured = measured_form(row, options)
    found = Counter([f"written {row['form']}", f"measured {measured}", f"{row['language']} {measured}"])
    return found + Counter([f"kept: {checks['reason']}"] if "reason" in checks else [])


def _why_not(wanted: Form, form: WrittenForm, options: VariantOptions) -> str:
    if wanted == "native":
        return ""
    if form.code == "en":
        return "English has no other form here"
    if options.languages and form.code not in options.languages:
        return "the recipe leaves this language as it is"
    if wanted == "romanised" and not is_romanised(form):
        return f"unsupported: no romanisation of {form.tag}"
    return ""


def _romanised(text: str, form: WrittenForm) -> tuple[str, int]:
    return romanise(text, form), count_words(text, form)


def _native(row: Row, wanted: Form, reason: str) -> Row:
    checks = {"wanted": wanted, "form": "native"} | ({"reason": reason} if reason else {})
    return with_transform({**row, "form": "native"}, NAME, VERSION, checks)


def _variant(row: Row, form: Form, options: VariantOptions, rewrite: Rewrite) -> Row | Rejected:
    messages: list[dict[str, Any]] = []
    n_changed, counts = 0, Counter[str]()
    for message in row["messages"]:
        content = message.get("content")
        if message["role"] not in options.roles or not isinstance(content, str):
            messages.append(message)
            continue
        try:
            text, n_words, n_spans = rewritten(content, rewrite)
        except Mismatch as error:
            return Rejected(str(row["id"]), NAME, error.check, error.detail)
        except Unspellable:
            return _native(row, form, "a letter or sign without a spelling")
        n_changed += n_words
        counts.update(spans=n_spans)
        messages.append({**message, "content": text})
    if not n_changed:
        return _native(row, form, "no word to write in another way")
    latin, other = (sum(pair) for pair in zip(*(_words(message) for message in messages), strict=True))
    checks: Mapping[str, Any] = {
        "wanted": form, "form": form, "words": n_changed, **counts,
        "mixing_index": round(mixing_index(latin, other), 2),
    }  # fmt: skip
    # The root stays the parent; with it goes every text this row was made from: contamination looks there.
    former = row["parent"].get("messages", []) if isinstance(row.get("parent"), dict) else []
    parent = {"id": first_id(row), "messages": [*former, *row["messages"]]}
    changed = {**row, "messages": messages, "form": form, "id": f"{row['id']}/{form}", "parent": parent}
    if form == "romanised" and set(options.roles) >= {"user", "assistant"}:
        changed["script"] = "Latn"
    return with_transform(changed, NAME, VERSION, dict(checks))


def rewritten(text: str, rewrite: Rewrite) -> tuple[str, int, int]:
    """Return a text with its prose rewritten, the number of words changed, and of spans that stayed.

    Raises: Mismatch when what must stay did not.
    """
    document = parse(text)
    pieces, end, n_changed = [], 0, 0
    for element in (element for block in document.blocks for element in block.elements):
        if element.kind == "text":
            new, n = rewrite(text[element.start : element.end])
            pieces += [text[end : element.start], new]
            end, n_changed = element.end, n_changed + n
    done = "".join([*pieces, text[end:]])
    return done, n_changed, verify_frame(document, parse(done))


def _words(message: dict[str, Any]) -> tuple[int, int]:
    content = message.get("content")
    if not isinstance(content, str):
        return 0, 0
    document = parse(content)  # prose alone counts: code and links are in Latin letters in every row
    return word_counts(" ".join(document.prose(block) for block in document.blocks))
