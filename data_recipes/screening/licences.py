"""SPDX licence expressions, and the gate: rows whose licence the recipe does not allow stop the build.

Reads and writes nothing; the identifiers are those of the SPDX list inside `license-expression`. AND asks for
every licence, OR for one; an exception (WITH) only adds permissions, so that its licence is what counts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from license_expression import (
    AND,
    ExpressionError,
    LicenseSymbol,
    LicenseWithExceptionSymbol,
    Licensing,
    get_spdx_licensing,
)

from data_recipes.artefact import UserError
from data_recipes.steps import Rejected, Row, with_transform

NAME, VERSION = "licence", 1
_OWN_NAME = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")
N_EXAMPLES = 3
# They ask for no more than notices and attribution, which dataset cards give: what the gate allows unless
# told otherwise, and what may be passed on inside a repository of another licence.
PERMISSIVE = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC-BY-4.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "ODC-By-1.0",
    "PDDL-1.0",
    "PSF-2.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Zlib",
)


@dataclass(frozen=True)
class LicenceOptions:
    """The allowed licences: SPDX identifiers or `LicenseRef-` names of one's own, also WITH an exception.

    Raises:
        UserError: an entry is none of these, or there is none; all such entries are named together.
    """

    allowed: tuple[str, ...] = field(default=PERMISSIVE)

    def __post_init__(self) -> None:
        wrong = [entry for entry in self.allowed if not _is_single(entry)]
        if wrong or not self.allowed:
            raise UserError(
                f"allowed licences: {wrong or 'none is given'}; each must be one SPDX identifier as in "
                "spdx.org/licenses (Apache-2.0, CC-BY-4.0) or a name of your own that begins with LicenseRef-"
            )


def licence_gate(rows: Iterable[Row], options: LicenceOptions | None = None) -> Iterator[Row]:
    """Yield the rows; when all were looked at, stop if the licence of one is not allowed.

    Raises:
        UserError: at the end of the rows, with those refused counted by licence and source.
    """
    refused: list[Rejected] = []
    for row in check_licences(rows, options):
        if isinstance(row, Rejected):
            refused.append(row)
        else:
            yield row
    refuse_build(refused)


def check_licences(rows: Iterable[Row], options: LicenceOptions | None = None) -> Iterator[Row | Rejected]:
    """Yield each row with its licence in SPDX's spelling, or its rejection; workers may share the rows."""
    options = options or LicenceOptions()
    for row in rows:
        expression, problem = judge(row.get("licence"), options.allowed)
        if problem:
            yield Rejected(str(row["id"]), NAME, problem, str(row.get("source", "no source named")))
        else:
            yield with_transform(row, NAME, VERSION, {"spdx": expression})


def refuse_build(rejected: Iterable[Rejected]) -> None:
    """Stop when there are rejections of this step.

    Raises:
        UserError: with the number of rows, the sources and a few ids for each licence, and the way out.
    """
    groups: dict[str, list[Rejected]] = {}
    for item in rejected:
        if item.step == NAME:
            groups.setdefault(item.reason, []).append(item)
    if not groups:
        return
    lines = []
    for reason in sorted(groups):
        sources = ", ".join(sorted({item.detail for item in groups[reason]}))
        ids = sorted(item.row_id for item in groups[reason])
        more = ", ..." if len(ids) > N_EXAMPLES else ""
        lines.append(
            f"  {len(ids):,} rows, {reason} (source: {sources}; rows {', '.join(ids[:N_EXAMPLES])}{more})"
        )
    raise UserError(
        "\n".join(
            [
                "the licences of some rows are not allowed:",
                *lines,
                "leave those sources out, or, if you may use them, add the licence to `allowed`; for a "
                "missing or unknown one write the SPDX expression of the source's own terms in its `licence` "
                "(Apache-2.0 AND CC-BY-4.0), or a name that begins with LicenseRef- and allow that",
            ]
        )
    )


