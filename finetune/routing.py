"""Profile the routing: which experts the base chooses for each language, in each MoE layer.

Reads the training rows of `<output>/data` (never validation or test) and the base; writes
`<output>/profile.json` and profile.safetensors. Run it with
`local-experts profile --config configs/runs/quickstart.yaml`.

Legend: L MoE layers, E experts, C cells, R bootstrap replicates.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_recipes.artefact import UserError, read_artefact
from data_recipes.build import read_split
from finetune.calibration import CalibrationBatch, Row, collate, encoded_chunks, row_batches
from finetune.config import ProfileConfig, RunConfig, config_from_arguments
from finetune.model import load_model, model_fingerprint, tokenizer_fingerprint
from finetune.moe import MoeLayer, expert_bytes, moe_layers, parameters_per_rank
from finetune.profile import Profile, write_profile
from finetune.router_recorder import LanguageTally, RouterRecorder


@dataclass(frozen=True)
class SplitRows:
    """Some rows of a split on disk, read one by one."""

    split: Dataset
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Row:
        return self.split[self.positions[number]]

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))


def profile_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows_by_language: Mapping[str, Iterable[Row]],
    config: ProfileConfig,
    seed: int = 0,
    dataset: str = "",
) -> Profile:
    """Routing of each language's rows (`messages` and `group`; `id` and `source` where they have them).

    A language's rows are taken in an order drawn from `seed` until `config.max_tokens` tokens are read. A
    stream of rows is read only as far. `dataset` is the content hash that the profile names. Puts the model
    into eval mode.

    Raises:
        UserError: a model without experts, a language without rows or counted tokens, broken router weights.
    """
    layers = profiled_layers(model)
    if not rows_by_language:
        raise UserError("there are no rows to profile: the training split is empty")
    model.eval()
    tallies: dict[str, LanguageTally] = {}
    roles: dict[str, str] = {}
    for language, rows in sorted(rows_by_language.items()):
        tally = new_tally(layers, config)
        found: set[str] = set()
        with RouterRecorder(layers, tally.add) as recorder, torch.inference_mode():
            for chunk in encoded_chunks(tokenizer, rows, config, seed):
                found |= {row.role for row in chunk.rows}
                for batch_rows in row_batches(chunk.rows, config.batch_size):
                    batch = collate(batch_rows, seed, config.replicates)
                    tally.begin(batch)
                    recorder.expect(batch.attention_BT, batch.slot_BT, 2 * len(batch.sources))
                    forward(model, batch)
        tallies[language], roles[language] = tally, the_role(language, found)
    head = profile_head(model, tokenizer, layers, config, seed, dataset)
    return profile_of(head, tallies, roles)


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


def new_tally(layers: Sequence[MoeLayer], config: ProfileConfig) -> LanguageTally:
    """An empty tally of the model's shape."""
    return LanguageTally(len(layers), layers[0].n_experts, config.replicates, config.kinds)


def forward(model: PreTrainedModel, batch: CalibrationBatch) -> None:
    """One forward of the decoder, without its language-model head: the vocabulary's logits are not needed."""
    ids_BT, attention_BT = batch.ids_BT.to(model.device), batch.attention_BT.to(model.device)
    model.base_model(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False)


def the_role(language: str, roles: Iterable[str]) -> str:
    """The one role (target or general) of a language's rows.

    Raises:
        UserError: there is none, or rows of both.
    """
    found = sorted(set(roles))
    if len(found) != 1:
        raise UserError(
            f"group {language!r} has rows of role {found}: it needs rows, all target or all general"
        )
    return found[0]


def profile_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[MoeLayer],
    config: ProfileConfig,
    seed: int,
    dataset: str,
) -> dict[str, Any]:
    """What a profile says of the model, the data and how it counts, before any count."""
    return {
        "model_fingerprint": model_fingerprint(model),
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
        "max_tokens": config.max_tokens,
        "seed": seed,
    }


def profile_of(
    head: Mapping[str, Any], tallies: Mapping[str, LanguageTally], roles: Mapping[str, str]
) -> Profile:
    """The profile of these sums.

    Raises:
        UserError: a language has no token of the kinds that are counted.
    """
    for language, tally in tallies.items():
        if tally.n_tokens == 0:
            raise UserError(
                f"group {language!r} has no token of kind {head['kinds']!r}: set profile.kinds=all"
            )
        n_chosen_L = tally.counts_LE().sum(dim=1)
        assert (n_chosen_L <= tally.n_tokens * head["top_k"]).all(), "each token chooses at most K experts"
    cells = {
        name: sums
        for language in sorted(tallies)
        for name, sums in tallies[language].named_cells(language).items()
    }
    sums_C2LE = np.stack([sums.numpy() for sums in cells.values()])
    replicates = {language: tally.replicates.numpy() for language, tally in sorted(tallies.items())}
    is_unseen_L = sums_C2LE[:, 0].sum(axis=(0, 2)) == 0
    found = {
        "roles": dict(roles),
        "n_tokens": {language: tally.n_tokens for language, tally in tallies.items()},
        "n_rows": {language: tally.n_rows for language, tally in tallies.items()},
        "unseen_layers": [layer for layer, unseen in zip(head["layers"], is_unseen_L, strict=True) if unseen],
        "shards": [],
    }
    return Profile(
        {**head, **found},
        list(cells),
        sums_C2LE[:, 0],
        sums_C2LE[:, 1],
        {language: both[0] for language, both in replicates.items()},
        {language: both[1] for language, both in replicates.items()},
    )


def profile_stage(config: RunConfig) -> Path:
    """Profile the base of a run on its training rows, by language, and write profile.json.

    Raises:
        UserError: no dataset, no base, a base without experts.
    """
    output = Path(config.output)
    dataset = read_artefact(output / "data" / "manifest.json", "dataset_manifest")["content_hash"]
    rows = rows_by_language(read_split(output / "data", "train"))
    model, tokenizer = load_model(config.base)
    profile = profile_rows(model, tokenizer, rows, config.profile, config.seed, dataset)
    head = profile.head
    inputs = {
        "dataset": dataset,
        "model": head["model_fingerprint"],
        "tokenizer": head["tokenizer_fingerprint"],
    }
    path = output / "profile.json"
    write_profile(path, profile, inputs)
    tokens = ", ".join(f"{name} {n_tokens:,}" for name, n_tokens in head["n_tokens"].items())
    print(f"profile   tokens: {tokens}; {len(head['layers'])} layers x {head['n_experts']} experts -> {path}")
    return path


def rows_by_language(split: Dataset) -> dict[str, SplitRows]:
    """The rows of each language, in the order of the split; only the languages are read."""
    positions: dict[str, array[int]] = {}
    for position, language in enumerate(split["language"]):
        positions.setdefault(language, array("q")).append(position)
    return {language: SplitRows(split, found) for language, found in positions.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts profile --config FILE [key=value ...]`."""
    profile_stage(
        config_from_arguments(argv, "profile", "count which experts the base uses for each language")
    )
