"""What a training came to, in a few lines for people: steps, time, memory, losses, experts, the adapter.

Reads and writes nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.training.monitor import TrainResult
from finetune.training_options import TrainConfig


def summary(
    result: TrainResult, config: TrainConfig, experts: Mapping[str, Sequence[int]], folder: Path | str
) -> str:
    """Lines about a run that trained `experts`, by layer, and wrote its adapter to `folder`."""
    stopped = ", stopped early" if result.stopped_early else ""
    peak = f"{result.peak_memory_bytes / 1e9:.2f} GB at most"
    if config.n_processes > 1:
        peak += f" in one of {config.n_processes} processes"
    lowest = [
        f"{group} {loss:.4f} after step {result.lowest_eval_step[group]}"
        for group, loss in result.lowest_eval_loss.items()
    ]
    n_experts, n_layers = sum(map(len, experts.values())), sum(map(bool, experts.values()))
    where = f"{n_experts} experts of {n_layers} layers" if n_experts else "no experts"
    which = "of the last step"
    if config.keep_best:
        which = f"of step {result.adapter_step}, the best for {config.keep_best} rows"
    lines = {
        "steps": f"{result.steps:,} of {config.steps:,}{stopped}",
        "tokens": f"{result.tokens:,} in {duration(result.seconds)}, {result.tokens_per_s:,.0f} a second",
        "memory": peak,
        "loss": f"{result.first_loss:.4f} at first, {result.last_loss:.4f} at last",
        "validation": f"lowest loss {', '.join(lowest)}" if lowest else "no rows",
        "trained": f"{where}, {result.n_trainable:,} parameters",
        "adapter": f"{folder}, {which}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def duration(seconds: float) -> str:
    """A time to be read: "41.5 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
