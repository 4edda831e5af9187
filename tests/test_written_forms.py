"""What the registry says of each tool is what the tool does: every label is tried, and every gap too."""

import contextlib

import holidays
import pytest
import regex
from babel import Locale
from babel.core import UnknownLocaleError
from indic_numtowords import num2words, numtowords
from sacrebleu.metrics.bleu import BLEU

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES, SCHEDULED
from data_recipes.text import script_share
from data_recipes.writing.digits import NUMBERING_SYSTEMS
from data_recipes.writing.scripts import direction, script_ranges
from data_recipes.writing.written_forms import (
    TOOLS,
    UNSUPPORTED,
    coverage,
    covers,
    default_digits,
    form_of_label,
    forms,
    forms_of,
    individual_languages,
    iso_639_3,
    native_digits,
    plural_categories,
    tool_label,
    written_form,
)

# fasttext.cc/docs/en/language-identification, the whole list.
_LID_176 = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy
da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy
ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min
mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm
ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep
vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LID_176 = _LID_176.split()
# Rows of India in openlanguagedata/flores, README.md; the last five are not in FLORES-200.
_FLORES_PLUS = """
asm_Beng ben_Beng eng_Latn guj_Gujr hin_Deva kan_Knda kas_Arab kas_Deva mai_Deva mal_Mlym mar_Deva mni_Beng
npi_Deva ory_Orya pan_Guru san_Deva sat_Olck snd_Arab tam_Taml tel_Telu urd_Arab brx_Deva dgo_Deva gom_Deva
mni_Mtei snd_Deva
"""
FLORES_PLUS = _FLORES_PLUS.split()
# AI4Bharat/IndicTrans2, README.md.
INDICTRANS2 = {*FLORES_PLUS} - {"dgo_Deva"} | {"doi_Deva"}


def tags_with(tool):
    return [tag for tag, form in forms().items() if tool in form.tools]


def labels(tool):
    return {form.tools[tool] for form in forms().values() if tool in form.tools}


def months(locale):
    return " ".join(Locale.parse(locale).months["format"]["wide"].values())


def test_every_language_has_a_main_form_in_the_script_of_its_row_and_a_latin_form():
    for code, row in LANGUAGES.items():
        main, *others = forms_of(code)
        assert (main.use, main.script) == ("main", row.script)
        assert all(form.use != "main" for form in others)
        assert "Latn" in {form.script for form in forms_of(code)}
    assert len(SCHEDULED) == 22 and len(forms()) == 57


def test_kashmiri_sindhi_manipuri_santali_and_konkani_have_their_scripts():
    scripts = {code: {form.script for form in forms_of(code)} for code in ("ks", "sd", "mni", "sat", "kok")}
    assert scripts == {
        "ks": {"Arab", "Deva", "Latn"},
        "sd": {"Arab", "Deva", "Latn"},
        "mni": {"Beng", "Mtei", "Latn"},
        "sat": {"Olck", "Beng", "Deva", "Orya", "Latn"},
        "kok": {"Deva", "Latn", "Knda"},
    }
    assert (
        written_form("kok-Latn").use == written_form("sat-Latn").use == "also"
    )  # orthographies of their own
    assert written_form("ta-Latn").use == written_form("hi-Latn").use == "romanised"


@pytest.mark.parametrize("tag", forms())
def test_babel_writes_the_forms_it_is_said_to_cover_in_their_script_and_no_others(tag):
    form = written_form(tag)
    if covers(tag, "babel"):
        assert script_share(months(tool_label(tag, "babel")), form.script) == 1.0
        return
    # Babel answers in another script (sat_Beng), with the root's "M01" (mni_Mtei), or not at all.
    with contextlib.suppress(UnknownLocaleError):
        assert script_share(months(f"{form.code}_{form.script}").replace("M", ""), form.script) < 1.0


def test_babel_falls_back_without_a_word_which_is_why_labels_are_asked_for():
    assert str(Locale.parse("sat_Beng")) == "sat_Olck"
    assert str(Locale.parse("ta_Latn")) == "ta"


def test_holidays_has_the_labels_and_no_others_but_american_english():
    assert labels("holidays") == {*holidays.India.supported_languages} - {"en_US"}


