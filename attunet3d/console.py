"""A progress bar on stderr, and lines above it."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

from attunet3d.io.printable import one_line, own, printable, set_in

if TYPE_CHECKING:
    from rich.progress import Progress

import io
from typing import TYPE_CHECKING

from attunet3d.io.printable import ForeignText, shortened

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


class _Format(logging.Formatter):
    """A record on one line, and a traceback set in below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return set_in(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return set_in(super().formatStack(stack_info))


def log_to_stderr(level: int) -> None:
    """Log from a level on, whatever names are in the records."""
    handler = logging.StreamHandler(own(sys.stderr))
    handler.setFormatter(_Format("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def set_up_logging(verbose: bool, progress: bool = False) -> None:
    """Log to stderr: all with ``verbose``; else errors, and with ``progress`` how far this package has come."""
    log_to_stderr(logging.INFO if verbose else logging.ERROR)
    import pydicom.config  # which sets the level of its log: not after it has been set here

    # Their messages quote values of headers, which can be a patient's.
    for logger in (pydicom.config.logger, logging.getLogger("highdicom")):
        logger.setLevel(logging.CRITICAL)
    if verbose:
        warnings.filterwarnings("ignore", module="pydicom")
        # Of a decoder that is not used here.
        warnings.filterwarnings("ignore", message="NvImgCodec")
        return
    warnings.simplefilter("ignore")
    # It logs what is raised, and that is said on one line when it arrives.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    if progress:
        logging.getLogger("attunet3d").setLevel(logging.INFO)
