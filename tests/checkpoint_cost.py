"""What checkpoints cost on the quickstart's settings: run it on a machine that does nothing else.

    python -m tests.checkpoint_cost [ROUNDS]

Asked (issue 6): writing takes at most 2 % of the time between two checkpoints, and a run that goes on is at
its first step within 1.2 times a fresh start. Both starts are timed in this process, from the call of the
stage to the end of the first optimizer step, by turns; so imports, which both share, are left out.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from torch.optim.optimizer import register_optimizer_step_post_hook

from data_recipes.artefact import file_hashes
from finetune.checkpoints.checkpoint_files import checkpoint_folders, remove_checkpoints
from finetune.config import RunConfig, load_run_config
from finetune.run import STAGE_FUNCTIONS
from finetune.train import train_stage
from finetune.training_options import CheckpointConfig

ROOT = Path(__file__).parents[1]
N_STEPS = 4  # between two checkpoints, here: enough for a step's time


class FirstStep(Exception):
    """Ends a training after its first optimizer step."""


def seconds_to_first_step(config: RunConfig) -> float:
    """From the call of the stage to the end of its first optimizer step."""

    def stop(*_: object) -> None:
        raise FirstStep

    handle = register_optimizer_step_post_hook(stop)
    started = time.perf_counter()
    try:
        train_stage(config)
    except FirstStep:
        return time.perf_counter() - started
    finally:
        handle.remove()
    raise AssertionError("the training had no step")


def write_seconds(config: RunConfig, rounds: int) -> tuple[list[float], float]:
    """Seconds that each of `rounds` checkpoints adds to the step it follows, and those of a step."""
    moments: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: moments.append(time.perf_counter()))
    options = CheckpointConfig(every_minutes=None, every_steps=N_STEPS, resume="never")
    try:
        train_stage(replace(config, train=replace(config.train, checkpoint=options)))
    finally:
        handle.remove()
    between = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]
    saving = [spent for number, spent in enumerate(between, start=1) if number % N_STEPS == 0]
    plain = [spent for number, spent in enumerate(between, start=1) if number % N_STEPS]
    return [spent - median(plain) for spent in saving[:rounds]], median(plain)


def main() -> None:
    """Print both figures."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        config = load_run_config(ROOT / "configs/runs/quickstart.yaml", [f"output={folder}"])
        for stage in ("data", "profile", "select"):
            STAGE_FUNCTIONS[stage](config)
        short = replace(
            config,
            train=replace(config.train, steps=N_STEPS * (rounds + 1), eval_every=10**6, warmup_steps=0),
        )
        writes, step_s = write_seconds(short, rounds)
        every_s = (config.train.checkpoint.every_minutes or 1) * 60
        write_s = median(writes)
        print(f"\na checkpoint {write_s * 1e3:.0f} ms (largest {max(writes) * 1e3:.0f})")
        print(f"a step {step_s * 1e3:.0f} ms")
        print(f"of the {every_s:.0f} s between two: {write_s / every_s:.2%} (asked: at most 2 %)")

        root = Path(folder) / "checkpoints"
        saving = CheckpointConfig(every_minutes=None, every_steps=1)
        begun = replace(short, train=replace(short.train, checkpoint=saving))
        handle = register_optimizer_step_post_hook(_crash_in_third_step())
        try:
            train_stage(begun)
        except FirstStep:
            handle.remove()
        saved = checkpoint_folders(root)[-1]
        n_bytes = sum(path.stat().st_size for path in saved.iterdir())
        print(f"{saved.name}: {n_bytes:,} bytes in {len(file_hashes(saved))} files")
        aside = root.with_name("aside")
        fresh, resumed = [], []
        for _ in range(rounds):
            resumed.append(seconds_to_first_step(short))
            root.rename(aside)
            fresh.append(seconds_to_first_step(short))
            aside.rename(root)
        remove_checkpoints(root)
        told, first_s, again_s = "to the first step", median(fresh), median(resumed)
        print(f"{told}: {again_s:.2f} s resumed, {first_s:.2f} s fresh, ratio {again_s / first_s:.3f}")
        print("asked: at most 1.2")


def _crash_in_third_step() -> Callable[..., None]:
    counted = iter(range(1, 10**6))

    def crash(*_: object) -> None:
        if next(counted) == 3:
            raise FirstStep

    return crash


if __name__ == "__main__":
    main()
