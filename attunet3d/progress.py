"""A progress bar on stderr, and lines above it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from attunet3d.io.printable import ForeignText, own, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def make_bar() -> tuple[Progress, Console]:
    """A bar, not started, that vanishes when done, and the console for `say_above`.

    Its descriptions may hold any text: they are `printable`, and no markup. Where stderr is no terminal (a log file), a
    bar would only leave noise: it shows nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Description(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(printable(task.description))

    class Bar(Progress):
        def start(self) -> None:
            """As rich's, which also takes over what others print meanwhile, and would look for markup in it."""
            foreign = [name for name in ("stdout", "stderr") if isinstance(getattr(sys, name), ForeignText)]
            super().start()
            for name in foreign:
                if not isinstance(getattr(sys, name), ForeignText):
                    setattr(sys, name, ForeignText(_Above(self.console)))

    console = Console(file=own(sys.stderr))
    columns = (Description(Column(no_wrap=True)), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, transient=True, disable=not console.is_terminal), console


def say_above(console: Console, text: str) -> None:
    """Print `text` as one line above the bar, `printable`."""
    from rich.text import Text

    console.print(Text(shortened(printable(text))), soft_wrap=True)


class _Above(io.TextIOBase):
    """A stream whose lines go above a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            say_above(self._console, line)
        return len(text)

    def fileno(self) -> int:
        return self._console.file.fileno()
