"""Numbers and rupees as written in India: lakhs and crores by grouping and by word, in either digits.

Reads the tables of `tables.py`; writes nothing. The same tables serve `parsing.py`, which reads such
text back. A fact that no checked source holds is `None`, never another language's.
"""

from decimal import ROUND_HALF_UP, Context, Decimal

from data_recipes.artefact import UserError
from data_recipes.locales.tables import Scale, babel_locale, digit_system, exact, override, scales
from data_recipes.writing.digits import write_digits

# The signs of a number in Arabic digits; the minus sign is plain everywhere (see overrides.yaml).
_ARABIC = ("arab", "arabext")
# The default context would round what has more than 28 digits; 60 and 60 may come in, and a scale with them.
_PRECISE = Context(prec=200, rounding=ROUND_HALF_UP)


def grouped(digits: str) -> str:
    """Return a string of ASCII digits with the Indian grouping: three from the right, then pairs."""
    head, tail = digits[:-3], digits[-3:]
    pairs = [head[max(0, end - 2) : end] for end in range(len(head), 0, -2)][::-1]
    return ",".join([*pairs, tail])


def _written(number: Decimal, n_decimals: int, tag: str, digits: str | None) -> str:
    """Return a number with at least `n_decimals` decimals; more where it has more."""
    whole, _, decimals = f"{number.copy_abs():f}".partition(".")
    decimals = decimals.ljust(n_decimals, "0")
    text = grouped(whole) + (f".{decimals}" if decimals else "")
    system = digit_system(tag, digits)
    if system in _ARABIC:
        symbols = babel_locale(tag).number_symbols[system]
        text = text.replace(",", symbols["group"]).replace(".", symbols["decimal"])
    return ("-" if number < 0 else "") + write_digits(text, system)


def format_number(value: int | Decimal, tag: str, digits: str | None = None) -> str:
    """Return a number with the Indian grouping, all its decimals, and the tag's digits: १,८७,५००.५.

    Args:
        value: exact, an int or a Decimal; nothing is rounded.
        digits: a numbering system of the tag ("latn", "deva"); without it the one CLDR writes in.

    Raises:
        UserError: an unknown tag, digits the language is not written in, or a float.
    """
    return _written(exact(value), 0, tag, digits)


def _with_rupee_sign(text: str, tag: str) -> str:
    corrected = override("rupee_pattern", tag)
    if corrected:
        pattern = corrected["pattern"]
    else:
        currency = babel_locale(tag).currency_formats["standard"]
        pattern = f"{currency.prefix[0]}#{currency.suffix[0]}".replace("\xa0", " ")
    sign = "-" if text.startswith("-") else ""
    return sign + pattern.replace("#", text.removeprefix("-")).replace("¤", "₹")


def format_rupees(value: int | Decimal, tag: str, digits: str | None = None) -> str:
    """Return an amount with the rupee sign where the language puts it: ₹1,87,500, ₹1,87,500.50.

    Paise are written with two digits, and left out of whole rupees.

    Raises:
        UserError: as `format_number`, or an amount finer than a paisa.
    """
    amount = exact(value)
    paise = amount.quantize(Decimal("0.01"), context=_PRECISE)
    if paise != amount:
        raise UserError(f"₹{amount} is finer than a paisa: round it to two decimals first")
    text = _written(rounded(amount, 2), 0 if amount == amount.to_integral_value() else 2, tag, digits)
    return _with_rupee_sign(text, tag)


def rounded(value: Decimal, n_decimals: int) -> Decimal:
    """Return a value rounded half up (away from zero), as money is, without trailing zeros."""
    text = f"{value.quantize(Decimal(1).scaleb(-n_decimals), context=_PRECISE):f}"
    return Decimal(text.rstrip("0").rstrip(".") if "." in text else text)


def _scale_for(size: Decimal, tag: str, n_decimals: int) -> Scale | None:
    """Return the scale that a size is counted in after rounding: 99,99,999 is 1 crore, not 100 lakh."""
    chosen = None
    for scale in reversed(scales(tag)):
        unit = chosen.value if chosen else 1
        if rounded(_PRECISE.divide(size, Decimal(unit)), n_decimals) * unit < scale.value:
            break
        chosen = scale
    return chosen


def format_compact(
    value: int | Decimal, tag: str, n_decimals: int = 2, digits: str | None = None, rupees: bool = False
) -> str | None:
    """Return a number in thousands, lakhs, crores, arabs or kharabs: 1.87 लाख, ₹3 करोड़.

    The largest scale that the language has a checked word for is taken. `None` where it has none.

    Args:
        n_decimals: how many decimals are kept at most; rounded half up.
        rupees: with the rupee sign.

    Raises:
        UserError: as `format_number`.
    """
    number = exact(value)
    if not scales(tag):
        return None
    scale = _scale_for(number.copy_abs(), tag, n_decimals)
    count = rounded(_PRECISE.divide(number, Decimal(scale.value if scale else 1)), n_decimals)
    text = _written(count, 0, tag, digits)
    if rupees:
        text = _with_rupee_sign(text, tag)
    if scale is None:
        return text
    return f"{text} {scale.one if abs(count) == 1 else scale.other}"
