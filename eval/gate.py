"""The forgetting gate: did a listed language lose more than the run allows?

Reads `results.json` of the run's folder and `eval.gate` of the config; writes nothing. `local-experts eval`
and `local-experts run` ask it last, when all that they write is there, and end with exit code 3.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_recipes.artefact import UserError, read_artefact
from eval.metric_facts import METRICS
from eval.results_places import pointer
from eval.significance import is_comparison
from finetune.config import RunConfig
from finetune.eval_options import GateConfig, GateFailed


class GateLoss(NamedTuple):
    """What one language (or group) lost, in the metric's unit; low and high are its 95 % interval."""

    name: str
    place: str  # in results.json, a JSON pointer
    loss: float
    low: float
    high: float
    n: int
    is_too_much: bool


def gate_losses(metrics: Mapping[str, Any], gate: GateConfig) -> list[GateLoss]:
    """The loss of each listed language, as often as it has rows: as target, as general.

    Args:
        metrics: "metrics" of results.json.

    Raises:
        UserError: a listed language has no row with this metric.
    """
    table = metrics[gate.metric]
    losses = []
    for name in gate.languages:
        places = {pointer("metrics", gate.metric, name): table.get(name)}
        for group, by_language in table["by_language"].items():
            places[pointer("metrics", gate.metric, "by_language", group, name)] = by_language.get(name)
        found = {place: one for place, one in places.items() if is_comparison(one)}
        if not found:
            raise no_rows(gate, name, {code for by in table["by_language"].values() for code in by})
        losses += [_loss(name, place, one, gate) for place, one in found.items()]
    return losses


def check_gate_languages(
    gate: GateConfig | None, languages: Collection[str], groups: Collection[str]
) -> None:
    """Raise UserError for a listed language without a row: told before a model is loaded."""
    for name in gate.languages if gate else ():
        if name not in languages and name not in groups:
            assert gate
            raise no_rows(gate, name, languages)


def no_rows(gate: GateConfig, name: str, languages: Collection[str]) -> UserError:
    """A listed language that was not asked anything: the gate would be open whatever happened."""
    return UserError(
        f"eval.gate.languages names {name!r}, and no test row counts for its {gate.metric}: languages with "
        f"rows are {', '.join(sorted(languages)) or 'none'}; name one of them, general or target, or build "
        "data with rows of that language"
    )


def gate_message(losses: list[GateLoss], gate: GateConfig, path: Path) -> str | None:
    """One line for each language that lost too much, and where that stands; None when none did."""
    failed = [one for one in losses if one.is_too_much]
    if not failed:
        return None
    what = "its whole 95 % interval is" if gate.by == "interval" else "the measured loss is"
    lines = [
        f"{one.name}: {METRICS[gate.metric].title} lost {one.loss:.4f} (95 % interval {one.low:+.4f} to "
        f"{one.high:+.4f}, {one.n:,} rows); {what} above eval.gate.max_loss={gate.max_loss:g} ({one.place})"
        for one in failed
    ]
    way_out = "train for less, add rows of that language (train.mixture, train.replay), or raise max_loss"
    return "\n  ".join(["forgetting gate: too much was lost", *lines, f"written: {path}; {way_out}"])


def check_gate(config: RunConfig) -> None:
    """Ask the gate of a finished run; without one nothing happens.

    Raises:
        GateFailed: a listed language lost more than max_loss.
        UserError: no results, or a listed language without rows.
    """
    gate = config.eval.gate
    if gate is None:
        return
    path = Path(config.output) / "results.json"
    losses = gate_losses(read_artefact(path, "eval_results")["metrics"], gate)
    if message := gate_message(losses, gate, path):
        raise GateFailed(message)


def _loss(name: str, place: str, found: Mapping[str, Any], gate: GateConfig) -> GateLoss:
    sign = -1 if METRICS[gate.metric].higher_is_better else 1
    low, high = sorted((sign * found["low"], sign * found["high"]))
    loss = sign * found["difference"]
    judged = loss if gate.by == "point" else low
    # A difference of two means carries a rounding error; 0.02 lost is not more than 0.02.
    is_too_much = judged > gate.max_loss + 1e-12
    return GateLoss(name, place, loss + 0.0, low + 0.0, high + 0.0, found["n"], is_too_much)
