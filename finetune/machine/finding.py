"""What one check of the doctor found. Reads and writes nothing."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One line: all is well with `name`, or what to change."""

    name: str
    is_ok: bool
    text: str

    def line(self) -> str:
        """As it is printed."""
        return f"{'ok' if self.is_ok else 'change':<8}{self.name:<10}{self.text}"
