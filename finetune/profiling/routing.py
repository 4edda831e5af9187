"""Profile the routing: which experts the base chooses for each language, in each MoE layer.

Reads the training rows of `<output>/data` (never validation or test) and the base; writes
`<output>/profile.json` and profile.safetensors. Run it with
`local-experts profile --config configs/runs/quickstart.yaml`.

Legend: L MoE layers, E experts, R bootstrap replicates.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_recipes.artefact import UserError, read_artefact
from data_recipes.dataset import read_split
from finetune import cli
from finetune.config import ProfileConfig, RunConfig, config_from_arguments
from finetune.model import choose_device, load_model
from finetune.processes import say, start_accelerator, sum_over_processes
from finetune.profiling.calibration import CalibrationBatch, Row, encoded_chunks
from finetune.profiling.counting import Ending, OwnBatches, profile_head, profile_of, profiled_layers
from finetune.profiling.profile import Profile, profile_inputs, write_profile
from finetune.profiling.profile_offload import profile_by_offload, uses_offload
from finetune.profiling.replicates import replicates_agree
from finetune.profiling.router_recorder import LanguageTally, RouterRecorder

AddUp = Callable[[torch.Tensor], torch.Tensor]


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
    rows_by_language: Mapping[str, Iterable[Any]],
    config: ProfileConfig,
    seed: int = 0,
    dataset: str = "",
    accelerator: Accelerator | None = None,
) -> Profile:
    """Routing of each language's rows (`messages` and `group`; `id` and `source` where they have them).

    A language's rows are taken in an order drawn from `seed` until they are stable or `config.max_tokens`
    tokens are read; a stream is read no further. `dataset` is the content hash that the profile names. With
    an `accelerator` of several processes each takes a part of the batches, and all return the whole profile.
    Puts the model into eval mode.

    Raises:
        UserError: a model without experts, a language without rows or counted tokens, broken router weights,
            fewer batches than processes or shards.
    """
    layers = profiled_layers(model)
    if not rows_by_language:
        raise UserError("there are no rows to profile: the training split is empty")
    model.eval()
    own = OwnBatches(config, seed, accelerator)
    add_up = partial(sum_over_processes, accelerator)
    tallies: dict[str, LanguageTally] = {}
    endings: dict[str, Ending] = {}
    for language, rows in sorted(rows_by_language.items()):
        tally = LanguageTally(len(layers), layers[0].n_experts, config.replicates, config.kinds)
        with RouterRecorder(layers, tally.add) as recorder, torch.inference_mode():
            for chunk in encoded_chunks(tokenizer, language, rows, config, seed):
                tally.open_sources(row.source for row in chunk.rows)
                for batch in own.of(chunk):
                    count_batch(model, recorder, tally, batch)
                why = chunk.ended or ("stable" if is_stable(tally, config, add_up) else "")
                if why:
                    endings[language] = Ending(chunk.role, why, chunk.n_tokens)
                    break
        tallies[language] = tally.summed(add_up)
    own.require_enough()
    head = profile_head(model, tokenizer, layers, config, seed, dataset)
    return profile_of(head, tallies, endings)


def count_batch(
    model: PreTrainedModel, recorder: RouterRecorder, tally: LanguageTally, batch: CalibrationBatch
) -> None:
    """One forward, counted."""
    tally.begin(batch)
    recorder.expect(batch.attention_BT, batch.slot_BT, 2 * len(batch.sources))
    plain_forward(model, batch)


def plain_forward(model: PreTrainedModel, batch: CalibrationBatch) -> None:
    """The decoder without its language-model head: the vocabulary's logits are not needed."""
    ids_BT, attention_BT = batch.ids_BT.to(model.device), batch.attention_BT.to(model.device)
    model.base_model(input_ids=ids_BT, attention_mask=attention_BT, use_cache=False)


def is_stable(tally: LanguageTally, config: ProfileConfig, add_up: AddUp) -> bool:
    """Whether a language's replicates agree as well as asked for, over all processes."""
    if config.stable_jaccard is None:
        return False
    whole = tally.summed(add_up)
    counts_LE, replicates_RLE = whole.counts_LE().numpy(), whole.replicates[0].numpy()
    return replicates_agree(counts_LE, replicates_RLE, config.stable_share) >= config.stable_jaccard


def profile_stage(config: RunConfig) -> Path:
    """Profile the base of a run on its training rows, by language; write profile.json or a shard.

    Raises:
        UserError: no dataset, no base, a base without experts, or as `profile_rows`.
    """
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(config.profile.n_threads or n_threads)
        return _profile_run(config)
    finally:
        torch.set_num_threads(n_threads)  # the stages that follow have their own


def _profile_run(config: RunConfig) -> Path:
    options = config.profile
    accelerator = start_accelerator(options.n_processes, config.base.device, stage="profile")
    output = Path(config.output)
    dataset = read_artefact(output / "data" / "manifest.json", "dataset_manifest")["content_hash"]
    rows = rows_by_language(read_split(output / "data", "train"))
    device = accelerator.device if options.n_processes > 1 else choose_device(config.base.device)
    if uses_offload(config.base, options, device):
        profile = profile_by_offload(config, rows, dataset, device, accelerator)
    else:
        model, tokenizer = load_model(config.base)
        model.to(device)  # type: ignore[arg-type]
        profile = profile_rows(model, tokenizer, rows, options, config.seed, dataset, accelerator)
    path = output / "profile.json"
    if options.shard:
        path = output / f"profile.shard-{options.shard.replace('/', '-of-')}.json"
    if accelerator.is_main_process:
        write_profile(path, profile, profile_inputs(profile))
    head = profile.head
    tokens = ", ".join(
        f"{name} {n_tokens:,} ({head['stopped'][name]['why']})" for name, n_tokens in head["n_tokens"].items()
    )
    say(f"profile   tokens: {tokens}; {len(head['layers'])} layers x {head['n_experts']} experts -> {path}")
    accelerator.end_training()
    return path


def rows_by_language(split: Dataset) -> dict[str, SplitRows]:
    """The rows of each language, in the order of the split; only the languages are read."""
    positions: dict[str, array[int]] = {}
    for position, language in enumerate(split.with_format(None)["language"]):
        positions.setdefault(language, array("q")).append(position)
    return {language: SplitRows(split, found) for language, found in positions.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts profile --config FILE [key=value ...]`."""
    profile_stage(
        config_from_arguments(argv, "profile", "count which experts the base uses for each language")
    )


if __name__ == "__main__":
    sys.exit(cli.main(["profile", *sys.argv[1:]]))
