"""Rows of all kinds made by code, and an oracle that knows how each was made.

The oracle shares nothing with `data_recipes.translate`: it knows the bytes a row was put together from,
counts them in the translation, and reads Markdown with another library (mistune).
"""

import json
import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import mistune

WORDS = (  # noqa: SIM905
    "the user opens window and saves new file before sending report to friend because river flows near old "
    "village where children learn songs while farmers bring fresh mangoes home every morning after rain"
).split()
DIGIT_ZEROS = "0०০੦૦୦௦౦೦൦۰᱐꯰"


@dataclass
class Truth:
    """What a text was made of: spans that must come back, with those that are no Markdown listed apart."""

    spans: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)  # spans whose signs mean nothing to Markdown
    numeric: list[str] = field(default_factory=list)  # numbers, dates, times, currency


class Maker:
    """Makes inline parts and blocks from a seed, and notes the truth of them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.truth = Truth()

    def words(self, low: int = 3, high: int = 8) -> str:
        return " ".join(self.rng.choice(WORDS) for _ in range(self.rng.randint(low, high)))

    def name(self) -> str:
        return "".join(self.rng.choice("bcdfghjklmnp") for _ in range(5))

    def integer(self) -> str:
        return str(self.rng.randint(1, 10 ** self.rng.randint(1, 7)))

    def number(self) -> str:
        rng, plain = self.rng, self.integer()
        zero = ord(rng.choice(DIGIT_ZEROS))
        native = "".join(chr(zero + int(digit)) for digit in plain)
        forms = [
            plain,
            native,
            f"{rng.randint(1, 9)},{rng.randint(10, 99)},{rng.randint(100, 999)}",
            f"{plain}.25",
        ]
        forms += [f"-{plain}", f"{rng.randint(1, 99)}%", "+91 98765 43210", f"{plain}/7", "6.02e23"]
        return rng.choice(forms)

    def numeric(self) -> str:
        rng = self.rng
        day = f"{rng.randint(1990, 2040)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        forms = [day, f"{rng.randint(1, 28)}/0{rng.randint(1, 9)}/2026", f"{day}T{clock}:00Z", clock]
        forms += [
            f"₹{rng.randint(1, 9)},87,500",
            f"Rs. {self.integer()}",
            f"€{self.integer()}.50",
            self.number(),
        ]
        return rng.choice([*forms, self.number(), self.number()])

    def opaque(self) -> str:
        """A span that Markdown knows nothing of, numbers not among them."""
        name, n = self.name(), self.rng.randint(0, 9)
        forms = [
            f"{{{name}}}",
            f"{{{{ {name} }}}}",
            "%s",
            f"%({name})d",
            f"%{n + 1}$s",
            f"${n}",
            f"${{{name}}}",
        ]
        forms += [f"{{ ${name} }}", f"{{{n}}}", f"{{{name}, plural, one {{# {name}}} other {{# {name}s}}}}"]
        forms += [f"https://{name}.example/{name}_{n}?q={name}", f"{name}.{n}x@{name}.co.in"]
        forms += [
            f"${name}_{n}^2 + 1$",
            f"\\({name}_{n}\\)",
            f"\\[{name} * {n} * x\\]",
            f"$$ \\frac{{{name}}}{{{n}}} $$",
        ]
        forms += [
            json.dumps({name: [n, name, None]}),
            json.dumps([name, n]),
            f"<|{name}|>",
            "[gMASK]",
            "<sop>",
        ]
        forms += [f"<{n}>", f"<arg_{name}>", f"{name}_{name}_{n}", f"MP{n}"]
        forms += [f"<tool_call>{name}<arg_key>{name}</arg_key><arg_value>{n} {name}</arg_value></tool_call>"]
        return self.rng.choice(forms)

    def inline(self) -> str:
        """A run of words with spans in it."""
        parts = [self.words()]
        for _ in range(self.rng.randint(0, 3)):
            parts += [self.rng.choice((self.kept, self.kept, self.marked))(), self.words(1, 5)]
        return " ".join(parts) + self.rng.choice((".", "?", "", "!"))

    def kept(self) -> str:
        draw = self.rng.random()
        if draw < 0.4:
            span = self.numeric()
            self.truth.numeric.append(span)
        elif draw < 0.85:
            span = self.opaque()
            self.truth.opaque.append(span)
        else:
            span = f"`{self.name()} = {self.rng.randint(0, 99)}`"
        self.truth.spans.append(span)
        return span

    def marked(self) -> str:
        """Words inside of markup: the signs are spans, the words are not."""
        name, words = self.name(), self.words(1, 3)
        form = self.rng.choice(("**", "*", "~~", "b", "link", "a", "code in bold", "entity"))
        if form in ("**", "*", "~~"):
            return f"{form}{words}{form}"
        if form == "link":
            self.truth.spans.append(f"](https://{name}.example/a_b)")
            return f"[{words}](https://{name}.example/a_b)"
        if form == "code in bold":
            self.truth.spans.append(f"`{name}`")
            return f"**{words} `{name}`**"
        if form == "entity":
            self.truth.spans.append("&amp;")
            return "&amp;"
        opened = f'<a href="{name}">' if form == "a" else "<b>"
        self.truth.spans += [opened, f"</{form}>"]
        return f"{opened}{words}</{form}>"

    def block(self) -> str:
        rng, name = self.rng, self.name()
        form = rng.choice(
            ("p", "p", "p", "h", "ul", "ol", "quote", "table", "fence", "json", "html", "lines", "glm")
        )
        if form == "h":
            return "#" * rng.randint(1, 4) + " " + self.words()
        if form == "ul":
            return "\n".join(f"- {self.inline()}\n  * {self.inline()}" for _ in range(2))
        if form == "ol":
            return "\n".join(f"{i}. {self.inline()}" for i in range(1, rng.randint(3, 4)))
        if form == "quote":
            return f"> {self.inline()}\n> {self.inline()}"
        if form == "table":
            rows = "\n".join(f"| {self.words(1, 2)} | {self.words(1, 3)} `{name}` |" for _ in range(2))
            self.truth.spans += [f"`{name}`"] * 2
            return f"| {self.words(1, 2)} | {self.words(1, 2)} |\n|---|:--|\n{rows}"
        if form == "lines":
            return f"{self.inline()}  \n{self.inline()}\n{self.inline()}"
        kept = {
            "fence": f"```py\n# the words in {name}\n\nprint({rng.randint(0, 999)})\n```",
            "json": json.dumps({name: {"city": "Delhi", "n": rng.randint(0, 99)}}, indent=2),
            "html": f'<div class="{name}">',
            "glm": f"<tool_call>{name}\n<arg_key>a</arg_key>\n<arg_value>New Delhi</arg_value>\n</tool_call>",
        }
        if form not in kept:
            return self.inline()
        self.truth.spans.append(kept[form])
        if form != "html":
            return kept[form]
        self.truth.spans.append("</div>")
        return f"{kept[form]}\n{self.words()}\n</div>"


def make_row(seed: int) -> tuple[dict[str, Any], list[Truth | None]]:
    """A row and the truth of each of its messages; None for one that must come back as it is."""
    rng = random.Random(seed)
    messages, truths = [], []
    for role in rng.choice((("user", "assistant"), ("system", "user", "assistant"), ("user",))):
        maker = Maker(rng)
        content = "\n\n".join([maker.inline(), *(maker.block() for _ in range(rng.randint(0, 4)))])
        messages.append({"role": role, "content": content})
        truths.append(maker.truth)
    if seed % 5 == 0:
        call = {"name": "get_weather", "arguments": '{"city": "New Delhi", "days": 3}'}
        messages.append({"role": "assistant", "content": None, "tool_calls": [{"function": call}]})
        messages.append({"role": "tool", "content": '{"temperature": 31, "text": "clear sky"}'})
        truths += [None, None]
    return {"id": f"row-{seed}", "language": "en", "messages": messages, "licence": "CC0-1.0"}, truths


def folded(text: str) -> str:
    return "".join(str(unicodedata.decimal(c, c)) for c in text)


def in_script(character: str, block: str) -> bool:
    return unicodedata.name(character, "").startswith(block)


def corruption(source: str, target: str, truth: Truth, block: str, digits: str = "keep") -> str:
    """What is wrong with a translation of a made text, or "". `block`: a script in Unicode's names, TAMIL."""
    rest, source_rest = target, source
    fold = folded if digits == "native" else str
    for span in sorted(set(truth.spans), key=lambda span: (-len(span), span)):
        bytes_kept = span not in truth.numeric
        if digits == "any" and not bytes_kept and not re.search("[A-Za-z]{1,2}[0-9]", span):
            continue  # compared as digits, below
        found = target.count(span) if bytes_kept else fold(target).count(fold(span))
        wanted = source.count(span) if bytes_kept else fold(source).count(fold(span))
        if found != wanted:
            return f"{span!r}: {wanted} became {found}"
        placeholder = "Q" * 3  # letters: what Markdown sees of a span it does not know
        if bytes_kept:
            opaque = span in truth.opaque
            rest = rest.replace(span, placeholder if opaque else " ")
            source_rest = source_rest.replace(span, placeholder if opaque else " ")
        else:
            rest = re.sub(re.escape(fold(span)), " ", fold(rest))
            source_rest = re.sub(re.escape(fold(span)), " ", fold(source_rest))
    if Counter(re.findall(r"\d+", folded(rest))) != Counter(re.findall(r"\d+", folded(source_rest))):
        return "the digits outside of spans are others"
    words = re.sub(r"QQQ", " ", rest)
    letters = [c for c in words if c.isalpha()]
    wrong = [c for c in letters if not in_script(c, block)]
    if letters and len(wrong) > 0.3 * len(letters):
        return f"{len(wrong)} of {len(letters)} letters are in another script"
    for word in re.findall(r"[A-Za-z]+", words):
        if word.lower() not in source.lower():
            return f"{word!r} is from nowhere"
    signs = "`|{}[]<>@#$^~*_⟦⟧\\" + ("%" if digits == "keep" else "")
    if Counter(c for c in rest if c in signs) != Counter(c for c in source_rest if c in signs):
        return "signs were added or lost"
    if target.count("\n") != source.count("\n"):
        return "another number of lines"
    return "" if skeleton(target, truth) == skeleton(source, truth) else "another Markdown tree"


_MISTUNE: Any = mistune.create_markdown(renderer="ast", plugins=["table", "strikethrough"])


def skeleton(text: str, truth: Truth) -> Any:
    """The tree of a text as mistune reads it; words left out, inline siblings in any order."""
    for span in sorted(set(truth.opaque), key=lambda span: (-len(span), span)):
        text = text.replace(span, "QQQ")
    return [_node(node) for node in _MISTUNE(text) if node["type"] != "blank_line"]


def _node(node: dict[str, Any]) -> Any:
    children = node.get("children", [])
    inline = node["type"] in (
        "paragraph",
        "heading",
        "block_text",
        "strong",
        "emphasis",
        "link",
        "table_cell",
    )
    below = [_node(child) for child in children if child["type"] not in ("text", "softbreak", "linebreak")]
    raw = node.get("raw", "").strip() if node["type"] in ("block_code", "codespan") else ""
    return (node["type"], raw, str(node.get("attrs", "")), sorted(below, key=str) if inline else below)
