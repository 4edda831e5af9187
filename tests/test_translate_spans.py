"""What is protected, what the teacher sees, and what each check of a translation rejects."""

import mistune
import pytest
from markdown_it import MarkdownIt
from translation_teachers import Honest

from data_recipes.translate.document import parse
from data_recipes.translate.masking import MASK_FORMS, Mismatch, mask, message_elements, restore, sentences
from data_recipes.translate.patterns import next_protected
from data_recipes.translate.teachers import Request
from data_recipes.translate.verify import Policy, numbers, verify

TAMIL = Policy(script="Taml", mask_forms=MASK_FORMS)


def spans_of(text):
    found, cursor = [], 0
    while span := next_protected(text, cursor):
        found.append((span.kind, text[span.start : span.end]))
        cursor = span.end
    return found


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
        ("${x} new %5$s", [("placeholder", "${x}"), ("placeholder", "%5$s")]),
        ("$0 மிகுசி கதி %7$s", [("placeholder", "$0"), ("placeholder", "%7$s")]),
        (r"the $n$th and $a \text{ for all } b$", [("latex", "$n$"), ("latex", r"$a \text{ for all } b$")]),
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
    masked = mask(document, elements, form, "keep", "tamldec", framed=True)
    restored = text[: elements[0].start] + restore(masked, masked.shown) + text[elements[-1].end :]
    assert restored == text


def test_the_teacher_sees_no_code_no_url_and_no_sign_of_markdown():
    document = parse(MARKDOWN)
    shown = mask(document, message_elements(document), "⟦{n}⟧", "keep", "tamldec", framed=True).shown
    assert (
        not any(sign in shown for sign in "`*#>|<[]{}\\&_")
        and "http" not in shown
        and "indented" not in shown
    )


def test_html_of_a_translation_is_the_html_of_its_source_but_for_the_words():
    document = parse(MARKDOWN)
    elements = message_elements(document)
    masked = mask(document, elements, "⟦{n}⟧", "keep", "tamldec", framed=True)
    reply = Honest().translate(Request(masked.shown, (), 0.0, 0))
    target = MARKDOWN[: elements[0].start] + restore(masked, reply) + MARKDOWN[elements[-1].end :]
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


@pytest.mark.parametrize(
    ("reply", "check"),
    [
        ("⟦0⟧ஒரு ⟦2⟧சொல்⟦1⟧ இங்கே⟦3⟧", "placeholders"),
        ("⟦0⟧ஒரு ⟦1⟧சொல் இங்கே⟦3⟧", "placeholders"),
        ("⟦0⟧ஒரு ⟦1⟧சொல்⟦2⟧ ⟦2⟧ இங்கே⟦3⟧", "placeholders"),
        ("⟦1⟧ஒரு ⟦0⟧சொல்⟦2⟧ இங்கே⟦3⟧", "placeholders"),
        ("இதோ: ⟦0⟧ஒரு ⟦1⟧சொல்⟦2⟧ இங்கே⟦3⟧", "chatter"),
        ("⟦0⟧ஒரு ⟦1⟧சொல்⟦2⟧\nஇங்கே⟦3⟧", "lines"),
        (" \n", "reply"),
    ],
)
def test_a_reply_whose_marks_are_not_those_sent_is_not_restored(reply, check):
    document = parse("A **word** here")
    masked = mask(document, message_elements(document), "⟦{n}⟧", "keep", "tamldec", framed=True)
    assert restore(masked, "⟦ 0 ⟧ஒரு ⟦௧⟧ சொல் ⟦2⟧ இங்கே⟦3⟧ ") == "ஒரு **சொல்** இங்கே"
    with pytest.raises(Mismatch) as caught:
        restore(masked, reply)
    assert caught.value.check == check


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
        assert verify(source, target, Policy(script="Taml", digits=digits, system="tamldec"))["numbers"] == 1
    with pytest.raises(Mismatch, match="numbers"):
        verify(source, parse("அது ௧,௮௭,௫௦௧ அப்போது."), Policy(script="Taml", digits="any"))
    with pytest.raises(Mismatch, match="numbers"):
        verify(source, source, Policy(script="Taml", digits="native", system="tamldec"))


def test_numbers_are_read_in_the_digits_and_signs_of_every_script():
    assert numbers("-7 of ३.५ in 5-10") == ["-7", "3.5", "5", "10"]
    assert numbers("−௪ and ۱٬۸۷٬۵۰۰ and ꯰٫᱙ and ½") == ["-4", "1,87,500", "0.9", "½"]
