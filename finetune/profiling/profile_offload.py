"""Profile a base that is larger than memory: the counts of routing.py, in one pass over its layers.

Reads rows and a checkpoint, whose weights are read once for all rows. Writes hidden states into a folder
while it runs, when asked to.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from data_recipes.artefact import UserError
from finetune.config import BaseConfig, ProfileConfig, RunConfig
from finetune.exporting.checkpoint_files import read_places
from finetune.model import load_tokenizer, resolve_model_path
from finetune.processes import say, sum_over_processes
from finetune.profiling.calibration import CalibrationBatch, Row, encoded_chunks
from finetune.profiling.counting import Ending, OwnBatches, profile_head, profile_of, profiled_layers
from finetune.profiling.layer_weights import LayerWeights, open_weights
from finetune.profiling.offload import run_layer_by_layer
from finetune.profiling.planner import free_memory_bytes
from finetune.profiling.profile import Profile
from finetune.profiling.router_recorder import LanguageTally, RouterRecorder


class LanguageBatch(NamedTuple):
    """A batch and the tally its tokens are counted in."""

    tally: LanguageTally
    batch: CalibrationBatch


def uses_offload(base: BaseConfig, config: ProfileConfig, device: torch.device) -> bool:
    """Whether to profile layer by layer: as `profile.offload` says, or when the base is larger than memory.

    "auto" looks at folders only; the files of a Hub id are not there yet.
    """
    if config.offload != "auto":
        return config.offload == "true"
    folder = Path(resolve_model_path(base.model))
    if not folder.is_dir():
        return False
    try:
        places = read_places(folder)
    except UserError:
        return False  # loading it says better what is wrong with it
    n_values = sum(torch.Size(place.shape).numel() for place in places.values())
    needed, free = n_values * getattr(torch, base.dtype).itemsize, free_memory_bytes(device)
    if needed > free:
        say(
            f"offload   the base takes {needed / 1e9:.3g} GB in {base.dtype}, {free / 1e9:.3g} GB are free: "
            "it is profiled layer by layer"
        )
    return needed > free


def profile_by_offload(
    config: RunConfig,
    rows_by_language: Mapping[str, Iterable[Row]],
    dataset: str,
    device: torch.device,
    accelerator: Accelerator | None = None,
) -> Profile:
    """The profile of a run's base, read layer by layer.

    Raises:
        UserError: as `open_weights` and `profile_rows_offloaded`.
    """
    on_disk = config.profile.hidden_states == "disk"
    name = "hidden_states" if accelerator is None else f"hidden_states-{accelerator.process_index}"
    return profile_rows_offloaded(
        open_weights(config.base, device),
        load_tokenizer(config.base),
        rows_by_language,
        config.profile,
        config.seed,
        dataset,
        accelerator,
        Path(config.output) / name if on_disk else None,
    )


def profile_rows_offloaded(
    weights: LayerWeights,
    tokenizer: PreTrainedTokenizerBase,
    rows_by_language: Mapping[str, Iterable[Row]],
    config: ProfileConfig,
    seed: int = 0,
    dataset: str = "",
    accelerator: Accelerator | None = None,
    folder: Path | None = None,
) -> Profile:
    """What `profile_rows` of routing.py returns, to the bit, of a model that is read layer by layer.

    All rows are read before the first layer. `folder` holds the hidden states, None keeps them in memory.

    Raises:
        UserError: as `profile_rows` and `run_layer_by_layer`; a profile that is to stop when it is stable.
    """
    if config.stable_jaccard is not None:
        raise UserError(
            f"profile.stable_jaccard={config.stable_jaccard} stops between batches, but an offloaded base "
            "takes all of them through a layer first: set profile.stable_jaccard=null and profile.max_tokens"
        )
    layers = profiled_layers(weights.model)
    shape_LE = (len(layers), layers[0].n_experts)
    tallies, endings, batches = _read_all(tokenizer, rows_by_language, config, seed, accelerator, shape_LE)
    current = batches[0].tally

    def add(position: int, sums_2SE: torch.Tensor) -> None:
        current.add(position, sums_2SE)

    with RouterRecorder(layers, add) as recorder:

        def expect(position: int, number: int) -> None:
            nonlocal current
            current, batch = batches[number]
            current.begin(batch, is_first_pass=position == 0)
            recorder.expect(batch.attention_BT, batch.slot_BT, 2 * len(batch.sources))

        inputs = [{"input_ids": batch.ids_BT, "attention_mask": batch.attention_BT} for _, batch in batches]
        fingerprint = run_layer_by_layer(weights, inputs, expect, folder)
    add_up = partial(sum_over_processes, accelerator)
    summed = {language: tally.summed(add_up) for language, tally in tallies.items()}
    head = profile_head(weights.model, tokenizer, layers, config, seed, dataset, fingerprint)
    return profile_of(head, summed, endings)


def _read_all(
    tokenizer: PreTrainedTokenizerBase,
    rows_by_language: Mapping[str, Iterable[Row]],
    config: ProfileConfig,
    seed: int,
    accelerator: Accelerator | None,
    shape_LE: tuple[int, int],
) -> tuple[dict[str, LanguageTally], dict[str, Ending], list[LanguageBatch]]:
    """An empty tally and the ending of each language, and this process's batches of all of them."""
    if not rows_by_language:
        raise UserError("there are no rows to profile: the training split is empty")
    own = OwnBatches(config, seed, accelerator)
    tallies: dict[str, LanguageTally] = {}
    endings: dict[str, Ending] = {}
    batches: list[LanguageBatch] = []
    for language, rows in sorted(rows_by_language.items()):
        tally = LanguageTally(*shape_LE, config.replicates, config.kinds)
        for chunk in encoded_chunks(tokenizer, language, rows, config, seed):
            tally.open_sources(row.source for row in chunk.rows)
            batches += [LanguageBatch(tally, batch) for batch in own.of(chunk)]
            endings[language] = Ending(chunk.role, chunk.ended, chunk.n_tokens)
        tallies[language] = tally
    own.require_enough()
    return tallies, endings, batches
