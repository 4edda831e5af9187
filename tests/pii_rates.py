"""Print how often clean text is taken for personal data, and the recall on made numbers.

Reads the shipped recipes' facts, Django's catalogues and Babel; writes nothing.
Command: `python -m tests.pii_rates`. What it calls clean holds dates, amounts, names and interface texts of
fifteen languages. Order numbers are made: a bare one of ten or twelve digits cannot be told from a person's.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path

from babel import Locale
from babel.dates import format_date, format_datetime, format_time
from babel.numbers import format_compact_decimal, format_currency, format_decimal

from data_recipes.locale_rows import split_rows
from data_recipes.pii.recognisers import find_pii
from data_recipes.recipe import load_recipe
from data_recipes.screening.comparison import contents
from data_recipes.sources import django_catalogue
from data_recipes.tasks import SPLITS
from data_recipes.writing.digits import write_digits
from tests import pii_samples

RECIPES = sorted(Path(__file__).parents[1].joinpath("configs/recipes").glob("*.yaml"))
LANGUAGES = ("hi", "bn", "ta", "te", "mr", "gu", "kn", "ml", "pa", "or", "as", "ne", "ur", "en_IN", "kok")
ORDER_WORDS = ("order no.", "ऑर्डर संख्या", "invoice", "চালান", "ஆர்டர் எண்")


def recipe_texts() -> Iterator[str]:
    """Yield every message of the shipped recipes' rows."""
    for recipe in RECIPES:
        for split in SPLITS:
            for row in split_rows(load_recipe(recipe, []), split, Counter()):
                yield from (text for _, text in contents(row))


def catalogue_texts() -> Iterator[str]:
    """Yield Django's interface texts, English and translated."""
    for code in LANGUAGES:
        catalogue = django_catalogue(code)
        yield from catalogue.values()
    yield from django_catalogue("hi")


def babel_texts() -> Iterator[str]:
    """Yield dates, times, amounts and numbers as Babel writes them, in Latin and in native digits."""
    rng = random.Random(0)
    systems = list(pii_samples.WORDS)
    for code in LANGUAGES:
        locale = Locale.parse(code)
        for _ in range(400):
            day = date(rng.randrange(1900, 2100), rng.randrange(1, 13), rng.randrange(1, 29))
            moment = datetime(
                day.year, day.month, day.day, rng.randrange(24), rng.randrange(60), rng.randrange(60)
            )
            amount = rng.randrange(10 ** rng.randrange(1, 13)) / rng.choice((1, 100))
            texts = [
                *(format_date(day, form, locale) for form in ("short", "medium", "full")),
                format_datetime(moment, "medium", locale=locale),
                format_time(moment, "short", locale=locale),
                format_currency(amount, "INR", locale=locale),
                format_decimal(amount, locale=locale),
                format_compact_decimal(amount, locale=locale),
                f"{day.isoformat()} {moment.isoformat()} {day:%d.%m.%Y} {day:%d/%m/%Y}",
            ]
            yield from texts
            yield write_digits(rng.choice(texts), rng.choice(systems))


def rate(name: str, texts: Iterable[str]) -> None:
    """Print the number of texts, of those with a digit or an @, and what was found in them."""
    n_texts, n_with_sign, n_hit, kinds = 0, 0, 0, Counter()
    for text in texts:
        found = find_pii(text)
        n_texts += 1
        n_with_sign += any(sign.isdigit() or sign == "@" for sign in text)
        n_hit += bool(found)
        kinds.update(finding.kind for finding in found)
    per_1000 = 1000 * n_hit / n_texts
    print(
        f"{name:24} {n_texts:>8,} {n_with_sign:>10,} {n_hit:>6,} {per_1000:>9.3f}"
        f"  {dict(sorted(kinds.items()))}"
    )


def print_recall() -> None:
    """Print recall for Aadhaar and mobile numbers, over thirteen digit scripts, forms and places."""
    for kind, make, forms in (
        ("AADHAAR", pii_samples.make_aadhaar, pii_samples.aadhaar_forms),
        ("PHONE", pii_samples.make_phone, pii_samples.phone_forms),
    ):
        n_cases, n_found = 0, 0
        for system in pii_samples.WORDS:
            rng = random.Random(f"rates {kind} {system}")
            for _ in range(100):
                for form in forms(make(rng)):
                    for text, written in pii_samples.in_texts(form, system):
                        n_cases += 1
                        values = [text[f.start : f.end].strip("()") for f in find_pii(text)]
                        n_found += values == [written]
        print(f"recall {kind}: {n_found:,} of {n_cases:,} in {len(pii_samples.WORDS)} digit scripts")


def main() -> None:
    """Print both tables."""
    print(f"{'clean text':24} {'texts':>8} {'with sign':>10} {'found':>6} {'per 1,000':>9}  kinds")
    rate("recipes' messages", recipe_texts())
    rate("Django's catalogues", catalogue_texts())
    rate("Babel's dates, amounts", babel_texts())
    for n_digits in range(6, 17):
        rng = random.Random(n_digits)
        numbers = (rng.randrange(10 ** (n_digits - 1), 10**n_digits) for _ in range(1000))
        rate(
            f"order numbers, {n_digits} digits", (f"{rng.choice(ORDER_WORDS)} {number}" for number in numbers)
        )
    print_recall()


if __name__ == "__main__":
    main()
