"""The languages this project knows: English and the 22 scheduled languages of India.

Reads nothing, writes nothing. One row a language; every other file asks here for a name, a script or a
locale. `written_forms` has the other scripts of each, and what tools call them.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from data_recipes.artefact import UserError


@dataclass(frozen=True)
class Language:
    """One language as it is written in India."""

    code: str  # BCP-47 primary subtag
    name: str  # in English
    native_name: str
    script: str  # ISO 15924, the script that Babel's data for `code` is written in


# Santali, Manipuri, Kashmiri, Sindhi and Konkani are written in two scripts or more: here stands the one CLDR
# 47 (Babel 2.18) uses, because the rows are made from it.
_ROWS = (
    ("en", "English", "English", "Latn"),
    ("as", "Assamese", "অসমীয়া", "Beng"),
    ("bn", "Bengali", "বাংলা", "Beng"),
    ("brx", "Bodo", "बर’", "Deva"),
    ("doi", "Dogri", "डोगरी", "Deva"),
    ("gu", "Gujarati", "ગુજરાતી", "Gujr"),
    ("hi", "Hindi", "हिन्दी", "Deva"),
    ("kn", "Kannada", "ಕನ್ನಡ", "Knda"),
    ("kok", "Konkani", "कोंकणी", "Deva"),
    ("ks", "Kashmiri", "کٲشُر", "Arab"),
    ("mai", "Maithili", "मैथिली", "Deva"),
    ("ml", "Malayalam", "മലയാളം", "Mlym"),
    ("mni", "Manipuri", "মৈতৈলোন্", "Beng"),
    ("mr", "Marathi", "मराठी", "Deva"),
    ("ne", "Nepali", "नेपाली", "Deva"),
    ("or", "Odia", "ଓଡ଼ିଆ", "Orya"),
    ("pa", "Punjabi", "ਪੰਜਾਬੀ", "Guru"),
    ("sa", "Sanskrit", "संस्कृत", "Deva"),
    ("sat", "Santali", "ᱥᱟᱱᱛᱟᱲᱤ", "Olck"),
    ("sd", "Sindhi", "سنڌي", "Arab"),
    ("ta", "Tamil", "தமிழ்", "Taml"),
    ("te", "Telugu", "తెలుగు", "Telu"),
    ("ur", "Urdu", "اردو", "Arab"),
)
LANGUAGES: dict[str, Language] = {row[0]: Language(*row) for row in _ROWS}
SCHEDULED: tuple[str, ...] = tuple(code for code in LANGUAGES if code != "en")


def language(code: str) -> Language:
    """Return the language of a code.

    Raises:
        UserError: the code is not one of `LANGUAGES`; the message names the nearest one.
    """
    if code in LANGUAGES:
        return LANGUAGES[code]
    by_name = {row.name.lower(): row.code for row in LANGUAGES.values()}
    nearest = get_close_matches(str(code).lower(), [*LANGUAGES, *by_name], n=1)
    hint = f"did you mean {by_name.get(nearest[0], nearest[0])!r}? " if nearest else ""
    raise UserError(f"unknown language {code!r}: {hint}known codes are {', '.join(LANGUAGES)}")