@pytest.mark.parametrize("tag", tags_with("indic_numtowords"))
def test_numtowords_writes_0_to_99_in_the_script_of_the_form(tag):
    form = written_form(tag)
    for number in range(100):
        words = str(num2words(number, lang=tool_label(tag, "indic_numtowords")))
        assert script_share(words, form.script) == 1.0


def test_numtowords_has_no_other_language_and_a_hole_in_its_sindhi():
    known = {*numtowords.supported_langs, *numtowords.extended_supported_langs}
    assert labels("indic_numtowords") == known
    assert tool_label("mni-Mtei", "indic_numtowords") == "mni"
    assert not covers("mni-Beng", "indic_numtowords") and not covers("sd-Arab", "indic_numtowords")
    for number in (100, 199, 100_000):
        with pytest.raises(IndexError):
            num2words(number, lang=tool_label("sd-Deva", "indic_numtowords"))


def test_flores_and_indictrans2_labels_are_their_lists():
    assert labels("flores_plus") == {*FLORES_PLUS}
    assert labels("flores_200") == {*FLORES_PLUS[:-5]}
    assert labels("indictrans2") == INDICTRANS2
    assert set(tags_with("sacrebleu")) == set(tags_with("flores_200"))
    assert labels("sacrebleu") == {"flores200"} <= set(BLEU.TOKENIZERS)


@pytest.mark.parametrize("tool", ["flores_200", "flores_plus", "indictrans2"])
def test_a_flores_label_is_the_iso_code_and_the_script_of_its_form(tool):
    for tag in tags_with(tool):
        form, (language, script) = written_form(tag), tool_label(tag, tool).split("_")
        assert script == form.script
        assert language in (iso_639_3(form.code), *individual_languages(form.code))


def test_lid_176_covers_17_of_the_22_and_english_in_their_main_script():
    assert labels("lid_176") <= set(LID_176)
    covered = {written_form(tag).code for tag in tags_with("lid_176")}
    assert len(LID_176) == 176 and len(covered - {"en"}) == 17
    assert set(SCHEDULED) - covered == {"brx", "doi", "ks", "mni", "sat"}
    assert not (set(SCHEDULED) - covered) & set(LID_176)
    assert all(written_form(tag).use == "main" for tag in tags_with("lid_176"))


def test_presidio_covers_english_alone():
    assert tags_with("presidio") == ["en-Latn"]


def test_what_no_tool_covers_is_unsupported_and_never_another_language():
    assert set(coverage("ta-Latn").values()) == {UNSUPPORTED}
    assert coverage("ks")["lid_176"] == UNSUPPORTED
    with pytest.raises(UserError, match=r"unsupported: holidays does not cover Odia in Orya \(or-Orya\)"):
        tool_label("or", "holidays")
    with pytest.raises(UserError, match="it covers sd-Arab$"):
        tool_label("sd-Deva", "flores_200")
    with pytest.raises(UserError, match="unknown tool 'spacy': the registry knows babel"):
        covers("hi", "spacy")
    assert list(coverage("hi")) == list(TOOLS)


def test_an_unknown_form_names_the_nearest_and_all_of_the_language():
    with pytest.raises(
        UserError, match=r"did you mean 'ks-Deva'\? Kashmiri is written as ks-Arab, ks-Deva, ks-Latn"
    ):
        written_form("ks-deva")
    with pytest.raises(
        UserError, match="unknown written form 'ta-Deva': Tamil is written as ta-Taml, ta-Latn"
    ):
        written_form("ta-Deva")
    with pytest.raises(UserError, match="unknown language 'xx'"):
        written_form("xx-Latn")


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("npi_Deva", "ne-Deva"),
        ("nep", "ne-Deva"),
        ("gom", "kok-Deva"),
        ("knn", "kok-Deva"),
        ("dgo_Deva", "doi-Deva"),
        ("ory_Orya", "or-Orya"),
        ("san_Deva", "sa-Deva"),
        ("kas_Arab", "ks-Arab"),
        ("mni_Mtei", "mni-Mtei"),
        ("hi-Latn", "hi-Latn"),
        ("hi", "hi-Deva"),
        ("eng_Latn", "en-Latn"),
    ],
)
def test_labels_of_data_sets_find_their_form(label, tag):
    assert form_of_label(label).tag == tag


