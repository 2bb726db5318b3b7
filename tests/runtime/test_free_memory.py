"""How much memory there is: the least that the machine, each level of its cgroups and its own limits leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from attunet3d.runtime.free_memory import available_bytes

resource = pytest.importorskip("resource")  # not on Windows

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    {kib} kB\nBuffers:  1 kB\n"
V2, V1 = "/sys/fs/cgroup", "/sys/fs/cgroup/memory"
MOUNT_V2 = "29 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime shared:15 - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)
NO_LIMIT_V1 = 2**63 - 4096

Files = dict[str, str]


@pytest.fixture(autouse=True)
def without_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    own_limits(monkeypatch, {})


def own_limits(monkeypatch: pytest.MonkeyPatch, limits: dict[int, int]) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits.get(which, unlimited), unlimited))


def available(root: Path, *files: Files) -> int | None:
    """What is available where these are the only files."""
    for name, text in [item for some in files for item in some.items()]:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_bytes(root)


def v2(group: str, most: object = "max", current: int = 0, high: object = "max", at: str = V2, **stat: int) -> Files:
    folder = f"{at}{group.rstrip('/')}"
    return {
        f"{folder}/memory.max": f"{most}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{current}\n",
        f"{folder}/memory.stat": "anon 5\nfile 7\n" + "".join(f"{name} {n}\n" for name, n in stat.items()),
    }


def v1(group: str, most: int = NO_LIMIT_V1, usage: int = 0, **stat: int) -> Files:
    folder = f"{V1}{group.rstrip('/')}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{most}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": "cache 9\ninactive_file 1\n" + "".join(f"{name} {n}\n" for name, n in stat.items()),
    }


def proc(cgroup: str, mountinfo: str | None = None) -> Files:
    files = {"/proc/self/cgroup": cgroup}
    return files if mountinfo is None else {**files, "/proc/self/mountinfo": OTHER_MOUNTS + mountinfo}


# --- one level


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"/proc/meminfo": MEMINFO.format(kib=2000)}, 2000 * 1024),
        ({"/proc/meminfo": "MemTotal: 5 kB\n"}, None),  # a kernel before 3.14
        ({"/proc/meminfo": "MemAvailable: many kB\n"}, None),
        # A container may take what it has not taken yet, and what the kernel can drop of that.
        (v2("/", 10000, 7000, inactive_file=500), 3500),
        (v2("/", 10000, 7000, inactive_file=500, active_file=400), 3900),
        (v2("/", 10000, 7000, inactive_file=500, active_file=400, file_mapped=300), 3600),  # libraries in use
        (v2("/", 10000, 7000, inactive_file=100, file_mapped=300), 3000),
        (v2("/", "max", 7000, inactive_file=500), None),
        (v2("/", 10000, 12000, inactive_file=500), 0),
        (v2("/", "max", 7000, high=8000), 1000),  # beyond it the kernel slows the process until it stands still
        (v2("/", 7500, 7000, high=8000), 500),
        (v1("/", 10000, 7000, total_inactive_file=600), 3600),
        (v1("/", 10000, 7000, total_inactive_file=600, total_active_file=50, total_mapped_file=20), 3630),
        (v1("/", NO_LIMIT_V1, 7000), NO_LIMIT_V1 - 7000),  # version 1's word for "no limit"
        # The less of the two counts, whichever it is.
        ({"/proc/meminfo": MEMINFO.format(kib=2), **v2("/", 10000, 7000, inactive_file=500)}, 2048),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), **v2("/", 10000, 7000, inactive_file=500)}, 3500),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), **v2("/", "max", 7000)}, 2000 * 1024),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), f"{V2}/memory.max": "10000\n"}, 2000 * 1024),
    ],
)
def test_available_memory_is_that_of_the_machine_or_its_container(
    tmp_path: Path, files: Files, expected: int | None
) -> None:
    assert available(tmp_path, files) == expected


# --- levels


@pytest.mark.parametrize("tight", ["/", "/slurm", "/slurm/job_7", "/slurm/job_7/step_0"])
def test_the_tightest_level_of_version_2_counts_with_its_own_usage(tmp_path: Path, tight: str) -> None:
    levels = [v2(group, 90_000, 80_000) for group in ("/", "/slurm", "/slurm/job_7", "/slurm/job_7/step_0")]
    beside = v2("/slurm/job_8", 10, 9)  # another job's is none of ours
    files = proc("0::/slurm/job_7/step_0\n", MOUNT_V2.format(top="/"))
    found = available(tmp_path, files, *levels, beside, v2(tight, 50_000, 45_000, inactive_file=300))
    assert found == 5_300


def test_limits_of_version_1_count_on_each_level(tmp_path: Path) -> None:
    files = proc("9:name=systemd:/a\n4:memory,hugetlb:/jobs/7\n3:cpuset:/x\n0::/\n", MOUNT_V1.format(top="/"))
    levels = v1("/"), v1("/jobs", 50_000, 48_000, total_inactive_file=100), v1("/jobs/7", 40_000, 3_000)
    assert available(tmp_path, files, *levels, v1("/x", 5, 4)) == 2_100


def test_version_1_says_what_limits_above_cannot_be_seen(tmp_path: Path) -> None:
    files = proc("4:memory:/jobs/7\n", MOUNT_V1.format(top="/jobs/7"))
    assert available(tmp_path, files, v1("/", 9_000, 3_000, hierarchical_memory_limit=4_000)) == 1_000


@pytest.mark.parametrize("counts", ["v1", "v2"])
def test_of_hybrid_hierarchies_the_one_that_counts_memory_is_read(tmp_path: Path, counts: str) -> None:
    """systemd mounts both; the controller is in one of them."""
    mounts = MOUNT_V1.format(top="/") + MOUNT_V2.format(top="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    groups = "4:memory:/user/7\n0::/user.slice/7\n" if counts == "v1" else "4:cpu:/user/7\n0::/user.slice/7\n"
    limits = (
        v1("/user/7", 9_000, 3_000)
        if counts == "v1"
        else {**v2("/user.slice", at=f"{V2}/unified"), **v2("/user.slice/7", 9_000, 3_000, at=f"{V2}/unified")}
    )
    assert available(tmp_path, proc(groups, mounts), limits) == 6_000
    (tmp_path / "proc/self/mountinfo").unlink()  # then they are where they usually are
    assert available(tmp_path) == 6_000


@pytest.mark.parametrize(
    ("path", "top"),
    [
        ("/", "/"),  # a namespace of its own
        ("/docker/0a1b", "/docker/0a1b"),  # none, and the group's folder is mounted as the root
        ("/../..", "/"),  # moved to a group above the namespace's
        ("/", "/../.."),
        ("/other/place", "/docker/0a1b"),
        ("/gone", "/"),  # the folder cannot be seen: its parents count
    ],
)
def test_in_a_container_what_is_mounted_counts(tmp_path: Path, path: str, top: str) -> None:
    files = proc(f"0::{path}\n", MOUNT_V2.format(top=top))
    assert available(tmp_path, files, v2("/", 9_000, 3_000)) == 6_000


def test_a_mount_with_a_space_in_its_name(tmp_path: Path) -> None:
    files = proc("0::/\n", MOUNT_V2.format(top="/").replace("/sys/fs/cgroup ", "/sys/fs/c\\040groups "))
    assert available(tmp_path, files, v2("", 9_000, 3_000, at="/sys/fs/c groups")) == 6_000


# --- the process's own limits

STATUS = "Name:\tpython\nVmPeak:\t   90 kB\nVmSize:\t   4000000 kB\nVmData:\t   1000000 kB\nThreads:\t5\n"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({resource.RLIMIT_AS: 6_000_000 * 1024}, 2_000_000 * 1024 - 136 * 2**20),  # a thread's heap takes addresses
        ({resource.RLIMIT_AS: 4_000_001 * 1024}, 0),
        ({resource.RLIMIT_DATA: 1_500_000 * 1024}, 500_000 * 1024),
        ({resource.RLIMIT_AS: 6_000_000 * 1024, resource.RLIMIT_DATA: 1_500_000 * 1024}, 500_000 * 1024),
        ({resource.RLIMIT_STACK: 5}, None),
    ],
)
def test_limits_of_the_shell_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[int, int], expected: int | None
) -> None:
    """``ulimit -v`` and ``ulimit -d``, less what is taken of them."""
    own_limits(monkeypatch, limits)
    assert available(tmp_path, {"/proc/self/status": STATUS}) == expected
    assert available(tmp_path, {"/proc/self/status": "Name:\tpython\n"}) is None
