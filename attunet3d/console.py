"""Progress bars and logging on stderr."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from attunet3d.io.printable import ForeignText, one_line, own, printable, set_in, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def make_bar() -> tuple[Progress, Console]:
    """Make a progress bar that disappears when done, not yet started, and the console for ``say_above``.

    Descriptions may be any text: they are made ``printable``, and markup in them is not interpreted. The bar shows
    nothing if stderr is not a terminal.
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
            """Start like rich's bar, but do not interpret markup in what others print meanwhile."""
            foreign = [name for name in ("stdout", "stderr") if isinstance(getattr(sys, name), ForeignText)]
            super().start()
            for name in foreign:
                if not isinstance(getattr(sys, name), ForeignText):
                    setattr(sys, name, ForeignText(_Above(self.console)))

    console = Console(file=own(sys.stderr))
    columns = (Description(Column(no_wrap=True)), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Bar(*columns, console=console, transient=True, disable=not console.is_terminal), console


def say_above(console: Console, text: str) -> None:
    """Print a text as one ``printable`` line above the bar."""
    from rich.text import Text

    console.print(Text(shortened(printable(text))), soft_wrap=True)


class _Above(io.TextIOBase):
    """A stream that prints lines above a bar."""

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


class _Format(logging.Formatter):
    """Format a record as one line, with an indented traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return set_in(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return set_in(super().formatStack(stack_info))


def log_to_stderr(level: int) -> None:
    """Log to stderr from a level on; records are made printable."""
    handler = logging.StreamHandler(own(sys.stderr))
    handler.setFormatter(_Format("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def set_up_logging(verbose: bool, progress: bool = False) -> None:
    """Log to stderr: from INFO on if ``verbose``, else errors, and with ``progress`` also what this package logs."""
    log_to_stderr(logging.INFO if verbose else logging.ERROR)
    import pydicom.config  # its import sets the level of its logger, so it comes before the level is set here

    # Their messages quote header values, which can identify a patient.
    for logger in (pydicom.config.logger, logging.getLogger("highdicom")):
        logger.setLevel(logging.CRITICAL)
    if verbose:
        warnings.filterwarnings("ignore", module="pydicom")
        # About a decoder that is not used here.
        warnings.filterwarnings("ignore", message="NvImgCodec")
        return
    warnings.simplefilter("ignore")
    # ignite logs exceptions, which the command line prints on one line.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    if progress:
        logging.getLogger("attunet3d").setLevel(logging.INFO)
