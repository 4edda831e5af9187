"""Numbers that go bad: a loss or gradient that is no number ends the run and names the rows."""

import math
from collections.abc import Sequence

from data_recipes.artefact import UserError


def refuse_nan(name: str, value: float, step: int, row_ids: Sequence[str]) -> None:
    """Raise: UserError when `value` is not finite; `step` counts from 0."""
    if not math.isfinite(value):
        raise UserError(
            f"the {name} is {value} at step {step + 1}, rows {', '.join(row_ids[:8])}: "
            "lower train.learning_rate, or look at these rows"
        )
