"""A translation is accepted only when what had to survive did; an oracle that made the rows judges."""

import json
from collections import Counter
from pathlib import Path

import mistune
import pytest
from markdown_it import MarkdownIt
from translation_rows import corruption, make_row
from translation_teachers import Honest, Hostile, word_in

from data_recipes.artefact import UserError
from data_recipes.settings import load_settings
from data_recipes.steps import Rejected
from data_recipes.translate.cache import ReplyCache
from data_recipes.translate.digits import fold, numbers, to_native
from data_recipes.translate.document import parse
from data_recipes.translate.masking import MASK_FORMS, Mismatch, mask, message_elements, restore, sentences
from data_recipes.translate.options import TranslateOptions, written_as
from data_recipes.translate.patterns import next_protected
from data_recipes.translate.step import open_teacher, translate_rows
from data_recipes.translate.teachers import Glossary, Reply, read_glossary
from data_recipes.translate.verify import Policy, verify

TAMIL = Policy(script="Taml", mask_forms=MASK_FORMS)


def options(**changes):
    return TranslateOptions(
        **({"target": "ta", "teacher": "glossary", "glossary": Path("terms.json")} | changes)
    )


def translated(rows, teacher, cache=None, **changes):
    return list(translate_rows(rows, options(**changes), teacher, cache or ReplyCache(":memory:")))


def judged(n_rows, teacher, block="TAMIL", digits="keep", first=0, **changes):
    """Counts: accepted rows, rejects by reason, and what the oracle says of the accepted ones."""
    made = [make_row(seed) for seed in range(first, first + n_rows)]
    results = translated([row for row, _ in made], teacher, digits=digits, **changes)
    assert len(results) == n_rows
    counts: Counter[str] = Counter()
    corrupt = []
    for (row, truths), result in zip(made, results, strict=True):
        if isinstance(result, Rejected):
            assert result.row_id == row["id"] and result.reason
            counts[f"rejected: {result.reason}"] += 1
            continue
        counts["accepted"] += 1
        for source, target, truth in zip(row["messages"], result["messages"], truths, strict=True):
            if truth is None:
                assert target == source
            elif wrong := corruption(source["content"], target["content"], truth, block, digits):
                corrupt.append((row["id"], wrong))
    return counts, corrupt


def spans_of(text):
    found, cursor = [], 0
    while span := next_protected(text, cursor):
        found.append((span.kind, text[span.start : span.end]))
        cursor = span.end
    return found


# The figures


@pytest.mark.parametrize("digits", ["keep", "any", "native"])
def test_no_corrupt_row_of_a_hostile_teacher_is_accepted(digits):
    counts, corrupt = judged(60, Hostile(digits=digits == "any"), digits=digits, first=9000)
    assert corrupt == []
    assert 0 < counts["accepted"] < 60 and len(counts) > 4, counts


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_no_corrupt_row_of_2000_is_accepted_from_a_hostile_teacher(rate):
    counts, corrupt = judged(2000, Hostile(rate=rate))
    print(f"hostile, rate {rate}: {len(corrupt)} corrupt, {dict(counts)}")
    assert corrupt == []
    assert 0 < counts["accepted"] < 2000 and len(counts) > 8, counts


@pytest.mark.parametrize(("script", "target"), [("TAMIL", "ta"), ("DEVANAGARI", "mr")])
def test_an_honest_teacher_is_accepted(script, target):
    counts, corrupt = judged(60, Honest(script), script, target=target, first=9000)
    assert corrupt == []
    assert counts == {"accepted": 60}


@pytest.mark.slow
@pytest.mark.parametrize("digits", ["keep", "any", "native"])
def test_of_2000_rows_of_an_honest_teacher_0_99_are_accepted(digits):
    counts, corrupt = judged(2000, Honest(digits=digits == "any"), digits=digits)
    print(f"honest, digits {digits}: {len(corrupt)} corrupt, {dict(counts)}")
    assert corrupt == []
    assert counts["accepted"] >= 0.99 * 2000, counts


