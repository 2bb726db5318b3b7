"""Handle interruption by Ctrl-C, a scheduler, a stopping container or a closing terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGHUP is not on Windows, SIGBREAK (Ctrl-Break) only there


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work.

    Attributes:
        code: exit code by the convention of shells: 130, 143 or 129; on Windows 149 for Ctrl-Break or a closed console.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` for these signals within the block, so that unfinished files are removed.

    Signals after the first are ignored, so that they do not interrupt the cleanup. Signals that are already ignored, as
    with ``nohup``, stay so.
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
