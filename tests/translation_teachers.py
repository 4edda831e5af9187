"""Teachers for tests: an honest one that maps words, and a hostile one that spoils what that one says."""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data_recipes.translate.teachers import Reply, Request

MARK = re.compile(r"(⟦\d+⟧|<x\d+/>|\[\[\d+\]\]|@@\d+@@)")
SYLLABLES = {
    "TAMIL": "க கா கி கு கெ ச சி ஞா த தி து தெ ந நா நி ப பா பு ம மி மு ய ர ரு ல லி வ வி ழ ள",
    "DEVANAGARI": "क का कि कु के च चि ज्ञ त ति तु ते न ना नि प पा पु म मि मु य र रु ल लि व वि श स",
}


def word_in(script: str, word: str) -> str:
    """A word of a script for an English word: always the same, of about its length."""
    digest = hashlib.sha256(word.lower().encode()).digest()
    syllables = SYLLABLES[script].split()
    return "".join(syllables[digest[i] % len(syllables)] for i in range(max(2, len(word) // 2)))


class Honest:
    """Maps each Latin word. Marks that stand between words may move by one, and may come back with a space in
    them or in native digits; with `digits` the numbers that are not masked are written in native digits."""

    def __init__(self, script: str = "TAMIL", seed: int = 0, digits: bool = False) -> None:
        self.script, self.seed, self.digits = script, seed, digits
        self.identity: dict[str, Any] = {"teacher": "honest", "seed": seed}
        self.zero = {"TAMIL": "௦", "DEVANAGARI": "०"}[script]

    def rng(self, request: Request) -> random.Random:
        return random.Random(f"{self.seed}:{request.seed}:{request.text}")

    def native(self, text: str) -> str:
        return re.sub("[0-9]", lambda match: chr(ord(self.zero) + int(match.group())), text)

    def translate(self, request: Request) -> str:
        rng = self.rng(request)
        parts = MARK.split(request.text)
        for i, part in enumerate(parts):
            if i % 2 == 0:
                part = re.sub("[A-Za-z]+", lambda match: word_in(self.script, match.group()), part)
                parts[i] = self.native(part) if self.digits else part
            elif rng.random() < 0.2:
                parts[i] = (
                    self.native(part) if rng.random() < 0.5 else part.replace("⟦", "⟦ ").replace("⟧", " ⟧")
                )
        for i in range(1, len(parts) - 2, 2):
            words = re.match(r" (\w\S*)(?= )", parts[i + 1])
            if words and parts[i - 1].endswith(" ") and rng.random() < 0.3:
                parts[i - 1] += words[1] + " "
                parts[i + 1] = parts[i + 1][words.end() :]
        return "".join(parts)

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        order = list(range(len(requests)))
        random.Random(self.seed).shuffle(order)  # replies come in any order
        for i in order:
            yield i, Reply(self.translate(requests[i]), 10, 10)


def _marks(parts: list[str]) -> list[int]:
    return list(range(1, len(parts), 2))


def drop(parts: list[str], request: Request, rng: random.Random) -> str:
    parts[rng.choice(_marks(parts))] = ""
    return "".join(parts)


def double(parts: list[str], request: Request, rng: random.Random) -> str:
    parts[rng.choice(_marks(parts))] *= 2
    return "".join(parts)


def translate_mark(parts: list[str], request: Request, rng: random.Random) -> str:
    parts[rng.choice(_marks(parts))] = rng.choice(("⟦ஒன்று⟧", "⟦எண்⟧", "{பெயர்}", "⟦⟧", "ஒன்று"))
    return "".join(parts)


def space_out(parts: list[str], request: Request, rng: random.Random) -> str:
    i = rng.choice(_marks(parts))
    parts[i] = rng.choice(("⟦ {} ⟧", "⟦{} .⟧", "⟦ {}", "[ {} ]", "⟦\n{}⟧")).format(
        re.sub(r"\D", "", parts[i])
    )
    return "".join(parts)


def renumber(parts: list[str], request: Request, rng: random.Random) -> str:
    i = rng.choice(_marks(parts))
    parts[i] = re.sub(r"\d+", lambda match: str(int(match.group()) + rng.choice((1, -1, 10))), parts[i])
    return "".join(parts)


def reorder(parts: list[str], request: Request, rng: random.Random) -> str:
    marks = [parts[i] for i in _marks(parts)]
    rng.shuffle(marks)
    for i, mark in zip(_marks(parts), marks, strict=True):
        parts[i] = mark
    return "".join(parts)


def change_digits(parts: list[str], request: Request, rng: random.Random) -> str:
    text = "".join(parts)
    digits = [
        m
        for m in re.finditer(r"\d", text)
        if not any(m.start() in range(*k.span()) for k in MARK.finditer(text))
    ]
    if digits and rng.random() < 0.8:
        at = rng.choice(digits).start()
        return text[:at] + rng.choice(("", str(rng.randint(0, 9)), "௧௨", "3")) + text[at + 1 :]
    return text.replace(" ", rng.choice((" 7 ", " ௪௨ ", " ½ ")), 1) if " " in text else text + " 7"


def wrong_script(parts: list[str], request: Request, rng: random.Random) -> str:
    text = request.text if rng.random() < 0.3 else Honest("DEVANAGARI").translate(request)
    return text if rng.random() < 0.7 else "".join(parts[: len(parts) // 2]) + text


def empty(parts: list[str], request: Request, rng: random.Random) -> str:
    return rng.choice(("", " ", "\n\n", "\u200b", "".join(parts[i] for i in _marks(parts))))


def junk(parts: list[str], request: Request, rng: random.Random) -> str:
    letters = "abகz \n⟦⟧0123456789{}<>`*_#|\\\u0000\ufffd\ue000"
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 200)))


def as_json(parts: list[str], request: Request, rng: random.Random) -> str:
    text = "".join(parts)
    return rng.choice((f'{{"translation": "{text}"}}', f"```\n{text}\n```", f'"{text}"', f"<p>{text}</p>"))


def prompt(parts: list[str], request: Request, rng: random.Random) -> str:
    told = "\n".join(content for _, content in request.messages)
    return rng.choice((told, request.text, f"{told}\n{''.join(parts)}"))


def chatter(parts: list[str], request: Request, rng: random.Random) -> str:
    text = "".join(parts)
    before = rng.choice(
        ("Sure! Here is the translation: ", "இதோ மொழிபெயர்ப்பு: ", "Translation:\n\n", "Note: ")
    )
    return (
        before + text
        if rng.random() < 0.5
        else text + rng.choice(("\n\n(Note: literal)", " நன்றி!", "\nHope it helps"))
    )


def chatter_inside(parts: list[str], request: Request, rng: random.Random) -> str:
    i = rng.choice(range(0, len(parts), 2))
    parts[i] += rng.choice((" Sure thing ", "\nNote", " OK ", "\n\nHere\n"))
    return "".join(parts)


def break_markdown(parts: list[str], request: Request, rng: random.Random) -> str:
    i = rng.choice(range(0, len(parts), 2))
    sign = rng.choice(
        ("**", "`", "\n", "\n\n", "\n# ", "\n- ", "<b>", "</b>", "|", "> ", "*", "[x](y)", "~~", "\\")
    )
    words = parts[i].split(" ")
    at = rng.randint(0, len(words) - 1)
    words[at] = rng.choice((sign + words[at], words[at] + sign, sign + words[at] + sign))
    parts[i] = " ".join(words)
    return "".join(parts)


def guess_span(parts: list[str], request: Request, rng: random.Random) -> str:
    parts[rng.choice(_marks(parts))] = rng.choice(
        ("`x = 1`", "{name}", "%s", "42", "https://a.example", "**", "<b>")
    )
    return "".join(parts)


def lose_lines(parts: list[str], request: Request, rng: random.Random) -> str:
    return "".join(parts).replace("\n", " ", 1)


def half(parts: list[str], request: Request, rng: random.Random) -> str:
    text = "".join(parts)
    return text[: len(text) // 2] if rng.random() < 0.5 else text + text


SPOILERS = (
    *(drop, double, translate_mark, space_out, renumber, reorder, change_digits, wrong_script, empty, junk),
    *(as_json, prompt, chatter, chatter_inside, break_markdown, guess_span, lose_lines, half),
)


class Hostile(Honest):
    """Spoils a reply in one of the ways above, or leaves it as it is with probability 1 - `rate`."""

    def __init__(self, seed: int = 0, rate: float = 0.8, digits: bool = False) -> None:
        super().__init__("TAMIL", seed, digits)
        self.rate = rate
        self.identity = {"teacher": "hostile", "seed": seed, "rate": rate}

    def translate(self, request: Request) -> str:
        rng = self.rng(request)
        text = super().translate(request)
        if rng.random() > self.rate:
            return text
        parts = MARK.split(text)
        spoilers = (
            SPOILERS if len(parts) > 1 else (change_digits, wrong_script, junk, break_markdown, chatter)
        )
        return rng.choice(spoilers)(parts, request, rng)