def test_the_oracle_sees_each_kind_of_damage():
    row, truths = next(made for made in map(make_row, range(9000, 9100)) if made[1][0] and made[1][0].opaque)
    source, truth = row["messages"][0]["content"], truths[0]
    assert truth is not None
    right = translated([row], Honest())[0]["messages"][0]["content"]
    assert corruption(source, right, truth, "TAMIL") == ""
    damaged = [
        right.replace(truth.opaque[0], ""),
        right + truth.opaque[0],
        right + " 7",
        right + " ௭",
        right + "\n",
    ]
    damaged += [right + " **", right + " Sure", "# " + right, right.replace(" ", "\n\n", 1), source]
    assert [text for text in damaged if not corruption(source, text, truth, "TAMIL")] == []


# What is protected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pay Rs. 1,87,500 now", [("currency", "Rs. 1,87,500")]),
        ("pay ₹५०० or 5€ or US$5.99", [("currency", "₹५००"), ("currency", "5€"), ("currency", "US$5.99")]),
        ("231 of -7 and 3.5% and ½", [("number", n) for n in ("231", "-7", "3.5%", "½")]),
        ("௧,௮௭,௫௦௦", [("number", "௧,௮௭,௫௦௦")]),
        (
            "on 2026-03-14 or 14/03/2026 at 5:45 PM",
            [("date", "2026-03-14"), ("date", "14/03/2026"), ("time", "5:45")],
        ),
        ("14 March 2026", [("number", "14"), ("number", "2026")]),
        (
            "2026-03-14T10:30:00Z and 6.02e23",
            [("timestamp", "2026-03-14T10:30:00Z"), ("scientific", "6.02e23")],
        ),
        (
            "a {var}, {{ var }}, {0}, { $x }",
            [("placeholder", p) for p in ("{var}", "{{ var }}", "{0}", "{ $x }")],
        ),
        (
            "%s %(name)d %1$s %% $1 ${x}",
            [("placeholder", p) for p in ("%s", "%(name)d", "%1$s", "%%", "$1", "${x}")],
        ),
        ("a 50%discount is no %discount", [("number", "50")]),
        (
            "{n, plural, one {# file} other {# files}}",
            [("placeholder", "{n, plural, one {# file} other {# files}}")],
        ),
        ("see (https://a.b/c_d(e)?q=1&r=2).", [("url", "https://a.b/c_d(e)?q=1&r=2")]),
        ("https://hi.wikipedia.org/wiki/भारत है", [("url", "https://hi.wikipedia.org/wiki/भारत")]),
        ("write to a.b+c@x.co.in.", [("email", "a.b+c@x.co.in")]),
        (
            r"$x^2$ and \(a\) and \[b\] and $$c$$",
            [("latex", t) for t in ("$x^2$", r"\(a\)", r"\[b\]", "$$c$$")],
        ),
        ("it costs $5 and later $6", [("placeholder", "$5"), ("placeholder", "$6")]),
        ('{"a": [1, {"b": "x"}]} [1, 2]', [("json", '{"a": [1, {"b": "x"}]}'), ("json", "[1, 2]")]),
        ("{unbalanced: [1, 2", [("number", "1"), ("number", "2")]),
        (
            "<|user|> [gMASK] <|im_start|>",
            [("special_token", t) for t in ("<|user|>", "[gMASK]", "<|im_start|>")],
        ),
        (
            "<tool_call>f <arg_key>a</arg_key></tool_call>",
            [("tool_call", "<tool_call>f <arg_key>a</arg_key></tool_call>")],
        ),
        ("open <0>this</0>", [("tag", "<0>"), ("tag", "</0>")]),
        ("use MP3 and snake_case", [("identifier", "MP3"), ("identifier", "snake_case")]),
        ("{this is said by the way} [as well]", []),
    ],
)
def test_spans_in_running_text(text, expected):
    assert spans_of(text) == expected


