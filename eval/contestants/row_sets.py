"""Whether two results are of the same rows: only then can they be compared. Reads nothing, writes nothing."""

from collections.abc import Sequence

from data_recipes.artefact import UserError

N_SHOWN = 3  # ids on each side
WAY_OUT = "evaluate both again, on the same test rows"


def require_same_rows(
    first: str, first_ids: Sequence[str], second: str, second_ids: Sequence[str], way_out: str = WAY_OUT
) -> None:
    """Refuse results of two different row sets; `first` and `second` are what the two are called.

    Raises:
        UserError: one has rows that the other has not, or one of them twice.
    """
    if sorted(first_ids) == sorted(second_ids):
        return
    sides = (
        (first, sorted(set(first_ids) - set(second_ids))),
        (second, sorted(set(second_ids) - set(first_ids))),
    )
    only = "; ".join(
        f"{len(ids)} only in {name}: {', '.join(ids[:N_SHOWN])}{', ...' if len(ids) > N_SHOWN else ''}"
        for name, ids in sides
        if ids
    )
    raise UserError(
        f"{first} and {second} were evaluated on different rows ({only or 'some are there twice'}): {way_out}"
    )
