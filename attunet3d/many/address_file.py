"""Read the address file of ``ray start``, which names a cluster here, and which other users may be able to write."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_LISTENS = "0A"
_SECONDS = 5.0


def read_address_file() -> str | None:
    """Read the address of the running cluster that this user started here; None if there is none.

    A driver loads pickles that its cluster sends, so joining another user's cluster would run their code. Therefore an
    address file that another user can write is ignored, and so is another user's cluster at the address in it.
    Ray's other way of finding clusters, the list of processes, is not used.
    """
    if not hasattr(os, "getuid"):  # Windows, where nothing says whose a cluster is
        return None
    from ray._common.utils import get_ray_address_file

    path = Path(get_ray_address_file(None))
    try:
        with open(
            os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8", errors="replace"
        ) as file:
            state = os.fstat(file.fileno())
            text = file.read(300).strip()
    except OSError:
        return None
    if state.st_uid != os.getuid() or _others_can_write(state):
        logger.warning("%s: another user can have written it; give the cluster's address to join it", path)
        return None
    host, _, port = text.rpartition(":")
    with suppress(OSError, ValueError, OverflowError):
        return text if _answers(host.strip("[]"), int(port)) else None
    return None


def _others_can_write(state: os.stat_result) -> bool:
    """Whether users other than the owner can write to the file; a group with no other member does not count."""
    import grp
    import pwd

    if not state.st_mode & 0o022:
        return False
    try:
        user, group = pwd.getpwuid(state.st_uid).pw_name, grp.getgrgid(state.st_gid)
    except KeyError:
        return True
    return bool(state.st_mode & 0o002) or group.gr_name != user or not {user}.issuperset(group.gr_mem)


def _answers(host: str, port: int) -> bool:
    """Whether a process listens at an address; on this machine it must be this user's.

    Raises:
        OSError, ValueError, OverflowError: nothing listens there, or it is not an address.
    """
    owners = _listeners(port) if _is_here(host) else None
    if owners is not None:
        return owners == {os.getuid()}
    # Ray itself would try for minutes.
    socket.create_connection((host, port), timeout=_SECONDS).close()
    return True


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _listeners(port: int) -> set[int] | None:
    """Return the ids of users who listen on a TCP port of this machine; None if the system does not tell."""
    owners = set()
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.is_file()]
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, _, _, _, owner, *_ = line.split()
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                owners.add(int(owner))
    return owners if tables else None
