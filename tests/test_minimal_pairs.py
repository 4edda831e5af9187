"""No policy merges words that readers tell apart, and each merges all encodings of one word that it names."""

import random
import unicodedata
from collections import defaultdict

import pytest
from text_policies import BOLD, BOLDEST, CHARACTERS, IGNORABLE, POLICIES, under

from data_recipes.writing.digits import fold_digits
from data_recipes.writing.invisible import ZWJ, ZWNJ
from data_recipes.writing.normalisation import NUKTA_LETTERS, TextPolicy, apply_policy
from data_recipes.writing.spellings import PREFERRED

# Words that are one without their marks, joiners or nuktas, or with nasals and laterals folded.
MINIMAL_PAIRS = [
    ("कल", "कुल"),
    ("पता", "पुता"),
    ("मल", "मेल"),
    ("தல", "தல்"),
    ("కల", "కలి"),
    ("কাল", "কাঁল"),
    ("हंस", "हँस"),
    ("सज", "सज़"),
    ("राज", "राज़"),
    ("खाना", "ख़ाना"),
    ("क", "क़"),
    ("गल", "गळ"),
    ("ল", "ৰ"),
    ("র", "ৰ"),
    ("ব", "ৱ"),
    ("ড", "ড়"),
    ("ত", "ৎ"),
    ("ত্", "ৎ"),
    ("மணம்", "மனம்"),
    ("மனம்", "மநம்"),
    ("ரகம்", "றகம்"),
    ("வலி", "வளி"),
    ("வளி", "வழி"),
    ("ஶ்ரீ", "ஸ்ரீ"),
    ("ਸਰ", "ਸਿਰ"),
    ("ਸ", "ਸ਼"),
    ("ਪਤਾ", "ਪੱਤਾ"),
    ("પતિ", "પતી"),
    ("ଡ", "ଡ଼"),
    ("ల", "ళ"),
    ("ಕಲ", "ಕಾಲ"),
    ("കര", "കറ"),
    ("അവൻ", "അവന"),
    ("അവൻ", "അവന്"),
    ("പൽ", "പല്"),
    ("എന്ന", "എന"),
    ("ꯃꯤ", "ꯃꯣ"),
    ("ᱚᱞ", "ᱚᱞᱹ"),
    ("کر", "کَر"),
    ("ک", "ك"),
    ("ی", "ي"),
    ("ہ", "ه"),
    ("گل", "کل"),
    ("resume", "résumé"),
    ("A", "А"),  # Cyrillic: visible look-alikes are left alone
    ("कर", "कर्"),
    ("दिन", "दीन"),
    ("आद", "आदि"),
    ("बर’", "बर"),
]
# A joiner decides what is drawn: with it and without it are two words, or two spellings readers tell apart.
JOINED = [
    f"क्{ZWNJ}ष",
    f"क्{ZWJ}ष",
    f"चौर्{ZWJ}याहत्तर",
    f"दऱ्{ZWJ}या",
    f"र{ZWJ}্যাব",
    f"ন্{ZWJ}",
    f"ত্{ZWJ}",
    f"സൽ{ZWNJ}".replace("ൽ", "ല്"),
    f"ന്{ZWJ}",
    f"ಮೀಟರ್{ZWNJ}ಗಳು",
    f"ರ{ZWJ}್ಕ",
    f"మీటర్{ZWNJ}లు",
    f"می{ZWNJ}خواهم",
    f"क्{ZWNJ}{ZWNJ}ष",
    f"श्री{ZWNJ}मान्{ZWNJ}जी",
]
NUKTA = [
    chr(p) for p in (*range(0x958, 0x960), 0x9DC, 0x9DD, 0x9DF, 0xA33, 0xA36, *range(0xA59, 0xA5C), 0xA5E)
]
NUKTA += ["\u0b5c", "\u0b5d"]


@pytest.mark.parametrize(("one", "other"), MINIMAL_PAIRS)
def test_minimal_pairs_stay_apart_under_every_policy(one, other):
    assert all(under(policy, one) != under(policy, other) for policy in POLICIES)


@pytest.mark.parametrize("joined", JOINED)
def test_a_joiner_with_an_effect_stays_a_difference_under_every_policy(joined):
    plain = joined.replace(ZWJ, "").replace(ZWNJ, "")
    assert all(under(policy, joined) != under(policy, plain) for policy in POLICIES)


@pytest.mark.parametrize("joined", JOINED[:2])
def test_joiner_non_joiner_and_neither_are_three(joined):
    forms = {joined, joined.replace(ZWJ, ZWNJ), joined.replace(ZWNJ, ZWJ), joined.replace(ZWJ, "")}
    assert all(len({under(policy, form) for form in forms}) == len(forms) for policy in POLICIES)


