"""Personal data: what is found, in which scripts, what is left alone, and that no value goes anywhere."""

import json
import logging
import random

import pytest

from data_recipes.artefact import UserError
from data_recipes.pii.recognisers import KINDS, find_pii
from data_recipes.pii.step import PiiOptions, count_pii, remove_pii
from data_recipes.writing.digits import fold_digits, write_digits
from tests import pii_samples


def found(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, text[finding.start : finding.end]) for finding in find_pii(text)]


@pytest.mark.parametrize("system", list(pii_samples.WORDS))
def test_every_aadhaar_number_is_found_in_each_digit_script(system: str):
    rng = random.Random(f"aadhaar {system}")
    numbers = [pii_samples.make_aadhaar(rng) for _ in range(40)]
    cases = [
        c
        for n in numbers
        for form in pii_samples.aadhaar_forms(n)
        for c in pii_samples.in_texts(form, system)
    ]
    assert len(cases) == 40 * 6 * 5
    missed = [text for text, written in cases if found(text) != [("AADHAAR", written)]]
    assert missed == []


@pytest.mark.parametrize("system", list(pii_samples.WORDS))
def test_every_mobile_number_is_found_in_each_digit_script(system: str):
    rng = random.Random(f"phone {system}")
    numbers = [pii_samples.make_phone(rng) for _ in range(25)]
    cases = [
        c for n in numbers for form in pii_samples.phone_forms(n) for c in pii_samples.in_texts(form, system)
    ]
    assert len(cases) == 25 * 11 * 5
    missed = [text for text, written in cases if [value.strip("()") for _, value in found(text)] != [written]]
    assert missed == []


@pytest.mark.parametrize("n_wrong", [1, 5, 9])
def test_twelve_digits_with_a_wrong_check_digit_are_no_aadhaar_number(n_wrong: int):
    number = pii_samples.make_aadhaar(random.Random(3))
    wrong = number[:-1] + str((int(number[-1]) + n_wrong) % 10)
    assert found(f"no. {wrong}") == []


def test_codes_with_native_digits_are_found():
    rng = random.Random(5)
    for kind, make in (
        ("PAN", pii_samples.make_pan),
        ("GSTIN", pii_samples.make_gstin),
        ("VOTER_ID", pii_samples.make_voter_id),
    ):
        for system in pii_samples.WORDS:
            number = write_digits(make(rng), system)
            assert found(f"{pii_samples.WORDS[system]} {number}।") == [(kind, number)]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("IFSC", "HDFC0001234", "शाखा HDFC0001234 में"),
        ("IFSC", "sbin0040123", "ifsc: sbin0040123"),
        ("PAN", "acupa7085r", "मेरा पैन acupa7085r है"),
        ("GSTIN", "27AAPFU0939F1ZV", "GST 27AAPFU0939F1ZV"),  # stdnum's own example
        ("VOTER_ID", "WKH1186253", "WKH1186253"),  # stdnum's own example
        ("VOTER_ID", "WKH1186254", "வாக்காளர் அட்டை WKH1186254"),  # older cards have no check digit
        ("PASSPORT", "A1234567", "ಪಾಸ್\u200cಪೋರ್ಟ್ ಸಂಖ್ಯೆ A1234567"),
        ("PASSPORT", "A12 34567", "Passport No. A12 34567"),
        ("VEHICLE", "TN 09 AB 1234", "வண்டி TN 09 AB 1234"),
        ("VEHICLE", "MH१२DE१४३३", "MH१२DE१४३३"),
        ("VEHICLE", "22BH1234AA", "22BH1234AA"),
        ("UPI_ID", "ravi.k@okaxis", "ravi.k@okaxis को भेजें"),
        ("UPI_ID", "९८७६५४३२१०@ybl", "९८७६५४३२१०@ybl"),
        ("UPI_ID", "ravi@newbank", "யுபிஐ ravi@newbank"),
        ("EMAIL", "ravi.kumar@gmail.com", "ईमेल: ravi.kumar@gmail.com।"),
        ("EMAIL", "a@b.com", "a@b.comக்கு"),
        ("EMAIL", "राम@डाटा.भारत", "राम@डाटा.भारत"),
        ("PHONE", "011-23456789", "011-23456789"),
        ("PHONE", "(022) 2345 6789", "tel (022) 2345 6789"),
        ("PHONE", "+91 44 2811 1234", "+91 44 2811 1234"),
        ("PHONE", "०४४-२८११ १२३४", "०४४-२८११ १२३४"),
        ("PHONE", "98 76 54 32 10", "ফোন 98 76 54 32 10"),
        ("PHONE", "9876543210", "_9876543210_"),
        ("PHONE", "9876543210", "mera phone 9876543210pe hai"),
        ("PHONE", "9876543210", "9876543210 ₹500 भेजें"),
        ("PHONE", "9876543210", "9876543210 Rs. 500"),
        ("AADHAAR", "234123412346", "mera aadhaar no234123412346hai"),
        ("AADHAAR_VID", "2341 2341 2341 2341", "2341 2341 2341 2341"),  # stdnum's own example
    ],
)
def test_each_kind_is_found(kind: str, value: str, text: str):
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "A1234567",  # a passport's shape, and nothing says so
        "ravi@newbank",
        "acupa7085r",
        "98 76 54 32 10",
        "₹9876543210",
        "Rs. 234123412346",
        "9876543210 रुपये",
        "9876543210.50",
        "12,34,56,78,901",
        "80000-90000",
        "25-11-2026 10:30",
        "2019 2020 2021 2022",
        "ISBN 8172234988",
        "98765.43210",
        "id_9876543210",
        "a9876543210b",
        "9876543210_a",
        "no234123412346hai",
        "9876543210 Rs.",
        "user@example.com",
        "@okaxis",
        "a company panel",
        "",
        "कोई संख्या नहीं",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str):
    assert found(text) == []


