"""Whether two results are of the same rows: only then can they be compared. Reads nothing, writes nothing."""

from collections.abc import Sequence

from data_recipes.artefact import UserError

N_SHOWN = 3  # ids on each side


def require_same_rows(first: str, first_ids: Sequence[str], second: str, second_ids: Sequence[str]) -> None:
    """Refuse results of two different row sets; `first` and `second` are what the two are called.

    Raises:
        UserError: one has rows that the other has not, or another number of one.
    """
    if sorted(first_ids) == sorted(second_ids):
        return
    only = [
        f"{len(ids)} only in {name}: {', '.join(ids[:N_SHOWN])}{', ...' if len(ids) > N_SHOWN else ''}"
        for name, ids in (
            (first, sorted(set(first_ids) - set(second_ids))),
            (second, sorted(set(second_ids) - set(first_ids))),
        )
        if ids
    ]
    raise UserError(
        f"{first} and {second} were evaluated on different rows "
        f"({'; '.join(only) or 'some are there twice'}): evaluate both on the same test rows"
    )
