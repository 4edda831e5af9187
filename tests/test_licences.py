"""The licence gate: which SPDX expressions pass, and what the build says when it stops."""

import pytest

from data_recipes.artefact import UserError
from data_recipes.screening.licences import (
    LicenceOptions,
    check_licences,
    count_licences,
    judge,
    licence_gate,
    refuse_build,
)
from data_recipes.sources import SOURCES
from data_recipes.steps import Rejected

ALLOWED = ("Apache-2.0", "MIT", "GPL-2.0-only WITH Classpath-exception-2.0", "LicenseRef-our-terms")


def row(number: int, licence: object, source: str = "hub/a") -> dict:
    return {"id": f"r{number}", "licence": licence, "source": source, "language": "hi", "messages": []}


@pytest.mark.parametrize(
    ("licence", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("MIT AND Apache-2.0", "MIT AND Apache-2.0"),
        ("GPL-3.0-only OR MIT", "GPL-3.0-only OR MIT"),
        ("(CC-BY-NC-4.0 OR MIT) AND Apache-2.0", "(CC-BY-NC-4.0 OR MIT) AND Apache-2.0"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("LicenseRef-our-terms", "LicenseRef-our-terms"),
    ],
)
def test_what_is_allowed_passes_in_the_spelling_of_spdx(licence: str, spdx: str):
    assert judge(licence, ALLOWED) == (spdx, "")


@pytest.mark.parametrize(
    ("licence", "problem"),
    [
        ("CC-BY-NC-4.0", "licence CC-BY-NC-4.0"),
        ("MIT AND GPL-3.0-only", "licence MIT AND GPL-3.0-only"),
        ("GPL-2.0-only", "licence GPL-2.0-only"),
        ("MIT AND (GPL-3.0-only OR CC-BY-SA-4.0)", "licence MIT AND (GPL-3.0-only OR CC-BY-SA-4.0)"),
        ("GPL-3.0+", "licence GPL-3.0-or-later"),
        ("BSD", "'BSD' is no SPDX expression"),
        ("NOASSERTION", "'NOASSERTION' is no SPDX expression"),
        ("LicenseRef-theirs", "licence LicenseRef-theirs"),
        ("MIT AND LicenseRef-theirs", "licence MIT AND LicenseRef-theirs"),
        ("MIT AND", "'MIT AND' is no SPDX expression"),
        ("mit license", "'mit license' is no SPDX expression"),
        ("MIT; Apache-2.0", "'MIT; Apache-2.0' is no SPDX expression"),
        ("GPL-2.0-only WITH MIT", "'GPL-2.0-only WITH MIT' is no SPDX expression"),
        ("Classpath-exception-2.0", "'Classpath-exception-2.0' is no SPDX expression"),
        ("", "no licence"),
        ("  ", "no licence"),
        (None, "no licence"),
        (["MIT"], "the licence is of type list"),
    ],
)
def test_what_is_not_allowed_unknown_or_missing_is_refused(licence: object, problem: str):
    assert judge(licence, ALLOWED)[1].startswith(problem)


def test_each_row_passes_with_its_licence_or_is_rejected_in_its_place():
    passed, refused = check_licences([row(1, "mit"), row(2, "CC-BY-NC-4.0")])
    assert isinstance(passed, dict)
    assert passed["transforms"] == [{"name": "licence", "version": 1, "checks": {"spdx": "MIT"}}]
    assert refused == Rejected("r2", "licence", "licence CC-BY-NC-4.0", "hub/a")


def test_the_build_stops_with_all_refused_rows_listed_by_licence():
    rows = [row(i, "CC-BY-NC-4.0", f"hub/{'ab'[i % 2]}") for i in range(5)] + [
        row(8, None, "x.csv"),
        row(9, "MIT"),
    ]
    taken = []
    with pytest.raises(UserError) as stopped:
        taken.extend(licence_gate(rows))
    assert [r["id"] for r in taken] == ["r9"]  # every row was looked at before the build stopped
    lines = str(stopped.value).splitlines()
    assert lines[1] == "  5 rows, licence CC-BY-NC-4.0 (source: hub/a, hub/b; rows r0, r1, r2, ...)"
    assert lines[2] == "  1 rows, no licence (source: x.csv; rows r8)"
    assert "leave those sources out" in lines[3] and "LicenseRef-" in lines[3]


def test_rejections_of_other_steps_do_not_stop_the_build():
    refuse_build([Rejected("r1", "pii", "licence MIT")])


def test_the_options_name_every_entry_that_is_no_licence():
    with pytest.raises(UserError, match=r"\['BSD', 'MIT OR Apache-2.0'\].*LicenseRef-"):
        LicenceOptions(allowed=("MIT", "BSD", "MIT OR Apache-2.0"))
    with pytest.raises(UserError, match="none is given"):
        LicenceOptions(allowed=())


def test_every_source_of_the_shipped_recipes_passes():
    rows = [row(i, source.licence) for i, source in enumerate(SOURCES.values())]
    assert len(rows) > 0 and [r for r in check_licences(rows) if isinstance(r, Rejected)] == []
    assert sum(count_licences(rows).values()) == len(rows)