def test_two_numbers_with_only_a_comma_between_are_two():
    assert found("9876543210,9876543211") == [("PHONE", "9876543210"), ("PHONE", "9876543211")]


def test_the_last_three_of_four_groups_may_be_the_number():
    assert found("4322 2341 2341 2346") == [("AADHAAR", "2341 2341 2346")]


def test_long_lines_of_digits_and_signs_take_no_more_than_their_length():
    for line in (
        "9" * 300_000,
        "9 " * 100_000,
        "a@" * 20_000,
        "a1" * 100_000,
        "1-" * 100_000,
        "a." * 100_000 + "@",
    ):
        assert find_pii(line) == []


def row(text: str, **more: object) -> dict:
    return {"id": "hi/1", "language": "hi", "messages": [{"role": "user", "content": text}], **more}


def test_a_tag_takes_the_place_of_a_value_and_the_count_stands_on_the_row():
    rows = list(
        remove_pii([row("आधार २३४१ २३४१ २३४६, फ़ोन 98765 43210 और 98765 43210"), row("कुछ नहीं", language="ta")])
    )
    assert rows[0]["messages"][0]["content"] == "आधार <AADHAAR>, फ़ोन <PHONE> और <PHONE>"
    checks = {"action": "tag", "found": {"AADHAAR": 1, "PHONE": 2}}
    assert rows[0]["transforms"] == [{"name": "pii", "version": 1, "checks": checks}]
    assert rows[1]["messages"][0]["content"] == "कुछ नहीं"
    assert count_pii(rows) == {"AADHAAR": {"hi": 1}, "PHONE": {"hi": 2}}


def test_tool_calls_nested_values_numbers_and_keys_are_cleaned():
    call = {"type": "function", "function": {"name": "dial", "arguments": '{"to": 9876543210, "n": 3}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    extra = {"9876543210": "Ravi", "9876543211": [True, 9876543210, 1.5, "क 2341 2341 2346"]}
    (clean,) = remove_pii(
        [row("", value=extra, parent={"id": 7, "text": "call 9876543210"}) | {"messages": [message]}]
    )
    arguments = clean["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"to": "<PHONE>", "n": 3}
    assert clean["value"] == {"<PHONE>": "Ravi", "<PHONE>_": [True, "<PHONE>", 1.5, "क <AADHAAR>"]}
    assert clean["parent"] == {"id": 7, "text": "call <PHONE>"}
    assert clean["transforms"][0]["checks"]["found"] == {"AADHAAR": 1, "PHONE": 5}


def test_the_id_of_a_parent_stays_so_that_contamination_finds_it():
    (clean,) = remove_pii([row("") | {"parent": {"id": "x/9876543210", "text": "call 9876543210"}}])
    assert clean["parent"] == {"id": "x/9876543210", "text": "call <PHONE>"}
    assert clean["transforms"][0]["checks"]["found"] == {"PHONE": 1}


def test_arguments_without_personal_data_keep_their_bytes_and_broken_json_is_text():
    for before, after in (
        ('{"a":1,  "b" : "x"}', '{"a":1,  "b" : "x"}'),
        ('{"to": 9876543210', '{"to": <PHONE>'),
    ):
        message = {"role": "assistant", "function": {"arguments": before}}
        (clean,) = remove_pii([row("") | {"messages": [message]}])
        assert clean["messages"][0]["function"]["arguments"] == after


def test_half_a_character_from_json_stops_nothing():
    (clean,) = remove_pii([row("\ud83d 98765 43210 \ud83d")], PiiOptions(action="surrogate"), bytes(32))
    assert clean["messages"][0]["content"].startswith("\ud83d 50")


def test_ids_and_sources_are_left_as_they_are():
    kept = {"id": "9876543210", "source": "a@b.co", "parent": "9876543210", "attribution": "by a@b.co"}
    (clean,) = remove_pii([row("x") | kept])
    assert {name: clean[name] for name in kept} == kept


@pytest.mark.parametrize("action", ["tag", "surrogate"])
def test_no_value_is_in_any_output_or_log(action, caplog, capfd):
    rng = random.Random(11)
    makers = (pii_samples.make_aadhaar, pii_samples.make_phone, pii_samples.make_pan, pii_samples.make_gstin)
    values = [make(rng) for make in makers for _ in range(20)]
    systems = list(pii_samples.WORDS)
    rows = [
        row(f"देखें {write_digits(value, systems[i % 13])} है", value=value) for i, value in enumerate(values)
    ]
    with caplog.at_level(logging.DEBUG):
        clean = list(remove_pii(rows, PiiOptions(action=action), bytes(32)))
        printed = [*capfd.readouterr(), caplog.text, json.dumps(count_pii(clean))]
    everything = fold_digits(json.dumps(clean, ensure_ascii=False) + "".join(printed))
    assert [value for value in values if value in everything] == []
    assert sum(sum(counts.values()) for counts in count_pii(clean).values()) == 2 * len(values)


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="pii: action='hide'.*leave the step out"):
        PiiOptions(action="hide")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="SSN"):
        PiiOptions(kinds=("SSN",))
    with pytest.raises(UserError, match="need a secret key"):
        remove_pii([], PiiOptions(action="surrogate"))


def test_only_the_kinds_asked_for_go():
    (clean,) = remove_pii([row("a@b.co 9876543210")], PiiOptions(kinds=("EMAIL",)))
    assert clean["messages"][0]["content"] == "<EMAIL> 9876543210"
    assert len(KINDS) == 11
