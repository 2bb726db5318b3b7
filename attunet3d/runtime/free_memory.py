"""Find out how much memory this process can still take, within the limits of the machine, cgroups and ``ulimit``.

Batch systems and systemd run a process in a cgroup deep in a tree. Each level may limit the memory of all processes
below it, and the kernel ends a process at the first limit that is reached. Swap does not count.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/")
# Where cgroups are usually mounted: version 2, version 2 together with version 1, version 1.
_USUAL_MOUNTS = (
    ("cgroup2", "/sys/fs/cgroup"),
    ("cgroup2", "/sys/fs/cgroup/unified"),
    ("cgroup", "/sys/fs/cgroup/memory"),
)
# At its first allocation a thread, such as the one that reads CTs, reserves 128 MiB of addresses for its heap, of which
# it uses what it needs, and 8 MiB for its stack.
_ADDRESSES_OF_A_THREAD = 136 * 2**20


@dataclass(frozen=True)
class _Files:
    """Names, in one version of cgroups, of the files of a group and of entries in its statistics."""

    limits: tuple[str, ...]
    usage: str
    above: str  # entry: the smallest limit of all groups above, even those outside this namespace
    prefix: str  # of entries that are sums over the groups below
    mapped: str  # entry: file cache that is mapped


_VERSIONS = {
    "cgroup2": _Files(("memory.max", "memory.high"), "memory.current", "", "", "file_mapped"),
    "cgroup": _Files(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", "hierarchical_memory_limit", "total_", "mapped_file"
    ),
}


def available_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that this process can still take, including droppable file cache; None if unknown.

    On macOS and Windows it is that of the machine.

    Args:
        root: folder of /proc and /sys, on Linux.
    """
    if sys.platform != "linux":
        return _machine_elsewhere()
    found = [_machine(root), *_cgroups(root), *_own_limits(root)]
    return min((n for n in found if n is not None), default=None)


def _machine(root: Path) -> int | None:
    return _sizes(root / "proc/meminfo").get("MemAvailable")


def _machine_elsewhere() -> int | None:
    try:
        return int(psutil.virtual_memory().available)
    except (psutil.Error, OSError, RuntimeError):
        return None


def _own_limits(root: Path) -> Iterator[int]:
    """Yield the memory left by ``ulimit -v`` and ``ulimit -d``."""
    try:
        import resource
    except ImportError:
        return
    status = _sizes(root / "proc/self/status")
    for limit, used, reserved in (
        (resource.RLIMIT_AS, "VmSize", _ADDRESSES_OF_A_THREAD),
        (resource.RLIMIT_DATA, "VmData", 0),
    ):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and used in status:
            yield max(most - status[used] - reserved, 0)


def _sizes(path: Path) -> dict[str, int]:
    """Read the lines like ``MemAvailable: 5 kB`` of a file in /proc, in bytes by name."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.MULTILINE)}


def _cgroups(root: Path) -> Iterator[int | None]:
    """Yield the memory left by each level, from the group of this process up to the root of its namespace."""
    own = dict(_own_groups(_text(root / "proc/self/cgroup"))) or {"cgroup2": "/", "cgroup": "/"}
    for kind, top, mount in _mounts(_text(root / "proc/self/mountinfo")) or [(k, "/", m) for k, m in _USUAL_MOUNTS]:
        if kind not in own:
            continue
        folder = root / mount.lstrip("/")
        below = Path(os.path.relpath(own[kind], top))
        # In a namespace the group may be above the mount, where it cannot be read: then the top of the mount is used.
        levels = [below, *below.parents] if ".." not in below.parts else [Path()]
        for level in levels:
            yield _left_in(folder / level, _VERSIONS[kind])


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """Parse /proc/self/cgroup: yield the version and path of each group that limits the memory of this process."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield "cgroup2", path or "/"
        elif "memory" in controllers.split(","):
            yield "cgroup", path or "/"


def _mounts(text: str) -> list[tuple[str, str, str]]:
    """Parse /proc/self/mountinfo: return the version, the group that is mounted, and the mount point."""
    found: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), (after.split() or [""])[0]
        counts = kind == "cgroup2" or (kind == "cgroup" and "memory" in after.split()[-1].split(","))
        if counts and len(fields) > 4:
            top, mount = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), field) for field in fields[3:5])
            found.append((kind, top, mount))
    return found


def _left_in(group: Path, files: _Files) -> int | None:
    """Return the memory that a group can still take; None if it has no limit, or does not exist."""
    stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
    limits = [_text(group / name).strip() for name in files.limits] + [stat.get(files.above, "")]
    numbers = [int(limit) for limit in limits if limit.isdecimal()]
    taken = _text(group / files.usage).strip()
    if not numbers or not taken.isdecimal():
        return None
    return max(min(numbers) - int(taken) + _droppable(stat, files), 0)


def _droppable(stat: Mapping[str, str], files: _Files) -> int:
    """Return the file cache that the kernel can drop: not mapped files, such as libraries in use."""
    cache = sum(int(stat.get(f"{files.prefix}{name}_file", 0)) for name in ("inactive", "active"))
    return max(cache - int(stat.get(files.prefix + files.mapped, 0)), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
