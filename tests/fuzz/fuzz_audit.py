"""Notes what a process does that reading an input must never do: write elsewhere, run programs, load pickles."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# By the places of the paths among their arguments.
_CHANGES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
    "shutil.rmtree": (0,),
}
_RUNS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "pickle.find_class"),
}


class Audit:
    """Python's audit events that must not be, while a block of `watching` runs; there is one for a process."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._allowed: tuple[str, ...] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self, allowed: Sequence[Path]) -> Iterator[list[str]]:
        """What is seen in the block; below the folders ``allowed`` anything may be written."""
        self.seen = []
        self._allowed = tuple(os.path.realpath(folder) for folder in allowed)
        try:
            yield self.seen
        finally:
            self._allowed = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._allowed is None:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._check(event, arguments[0])
        elif event in _CHANGES:
            for place in _CHANGES[event]:
                self._check(event, arguments[place])

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path is None or self._allowed is None:
            return
        text = os.fsdecode(path)
        if "\0" in text:  # the system refuses it
            return
        # Of a link it is itself that is written to; only its folder is followed.
        place = os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))
        if not any(place == folder or place.startswith(folder + os.sep) for folder in self._allowed) and place != os.devnull:
            self.seen.append(f"{event} {place!r:.300}")
