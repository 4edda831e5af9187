"""Choose how much of the target's routing a plan takes, with a slider, and see the plan change.

Reads a profile in memory; writes nothing. Where there are no widgets (no ipywidgets, a page on GitHub, an
export) the table of all shares and the map of one of them stand in the slider's place.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from IPython.display import HTML, display

from eval.figures import small_png
from eval.routing_figures import routing_figure
from finetune.config import SelectConfig
from finetune.profiling.profile import Profile
from finetune.selecting.plan import build_plan
from finetune.selecting.plan_warnings import mean_coverage

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CELL = 'style="text-align:right; padding:0.2em 0.7em"'  # a widget has no style of its own for tables
COLUMNS = ("p", "experts", "LoRA parameters", "target", "general")


def share_slider(profile: Profile, select: SelectConfig, rank: int, shares: Sequence[float]) -> Any:
    """Display a slider over `shares`, its plan below it; returns both in a box, None without ipywidgets.

    Args:
        select: how the plan is chosen; its share is where the slider starts.
        rank: of the LoRA whose parameters are counted.
    """
    plans = {
        share: build_plan(profile, replace(select, share=share)) for share in sorted({*shares, select.share})
    }
    table = [plan_numbers(plan, rank) for plan in plans.values()]

    def page(chosen: float) -> str:
        return numbers_html(table, [share == chosen for share in plans]) + map_html(profile, plans[chosen])

    try:
        import ipywidgets  # an extra
    except ImportError:
        display(HTML(page(select.share)))
        return None
    slider = ipywidgets.SelectionSlider(
        options=[(f"{share:g}", share) for share in plans],
        value=select.share,
        description="p",
        layout=ipywidgets.Layout(width="30em"),
    )
    shown = ipywidgets.HTML(page(select.share))
    slider.observe(lambda change: setattr(shown, "value", page(change["new"])), names="value")
    box = ipywidgets.VBox([slider, shown])
    # One output with both: what cannot show a widget takes the page.
    bundle = {"text/plain": f"p = {select.share:g}", "text/html": page(select.share)}
    bundle[WIDGET_VIEW] = (box._repr_mimebundle_() or {})[WIDGET_VIEW]
    display(bundle, raw=True)
    return box


def plan_numbers(plan: Mapping[str, Any], rank: int) -> dict[str, str]:
    """What a plan costs and covers, as text, by COLUMNS; coverage is the mean over layers."""
    n_chosen = sum(len(ids) for ids in plan["experts"].values())
    covered = mean_coverage(plan)
    numbers = (
        f"{plan['share']:g}",
        f"{n_chosen} of {len(plan['hottest_quarter']) * plan['n_experts']}",
        f"{plan['parameters_per_rank'] * rank:,}",
        *(f"{covered[role]:.2f}" if role in covered else "-" for role in ("target", "general")),
    )
    return dict(zip(COLUMNS, numbers, strict=True))


def numbers_html(rows: Sequence[Mapping[str, str]], is_chosen: Sequence[bool]) -> str:
    """The plans as a table, the chosen one in bold with a mark."""
    head = "".join(f"<th {CELL}>{html.escape(name)}</th>" for name in ("", *COLUMNS))
    lines = ""
    for row, chosen in zip(rows, is_chosen, strict=True):
        tag = "b" if chosen else "span"
        cells = ("▸" if chosen else "", *(row[name] for name in COLUMNS))
        lines += (
            "<tr>"
            + "".join(f"<td {CELL}><{tag}>{html.escape(cell)}</{tag}></td>" for cell in cells)
            + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def map_html(profile: Profile, plan: Mapping[str, Any]) -> str:
    """The routing of the target's languages with the plan's experts marked, as a picture in a page."""
    title = f"experts chosen at p = {plan['share']:g}"
    figure = routing_figure(profile, profile.languages("target"), plan, title=title, kinds=plan["kinds"])
    return f'<img alt="{title}" src="data:image/png;base64,{base64.b64encode(small_png(figure)).decode()}">'
