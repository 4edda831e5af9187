"""A progress bar that is a widget while it runs and a line of text when it is done.

The text is what a saved notebook keeps: a widget without its kernel says nothing, or still 0 %.
"""

from typing import Any

from IPython.display import display
from tqdm.notebook import tqdm_notebook


class WidgetBar(tqdm_notebook):
    """tqdm's widget, shown so that its place can be taken by text."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, display=False, **options)
        if not self.disable and self.delay <= 0:
            self.display()

    def display(self, *arguments: Any, check_delay: bool = True, **options: Any) -> None:
        """Show the state, and the bar itself the first time that its delay is over."""
        super().display(*arguments, check_delay=False, **options)
        if check_delay and not self.displayed:
            self.displayed = True
            self.place = display(self.container, display_id=True)

    def close(self) -> None:
        """End the bar; its last state stands there as text."""
        was_open = not self.disable
        super().close()
        if was_open and self.displayed and self.place is not None:
            self.place.update({"text/plain": str(self)}, raw=True)
