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
    """Python's audit events that must not be, while a block of ``watching`` runs; there is one for a process."""

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
        self.seen += [
            f"{event} {place!r:.300}" for place in _written(event, arguments) if not _below(place, self._allowed)
        ]


def watch_server(log: Path, allowed: Sequence[str], secret: str) -> None:
    """In a server: a line in a file for each write that is not below ``allowed``, and each look below ``secret``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(text: str) -> None:
        os.write(descriptor, f"{text}\n".encode(errors="replace"))

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        for place in _written(event, arguments):
            if not _below(place, allowed):
                note(f"{event} {place!r:.300}")
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
            place = _place(arguments[0])
            if _below(place, [secret]):
                note(f"{event} {place!r:.300}")

    sys.addaudithook(hear)


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The places that an event writes to, removes or makes."""
    if event == "open":
        paths = [arguments[0]] if isinstance(arguments[2], int) and arguments[2] & _WRITES else []
    else:
        paths = [arguments[place] for place in _CHANGES.get(event, ())]
    places = [_place(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    return [place for place in places if place != os.devnull and "\0" not in place]


def _place(path: Any) -> str:
    """Of a link it is itself that is written to; only its folder is followed."""
    text = os.fsdecode(path)
    if "\0" in text:  # the system refuses it
        return text
    return os.path.join(os.path.realpath(os.path.dirname(text) or "."), os.path.basename(text))


def _below(place: str, folders: Sequence[str]) -> bool:
    return any(place == folder or place.startswith(folder + os.sep) for folder in folders)
