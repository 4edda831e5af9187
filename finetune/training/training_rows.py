"""The rows of a run as tokens: which of them make a step, and which are for validation.

Reads rows and a tokenizer; writes what `finetune.batching.token_store` does. A step's rows follow from the
seed and the step's number alone: every process knows them, and a run that goes on in the middle needs no
position.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.artefact import UserError, read_artefact, sha256_json
from data_recipes.chats.chat_template import stop_token_ids
from data_recipes.chats.mask_audit import N_NAMED
from data_recipes.dataset import read_split
from finetune.batches import Example, encode_rows
from finetune.batching.mixture import Mixture, exact, pools_of
from finetune.batching.order import RowStream
from finetune.batching.token_store import TokenStore, encode_in_memory, encode_on_disk
from finetune.training_options import TrainConfig

REPLAY = "replay"  # what rows of the second dataset are counted under


class TrainingRows:
    """The rows that are trained on: those of the run's dataset, then those of the replayed one."""

    def __init__(self, own: TokenStore, config: TrainConfig, seed: int, replay: TokenStore | None = None):
        """Raises: UserError: the rows lack a value that `config.mixture` names."""
        self.own, self.replay, self.config = own, replay, config
        column = config.mixture_by
        pools = pools_of(own.arrays[column], own.names[column], config.mixture, column)
        if replay is not None:
            assert config.replay is not None
            share = exact(config.replay.share)
            pools = [(own_share * (1 - share), rows) for own_share, rows in pools]
            pools.append((share, np.arange(len(own), len(own) + len(replay))))
        self._mixture = Mixture(pools, config.batch_size, seed) if len(pools) > 1 else None
        lengths = own.lengths() if config.group_by_length else None
        self._stream = RowStream(pools[0][1], [seed], lengths, config.batch_size)

    def of_step(self, step: int) -> list[Example]:
        """Return the rows of `step` (from 0), of all processes together."""
        size = self.config.batch_size
        if self._mixture is not None:
            numbers = self._mixture.of_step(step)
        else:
            numbers = self._stream.between(step * size, (step + 1) * size).tolist()
        return [self.example(number) for number in numbers]

    def example(self, number: int) -> Example:
        """The row of that number, counted under its value of `train.mixture_by`, or as replay."""
        if number < len(self.own):
            return self.own.example(number, self.config.mixture_by)
        assert self.replay is not None
        return self.replay.example(number - len(self.own))._replace(group=REPLAY)


def training_rows(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    config: TrainConfig,
    seed: int,
    content_hash: str | None = None,
    folder: Path | None = None,
    kept_out: Collection[str] = frozenset(),
) -> TrainingRows:
    """Encode the rows of a run, and those of `config.replay`, for a model that stops at tokens of its own.

    With a `folder` and the hash of the rows they are kept there, for later runs and other processes. No
    replayed row may ask one of `kept_out` (`questions_kept_out`).

    Raises:
        UserError: bad rows, a replay dataset that is missing, or as `TrainingRows`.
    """
    limit, replay = config.max_length_tokens, None
    stop_ids = stop_token_ids(getattr(model, "generation_config", None), tokenizer)
    if folder is None or content_hash is None:
        own = encode_in_memory(tokenizer, rows, limit, stop_ids)
    else:
        own = encode_on_disk(folder / "train", content_hash, tokenizer, rows, limit, stop_ids)
    if config.replay is not None:
        replay = _replayed_rows(config.replay.data, tokenizer, limit, stop_ids, kept_out, folder)
    return TrainingRows(own, config, seed, replay)


def _replayed_rows(
    data: str,
    tokenizer: Any,
    max_length_tokens: int,
    stop_ids: frozenset[int],
    kept_out: Collection[str],
    folder: Path | None,
) -> TokenStore:
    content_hash = _content_hash(data)
    rows = _without(kept_out, read_split(data, "train"))
    try:
        if folder is None:
            return encode_in_memory(tokenizer, rows, max_length_tokens, stop_ids)
        checked_hash = sha256_json([content_hash, sorted(kept_out)])
        return encode_on_disk(folder / REPLAY, checked_hash, tokenizer, rows, max_length_tokens, stop_ids)
    except UserError as error:
        raise UserError(f"train.replay.data={data}: {error}") from error


def replay_input(config: TrainConfig) -> dict[str, str]:
    """The replayed dataset among an artefact's inputs: its name there and the hash of its content.

    Raises:
        UserError: it has no manifest.
    """
    return {} if config.replay is None else {REPLAY: _content_hash(config.replay.data)}


def _content_hash(data: str) -> str:
    return read_artefact(Path(data) / "manifest.json", "dataset_manifest", ["content_hash"])["content_hash"]


def questions_kept_out(folder: Path) -> frozenset[str]:
    """What the validation and test rows of a built dataset ask: no replayed row may ask it in training.

    Raises:
        UserError: a split is missing or damaged.
    """
    splits: list[Any] = [read_split(folder, "validation"), read_split(folder, "test")]
    return frozenset(question_hash(row) for rows in splits for row in rows)


def _without(kept_out: Collection[str], rows: Any) -> Iterator[Mapping[str, Any]]:
    """The rows; those that ask what is kept out are an error, for all scores after them would be too good."""
    leaks = []
    for row in rows:
        if question_hash(row) in kept_out:
            leaks.append(str(row["id"]))
        yield row
    if leaks:
        raise UserError(
            f"{len(leaks)} rows ask what a validation or test row of this run asks: row "
            f"{', row '.join(leaks[:N_NAMED])}; build that dataset again without them, or take another"
        )


def question_hash(row: Mapping[str, Any]) -> str:
    """A hash of what the user says in a row: two rows with the same one ask the same."""
    return sha256_json([message["content"] for message in row["messages"] if message["role"] == "user"])


def validation_examples(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], config: TrainConfig
) -> dict[str, list[Example]]:
    """Group ("target", "general") -> its first `config.eval_rows` examples; an empty group is left out."""
    groups: dict[str, list[Mapping[str, Any]]] = {"target": [], "general": []}
    for row in rows:
        found = groups.get(row["group"])
        if found is not None and len(found) < config.eval_rows:
            found.append(row)
    return {
        group: encode_rows(tokenizer, part, config.max_length_tokens)
        for group, part in groups.items()
        if part
    }
