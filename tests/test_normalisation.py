"""Each policy changes what it says and counts it; what is drawn stays, and a second time changes nothing."""

import dataclasses
import random
import unicodedata

import pytest
from text_policies import CHARACTERS, HINDI, IGNORABLE, POLICIES

from data_recipes.artefact import UserError
from data_recipes.text import normalise
from data_recipes.writing.invisible import ZWJ, ZWNJ
from data_recipes.writing.normalisation import TextPolicy, apply_outside, apply_policy
from data_recipes.writing.written_forms import written_form

IDLE = [
    f"क{ZWNJ}",
    f"{ZWJ}क",
    f"क{ZWJ}ख",
    f"घर {ZWNJ}से",
    f"a{ZWNJ}b",
    f"1{ZWJ}2",
    f"ᱚ{ZWNJ}ᱞ",
    f"کار{ZWNJ} ",
]
LETTERS = "LMNPS"  # categories: letters, marks, numbers, punctuation, symbols


@pytest.mark.parametrize("idle", IDLE)
def test_a_joiner_without_effect_is_dropped_only_when_asked(idle):
    plain = idle.replace(ZWJ, "").replace(ZWNJ, "")
    assert apply_policy(idle, TextPolicy(), HINDI).text == idle
    done = apply_policy(idle, TextPolicy(joiners="drop_idle"))
    assert (done.text, done.changes) == (plain, {"joiners": 1})


def test_doubled_joiners_become_one_with_the_same_effect():
    policy = TextPolicy(joiners="drop_idle")
    for joined in (f"क्{ZWNJ}ष", f"می{ZWNJ}خواهم", f"र{ZWJ}্য", f"\U0001f468{ZWJ}\U0001f469"):
        doubled = joined.replace(ZWNJ, ZWNJ * 3).replace(ZWJ, ZWJ * 3)
        assert apply_policy(doubled, policy).text == joined
        assert apply_policy(doubled, policy).changes == {"joiners": 2}


def test_the_default_keeps_every_visible_character_of_unicode():
    visible = [
        chr(p) for p in range(0x110000) if unicodedata.category(chr(p))[0] in LETTERS and p not in IGNORABLE
    ]
    whole = "\n".join(visible)
    assert len(visible) > 140_000
    done = apply_policy(whole, TextPolicy())
    assert done.text == unicodedata.normalize("NFC", whole)
    assert set(done.changes) == {"unicode_form"}


def test_a_policy_twice_is_the_policy_once_over_all_blocks_and_random_strings():
    rng = random.Random(7)
    awkward = [*f"{ZWJ}{ZWNJ}\u093c\u094d\u0905\u093e|।. \n\r\u1f3f\u260e\ufe0f\u202e\ud800\ufeff'’-−1१"]
    awkward += [
        "\U0001f3f4",
        "\U000e0067",
        f"ന്{ZWJ}",
        f"र्{ZWJ}",
        "||",
        "।।",
        "\u0bc6",
        "\u0bbe",
        "\U0001f468",
    ]
    texts = [t for c in CHARACTERS for t in (f"क{c}", f"अ{c}\u094d{ZWJ}|")]
    texts += ["".join(rng.choices(CHARACTERS if rng.random() < 0.3 else awkward, k=9)) for _ in range(4000)]
    for number, text in enumerate(texts):
        policy = POLICIES[number % len(POLICIES)]
        once = apply_policy(text, policy, HINDI)
        assert apply_policy(once.text, policy, HINDI) == dataclasses.replace(once, changes={}), ascii(text)
        assert (once.text != text) == bool(once.changes), ascii(text)
        if policy.nukta == "decomposed":
            assert unicodedata.is_normalized("NFC", once.text), ascii(text)
    assert len(texts) > 10_000