def test_a_word_glued_to_a_span_does_not_change_it():
    for _, span in spans_of("%s {var} 231 2026-03-14 https://a.b/c a@x.in MP3 <|user|> ₹500 5:45"):
        assert spans_of(f"{span}ஆல்")[0][1] == span


MARKDOWN = """# Title **bold** ##

Text with `code`, *em [link](http://x.y/a_b "t")* and
a second line  
&amp; \\* ![alt](u.png) \\(a_b\\) <b>tag</b> <!-- no --> [ref] <https://a.b>.

> quote
> more **of
> it**

- item `a`
  1. nested

     again
- [ ] task

| Head | a \\| b |
|---|---|
| cell | `x` |

```py
# code
```

    indented

<div class="x">
in html
</div>

<tool_call>f
<arg_key>k</arg_key>

<arg_value>v w</arg_value>
</tool_call>

{
  "a": 1,

  "b": 2
}

Under
=====

[ref]: http://q.r/
"""  # noqa: W291


def test_only_prose_is_text_and_markdowns_own_parser_says_what_prose_is():
    document = parse(MARKDOWN)
    prose = " ".join(document.prose(block) for block in document.blocks)
    words = (
        "Title bold Text with em link and a second line tag quote more of it item nested again task Head a b"
    )
    words += " cell in html Under"
    assert [
        word for word in prose.replace(",", "").replace(".", "").split() if word.isalpha()
    ] == words.split()


def test_elements_of_a_block_have_no_gaps_and_stand_where_the_text_has_them():
    document = parse(MARKDOWN)
    for block in document.blocks:
        assert all(one.end == two.start for one, two in zip(block.elements, block.elements[1:], strict=False))
    spans = [text for block in document.blocks for _, text in document.spans(block)]
    for span in (
        "`code`",
        '](http://x.y/a_b "t")',
        "&amp;",
        "\\*",
        "![alt](u.png)",
        "\\(a_b\\)",
        "[ref]",
        "\\|",
    ):
        assert span in spans


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", MASK_FORMS)
def test_a_teacher_that_changes_nothing_gives_back_the_same_bytes(ends, form):
    text = MARKDOWN.replace("\n", ends)
    document = parse(text)
    elements = message_elements(document)
    masked = mask(document, elements, form, "keep", "Taml", framed=True)
    restored = text[: elements[0].start] + restore(masked, masked.shown) + text[elements[-1].end :]
    assert restored == text


def test_the_teacher_sees_no_code_no_url_and_no_sign_of_markdown():
    document = parse(MARKDOWN)
    shown = mask(document, message_elements(document), "⟦{n}⟧", "keep", "Taml", framed=True).shown
    assert (
        not any(sign in shown for sign in "`*#>|<[]{}\\&_")
        and "http" not in shown
        and "indented" not in shown
    )


def test_html_of_a_translation_is_the_html_of_its_source_but_for_the_words():
    row = {"id": "m", "messages": [{"role": "user", "content": MARKDOWN}]}
    result = translated([row], Honest())[0]
    target = result["messages"][0]["content"]
    for render in (
        MarkdownIt("commonmark").enable("table").render,
        mistune.create_markdown(plugins=["table"]),
    ):
        html = [str(render(text)).split("<") for text in (MARKDOWN, target)]
        tags = [[part.split(">")[0] for part in parts] for parts in html]
        assert sorted(tags[0]) == sorted(tags[1])


def test_sentences_are_not_cut_inside_of_emphasis_or_links():
    document = parse("One. *Two. Three.* [Four. Five](u). Six 3.5 is. Seven?")
    found = [document.text[p[0].start : p[-1].end] for p in sentences(document, document.blocks[0].elements)]
    assert found == ["One.", "*Two. Three.* [Four. Five](u).", "Six 3.5 is.", "Seven?"]


# Verification


