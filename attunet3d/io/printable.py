"""Make text from any source safe for terminals and records: all that is printed passes through here."""

import io
import re
import sys
import unicodedata
from typing import Any

UID = re.compile(r"(?<![\d.])([0-2](\.\d+){3,}|2\.25\.\d+)")  # DICOM UIDs within other text
MOST_CHARACTERS = 10_000  # of a line

_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")  # invisible, though letters and marks to Python
_UID_OF_STACK = re.compile(UID.pattern + r"(#\d+)?")


def without_uids(text: str) -> str:
    """Replace each DICOM UID in ``text``, with the number of a stack ("#2") after it, by "UID"."""
    return _UID_OF_STACK.sub("UID", text)


def printable(text: str) -> str:
    r"""Escape what a terminal interprets or does not show, as Python does (``\n``, ``\x1b``, ``\u202e``).

    These are control characters and line breaks, bidirectional marks, characters without width or unassigned, and
    undecodable bytes (``\udcff``). Spaces of all kinds stay.
    """
    if text.isprintable() and _BLANK.isdisjoint(text):
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_shown(character: str) -> bool:
    return (character.isprintable() and character not in _BLANK) or unicodedata.category(character) == "Zs"


def printable_start(text: str, most: int) -> str:
    """Return at most ``most`` characters of ``text``, and "?" for all from the first that is not printable.

    In a damaged header these may be other elements.
    """
    end = next((k for k, c in enumerate(text) if not c.isprintable()), None)
    shown = text if end is None else text[:end] + "?"
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def one_line(message: object) -> str:
    """Format an error or a text as one printable line: names in it may hold line breaks or control characters."""
    return printable(" ".join(str(message).split()))


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Cut out the middle of ``text`` if it has more than ``most`` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def own(stream: Any) -> Any:
    """Return the stream for lines of this package: the one below ``stream`` if that is a ``ForeignText``."""
    return stream.stream if isinstance(stream, ForeignText) else stream


def say(text: str) -> None:
    """Print ``text`` on stderr as one printable line."""
    print(shortened(printable(text)), file=own(sys.stderr), flush=True)


def set_in(text: str) -> str:
    """Indent lines from elsewhere, such as a traceback's, by two spaces, and make each ``printable``.

    So none of them can imitate a message of this package, whatever names they quote.
    """
    return "\n".join("  " + printable(line.expandtabs()) for line in text.rstrip("\n").split("\n"))


class ForeignText(io.TextIOBase):
    """A stream that indents the output of libraries and of Python itself like ``set_in``; ``say`` bypasses it.

    ``isatty`` is false: otherwise libraries would print colours, which are shown as escapes here.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._begins = True

    @property
    def encoding(self) -> Any:  # type: ignore[override]
        return self.stream.encoding

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        lines = []
        for number, line in enumerate(text.split("\n")):
            self._begins = self._begins or number > 0
            lines.append("  " * (self._begins and bool(line)) + printable(line.expandtabs()))
            self._begins = self._begins and not line
        self.stream.write("\n".join(lines))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return int(self.stream.fileno())
