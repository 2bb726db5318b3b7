"""How much memory this process could still take: the least that the machine, its cgroups and its own limits leave.

A batch system or systemd puts a process into a cgroup deep in a tree, and each level may have a limit of its own, for
all processes below it: the kernel ends a process at the first limit that it meets. Swap is no memory here.
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
# Where the hierarchies are if nothing says so: version 2 alone, or beside version 1, and version 1.
_USUAL_MOUNTS = (
    ("cgroup2", "/sys/fs/cgroup"),
    ("cgroup2", "/sys/fs/cgroup/unified"),
    ("cgroup", "/sys/fs/cgroup/memory"),
)
# A thread that makes its first allocation takes 128 MiB of addresses for its heap, of which it uses what it needs, and
# 8 MiB for its stack: so does the one that reads CTs.
_ADDRESSES_OF_A_THREAD = 136 * 2**20


@dataclass(frozen=True)
class _Files:
    """What one version of cgroups calls the files of a group, and in its statistics the file cache."""

    limits: tuple[str, ...]
    usage: str
    above: str  # in the statistics: the least limit of the groups above, seen or not
    prefix: str  # in the statistics: of what is summed up over the groups below
    mapped: str


_VERSIONS = {
    "cgroup2": _Files(("memory.max", "memory.high"), "memory.current", "", "", "file_mapped"),
    "cgroup": _Files(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", "hierarchical_memory_limit", "total_", "mapped_file"
    ),
}


def available_bytes(root: Path = _ROOT) -> int | None:
    """Memory that this process could still take, with what the kernel can drop for it; None where nothing is known.

    On macOS and Windows it is what the machine has.

    Args:
        root: where /proc and /sys are, on Linux.
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
    """What ``ulimit -v`` and ``ulimit -d`` leave."""
    try:
        import resource
    except ImportError:
        return
    status = _sizes(root / "proc/self/status")
    for limit, taken, apart in (
        (resource.RLIMIT_AS, "VmSize", _ADDRESSES_OF_A_THREAD),
        (resource.RLIMIT_DATA, "VmData", 0),
    ):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and taken in status:
            yield max(most - status[taken] - apart, 0)


def _sizes(path: Path) -> dict[str, int]:
    """Lines as ``MemAvailable: 5 kB`` of a file of /proc, in bytes."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", _text(path), re.MULTILINE)}


def _cgroups(root: Path) -> Iterator[int | None]:
    """What each level leaves, from the group of this process up to the root of what can be seen."""
    own = dict(_own_groups(_text(root / "proc/self/cgroup"))) or {"cgroup2": "/", "cgroup": "/"}
    for kind, top, mount in _mounts(_text(root / "proc/self/mountinfo")) or [(k, "/", m) for k, m in _USUAL_MOUNTS]:
        if kind not in own:
            continue
        folder = root / mount.lstrip("/")
        below = Path(os.path.relpath(own[kind], top))
        # What lies above the mount, as seen from within a namespace, cannot be looked at: its top is what is left.
        levels = [below, *below.parents] if ".." not in below.parts else [Path()]
        for level in levels:
            yield _left_in(folder / level, _VERSIONS[kind])


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """Of /proc/self/cgroup: the group of this process where version 1, or 2, counts memory."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield "cgroup2", path or "/"
        elif "memory" in controllers.split(","):
            yield "cgroup", path or "/"


def _mounts(text: str) -> list[tuple[str, str, str]]:
    """Of /proc/self/mountinfo: the version, which group is mounted, and where."""
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
    """What a group may still take; None where it has no limit, or is not there."""
    stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
    limits = [_text(group / name).strip() for name in files.limits] + [stat.get(files.above, "")]
    numbers = [int(limit) for limit in limits if limit.isdecimal()]
    taken = _text(group / files.usage).strip()
    if not numbers or not taken.isdecimal():
        return None
    return max(min(numbers) - int(taken) + _droppable(stat, files), 0)


def _droppable(stat: Mapping[str, str], files: _Files) -> int:
    """File cache that the kernel drops where memory is short: not what is mapped, as the libraries in use are."""
    cache = sum(int(stat.get(f"{files.prefix}{name}_file", 0)) for name in ("inactive", "active"))
    return max(cache - int(stat.get(files.prefix + files.mapped, 0)), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