@pytest.mark.parametrize(
    ("check", "source", "target"),
    [
        ("numbers", "It was 231 then.", "அது 239 அப்போது."),
        ("numbers", "Pay Rs. 1,87,500 now.", "இப்போது செலுத்து."),
        ("numbers", "One word here now.", "ஒரு சொல் 1 இங்கே."),
        ("numbers", "It was 231 then.", "அது ௨௩௧ அப்போது."),
        ("spans", "Run `ls -l` here now.", "இங்கே இப்போது `ls` ஓட்டு."),
        ("spans", "Hello {name}, good day.", "வணக்கம் {பெயர்}, நல்ல நாள்."),
        ("spans", "Hello {name}, good day.", "வணக்கம் {name} {name}, நல்ல நாள்."),
        ("markdown", "A **bold** word here.", "ஒரு அழுத்தமான சொல் இங்கே."),
        ("markdown", "# Title of it", "அதன் தலைப்பு"),
        ("markdown", "- one thing\n- two things", "- ஒரு பொருள்"),
        ("markdown", "A line here\nand one there", "இங்கே ஒரு வரி அங்கே ஒன்று"),
        ("markdown", "See **`a`** and `b` there.", "அங்கே **`b`** மற்றும் `a` பார்."),
        ("markdown", "<b>A word</b> here now.", "</b>ஒரு சொல்<b> இங்கே."),
        ("leftover", "A word here now.", "ஒரு சொல் ⟦3⟧ இங்கே."),
        ("leftover", "A word here now.", "ஒரு சொல்\ufffd இங்கே."),
        ("signs", "A word here now.", "ஒரு ** சொல் இங்கே."),
        ("length", "A word here now, and many more of them after it.", "சொல்"),
        ("length", "A word here.", "சொல் " * 30),
        ("script", "A word is here now.", "एक शब्द अब यहाँ है।"),
        ("script", "A word is here now.", "A word is here now."),
        ("words", "A good word is here.", "ஒரு நல்ல சொல் இங்கே உள்ளது Sure."),
    ],
)
def test_each_check_rejects_what_it_is_named_for(check, source, target):
    with pytest.raises(Mismatch) as caught:
        verify(parse(source), parse(target), TAMIL)
    assert caught.value.check == check


def test_a_text_that_was_not_translated_is_seen_in_a_script_the_source_has_too():
    romanised = Policy(script="Latn")
    with pytest.raises(Mismatch, match="translated"):
        verify(parse("A word is here now."), parse("A word is here now."), romanised)
    assert (
        verify(parse("A word is here now."), parse("Ek shabd ab yahan hai."), romanised)["script_share"] == 1
    )


def test_languages_may_move_spans_and_keep_latin_names_of_the_source():
    source = "Open `x` with **Python** and `y` on 3 of 5 days, then go home."
    target = "`y` உடன் **Python** கொண்டு `x` திற, 5 நாட்களில் 3 நாள், பின்னர் வீட்டிற்குச் செல்."
    counts = verify(parse(source), parse(target), TAMIL)
    assert counts["spans"] == 4 and counts["numbers"] == 2


def test_numbers_are_equal_in_any_digits_only_where_the_policy_says_so():
    source, target = parse("It was 1,87,500 then."), parse("அது ௧,௮௭,௫௦௦ அப்போது.")
    for digits in ("any", "native"):
        assert verify(source, target, Policy(script="Taml", digits=digits))["numbers"] == 1
    with pytest.raises(Mismatch, match="numbers"):
        verify(source, parse("அது ௧,௮௭,௫௦௧ அப்போது."), Policy(script="Taml", digits="any"))
    with pytest.raises(Mismatch, match="numbers"):
        verify(source, source, Policy(script="Taml", digits="native"))


def test_digits_of_every_script_fold_and_come_back():
    assert fold("१२३ ௪௫ ۶۷ ᱘᱙ ꯰ ৷ −٫٬") == "123 45 67 89 0 ৷ -.,"
    assert to_native("₹1,87,500", "Taml") == "₹௧,௮௭,௫௦௦" and to_native("१", "Latn") == "1"
    assert numbers("-7 of ३.५ in 5-10") == ["-7", "3.5", "5", "10"]