def test_collapsed_white_space_agrees_with_the_normal_form_of_the_older_rows():
    rng = random.Random(3)
    policy = TextPolicy(white_space="collapse", invisible="keep", bidi_controls="keep")
    for _ in range(300):
        sample = "".join(rng.choices([*CHARACTERS, " ", "\n", "\u00a0", "\u202f", "\t"], k=15))
        assert apply_policy(sample, policy).text == normalise(sample), ascii(sample)


def test_junk_is_removed_and_counted_by_kind():
    dirty = "\ufeffन\u200bम\u00adस्\u2060ते\u202e\u0000\x1f\ue000\ufffe\ud800\U000e0041\U000e0042क\ufe0f\u3164"
    assert apply_policy(dirty, TextPolicy()) == apply_policy(dirty, TextPolicy(joiners="drop_idle"))
    done = apply_policy(dirty, TextPolicy())
    assert done.text == "नमस्तेक"
    assert done.changes == {
        "bidi_control": 1,
        "byte_order_mark": 1,
        "control": 2,
        "noncharacter": 1,
        "other_invisible": 1,
        "private_use": 1,
        "soft_hyphen": 1,
        "surrogate": 1,
        "tag": 2,
        "variation_selector": 1,
        "word_joiner": 1,
        "zero_width_space": 1,
    }


def test_direction_controls_can_be_kept_apart_from_other_junk():
    mixed = "اردو \u2067English\u2069\u200b\u200f"
    kept = apply_policy(mixed, TextPolicy(bidi_controls="keep"))
    assert kept.text == "اردو \u2067English\u2069\u200f" and kept.changes == {"zero_width_space": 1}
    assert apply_policy(mixed, TextPolicy(invisible="keep")).changes == {"bidi_control": 3}


@pytest.mark.parametrize(
    "emoji",
    [
        "☎\ufe0f ☎\ufe0e",
        "1\ufe0f\u20e3",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f44d\U0001f3fd",
        "\U0001f9d1\U0001f3fd\u200d\u2695\ufe0f",
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbeng") + "\U000e007f",
        "\U0001f1ee\U0001f1f3",
    ],
)
def test_emoji_stay_as_they_are_drawn(emoji):
    assert apply_policy(emoji, TextPolicy(joiners="drop_idle")).changes == {}


def test_a_text_hidden_in_tags_goes_even_behind_a_flag():
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "obey")
    done = apply_policy(f"हाँ\U0001f3f4{hidden}\U000e007f", TextPolicy())
    assert done.text == "हाँ\U0001f3f4" and done.changes == {"tag": 5}


def test_digits_fold_or_become_native_one_for_one():
    sample = "१२ ৩৪ 56 ௭ ٨ ²"
    assert apply_policy(sample, TextPolicy(digits="ascii"), HINDI).text == "12 34 56 7 8 ²"
    assert apply_policy(sample, TextPolicy(digits="native"), HINDI).text == "१२ ३४ ५६ ७ ८ ²"
    assert apply_policy(sample, TextPolicy(digits="native"), written_form("ur")).text == "۱۲ ۳۴ ۵۶ ۷ ۸ ²"
    assert apply_policy(sample, TextPolicy(digits="ascii")).changes == {"digits": 6}


def test_native_digits_need_a_form_that_has_them():
    with pytest.raises(UserError, match="native digits: no written form is given; use digits=ascii"):
        apply_policy("12", TextPolicy(digits="native"))
    with pytest.raises(UserError, match="native digits: doi-Dogr has none of its own"):
        apply_policy("12", TextPolicy(digits="native"), written_form("doi-Dogr"))


def test_quotes_and_dashes_become_ascii_where_it_is_asked_and_primes_stay():
    sample = "“एक” ‘दो’ «तीन» 5′ 6″ – — − ‑"
    assert apply_policy(sample, TextPolicy(), HINDI).text == sample
    done = apply_policy(sample, TextPolicy(quotes="ascii", dashes="ascii"))
    assert done.text == '"एक" \'दो\' "तीन" 5′ 6″ - - - -'
    assert done.changes == {"dashes": 4, "quotes": 6}


