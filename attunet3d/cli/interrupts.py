"""Interruption by Ctrl-C, a scheduler, a container that stops or a terminal that closes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Windows has no SIGHUP, and alone has SIGBREAK: Ctrl-Break


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work.

    Attributes:
        code: exit code by convention of shells: 130, 143 or 129; on Windows 149 for Ctrl-Break or a closed console.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` for these signals within the block, so that unfinished files are removed.

    Only the first signal counts: the cleanup is not interrupted. Signals that are ignored, as after ``nohup``, stay so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    former = {number: signal.getsignal(number) for number in numbers}
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}

    def interrupt(number: int, frame: object) -> None:
        for each in former:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    for number in former:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
