"""Text from files, made fit for terminals and records."""

import re

UID = re.compile(r"(?<![\d.])([0-2](\.\d+){3,}|2\.25\.\d+)")  # of DICOM, in the midst of other text

_UID_OF_STACK = re.compile(UID.pattern + r"(#\d+)?")


def without_uids(text: str) -> str:
    """`text` with "UID" for each DICOM UID, and for what tells the scans under one UID apart."""
    return _UID_OF_STACK.sub("UID", text)


def printable(text: str) -> str:
    """`text` with "?" for what is not printable: terminal escapes, line breaks, broken encodings."""
    return "".join(c if c.isprintable() else "?" for c in text)


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