def test_a_label_of_no_language_is_refused():
    for label in ("sin_Sinh", "hindi", ""):
        with pytest.raises(UserError, match=f"no language has the label '{label}'"):
            form_of_label(label)


def test_own_digits_are_of_the_form_and_default_digits_of_its_locale():
    assert native_digits("ur") == "۰۱۲۳۴۵۶۷۸۹" and native_digits("sd") == "٠١٢٣٤٥٦٧٨٩"
    assert (
        native_digits("ta")[1] == "௧"
        and native_digits("mni-Mtei")[1] == "꯱"
        and native_digits("mni")[1] == "১"
    )
    assert native_digits("hi-Latn") == "0123456789"
    with pytest.raises(UserError, match="unsupported: doi-Dogr has no digits of its own"):
        native_digits("doi-Dogr")
    # CLDR 47: the ten that do not write ASCII digits by default.
    own = {form.code: default_digits(tag) for tag, form in forms().items() if form.use == "main"}
    assert {code: system for code, system in own.items() if system != "latn"} == {
        "as": "beng",
        "bn": "beng",
        "ks": "arabext",
        "mni": "beng",
        "mr": "deva",
        "ne": "deva",
        "sa": "deva",
        "sat": "olck",
        "sd": "arab",
        "ur": "arabext",  # ur_IN; Pakistan's, "ur" alone, writes ASCII digits
    }
    with pytest.raises(UserError, match="unsupported: babel"):
        default_digits("mni-Mtei")


@pytest.mark.parametrize("tag", forms())
def test_default_digits_are_ascii_or_the_forms_own(tag):
    if covers(tag, "babel"):
        assert default_digits(tag) in ("latn", written_form(tag).digits)


@pytest.mark.parametrize("tag", [tag for tag, form in forms().items() if form.digits])
def test_own_digits_belong_to_the_script_or_are_shared_by_it(tag):
    form = written_form(tag)
    assert form.digits in NUMBERING_SYSTEMS
    expected = rf"\p{{Script_Extensions={form.script}}}{{10}}" if form.script != "Latn" else "[0-9]{10}"
    assert regex.fullmatch(expected, native_digits(tag))


def test_plural_categories_are_those_of_cldr_and_missing_ones_are_said():
    # CLDR 48, plurals.json: mai, mni and sa have none; kok has them from 48 on, after this Babel.
    missing = set()
    for code in LANGUAGES:
        try:
            categories = plural_categories(code)
        except UserError as error:
            assert "Babel has no plural rules" in str(error)
            missing.add(code)
            continue
        assert categories == (("one", "two", "other") if code == "sat" else ("one", "other"))
    assert missing == {"kok", "mai", "mni", "sa"}
    with pytest.raises(UserError, match="unsupported: babel does not cover Tamil in Latn"):
        plural_categories("ta-Latn")


def test_arabic_script_runs_from_the_right_and_the_others_from_the_left():
    scripts = {form.script for form in forms().values()}
    assert {script for script in scripts if direction(script) == "rtl"} == {"Arab"}
    for code in SCHEDULED:  # CLDR's own word for it
        expected = Locale.parse(tool_label(code, "babel")).text_direction
        assert direction(written_form(code).script) == expected


def test_script_ranges_hold_the_native_names_and_are_apart():
    ranges = {script: script_ranges(script) for script in {form.script for form in forms().values()}}
    for row in LANGUAGES.values():
        own = [c for c in row.native_name if regex.match(r"\p{L}", c)]
        assert all(any(first <= ord(c) <= last for first, last in ranges[row.script]) for c in own)
    points = [p for spans in ranges.values() for first, last in spans for p in range(first, last + 1)]
    assert len(points) == len(set(points)) > 3000
    assert ranges["Olck"] == ((0x1C50, 0x1C7F),)
    # The danda, the Vedic accents and the Arabic comma belong to several scripts.
    assert not {0x0964, 0x0951, 0x060C} & set(points)


@pytest.mark.parametrize("wrong", ["Xxxx", "Zyyy", "Zzzz", "Aran", ""])
def test_what_is_no_script_is_refused(wrong):
    with pytest.raises(UserError, match="script"):
        script_ranges(wrong)
