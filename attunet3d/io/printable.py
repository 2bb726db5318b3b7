"""Text from files, made fit for terminals and records: what is printed, wherever it comes from, goes through here."""

import io
import re
import sys
import unicodedata
from typing import Any

UID = re.compile(r"(?<![\d.])([0-2](\.\d+){3,}|2\.25\.\d+)")  # of DICOM, in the midst of other text
MOST_CHARACTERS = 10_000  # of a line

_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")  # letters and marks, for Python, that nobody sees
_UID_OF_STACK = re.compile(UID.pattern + r"(#\d+)?")


def without_uids(text: str) -> str:
    """`text` with "UID" for each DICOM UID, and for what tells the scans under one UID apart."""
    return _UID_OF_STACK.sub("UID", text)


def printable(text: str) -> str:
    r"""`text` with Python's escapes (``\n``, ``\x1b``, ``\u202e``) for what a terminal acts on, or does not show.

    That is: control characters and line breaks, marks that turn the direction of writing, characters without width or
    without a meaning, and bytes that are no text (``\udcff``). Spaces of all kinds stay.
    """
    if text.isprintable() and _BLANK.isdisjoint(text):
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _is_shown(character: str) -> bool:
    return (character.isprintable() and character not in _BLANK) or unicodedata.category(character) == "Zs"


def printable_start(text: str, most: int) -> str:
    """`text` up to what is not printable, with "?" for the rest, which may be other elements of a damaged header.

    At most `most` characters.
    """
    end = next((k for k, c in enumerate(text) if not c.isprintable()), None)
    shown = text if end is None else text[:end] + "?"
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def one_line(said: object) -> str:
    """What an error or a text says, without line breaks and what else a terminal would act on: names can hold it."""
    return printable(" ".join(str(said).split()))


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """`text` without its middle where it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def own(stream: Any) -> Any:
    """Where our own lines go, of a stream that others may print to."""
    return stream.stream if isinstance(stream, ForeignText) else stream


def say(text: str) -> None:
    """Print `text` on stderr as one line, `printable`."""
    print(shortened(printable(text)), file=own(sys.stderr), flush=True)


def set_in(text: str) -> str:
    """Lines that are not ours, such as a traceback's: each `printable`, and set in by two spaces.

    So whatever names they quote, none of them looks like a line of ours.
    """
    return "\n".join("  " + printable(line.expandtabs()) for line in text.rstrip("\n").split("\n"))


class ForeignText(io.TextIOBase):
    """A stream for what others print, libraries and Python itself: as `set_in`, bit by bit. `say` writes past it.

    It is no terminal for them: their colours would be shown as escapes.
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