@pytest.mark.parametrize("policy", [TextPolicy(), TextPolicy(nukta="precomposed", **BOLD), BOLDEST])
def test_no_two_code_points_of_the_blocks_merge_but_equivalents_digits_and_what_the_policy_names(policy):
    groups = defaultdict(list)
    for character in CHARACTERS:
        groups[under(policy, f"क{character}क")].append(character)
    gone = groups.pop("कक")
    assert all(
        unicodedata.category(c) in ("Cf", "Cc") or ord(c) in IGNORABLE or 0xFDD0 <= ord(c) <= 0xFDEF
        for c in gone
    )
    named = ["\x85\u2028\u2029"]  # line ends
    named += ['“”„‟«»"', "‘’‚‛‹›'", "‐‑‒–—―-"] if policy.quotes == "ascii" else []
    for group in groups.values():
        canonical = {unicodedata.normalize("NFC", c) for c in group}
        digits = {fold_digits(c) for c in group} if policy.digits != "keep" else canonical
        spaces = policy.white_space == "collapse" and all(c.isspace() for c in group)
        assert min(len(canonical), len(digits)) == 1 or spaces or any(set(group) <= set(n) for n in named), (
            group
        )


def test_both_spellings_of_a_nukta_letter_meet_under_either_rule():
    assert sorted(NUKTA_LETTERS.values()) == sorted(
        NUKTA
    )  # CompositionExclusions.txt, the rows of nukta letters
    for letter in NUKTA:
        pair = unicodedata.normalize("NFD", letter)
        assert len(pair) == 2
        for policy in POLICIES:
            expected = pair if policy.nukta == "decomposed" else letter
            assert under(policy, f"{letter}ा") == under(policy, f"{pair}ा") == f"{expected}ा"


def test_nfd_and_nfc_of_a_text_meet_under_every_policy():
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choices(CHARACTERS, k=12))
        composed, split = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
        policy = rng.choice(POLICIES)
        assert under(policy, composed) == under(policy, split) == under(policy, text)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("கொ", "க\u0bc6\u0bbe"),
        ("கோ", "க\u0bc7\u0bbe"),
        ("கௌ", "க\u0bc6\u0bd7"),
        ("কো", "ক\u09c7\u09be"),
        ("കോ", "ക\u0d47\u0d3e"),
        ("କୋ", "କ\u0b47\u0b3e"),
        ("ಕೋ", "ಕ\u0cc6\u0cc2\u0cd5"),
        ("آ", "ا\u0653"),
        ("é", "e\u0301"),
    ],
)
def test_two_part_vowels_and_accents_meet_under_every_policy(one, two):
    assert all(under(policy, one) == under(policy, two) for policy in POLICIES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"അവന്{ZWJ}", "അവൻ"),
        (f"പാല്{ZWJ}", "പാൽ"),
        (f"അവര്{ZWJ}", "അവർ"),
        (f"ഉത്{ZWJ}", f"ഉത്{ZWJ}"),  # no chillu of TA
        (f"উত্{ZWJ}সব", "উৎসব"),
        (f"दर्{ZWJ}या", "दऱ्या"),
        ("\u0905\u093e", "आ"),
        ("\u0905\u200d\u0945", "ॲ"),  # an idle joiner kept the dotted circle away
        ("\u0a72\u0a3f", "ਇ"),
        ("\u0a85\u0abe\u0ac5", "ઓ"),
        ("\u0c92\u0ccc", "ಔ"),
    ],
)
def test_two_encodings_of_one_letter_meet_only_under_preferred_spellings(old, new):
    for policy in POLICIES:
        meets = policy.spellings == "preferred" and (
            policy.joiners == "drop_idle" or "\u0905\u200d" not in old
        )
        assert (under(policy, old) == under(policy, new)) == (meets or old == new)


def test_every_discouraged_sequence_is_replaced_once_and_counted():
    assert len(PREFERRED) == 7 + 61  # with a joiner; vowel letters of nine scripts
    for old, new in PREFERRED.items():
        assert unicodedata.normalize("NFC", old) == old and unicodedata.normalize("NFC", new) == new
        done = apply_policy(f"{old} {old}", TextPolicy(spellings="preferred"))
        assert (done.text, done.changes) == (f"{new} {new}", {"spellings": 2})
        names = {unicodedata.name(c).split()[0] for c in old.replace(ZWJ, "") + new}
        assert len(names) == 1  # one script
