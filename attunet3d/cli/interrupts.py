"""Stopped from outside: by Ctrl-C, a scheduler, a container's end or a terminal that goes away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Windows has no SIGHUP, and alone has SIGBREAK: Ctrl-Break


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; `code` is the exit code that shells know for it: 130, 143 or 129; 149 on Windows for
    Ctrl-Break, or a console that is closed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block these signals raise `Interrupted`, so that what is half done is cleared away.

    Only the first one counts: clearing away is not interrupted again. What is ignored, as after `nohup`, stays so.
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