def count_licences(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows each licence has, for the manifest and the card."""
    return dict(sorted(Counter(str(row.get("licence")) for row in rows).items()))


def spdx(expression: str) -> str:
    """Return an SPDX expression in SPDX's spelling.

    Raises:
        UserError: it is none.
    """
    try:
        return str(_parsed(expression))
    except UserError as error:
        raise UserError(
            f"licence {error}; write one as MIT, CC-BY-4.0 or 'MIT OR Apache-2.0', and LicenseRef-<name> for "
            "a licence that has no SPDX name"
        ) from error


@cache
def may_commit(licence: str) -> bool:
    """Return whether rows under an SPDX expression may be committed to a repository of another licence.

    Strict: every licence named must be permissive, also on the two sides of an OR. All others (GPL, LGPL,
    CC-BY-SA, MPL, a licence of one's own) are read on the user's machine and not committed.

    Raises:
        UserError: it is no SPDX expression.
    """
    return all(_is_allowed(part, set(PERMISSIVE)) for part in _parsed(licence).literals)


def judge(licence: Any, allowed: tuple[str, ...]) -> tuple[str, str]:
    """Return a licence in SPDX's spelling and, where it is not allowed, what is wrong ("" where it is)."""
    if licence is None or (isinstance(licence, str) and not licence.strip()):
        return "", "no licence"
    if not isinstance(licence, str):
        return "", f"the licence is of type {type(licence).__name__}, not an SPDX expression"
    return _judge(licence, allowed)


@cache
def _judge(licence: str, allowed: tuple[str, ...]) -> tuple[str, str]:
    try:
        parsed = _parsed(licence)
    except UserError as error:
        return "", str(error)
    ok = _is_allowed(parsed, {str(_parsed(entry)) for entry in allowed})
    return str(parsed), "" if ok else f"licence {parsed}"


def _is_allowed(parsed: Any, allowed: set[str]) -> bool:
    if isinstance(parsed, LicenseWithExceptionSymbol):
        return str(parsed) in allowed or str(parsed.license_symbol) in allowed
    if isinstance(parsed, LicenseSymbol):
        return str(parsed) in allowed
    every_part = [_is_allowed(part, allowed) for part in parsed.args]
    return all(every_part) if isinstance(parsed, AND) else any(every_part)


def _parsed(expression: str) -> Any:
    """Return the tree of an SPDX expression.

    Raises:
        UserError: it is none.
    """
    licensing = _licensing(frozenset(_OWN_NAME.findall(expression)).difference(_spdx_symbols()))
    try:
        parsed = licensing.parse(expression, validate=True, strict=True)
    except ExpressionError as error:
        raise UserError(f"{expression!r} is no SPDX expression ({str(error).splitlines()[0]})") from error
    except Exception as error:  # its parser raises boolean.py's errors as well
        raise UserError(f"{expression!r} is no SPDX expression ({type(error).__name__})") from error
    if parsed is None:
        raise UserError(f"{expression!r} is no SPDX expression (it is empty)")
    return parsed


@cache
def _spdx_symbols() -> dict[str, LicenseSymbol]:
    """Return SPDX's list with the identifiers it had before, which all hold a hyphen; not "GPL", a guess."""
    return {
        key: LicenseSymbol(
            key, [name for name in symbol.aliases if "-" in name], is_exception=symbol.is_exception
        )
        for key, symbol in get_spdx_licensing().known_symbols.items()
    }


@cache
def _licensing(own_names: frozenset[str]) -> Licensing:
    """Return the parser that knows SPDX's list and some LicenseRef- names."""
    return Licensing([*_spdx_symbols().values(), *map(LicenseSymbol, sorted(own_names))])


def _is_single(entry: Any) -> bool:
    try:
        parsed = _parsed(entry) if isinstance(entry, str) else None
    except UserError:
        return False
    return isinstance(parsed, LicenseSymbol | LicenseWithExceptionSymbol)
