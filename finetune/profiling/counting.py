"""What counting in memory and layer by layer share: which layers and batches, and the profile of the sums.

Reads and writes nothing. Legend: L MoE layers, E experts, C cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_recipes.artefact import UserError
from finetune.config import ProfileConfig
from finetune.model import model_fingerprint, tokenizer_fingerprint
from finetune.moe import MoeLayer, expert_bytes, moe_layers, parameters_per_rank
from finetune.profiling.calibration import CalibrationBatch, Chunk, collate, row_batches
from finetune.profiling.profile import Cell, Profile, with_findings
from finetune.profiling.router_recorder import LanguageTally

# Options that may change what is counted: shards with other values do not add up.
COUNTED_BY = (
    "max_tokens",
    "batch_size",
    "replicates",
    "stable_jaccard",
    "stable_share",
    "check_tokens",
    "shuffle_rows",
)


class Ending(NamedTuple):
    """How the reading of a language ended."""

    role: str
    why: str  # stable, max_tokens, or rows: there were no more
    n_tokens: int  # read


class OwnBatches:
    """The batches that this process and shard counts: every n-th of all, numbered through all languages."""

    def __init__(self, config: ProfileConfig, seed: int, accelerator: Accelerator | None) -> None:
        rank, n_processes = (0, 1)
        if accelerator is not None:
            rank, n_processes = accelerator.process_index, accelerator.num_processes
        shard, n_shards = map(int, (config.shard or "1/1").split("/"))
        self._config, self._seed = config, seed
        self._part, self._n_parts = (shard - 1) * n_processes + rank, n_shards * n_processes
        self._n_batches = 0  # of everybody, so far

    def of(self, chunk: Chunk) -> Iterator[CalibrationBatch]:
        """The own ones of the next rows; every process asks for all rows, in the same order."""
        for rows in row_batches(chunk.rows, self._config.batch_size):
            if self._n_batches % self._n_parts == self._part:
                yield collate(rows, self._seed, self._config.replicates)
            self._n_batches += 1

    def require_enough(self) -> None:
        """Raise UserError when some process or shard had no batch; call it after the last rows."""
        if self._n_batches < self._n_parts:
            raise UserError(
                f"there are {self._n_batches} batches of rows for {self._n_parts} processes or shards: take "
                f"fewer of them, more rows, or a profile.batch_size below {self._config.batch_size}"
            )


def profiled_layers(model: PreTrainedModel) -> list[MoeLayer]:
    """The MoE layers of a model, all of one width.

    Raises:
        UserError: a model without experts, or layers that differ in experts or in experts per token.
    """
    layers = moe_layers(model)
    widths = {(layer.n_experts, layer.top_k) for layer in layers}
    if len(widths) > 1:
        raise UserError(
            f"layers differ in (experts, experts per token): {sorted(widths)}; one pair is supported"
        )
    return layers


def profile_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[MoeLayer],
    config: ProfileConfig,
    seed: int,
    dataset: str,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """What a profile says of the model, the data and how it counts, before any count.

    `fingerprint` is the model's when its weights are not in memory to take it from.
    """
    return {
        "model_fingerprint": fingerprint or model_fingerprint(model),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "dataset": dataset,
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": [layer.index for layer in layers],
        "n_experts": layers[0].n_experts,
        "top_k": layers[0].top_k,
        "router": type(layers[0].router).__name__,
        "parameters_per_rank": [parameters_per_rank(layer) for layer in layers],
        "expert_bytes": [expert_bytes(layer) for layer in layers],
        "kinds": config.kinds,
        "seed": seed,
        "settings": {name: getattr(config, name) for name in COUNTED_BY},
        "shards": [config.shard] if config.shard else [],
    }


def profile_of(
    head: Mapping[str, Any], tallies: Mapping[str, LanguageTally], endings: Mapping[str, Ending]
) -> Profile:
    """The profile of these sums.

    Raises:
        UserError: a language has no token of the kinds that are counted.
    """
    cells: dict[Cell, torch.Tensor] = {}
    for language, tally in sorted(tallies.items()):
        n_chosen_L = tally.counts_LE().sum(dim=1)
        assert (n_chosen_L <= tally.n_tokens * head["top_k"]).all(), "each token chooses at most K experts"
        cells |= tally.named_cells(language)
    shape_LE = (len(head["layers"]), head["n_experts"])
    sums_C2LE = np.array([sums.numpy() for sums in cells.values()], dtype=np.int64).reshape(-1, 2, *shape_LE)
    found = {
        "roles": {language: ending.role for language, ending in endings.items()},
        "n_tokens": {language: tally.n_tokens for language, tally in tallies.items()},
        "n_rows": {language: tally.n_rows for language, tally in tallies.items()},
        "stopped": {
            language: {"why": ending.why, "tokens": ending.n_tokens} for language, ending in endings.items()
        },
    }
    profile = Profile(
        {**head, **found},
        list(cells),
        sums_C2LE[:, 0],
        sums_C2LE[:, 1],
        {language: tally.replicates[0].numpy() for language, tally in tallies.items()},
        {language: tally.replicates[1].numpy() for language, tally in tallies.items()},
    )
    return profile if head["shards"] else with_findings(profile)
