"""The rows of a run as tokens: which of them make a step, and which are for validation.

Reads rows and a tokenizer; writes nothing. A step's rows follow from the seed and the step's number alone:
every process knows them, and a run that goes on in the middle needs no position.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.batches import Example, encode_rows, step_rows
from finetune.config import TrainConfig


class TrainingRows:
    """The rows that are trained on."""

    def __init__(
        self,
        tokenizer: Any,
        rows: Iterable[Mapping[str, Any]],
        config: TrainConfig,
        seed: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.examples = encode_rows(tokenizer, rows, config.max_length_tokens, stop_ids)
        self.batch_size, self.seed = config.batch_size, seed

    def of_step(self, step: int) -> list[Example]:
        """Return the rows of `step` (from 0), of all processes together."""
        numbers = step_rows(len(self.examples), self.batch_size, step, self.seed)
        return [self.examples[number] for number in numbers]


def validation_examples(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], config: TrainConfig
) -> dict[str, list[Example]]:
    """Group ("target", "general") -> its first `config.eval_rows` examples; an empty group is left out."""
    groups = {
        group: [row for row in rows if row["group"] == group][: config.eval_rows]
        for group in ("target", "general")
    }
    return {
        group: encode_rows(tokenizer, part, config.max_length_tokens)
        for group, part in groups.items()
        if part
    }
