"""The tables of a report, once for page, Markdown and JSON: which comparison stands where, by what name.

Reads the body of results.json, writes nothing. Each line keeps its place there as a JSON pointer (RFC 6901),
so that a number can be followed to its comparison, and from there to its rows. Parts that a run does not have
(contestants, tasks) give no tables.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from eval.figures import language_name
from eval.metric_facts import METRICS, facts_of
from eval.results_places import pointer
from eval.significance import improvement, is_comparison, worst_first

GROUPS = ("target", "general")
Section = Literal["languages", "totals", "contestants", "tasks", "details"]


class Line(NamedTuple):
    """One comparison under its name; `place` is where it stands in results.json."""

    name: str
    place: str
    metric: str
    found: Mapping[str, Any]


class ResultTable(NamedTuple):
    """Comparisons that are read together: what heads their names, and the columns of both systems."""

    section: Section
    title: str
    first: str
    other: str
    lines: list[Line]
    base: str = "base"


def result_tables(results: Mapping[str, Any]) -> list[ResultTable]:
    """Every table of a report in its order; lists of languages and tasks are worst first."""
    metrics = results["metrics"]
    tables = [
        languages_table(metrics),
        *total_tables(metrics),
        *contestant_tables(results.get("others") or {}),
        *task_tables(results.get("tasks") or {}),
        *detail_tables(metrics),
    ]
    return [table for table in tables if table.lines]


def languages_table(metrics: Mapping[str, Any]) -> ResultTable:
    """Gain and forgetting side by side: exact match of every language of both groups, worst first."""
    lines = [
        Line(f"{language_name(code)} ({group})", place, "exact_match", found)
        for group in GROUPS
        for code, place, found in _slices(metrics, "exact_match", "by_language", group)
    ]
    lines.sort(key=lambda line: (improvement(line.found, line.metric), line.name))
    return ResultTable("languages", "Exact match by language, worst first", "language", "tuned", lines)


def total_tables(metrics: Mapping[str, Any]) -> Iterator[ResultTable]:
    """Every metric over all rows of a group, and exact match of what is to generalise and to remember."""
    titles = {"target": "Target rows", "general": "General rows (forgetting)"}
    for group, title in titles.items():
        lines = [
            Line(_with_arrow(metric), pointer("metrics", metric, group), metric, metrics[metric][group])
            for metric in in_order(metrics)
            if is_comparison((metrics[metric] or {}).get(group))
        ]
        lines += [
            Line(f"{_with_arrow('exact_match')}, tasks to {kind}", place, "exact_match", found)
            for kind, place, found in _slices(metrics, "exact_match", "by_kind", group)
        ]
        yield ResultTable("totals", title, "metric", "tuned", lines)


def detail_tables(metrics: Mapping[str, Any]) -> Iterator[ResultTable]:
    """Every metric in every language and task."""
    for metric in in_order(metrics):
        for group in GROUPS:
            lines = [
                Line(_slice_name(by, key), place, metric, found)
                for by in ("by_language", "by_task")
                for key, place, found in _slices(metrics, metric, by, group)
            ]
            title = f"{facts_of(metric).title}, {group} rows"
            yield ResultTable("details", title, "slice", "tuned", lines)


def contestant_tables(others: Mapping[str, Any]) -> Iterator[ResultTable]:
    """Each further contestant on the same rows, beside base and beside tuned; then its languages."""
    for key, title, base, other in (
        ("metrics", "{} of contestants, beside base", "base", "contestant"),
        ("against_tuned", "{} of tuned, beside contestants", "contestant", "tuned"),
    ):
        for metric in in_order({metric for one in others.values() for metric in one.get(key) or {}}):
            lines = [
                Line(f"{name} ({one.get('kind', 'contestant')}), {group} rows", place, metric, found)
                for name, one in others.items()
                for group in GROUPS
                for place, found in [_total(one, ("others", name, key), metric, group)]
                if found
            ]
            title_of_metric = title.format(facts_of(metric).title)
            yield ResultTable("contestants", title_of_metric, "contestant", other, lines, base)
    for name, one in others.items():
        lines = [
            Line(f"{language_name(code)} ({group})", place, "exact_match", found)
            for group in GROUPS
            for code, place, found in _slices(
                one.get("metrics") or {}, "exact_match", "by_language", group, ("others", name)
            )
        ]
        lines.sort(key=lambda line: (improvement(line.found, line.metric), line.name))
        yield ResultTable("contestants", f"{name}: exact match by language", "language", name, lines)


def task_tables(tasks: Mapping[str, Any]) -> Iterator[ResultTable]:
    """Each task: its metrics over all rows, then by language and by kind of question."""
    for name, task in tasks.items():
        metrics, lines = task.get("metrics") or {}, []
        for metric in in_order(metrics):
            head = ("tasks", name)
            place, found = _total(task, (*head, "metrics"), metric, "all")
            lines += [Line(f"{_with_arrow(metric)}, all rows", place, metric, found)] if found else []
            for by in ("by_language", "by_task"):
                for key, place, found in _slices(metrics, metric, by, None, head):
                    lines.append(
                        Line(f"{facts_of(metric).title}, {_slice_name(by, key)}", place, metric, found)
                    )
        title = f"{name} ({task.get('kind', 'task')}, version {task.get('version', 'not said')})"
        yield ResultTable("tasks", title, "metric", "tuned", lines)


def as_json(tables: list[ResultTable]) -> list[dict[str, Any]]:
    """The tables as report.json holds them: names, places and numbers."""
    return [
        {
            "section": table.section,
            "title": table.title,
            "lines": [
                {"name": line.name, "place": line.place, "metric": line.metric, **line.found}
                for line in table.lines
            ],
        }
        for table in tables
    ]


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics, ours first; a results file is sorted by letter."""
    return sorted(names, key=lambda name: (name not in METRICS, [*METRICS, name].index(name), name))


def words(name: str) -> str:
    """A name of the code as a reader has it."""
    return name.replace("_", " ")


def _slices(
    metrics: Mapping[str, Any], metric: str, by: str, group: str | None, head: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Name, place and comparison of each slice, worst first; `group` is None where slices have no groups."""
    table = (metrics.get(metric) or {}).get(by) or {}
    path = (*head, "metrics", metric, by, *(() if group is None else (group,)))
    found = table if group is None else table.get(group) or {}
    found = {name: one for name, one in found.items() if is_comparison(one)}
    for name, one in worst_first(found, metric).items():
        yield name, pointer(*path, name), one


def _total(
    result: Mapping[str, Any], path: tuple[str, ...], metric: str, key: str
) -> tuple[str, Mapping[str, Any] | None]:
    """Place and comparison over all rows of a group, None where there is none; `path` ends at the metrics."""
    found = ((result.get(path[-1]) or {}).get(metric) or {}).get(key)
    return pointer(*path, metric, key), found if is_comparison(found) else None


def _slice_name(by: str, key: str) -> str:
    return language_name(key) if by == "by_language" else words(key)


def _with_arrow(metric: str) -> str:
    facts = facts_of(metric)
    return f"{facts.title} {'↑' if facts.higher_is_better else '↓'}"