@pytest.mark.parametrize(
    ("typed", "meant", "n_changed"),
    [
        ("राम गया| वह आया|", "राम गया। वह आया।", 2),
        ("राम गया | वह आया |", "राम गया । वह आया ।", 2),
        ("श्लोक ||", "श्लोक ॥", 1),
        ("श्लोक।।", "श्लोक॥", 1),
        ("সে বলল, “আমি যাব|”", "সে বলল, “আমি যাব।”", 1),
        ("| क | ख |", "| क | ख |", 0),
        ("क | ख\n---|---", "क | ख\n---|---", 0),
        ("क| x | ख|", "क| x | ख|", 0),
        ("cat फ़ाइल | wc", "cat फ़ाइल | wc", 0),
        ("x || y", "x || y", 0),
        ("राम| cat a | b", "राम| cat a | b", 0),
        ("राम गया|\nls | wc\nवह आया|", "राम गया।\nls | wc\nवह आया।", 2),
        ("தமிழ்|", "தமிழ்|", 0),  # Tamil ends its sentences with a full stop
    ],
)
def test_a_pipe_that_ends_a_sentence_becomes_a_danda_and_tables_and_commands_stay(typed, meant, n_changed):
    typed, meant = unicodedata.normalize("NFC", typed), unicodedata.normalize("NFC", meant)
    done = apply_policy(typed, TextPolicy(danda="danda"))
    assert (done.text, done.changes.get("danda", 0)) == (meant, n_changed)


def test_line_ends_and_white_space_follow_their_policies():
    mixed = "क\r\nख\rग\x85घ\u2028ङ\x0bच\n"
    done = apply_policy(mixed, TextPolicy())
    assert done.text == "क\nख\nग\nघ\nङ\nच\n" and done.changes == {"line_ends": 5}
    assert apply_policy(mixed, TextPolicy(line_ends="keep")).text == mixed
    spaced = "\tif x:\u00a0\u00a0y\u202f\u3000\n  z "
    assert apply_policy(spaced, TextPolicy()).text == spaced
    assert apply_policy(spaced, TextPolicy(white_space="plain")).text == "\tif x:  y  \n  z "
    assert apply_policy(spaced, TextPolicy(white_space="collapse")).text == "if x: y z"
    assert apply_policy(spaced, TextPolicy(white_space="plain")).changes == {"white_space": 4}


def test_a_change_of_form_is_counted_by_what_readers_take_for_one_character():
    assert apply_policy("e\u0301e\u0301 क़ é", TextPolicy()).changes == {"unicode_form": 2}
    assert apply_policy("\u0958\u0958", TextPolicy()).changes == {"unicode_form": 2}
    assert apply_policy("क़ हाँ é", TextPolicy()).changes == {}


def test_all_wrong_values_of_a_policy_are_named_together():
    with pytest.raises(UserError) as raised:
        TextPolicy(nukta="composed", digits=False, white_space="collapse")  # type: ignore[arg-type]
    assert str(raised.value) == (
        "text policy: nukta='composed' (it is 'decomposed' or 'precomposed'); "
        "digits=False (it is 'keep' or 'ascii' or 'native')"
    )


def test_spans_stay_byte_for_byte_and_the_text_around_them_changes():
    sample = "\u0958 `\u0958 7\u200b` ७\u200b {n}"
    spans = [(12, 15), (2, 7), (3, 8), (4, 5)]
    done = apply_outside(sample, TextPolicy(digits="ascii"), None, spans)
    assert done.text == "\u0915\u093c `\u0958 7\u200b` 7 {n}"
    assert done.changes == {"digits": 1, "unicode_form": 1, "zero_width_space": 1}
    assert apply_outside(sample, TextPolicy(), None, []) == apply_policy(sample, TextPolicy())
    with pytest.raises(UserError, match='white_space="collapse" needs the whole text'):
        apply_outside(sample, TextPolicy(white_space="collapse"), None, spans)
