"""The numbers of a bench: ratios taken within a round and then their median, the table, and the plot.

Reads what the workers answered; writes the plot (SVG).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAIR = ("selected", "floor")  # their difference is the price of LoRA on chosen experts
# What trains with an option of train.memory, each beside the first.
MEMORY_TITLES = {
    "plain": "plain step",
    "checkpointing": "gradient checkpointing",
    "chunked_loss": "loss in chunks",
    "bfloat16": "bfloat16",
    "prefix_cache": "frozen layers kept",
    "together": "all four",
}
OVER_PLAIN = {f"{name}_over_plain": (name, "plain") for name in MEMORY_TITLES if name != "plain"}
# Name of a ratio -> (numerator, denominator).
TIME_RATIOS = {
    "selected_over_floor": PAIR,
    "all_over_floor": ("all", "floor"),
    "peft_all_over_selected": ("peft_all", "selected"),
    "peft_all_over_all": ("peft_all", "all"),
    "trl_peft_all_over_selected": ("trl_peft_all", "selected"),
    **OVER_PLAIN,
}
MEMORY_RATIOS = {
    "selected_over_floor": PAIR,
    "selected_over_peft_all": ("selected", "peft_all"),
    "all_over_peft_all": ("all", "peft_all"),
    "selected_over_trl_peft_all": ("selected", "trl_peft_all"),
    **OVER_PLAIN,
}
TITLES = {
    "floor": "attention LoRA (floor)",
    "selected": "ours, chosen experts",
    "all": "ours, all experts",
    "peft_all": "PEFT, all experts",
    "trl_peft_all": "TRL and PEFT, all experts",
    **MEMORY_TITLES,
}
Round = Mapping[str, Mapping[str, Any]]  # contestant -> what its steps took in one round
MB = 1e6


def summarise(
    facts: Mapping[str, Mapping[str, Any]],
    rounds: Sequence[Round],
    by_experts: Mapping[int, Sequence[Round]],
) -> dict[str, Any]:
    """Medians, spreads and ratios of all rounds; `by_experts` (number of experts -> rounds) may be empty.

    A ratio is taken between two contestants of one round, which ran seconds apart; its median over rounds is
    the figure. `time` is wall time (an accelerator's own timer there), `processor_time` that of all threads.
    """
    names = list(facts)
    contestants = {name: _contestant(facts[name], [found[name] for found in rounds]) for name in names}
    spread = {
        kind: {
            title: spread_of(
                [_median_step(found[top], key) / _median_step(found[bottom], key) for found in rounds]
            )
            for title, (top, bottom) in TIME_RATIOS.items()
            if top in facts and bottom in facts
        }
        for kind, key in (("time", "step_s"), ("processor_time", "processor_s"))
    }
    ours = contestants.get("selected") or contestants[names[0]]
    return {
        **{kind: {title: one["median"] for title, one in found.items()} for kind, found in spread.items()},
        "spread": spread,
        "memory": _memory(contestants),
        "matmul_share": ours["matmul_share"] and ours["matmul_share"]["median"],
        "contestants": contestants,
        **({"scaling": _scaling(by_experts)} if by_experts else {}),
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest, quartiles and count."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {
        "median": middle,
        "min": min(values),
        "max": max(values),
        "low_quartile": low,
        "high_quartile": high,
        "n": len(values),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as text; the same from a report that was written to a file and read again."""
    settings, machine, contestants = report["settings"], report["machine"], report["contestants"]
    some = next(iter(contestants.values()))
    n_adapted = settings.get("adapted_layers") or settings["moe_layers"]
    lines = [
        f"A step of {settings['tokens']:,} tokens: hidden {settings['hidden']}, "
        f"{settings['experts']} experts of width {settings['expert_width']}, top-{settings['top_k']};",
        f"{settings['chosen']} chosen in each of {n_adapted} layers, rank {settings['rank']}; "
        f"{settings['dtype']}, {settings['experts_implementation']}.",
        f"{machine['processor']}, {some['threads']} threads, {some['device']}; "
        f"{settings['rounds']} rounds of {settings['steps_per_round']} steps; "
        f"load {machine['load_before']:.1f} before, {machine['load_after']:.1f} after.",
        "",
        f"{'':<27}{'step':>9}{'min to max':>18}{'processor':>11}{'peak memory':>13}{'matmul share':>14}",
    ]
    for name, title in TITLES.items():
        if name in contestants:
            lines.append(f"{title:<27}{_row(contestants[name])}")
        elif name in report["left_out"]:
            lines.append(f"{title:<27}  {report['left_out'][name]}")
    lines.append("")
    for title, found in _in_order(TIME_RATIOS, report["spread"]["time"]):
        lines.append(
            f"time.{title:<28}{found['median']:>7.3f}  ({found['min']:.3f} to {found['max']:.3f}, "
            f"n = {found['n']}; processor time {report['processor_time'][title]:.3f})"
        )
    memory = report["memory"]
    lines += [f"memory.{title:<26}{ratio:>7.3f}" for title, ratio in _in_order(MEMORY_RATIOS, memory)]
    if "expert_lora_bytes" in memory:
        lines.append(
            f"selected - floor: {memory['selected_minus_floor_bytes'] / MB:,.1f} MB, of which adapter, "
            f"gradients and optimizer {sum(memory['expert_lora_bytes'].values()) / MB:,.1f} MB; "
            f"the rest is {memory['beyond_expert_lora_over_floor']:.1%} of the floor's peak"
        )
    return "\n".join([*lines, *_scaling_lines(report.get("scaling"))])


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw step time (median, and a line from smallest to largest) and peak memory as SVG."""
    # Late: the workers and `--help` need no matplotlib.
    from matplotlib.figure import Figure

    contestants = report["contestants"]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(contestants)), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2, sharey=True)
    names = [TITLES[name] for name in contestants]
    steps = [found["step_s"] for found in contestants.values()]
    time_axes.barh(names, [step["median"] for step in steps], color="#0e64b0")
    time_axes.hlines(
        names, [step["min"] for step in steps], [step["max"] for step in steps], color="#1d2733", linewidth=2
    )
    peaks = [found["peak_bytes"]["median"] / MB for found in contestants.values()]
    weights = [found["model_bytes"] / MB for found in contestants.values()]
    memory_axes.barh(names, peaks, color="#0e64b0", label="all else")
    memory_axes.barh(names, weights, color="#b9c7d6", label="frozen weights")
    memory_axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    time_axes.set_xlabel("seconds a step")
    memory_axes.set_xlabel("peak memory, MB")
    time_axes.invert_yaxis()
    for axes in (time_axes, memory_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg")


def _row(found: Mapping[str, Any]) -> str:
    step, share = found["step_s"], found["matmul_share"]
    return (
        f"{step['median']:>7.3f} s{step['min']:>9.3f} to{step['max']:>6.3f}"
        f"{found['processor_s']['median']:>9.3f} s{found['peak_bytes']['median'] / MB:>10,.0f} MB"
        f"{format(share['median'], '.2f') if share else '-':>14}"
    )


def _in_order(titles: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What was found, in the order of `titles`: a file has its keys sorted."""
    return [(title, found[title]) for title in titles if title in found]


def _scaling_lines(scaling: Mapping[str, Any] | None) -> list[str]:
    if scaling is None:
        return []
    lines = []
    for count in sorted(scaling["experts"], key=int):
        wall = scaling["experts"][count]["selected_minus_floor_s"]
        processor = scaling["experts"][count]["selected_minus_floor_processor_s"]
        lines.append(
            f"{count:>5} experts: selected - floor {1000 * wall['median']:6.1f} ms (quartiles "
            f"{1000 * wall['low_quartile']:.1f} to {1000 * wall['high_quartile']:.1f}; "
            f"processor time {1000 * processor['median']:.1f})"
        )
    return [*lines, f"largest change from one to the next: {scaling['largest_change']:.1%}"]


def _contestant(facts: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rates = [turn["matmul_flops_per_s"] for turn in turns]
    flops = facts["flops"]
    shares = flops and [
        flops / (_median_step(turn, "step_s") * rate) for turn, rate in zip(turns, rates, strict=True)
    ]
    return {
        **facts,
        "step_s": spread_of([seconds for turn in turns for seconds in turn["step_s"]]),
        "processor_s": spread_of([seconds for turn in turns for seconds in turn["processor_s"]]),
        "peak_bytes": spread_of([turn["peak_bytes"] for turn in turns]),
        "matmul_flops_per_s": spread_of(rates),
        "matmul_share": shares and spread_of(shares),
    }


def _memory(contestants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios of median peaks, and how the price of expert LoRA compares with what it must keep."""
    peak = {name: found["peak_bytes"]["median"] for name, found in contestants.items()}
    memory: dict[str, Any] = {
        title: peak[top] / peak[bottom]
        for title, (top, bottom) in MEMORY_RATIOS.items()
        if top in peak and bottom in peak
    }
    if set(PAIR) <= contestants.keys():
        selected, floor = (contestants[name] for name in PAIR)
        kinds = ("adapter_bytes", "gradient_bytes", "optimizer_bytes")
        parts = {kind: selected[kind] - floor[kind] for kind in kinds}
        difference = peak["selected"] - peak["floor"]
        memory |= {
            "selected_minus_floor_bytes": difference,
            "expert_lora_bytes": parts,  # what LoRA on experts cannot do without
            "beyond_expert_lora_over_floor": (difference - sum(parts.values())) / peak["floor"],
        }
    return memory


def _scaling(by_experts: Mapping[int, Sequence[Round]]) -> dict[str, Any]:
    """The price of LoRA on chosen experts by the number of experts, at the same rows on chosen ones."""
    found = {
        count: {
            "selected_minus_floor_s": spread_of([_difference(one, "step_s") for one in by_experts[count]]),
            "selected_minus_floor_processor_s": spread_of(
                [_difference(one, "processor_s") for one in by_experts[count]]
            ),
            "floor_s": spread_of([_median_step(one["floor"], "step_s") for one in by_experts[count]]),
        }
        for count in sorted(by_experts)
    }
    price = {count: one["selected_minus_floor_s"]["median"] for count, one in found.items()}
    counts = list(price)
    changes = {
        f"{first}_to_{second}": price[second] / price[first] - 1
        for first, second in zip(counts, counts[1:], strict=False)
    }
    return {
        "experts": {str(count): one for count, one in found.items()},
        "change": changes,
        "largest_change": max(map(abs, changes.values()), default=0.0),
    }


def _median_step(turn: Mapping[str, Any], key: str) -> float:
    return statistics.median(turn[key])


def _difference(found: Round, key: str) -> float:
    selected, floor = (_median_step(found[name], key) for name in PAIR)
    return selected - floor
