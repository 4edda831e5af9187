"""Surrogates: one for one value, right in form and check digit, in the same script, and nobody's."""

import random
import re

import pytest
from stdnum import luhn, verhoeff
from stdnum.in_ import aadhaar, epic, gstin, pan

from data_recipes.artefact import UserError
from data_recipes.pii.step import PiiOptions, remove_pii
from data_recipes.pii.surrogates import read_or_make_key, surrogate
from data_recipes.writing.digits import fold_digits, write_digits
from tests import pii_samples

KEY, OTHER_KEY = bytes(range(32)), bytes(32)


def test_an_aadhaar_surrogate_has_a_right_check_digit_and_a_first_digit_that_is_never_issued():
    rng = random.Random(1)
    for _ in range(200):
        new = surrogate("AADHAAR", pii_samples.make_aadhaar(rng), KEY)
        assert re.fullmatch(r"1[0-9]{11}", new) and verhoeff.is_valid(new) and not aadhaar.is_valid(new)


def test_codes_keep_form_and_check_sign_and_leave_the_issued_range():
    rng = random.Random(2)
    for _ in range(100):
        old_pan = pii_samples.make_pan(rng)
        new_pan = surrogate("PAN", old_pan, KEY)
        assert (
            re.fullmatch(r"[A-Z]{5}0000[A-Z]", new_pan)
            and new_pan[3] == old_pan[3]
            and not pan.is_valid(new_pan)
        )
        old = pii_samples.make_gstin(rng)
        new = surrogate("GSTIN", old, KEY)
        assert luhn.is_valid(new, pii_samples.BASE_36) and not gstin.is_valid(new) and new[:2] == old[:2]
        assert new[2:12] == surrogate("PAN", old[2:12], KEY)
        assert epic.is_valid(new_id := surrogate("VOTER_ID", pii_samples.make_voter_id(rng), KEY))
        assert new_id.startswith("ZZZ")


@pytest.mark.parametrize(
    ("kind", "value", "form"),
    [
        ("IFSC", "HDFC0001234", r"ZZZZ0[0-9]{6}"),
        ("PASSPORT", "A12 34567", r"[QXZ][1-9][0-9] [0-9]{4}[1-9]"),
        ("VEHICLE", "TN 09 AB 1234", r"ZZ [0-9]{2} [A-Z]{2} [0-9]{4}"),
        ("VEHICLE", "tn9a1234", r"zz[0-9][a-z][0-9]{4}"),
        ("VEHICLE", "22BH1234AA", r"00BH[0-9]{4}[A-Z]{2}"),
        ("PHONE", "+91 98765-43210", r"\+91 50[0-9]{3}-[0-9]{5}"),
        ("PHONE", "(022) 2345 6789", r"\(050\) [0-9]{4} [0-9]{4}"),
        ("EMAIL", "Ravi@gmail.com", r"user[0-9]{10}@example[.]com"),
        ("UPI_ID", "ravi@okaxis", r"user[0-9]{10}@example"),
        ("AADHAAR_VID", "2341 2341 2341 2341", r"1[0-9]{3}( [0-9]{4}){3}"),
    ],
)
def test_separators_prefix_and_letter_case_stay(kind: str, value: str, form: str):
    assert re.fullmatch(form, surrogate(kind, value, KEY))


def test_a_value_gives_one_surrogate_however_it_is_written_and_another_under_another_key():
    for system in pii_samples.WORDS:
        spaced = surrogate("AADHAAR", write_digits("2341 2341 2346", system), KEY)
        assert fold_digits(spaced).replace(" ", "") == surrogate("AADHAAR", "234123412346", KEY)
        assert spaced == write_digits(spaced, system)  # in the digits of the value
        assert len(spaced) == 14
    assert surrogate("PHONE", "+91 98765 43210", KEY)[4:].replace(" ", "") == surrogate(
        "PHONE", "9876543210", KEY
    )
    assert surrogate("EMAIL", "Ravi@Gmail.com", KEY) == surrogate("EMAIL", "ravi@gmail.com", KEY)
    assert surrogate("AADHAAR", "234123412346", KEY) != surrogate("AADHAAR", "234123412346", OTHER_KEY)


def test_different_values_have_different_surrogates_in_a_thousand():
    rng = random.Random(4)
    values = {pii_samples.make_aadhaar(rng) for _ in range(1000)}
    assert len({surrogate("AADHAAR", value, KEY) for value in values}) == len(values) == 1000


def test_a_dialogue_stays_consistent_across_its_rows():
    rows = [{"id": str(i), "language": "hi", "messages": [{"role": "user", "content": text}]} for i, text in
            enumerate(("फ़ोन ९८७६५ ४३२१०", "call 9876543210"))]  # fmt: skip
    one, two = (
        row["messages"][0]["content"] for row in remove_pii(rows, PiiOptions(action="surrogate"), KEY)
    )
    assert fold_digits(one).split(" ", 1)[1].replace(" ", "") == two.split()[1]
    assert not fold_digits(one).isascii() and "43210" not in fold_digits(one)


def test_the_key_file_is_made_once_private_and_checked(tmp_path):
    path = tmp_path / "key"
    key = read_or_make_key(path)
    assert len(key) == 32 and read_or_make_key(path) == key
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("password")
    with pytest.raises(UserError, match="holds no key for surrogates: it must be 64 hex digits"):
        read_or_make_key(path)
    with pytest.raises(UserError, match="cannot use .* as the file of the surrogates' key"):
        read_or_make_key(tmp_path / "none" / "key")
    with pytest.raises(UserError, match="must be 32 random bytes, this has 3"):
        surrogate("PHONE", "9876543210", b"abc")
