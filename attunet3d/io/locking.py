"""Lock an output folder, so that only one run at a time writes to it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from attunet3d.errors import OutputError
from attunet3d.io.printable import one_line
from attunet3d.io.writer import make_folder, no_link

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
_MOST_QUOTED = 300  # characters of the lock file, which describes the other run
_LOCKED_BYTE = 2**30  # on Windows
_held: dict[str, ExitStack] = {}


@contextmanager
def locked(folder: Path, required: bool = True) -> Iterator[None]:
    """Lock a folder against other runs; it is created if missing. The system releases the lock when the process ends.

    Runs on other machines are kept out if the folder's storage supports locks across machines.

    Args:
        folder: to be locked.
        required: raise if the storage has no locks; otherwise this is only logged.

    Raises:
        OutputError: another run has the lock, or the folder cannot be written or locked.
    """
    path = make_folder(folder) / LOCK
    try:
        # Not a link: its target would be overwritten.
        file = open(path, "a+", encoding="utf-8", errors="replace", opener=no_link)  # noqa: SIM115
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another output folder"
        ) from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            other = one_line(file.read(_MOST_QUOTED)) or "just started"
            raise OutputError(
                f"{folder}: another run writes here ({other}); wait for it, or choose another output folder"
            ) from error
        except OSError as error:  # some network storage has no locks
            if required:
                raise OutputError(
                    f"{path}: cannot be locked ({error.strerror}); choose storage with file locks"
                ) from error
            logger.warning("%s: cannot be locked (%s): see that no other run writes there", path, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def hold_folder(folder: str | Path) -> None:
    """Lock a folder like ``locked``, until ``release_folder`` or the end of the process, if the storage has locks.

    A folder that is already locked by this process stays locked.

    Raises:
        OutputError: another process has the lock, or the folder cannot be written.
    """
    key = os.path.realpath(folder)
    if key not in _held:
        with ExitStack() as stack:
            stack.enter_context(locked(Path(folder), required=False))
            _held[key] = stack.pop_all()


def release_folder(folder: str | Path) -> None:
    """Release the lock of ``hold_folder``, if this process has it."""
    _held.pop(os.path.realpath(folder), ExitStack()).close()


def _lock(file: IO[str]) -> None:
    """Lock an open file until it is closed, at the latest when the process ends.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the storage, or the system, does not support locks.
    """
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(file)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(file: IO[str]) -> None:
    try:
        import msvcrt
    except ImportError as error:
        raise OSError(errno.ENOTSUP, "this system has no such locks") from error
    windows: Any = msvcrt
    # Others cannot even read a locked byte, so this is one far beyond the text; it need not exist in the file.
    os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
    try:
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(error.errno, "locked by another") from error
        raise
    finally:
        os.lseek(file.fileno(), 0, os.SEEK_END)
