"""The cluster that `ray start` made on this machine: Ray notes its address where others can write, too."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_LISTENS = "0A"
_SECONDS = 5.0


def noted_address() -> str | None:
    """Address of the cluster that this user has started here, and that answers; None if there is none.

    A driver loads pickles that its cluster sends, so that to join another user's is to run his code. Neither a note of
    his counts, nor a cluster of his at the address of this user's, nor what the list of processes says, as for Ray.
    """
    if not hasattr(os, "getuid"):  # Windows, where nothing says whose a cluster is
        return None
    from ray._common.utils import get_ray_address_file

    note = Path(get_ray_address_file(None))
    try:
        with open(
            os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), encoding="utf-8", errors="replace"
        ) as file:
            state = os.fstat(file.fileno())
            text = file.read(300).strip()
    except OSError:
        return None
    if state.st_uid != os.getuid() or _others_can_write(state):
        logger.warning("%s: another user can have written it; name the cluster with --address to join it", note)
        return None
    host, _, port = text.rpartition(":")
    with suppress(OSError, ValueError, OverflowError):
        return text if _answers(host.strip("[]"), int(port)) else None
    return None


def _others_can_write(state: os.stat_result) -> bool:
    """Whether another user can, for one a member of the group; many systems give each user a group for him alone."""
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
    """Whether somebody listens there, and on this machine nobody else than this user.

    Raises OSError, ValueError, OverflowError.
    """
    owners = _listeners(port) if _is_here(host) else None
    if owners is not None:
        return owners == {os.getuid()}
    # Ray would try for minutes.
    socket.create_connection((host, port), timeout=_SECONDS).close()
    return True


def _is_here(host: str) -> bool:
    """Whether it is an address of this machine."""
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _listeners(port: int) -> set[int] | None:
    """The users who listen on a TCP port of this machine; None where the system does not tell."""
    owners = set()
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.is_file()]
    for table in tables:
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, _, _, _, owner, *_ = line.split()
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                owners.add(int(owner))
    return owners if tables else None