# The step


class Scripted:
    """A teacher that gives its answers in turn, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.identity = list(answers), [], {"teacher": "scripted"}

    def ask(self, requests):
        for i, request in enumerate(requests):
            self.asked.append(request)
            answer = self.answers.pop(0) if self.answers else ""
            yield i, Reply(answer(request.text) if callable(answer) else answer)


def row_of(content, **more):
    return {"id": "r1", "language": "en", "messages": [{"role": "user", "content": content}], **more}


def test_a_row_carries_its_proof_its_parent_and_its_source():
    row = row_of("Open 3 files with `ls`.", licence="CC0-1.0", transforms=[{"name": "before"}])
    result = translated([row], Honest())[0]
    assert result["id"] == "r1/ta" and result["parent_id"] == "r1" and result["licence"] == "CC0-1.0"
    assert (result["language"], result["script"]) == ("ta", "Taml")
    assert result["source_messages"] == row["messages"] and row["messages"][0]["content"].startswith("Open")
    before, proof = result["transforms"]
    assert before == {"name": "before"} and (proof["name"], proof["version"]) == ("translate", 1)
    checks = json.loads(json.dumps(proof["checks"]))
    assert checks["spans"] == checks["numbers"] == 1 and checks["least_script_share"] == 1
    assert checks["levels"] == ["message"] and checks["retries"] == 0


def test_a_failed_reply_is_asked_again_with_other_marks_a_temperature_and_a_seed():
    teacher = Scripted("junk", lambda text: text.replace("Good day to you", word_in("TAMIL", "goodday")))
    result = translated([row_of("Good day to you {name}")], teacher)[0]
    assert result["messages"][0]["content"].endswith(" {name}")
    first, second = teacher.asked
    assert first.text.startswith("⟦0⟧") and second.text.startswith("<x0/>")
    assert (first.temperature, second.temperature, second.seed) == (0.0, 0.5, 1)


def test_a_message_that_fails_is_sent_by_paragraph_and_then_by_sentence():
    class OnlySentences(Honest):
        def translate(self, request):
            too_long = request.text.count(".") > 1
            return "" if too_long else super().translate(request)

    text = "# A title\n\nFirst of all this. Then `that`. And more.\n\n- a last item"
    result = translated([row_of(text)], OnlySentences())[0]
    assert result["transforms"][-1]["checks"]["levels"] == ["paragraph", "sentence"]
    target = result["messages"][0]["content"]
    assert target.startswith("# ") and ". " in target and "`that`" in target and "\n\n- " in target


def test_a_row_is_rejected_with_the_check_that_failed_and_what_it_found():
    result = translated([row_of("It was 231 then and there.")], Scripted(*["⟦0⟧அது ⟦1⟧ ⟦1⟧⟦2⟧"] * 2))[0]
    assert result == Rejected("r1", "translate", "placeholders", result.detail)
    assert "doubled [1]" in result.detail and "It was 231" in result.detail


def test_what_holds_no_prose_is_not_sent_and_other_roles_are_not_touched():
    teacher = Scripted()
    messages = [
        {"role": "user", "content": "```\ncode\n```\n\n231 {x}"},
        {"role": "tool", "content": "Some words"},
    ]
    messages += [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]
    result = translated([{"id": "r", "messages": messages}], teacher)[0]
    assert result["messages"] == messages and teacher.asked == []


def test_content_in_parts_is_translated_part_by_part():
    image = {"type": "image_url", "image_url": {"url": "http://a.b/c"}}
    row = {
        "id": "r",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "good day"}, image]}],
    }
    content = translated([row], Honest())[0]["messages"][0]["content"]
    assert (
        content[1] == image and content[0]["text"] == f"{word_in('TAMIL', 'good')} {word_in('TAMIL', 'day')}"
    )


@pytest.mark.parametrize("window", [1, 3, 64])
def test_rows_and_order_do_not_depend_on_the_window_or_the_order_of_replies(window):
    rows = [make_row(seed)[0] for seed in range(9000, 9010)]
    expected = translated(rows, Hostile())
    assert translated(iter(rows), Hostile(), window=window) == expected
    assert [getattr(r, "row_id", "") or r["parent_id"] for r in expected] == [row["id"] for row in rows]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "r"}, "no messages"),
        ({"id": "r", "messages": ["text"]}, "no messages"),
        (row_of("word " * 5000), "too long"),
        (row_of("marks ⟦1⟧ <x1/> [[1]] here"), "marks"),
        (row_of("मराठी", language="mr"), "language"),
    ],
)
def test_a_row_that_cannot_be_translated_is_rejected_before_it_is_sent(row, reason):
    teacher = Scripted()
    result = translated([row], teacher)[0]
    assert isinstance(result, Rejected) and result.reason == reason and teacher.asked == []


def test_a_text_with_marks_of_one_form_is_sent_with_another():
    teacher = Scripted()
    translated([row_of("words and ⟦1⟧ here")], teacher, n_tries=1)
    assert teacher.asked[0].text.startswith("<x0/>")


def test_deep_nesting_and_unbalanced_brackets_do_not_stop_the_run():
    texts = [
        "[" * 5000 + " words",
        "{" * 5000 + " words",
        "$" * 3000 + " words",
        "**a " * 2000,
        "> " * 500 + "words",
    ]
    results = translated([row_of(text) for text in texts], Honest())
    assert len(results) == 5


# Glossary and options


def test_a_glossary_takes_the_longest_term_and_whole_words_only(tmp_path):
    path = tmp_path / "terms.tsv"
    path.write_text("file\tகோப்பு\nsave file\tகோப்பைச் சேமி\nnow\tஇப்போது\n", encoding="utf-8")
    rows = [row_of("Save file now"), row_of("Save files now")]
    with ReplyCache(":memory:") as cache:
        settings = options(glossary=path)
        with open_teacher(settings, cache) as teacher:
            first, second = translate_rows(rows, settings, teacher, cache)
    assert first["messages"][0]["content"] == "கோப்பைச் சேமி இப்போது"
    assert second.reason == "script"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "holds no term"),
        ("a.json", "[1]", "not a list of terms"),
        ("a.csv", "one\n", "not a list of terms"),
        ("a.json", '{"a": "x", "a": "y"}', "translates 'a' twice"),
    ],
)
def test_a_glossary_that_is_none_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_glossary(tmp_path / name)
    with pytest.raises(UserError, match="cannot read the glossary"):
        read_glossary(tmp_path / "absent.json")


def test_an_empty_glossary_changes_nothing():
    assert [reply.text for _, reply in Glossary({}).ask(Scripted().asked)] == []


def test_all_problems_of_the_options_are_told_at_once_and_never_a_key():
    wrong = ["target=tz", "mask_forms=['<{n}']", "length_ratio=[2, 1]", "endpoint.concurrency=0"]
    wrong += ["endpoint.key_variable=sk-secret-123", "endpoint.base_url=http://me:pass@host/v1"]
    with pytest.raises(UserError) as caught:
        load_settings(TranslateOptions, None, wrong)
    message = str(caught.value)
    for part in (
        "unknown language 'tz'",
        "mask_forms",
        "length_ratio",
        "concurrency",
        "NAME of an environment",
    ):
        assert part in message
    assert "secret" not in message and "pass@" not in message


def test_a_tag_names_the_script_where_it_is_not_the_languages_own():
    assert [written_as(tag)[1] for tag in ("hi", "hi-Latn", "ks", "ks-Deva")] == [
        "Deva",
        "Latn",
        "Arab",
        "Deva",
    ]
    with pytest.raises(UserError, match="unknown script 'Xxxx'"):
        written_as("hi-Xxxx")
