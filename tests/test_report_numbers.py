"""Every number of a report is found in results.json at the place it names, and again from the rows there."""

import html
import json
import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from made_up_run import full_results, write_run
from sacrebleu.metrics.chrf import CHRF
from statsmodels.stats.contingency_tables import mcnemar

from data_recipes.artefact import UserError, read_artefact
from data_recipes.text import script_share
from data_recipes.writing.graphemes import graphemes
from eval.report import gate_outcome, report_stage
from eval.report_tables import result_tables
from eval.samples import make_answer
from finetune.eval_options import GateConfig

COLUMNS = ("base", "other", "difference", "95 % interval", "p", "verdict", "rows")
DIGITS = {"exact_match": 3, "chrf": 1, "bits_per_byte": 3, "script_share": 3, "acc,none": 3}
SLICES = {"by_language": "language", "by_task": "task", "by_kind": "kind"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a run with all parts and its report."""
    folder = tmp_path_factory.mktemp("full")
    config = write_run(folder, full_results(), GateConfig(languages=("en", "doi"), max_loss=0.1))
    report_stage(replace(config, eval=replace(config.eval, samples=40)))
    return folder


@pytest.fixture(scope="module")
def page(report):
    return (report / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(report):
    return read_artefact(report / "results.json", "eval_results")


def shown_lines(page):
    """Place and cells of each line of the tables of comparisons, in their order."""
    found = []
    for place, line in re.findall(r'<tr data-place="([^"]*)"(.*?)</tr>', page, flags=re.DOTALL):
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", line)
        if len(cells) == len(COLUMNS):
            found.append((html.unescape(place), dict(zip(COLUMNS, map(html.unescape, cells), strict=True))))
    return found


def at(results, place):
    """What stands at a JSON pointer (RFC 6901)."""
    for part in place.split("/")[1:]:
        results = results[part.replace("~1", "/").replace("~0", "~")]
    return results


def rows_of(results, place):
    """Metric, both systems' row values and the rows that a place of results.json is about."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in place.split("/")[1:]]
    by_id = {}
    if parts[0] == "others":
        by_id = {row["id"]: row for row in results["others"][parts[1]]["rows"]}
        parts = parts[2:]
    _, metric, *where = parts
    group, *slice_name = where if len(where) == 1 else where[1:]
    rows = [row for row in results["rows"] if row["group"] == group]
    if slice_name:
        rows = [row for row in rows if row[SLICES[where[0]]] == slice_name[0]]
    if metric == "script_share":
        rows = [row for row in rows if script_share(row["expected"], row["script"]) > 0]
    return metric, [(row, by_id.get(row["id"])) for row in rows]


def score(metric, pairs, system):
    """The metric of one system from its rows, by the words of the report's last section."""
    rows = [row for row, _ in pairs]
    if metric == "exact_match":
        return np.mean(
            [other["exact"] if system == "other" else row[f"{system}_exact"] for row, other in pairs]
        )
    if metric == "script_share":
        return np.mean([row[f"{system}_script"] for row in rows])
    if metric == "bits_per_byte":
        return np.average([row[f"{system}_{metric}"] for row in rows], weights=[r["n_bytes"] for r in rows])
    texts = [[unicodedata.normalize("NFC", row[name]) for row in rows] for name in (system, "expected")]
    return CHRF(word_order=2).corpus_score(texts[0], [texts[1]]).score


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def test_every_shown_number_stands_at_the_place_it_names(page, results):
    lines = shown_lines(page)
    assert len(lines) > 200
    for place, cells in lines:
        found = at(results, place)
        metric = re.split("/(?:metrics|against_tuned)/", place)[1].split("/")[0]
        form = f"{{:.{DIGITS[metric]}f}}"
        assert [cells["base"], cells["other"]] == [form.format(found[name]) for name in ("base", "tuned")]
        interval = [number(text) for text in cells["95 % interval"].split(" to ")]
        shown = [number(cells["difference"]), *interval]
        rounded = [float(form.format(found[name])) for name in ("difference", "low", "high")]
        assert shown == rounded
        assert cells["verdict"] == found["verdict"] and number(cells["rows"]) == found["n"]
        expected_p = "<0.001" if found["p_holm"] < 0.001 else f"{found['p_holm']:.3f}"
        assert cells["p"] == expected_p


def test_every_shown_number_comes_again_from_the_rows(page, results):
    n_checked = dict.fromkeys(("exact_match", "chrf", "bits_per_byte", "script_share"), 0)
    for place, cells in shown_lines(page):
        if place.startswith("/tasks/"):
            continue  # a task has rows of its own
        metric, pairs = rows_of(results, place)
        if place.startswith("/others/") and metric != "exact_match":
            continue  # a contestant's row holds its answer and whether that is right
        both = (
            ("other", "tuned")
            if "/against_tuned/" in place
            else ("base", "other" if pairs[0][1] else "tuned")
        )
        base, other = (score(metric, pairs, system) for system in both)
        rounding = 0.5001 * 10 ** -DIGITS[metric]
        assert [number(cells["base"]), number(cells["other"])] == pytest.approx([base, other], abs=rounding)
        assert number(cells["difference"]) == pytest.approx(other - base, abs=rounding)
        assert number(cells["rows"]) == len(pairs)
        n_checked[metric] += 1
    assert min(n_checked.values()) == 23 + 2 + 2  # languages, groups, the task of each


def test_the_p_value_of_every_exact_match_is_that_of_its_rows(page, results):
    n_checked = 0
    for place, _ in shown_lines(page):
        if place.startswith("/metrics/exact_match"):
            _, pairs = rows_of(results, place)
            outcomes = [(row["base_exact"], row["tuned_exact"]) for row, _ in pairs]
            counts = [[outcomes.count((a, b)) for b in (1.0, 0.0)] for a in (1.0, 0.0)]
            theirs = mcnemar(counts, exact=True)
            assert at(results, place)["p"] == pytest.approx(vars(theirs)["pvalue"], rel=1e-12)
            n_checked += 1
    assert n_checked > 40


def test_markdown_and_json_hold_the_tables_of_the_page(report, page):
    lines = shown_lines(page)
    text = (report / "report.md").read_text(encoding="utf-8")
    in_markdown = [re.sub(r"\\(.)|`", r"\1", line).strip("| ").split(" | ") for line in text.splitlines()]
    in_markdown = [
        (line[-1], dict(zip(COLUMNS, line[1:-1], strict=True)))
        for line in in_markdown
        if len(line) == 9 and line[-1].startswith("/")
    ]
    assert sorted(in_markdown, key=str) == sorted(lines, key=str)
    body = json.loads((report / "report.json").read_text(encoding="utf-8"))
    in_json = [line for table in body["tables"] for line in table["lines"]]
    assert sorted(line["place"] for line in in_json) == sorted(place for place, _ in lines)


def test_languages_of_both_groups_stand_together_worst_first(results):
    table = result_tables(results)[0]
    differences = [line.found["difference"] for line in table.lines]
    assert (table.section, len(differences)) == ("languages", 23)
    assert differences == sorted(differences)
    assert {"English (general)", "Dogri (target)"} <= {line.name for line in table.lines}


def test_metrics_where_less_is_better_are_worst_first_too(results):
    tables = [table for table in result_tables(results) if table.title == "Bits per byte, target rows"]
    differences = [line.found["difference"] for line in tables[0].lines[:-1]]  # the last is the only task
    assert differences == sorted(differences, reverse=True)


def test_parts_that_are_not_there_or_not_whole_give_no_tables(results):
    plain = {key: value for key, value in results.items() if key not in ("others", "tasks", "cost")}
    assert {table.section for table in result_tables(plain)} == {"languages", "totals", "details"}
    broken = {
        **plain,
        "others": {"a": {"metrics": None}, "b": {}},
        "tasks": {"t": {"metrics": {"acc": None}}},
    }
    assert len(result_tables(broken)) == len(result_tables(plain))


def test_a_contestant_without_likelihoods_has_no_line_of_bits(results):
    bits = [t for t in result_tables(results) if t.title == "Bits per byte of contestants, beside base"]
    assert [line.name for line in bits[0].lines] == [
        "random experts (adapter), target rows",
        "random experts (adapter), general rows",
    ]


def test_cost_is_shown_as_it_was_counted(page):
    assert "0.0223 USD" in page and "0.6 and 2.2" in page
    table = re.search(r"Tokens, time and money.*?</table>", page, flags=re.DOTALL)
    assert table and table[0].count("12,345") == 4 and table[0].count("about 12,345") == 1
    assert re.findall(r'data-place="/cost/([^"]*)"', table[0])[:2] == ["base", "tuned"]


def test_the_gate_stands_on_top_with_each_language(page, report, results):
    gate = json.loads((report / "report.json").read_text(encoding="utf-8"))["gate"]
    losses = {one["name"]: one for one in gate["losses"]}
    assert {name: one["is_too_much"] for name, one in losses.items()} == {"en": False, "doi": True}
    for one in losses.values():
        assert one["loss"] == -at(results, one["place"])["difference"]
    head = page[: page.index("<main>")]
    for text in ("Forgetting gate not passed", "English lost", '<span class="worse">Dogri lost'):
        assert text in head
    assert "Forgetting gate **not passed**" in (report / "report.md").read_text(encoding="utf-8")


def test_a_gate_that_is_passed_says_so_and_one_without_rows_is_an_error(results, tmp_path):
    passed = gate_outcome(results["metrics"], GateConfig(languages=("ta", "general"), max_loss=0.9))
    assert passed and passed["passed"] and len(passed["losses"]) == 2
    assert gate_outcome(results["metrics"], None) is None
    config = write_run(tmp_path, gate=GateConfig(languages=("hi",)))
    with pytest.raises(UserError, match="names 'hi', and no test row"):
        report_stage(config)


def answers_in_page(page):
    return re.findall(r'<dd( lang="[^"]*")? dir="(\w+)">(.*?)</dd>', page, flags=re.DOTALL)


def test_marks_lie_between_graphemes_and_change_no_text(page, results):
    texts = {text for row in results["rows"] for text in (row["base"], row["tuned"], row["expected"])}
    texts |= {row["answer"] for other in results["others"].values() for row in other["rows"]}
    n_marks = 0
    for _, _, inner in answers_in_page(page):
        text = html.unescape(re.sub(r"</?mark>", "", inner))
        assert text in texts
        pieces = [html.unescape(piece) for piece in re.split(r"</?mark>", inner)]
        assert [one for piece in pieces for one in graphemes(piece)] == graphemes(text)
        n_marks += inner.count("<mark>")
    assert n_marks > 20


def test_scripts_from_right_to_left_are_said_to_be(page):
    directions = {}
    for lang, direction, _ in answers_in_page(page):
        directions.setdefault(lang.partition('"')[2].strip('"')[:3], set()).add(direction)
    assert {directions[tag] == {"rtl"} for tag in ("ur-", "sd-", "ks-") if tag in directions} == {True}
    assert directions["ta-"] == directions["bn-"] == {"ltr"}


def test_a_right_answer_has_no_marks_and_an_empty_one_is_said_to_be_empty(page):
    assert [piece.kind for piece in make_answer("base", "நாள்", "நாள்", 1.0).pieces] == ["same"]
    empty = make_answer("base", "", "நாள்", 0.0)
    assert (empty.pieces, empty.is_right) == ([], False)
    judged_otherwise = make_answer("base", "7", "07", None)
    assert (judged_otherwise.is_right, judged_otherwise.pieces[0].kind) == (None, "changed")


def test_the_full_page_is_whole_and_small(page):
    assert len(page.encode()) < 1_000_000
    loads = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [value for value in loads if not value.startswith(("#", "data:image/png;base64,"))] == []
