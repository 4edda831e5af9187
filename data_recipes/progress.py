"""A progress bar for a terminal, a file or a notebook; writes to stderr, or into the cell."""

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10  # where every update stays, in a file or a pipe


def progress_bar(rows: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's bar with its options: a widget in a notebook that has ipywidgets, elsewhere text."""
    if in_notebook() and find_spec("ipywidgets") and not options.get("disable"):
        from data_recipes.progress_widget import WidgetBar  # imported late: it imports ipywidgets

        return WidgetBar(rows, **options)
    interval_s = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(rows, **{"mininterval": interval_s, **options})


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
