"""What a recogniser gives: a place in the text, and whether its shape and check digit are enough.

Reads nothing, writes nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """Perhaps personal data at `text[start:end]`; without `certain` only where context words say so."""

    kind: str
    start: int
    end: int
    certain: bool
