"""The base model's text holds no test value of a task, and instructions in three languages only."""

import calendar
import json
import random
import re
import zipfile

import pytest

from data_recipes.corpus import (
    HELD_OUT_EVERY,
    KOLIBRI_LOCALES,
    chunks,
    fact_text,
    filler_words,
    instructions,
    raw_documents,
    running_text,
    varied,
)
from data_recipes.languages import LANGUAGES
from data_recipes.locale_facts import UNITS, number_words
from data_recipes.tasks import TASKS, canonical, check, phrasings, split_of
from data_recipes.text import script_share

TAMIL_SCALES = {"கோடி": 10_000_000, "லட்சம்": 100_000, "ஆயிரம்": 1_000}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A Kolibri wheel with 600 messages in each locale that the corpus reads."""
    path = tmp_path_factory.mktemp("wheel") / "kolibri-0.0.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for locale in KOLIBRI_LOCALES.values():
            messages = {
                f"id{i}": f"message {i} of the lesson in {locale}, to be read aloud" for i in range(600)
            }
            name = f"kolibri/locale/{locale}/LC_MESSAGES/messages.json"
            archive.writestr(name, json.dumps(messages))
    return path


def candidates(line):
    """Every (task, value) that a line of Tamil could state, going by its numbers; the facts decide."""
    numbers = [int(digits) for digits in re.findall(r"\d+", line.replace(",", ""))]
    if line.startswith("₹"):
        yield "rupees", {"rupees": numbers[0]}
    elif line.endswith(" ரூபாய்"):
        words = [*line.removesuffix(" ரூபாய்").split(), ""]
        pairs = zip(words, words[1:], strict=False)
        amount = sum(int(word) * TAMIL_SCALES.get(scale, 1) for word, scale in pairs if word.isdigit())
        yield "rupees_words", {"rupees": amount}
    elif ":" in line:
        for hour in (numbers[0] % 12, numbers[0] % 12 + 12):
            yield "time", {"hour": hour, "minute": numbers[1]}
    elif len(numbers) == 2 and numbers[1] > 1900:
        yield from (
            ("date", {"date": f"{numbers[1]}-{month:02d}-{numbers[0]:02d}"}) for month in range(1, 13)
        )
    elif len(numbers) == 2:
        yield "duration", {"hours": numbers[0], "minutes": numbers[1]}
    elif len(numbers) == 1:
        yield from (("unit", {"amount": numbers[0], "unit": unit}) for unit in UNITS)


def states(line, task, value):
    if task == "date":
        year, month, day = map(int, value["date"].split("-"))
        if day > calendar.monthrange(year, month)[1]:  # 31 June
            return False
    return check(task, "ta", canonical(value), line)


def test_raw_text_holds_training_values_only():
    number_of = {number_words(number, "ta"): number for number in range(100, 10_000)}
    found = {}
    for document in fact_text("ta", 100, random.Random("any seed")):
        for line in document.text.splitlines():
            facts = [fact for fact in candidates(line) if states(line, *fact)]
            if line in number_of:
                facts = [("number_words", {"number": number_of[line]})]
            for task, value in facts:
                found.setdefault(task, []).append(split_of(task, value))
    # Without the rule a tenth of each would be of the test split, and a tenth of validation.
    assert {task: set(splits) for task, splits in found.items()} == {
        name: {"train"} for name in TASKS if TASKS[name].kind == "generalise"
    }
    assert all(len(splits) > 60 for splits in found.values())


VALUES = {  # task -> how its value is written in a question, and what the value is
    "date": (r"\d{4}-\d\d-\d\d", lambda found: {"date": found[0]}),
    "time": (r"(\d\d):(\d\d)", lambda found: {"hour": int(found[1]), "minute": int(found[2])}),
    "duration": (r"(\d+) h (\d+) min", lambda found: {"hours": int(found[1]), "minutes": int(found[2])}),
    "rupees": (r"\d+", lambda found: {"rupees": int(found[0])}),
    "rupees_words": (r"\d+", lambda found: {"rupees": int(found[0])}),
    "number_words": (r"\d+", lambda found: {"number": int(found[0])}),
    "unit": (r"(\d+) (km/h|\w+)", lambda found: {"amount": int(found[1]), "unit": found[2]}),
}


def values_asked(question):
    """Every task and value that a question can be about."""
    for task, (pattern, value_of) in VALUES.items():
        if (found := re.search(pattern, question)) and (task != "unit" or found[2] in UNITS):
            yield task, value_of(found)


def matches(sentence, question):
    before, after = map(re.escape, sentence.split("{x}"))
    return re.fullmatch(f"{before}(.+){after}", question)


def test_instructions_are_in_three_languages_on_training_values_and_never_in_a_kept_phrasing():
    assert set(VALUES) == {name for name in TASKS if TASKS[name].kind == "generalise"}
    seen, tasks = [], set()
    for code, question, answer in instructions(300, "generalise", seed=3):
        seen.append(code)
        # Digits fit several tasks: the answer tells which one was meant.
        meant = [(n, v) for n, v in values_asked(question) if check(n, code, canonical(v), answer)]
        assert meant, question
        assert all(split_of(name, value) == "train" for name, value in meant)
        tasks |= {name for name, _ in meant}
    for code, question, _ in [
        *instructions(300, "generalise", seed=3),
        *instructions(150, "remember", seed=3),
    ]:
        assert not any(matches(listed[-1], question) for listed in phrasings(code).values())
    assert seen == ["en", "hi", "bn"] * 100
    assert tasks == set(VALUES)


def test_a_varied_phrasing_keeps_its_value_and_most_of_its_words_and_takes_in_words_of_the_language():
    rng = random.Random(0)
    for code in ("en", "hi", "bn"):
        fillers = set(filler_words(code))
        assert len(fillers) > 300
        assert all(script_share(word, LANGUAGES[code].script) == 1.0 for word in fillers if code == "en")
        for sentence in phrasings(code)["date"]:
            words = sentence.split(" ")
            asked = [varied(sentence, code, rng).split(" ") for _ in range(200)]
            assert all(sum("{x}" in word for word in found) == 1 for found in asked)
            kept = [[word for word in found if word in words] for found in asked]
            assert sum(map(len, kept)) / (200 * len(words)) == pytest.approx(0.92, abs=0.07)
            added = [set(found) - set(words) for found in asked]
            assert all(new <= fillers for new in added) and any(added) and not all(added)


def test_instructions_depend_on_the_seed_alone():
    first = list(instructions(60, "generalise", seed=0))
    assert list(instructions(60, "generalise", seed=0)) == first
    assert list(instructions(30, "generalise", seed=0)) == first[:30]
    assert list(instructions(60, "generalise", seed=1)) != first
    assert not set(instructions(60, "remember", seed=0)) & set(first)


def test_every_twentieth_document_of_running_text_is_held_out_and_shares_no_line(wheel):
    documents = running_text("hi", wheel)
    assert [document.held_out for document in documents] == [
        i % HELD_OUT_EVERY == 0 for i in range(len(documents))
    ]
    lines = {
        held_out: {line for d in documents if d.held_out == held_out for line in d.text.splitlines()}
        for held_out in (True, False)
    }
    assert sum(document.held_out for document in documents) >= 3
    assert len(lines[True]) > 20 and lines[True].isdisjoint(lines[False])
    assert all(document.running and document.language == "hi" for document in documents)


def test_english_running_text_is_the_english_of_the_catalogues():
    text = "\n".join(document.text for document in running_text("en", None))
    assert script_share(text, "Latn") > 0.99
    assert "Delete" in text.splitlines()


def test_raw_text_is_in_all_languages_the_same_twice_and_holds_no_instruction(wheel):
    documents = raw_documents(wheel, 4, seed=0)
    assert raw_documents(wheel, 4, seed=0) == documents
    assert raw_documents(wheel, 4, seed=1) != documents
    assert {document.language for document in documents} == set(LANGUAGES)
    assert not any(document.held_out for document in documents if not document.running)
    text = "\n".join(document.text for document in documents)
    for code in ("en", "hi", "bn", "ta", "te", "mr", "gu"):
        for sentences in phrasings(code).values():
            parts = [max(sentence.split("{x}"), key=len).strip() for sentence in sentences]
            assert not [part for part in parts if len(part) > 12 and part in text]


@pytest.mark.parametrize("code", ["as", "kok", "pa", "ta", "ur"])
def test_each_list_of_facts_is_in_the_script_of_its_language_or_without_letters(code):
    texts = [document.text for document in fact_text(code, 20, random.Random(0))]
    worded = [text for text in texts if not text.startswith("₹")]
    assert worded and len(texts) > len(worded)
    # A few names of territories hold a Latin abbreviation.
    assert all(script_share(text, LANGUAGES[code].script) > 0.98 for text in worded)


def test_chunks_keep_every_part_in_order_and_are_long_enough():
    parts = ["aa", "bbb", "c", "dddd", "e"]
    assert list(chunks(parts, "-", 4)) == ["aa-bbb", "c-dddd", "e"]
    assert list(chunks([], "-", 4)) == []
