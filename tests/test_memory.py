"""How much memory a case is expected to take, how much there is, and what follows."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import PLAIN, TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from attunet3d import AttentionUNet, Segmenter, memory
from attunet3d.errors import MemoryLimitError
from attunet3d.memory import MemoryPlan, available_bytes, keep_freed_memory, network_bytes_per_voxel, plan_memory

CPU = torch.device("cpu")
MB, GB = 10**6, 10**9
SHAPE, MODEL = (512, 512, 300), (200, 200, 150)
SMALLEST = 32**3


def machine(available: int | None, resident: int | None = 500 * MB) -> Any:
    """A context in which this is what the system says."""
    return mock.patch.multiple(memory, available_bytes=lambda: available, resident_bytes=lambda: resident)


def plan(shape: tuple[int, ...] = SHAPE, model: tuple[int, ...] = MODEL, **kwargs: Any) -> MemoryPlan:
    """A plan on a machine that does not say what it has."""
    arguments: dict[str, Any] = {"base_bytes": 500 * MB, "limit_bytes": 100 * GB, **kwargs}
    window, per_voxel = arguments.pop("window", 2_500_000), arguments.pop("per_voxel", 300)
    with machine(arguments.pop("available", None), arguments.pop("resident", 500 * MB)):
        return plan_memory(shape, model, window, per_voxel, CPU, **arguments)


# --- the prediction


@given(
    shape=st.tuples(*[st.integers(1, 700)] * 3),
    model=st.tuples(*[st.integers(1, 300)] * 3),
    more=st.tuples(*[st.integers(0, 200)] * 6),
    window=st.integers(1, 3_000_000),
    keeps_ct=st.booleans(),
)
@settings(max_examples=100)
def test_larger_volumes_never_take_less(
    shape: tuple[int, ...], model: tuple[int, ...], more: tuple[int, ...], window: int, keeps_ct: bool
) -> None:
    smaller = plan(shape, model, window=window, keeps_ct=keeps_ct)
    larger = plan(
        tuple(n + m for n, m in zip(shape, more[:3], strict=True)),
        tuple(n + m for n, m in zip(model, more[3:], strict=True)),
        window=window,
        keeps_ct=keeps_ct,
    )
    assert larger.peak_bytes >= smaller.peak_bytes
    assert plan(shape, model, window=window + 1, keeps_ct=keeps_ct).peak_bytes >= smaller.peak_bytes
    assert smaller.peak_bytes >= 500 * MB + 2 * math.prod(shape)  # int16 HU


def test_what_is_held_is_counted() -> None:
    """By hand: while the network runs, 4 float32 images of 6 million voxels and the windows, the CT only for a
    picture; with little in the network, the CT beside one image while that is resampled."""
    ct, image = 2 * math.prod(SHAPE), 4 * math.prod(MODEL)
    assert plan().peak_bytes == 500 * MB + 4 * image + 2_500_000 * 300
    assert plan(keeps_ct=True).peak_bytes == plan().peak_bytes + ct
    resampling = plan(window=SMALLEST, per_voxel=1).peak_bytes - 500 * MB
    assert ct + image < resampling < 1.5 * (ct + image)
    # With the CT kept for a picture, it and the mask, twice while it is made, beside the logits.
    assert plan(window=SMALLEST, per_voxel=1, keeps_ct=True).peak_bytes - 500 * MB > 2 * ct + image
    assert plan(base_bytes=800 * MB).peak_bytes == plan().peak_bytes + 300 * MB


@torch.no_grad()
def test_bytes_of_a_network_grow_with_its_width_and_precision() -> None:
    wide, narrow = AttentionUNet(), AttentionUNet(channels=(4, 4, 8, 8, 8))
    assert network_bytes_per_voxel(wide, torch.float32) > network_bytes_per_voxel(narrow, torch.float32)
    assert network_bytes_per_voxel(wide, torch.float32) > 1.8 * network_bytes_per_voxel(wide, torch.bfloat16)
    # Skip and upsampled features of the finest level are there at once.
    assert network_bytes_per_voxel(wide, torch.float32) >= (16 + 32) * 4
    assert network_bytes_per_voxel(torch.nn.Identity(), torch.float32) >= network_bytes_per_voxel(wide, torch.float32)


# --- the limit


def test_ample_memory_limits_nothing() -> None:
    found = plan()
    assert found.limit_voxels is None
    assert found.allowed_bytes == 100 * GB


def test_unknown_memory_limits_nothing() -> None:
    found = plan(limit_bytes=None)
    assert found.limit_voxels is None
    assert found.allowed_bytes is None
    assert found.has_room_for(10**15)


def test_tight_memory_limits_what_goes_through_the_network() -> None:
    """What is left beside the images, in voxels of the network; at the prediction itself nothing has to be limited."""
    peak = plan().peak_bytes
    assert plan(limit_bytes=peak).limit_voxels is None
    tight = plan(limit_bytes=peak - 300 * 500_000)
    assert tight.limit_voxels == 2_000_000
    assert tight.peak_bytes == tight.allowed_bytes == peak - 300 * 500_000


@given(short=st.integers(0, 3 * GB), per_voxel=st.integers(1, 3000), window=st.integers(SMALLEST, 3_000_000))
@settings(max_examples=100)
def test_a_plan_stays_within_what_is_allowed_or_there_is_none(short: int, per_voxel: int, window: int) -> None:
    ample = plan(window=window, per_voxel=per_voxel)
    limit = ample.peak_bytes - short
    try:
        found = plan(window=window, per_voxel=per_voxel, limit_bytes=limit)
    except MemoryLimitError:
        # Not even the smallest windows fit, or the resampling does not.
        assert plan(window=SMALLEST, per_voxel=per_voxel).peak_bytes > limit
        return
    assert found.peak_bytes <= limit
    assert found.limit_voxels is None or SMALLEST <= found.limit_voxels < window
    run = min(window, found.limit_voxels or window)
    assert 500 * MB + 16 * math.prod(MODEL) + run * per_voxel <= limit


@pytest.mark.parametrize(
    ("available", "resident", "limit", "allowed"),
    [
        (9 * GB, 1 * GB, None, 9_500 * MB),
        (9 * GB, 1 * GB, 3 * GB, 3 * GB),
        (1 * GB, 1 * GB, 100 * GB, 1_900 * MB),
        (9 * GB, None, None, 9_025 * MB),  # at least the base of 500 MB is held
    ],
)
def test_what_the_machine_has_left_is_a_limit(
    available: int, resident: int | None, limit: int | None, allowed: int
) -> None:
    """Of it 5 % are left to others; what this process holds already counts as its own."""
    found = plan(available=available, resident=resident, limit_bytes=limit)
    assert found.allowed_bytes == pytest.approx(allowed, abs=1)


def test_what_does_not_fit_is_refused_with_size_need_rest_and_cure() -> None:
    needed = plan(window=SMALLEST).peak_bytes
    with pytest.raises(MemoryLimitError) as refused:
        plan(limit_bytes=2**29)
    assert str(refused.value) == (
        f"a CT of 512 x 512 x 300 voxels needs {needed / 2**30:.1f} GiB of memory, and there are 0.5 GiB: "
        "close other programs, crop the CT to the abdomen, or use a machine with more"
    )


def test_room_beside_a_case() -> None:
    found = MemoryPlan(peak_bytes=700, allowed_bytes=1000, limit_voxels=None)
    assert found.has_room_for(300)
    assert not found.has_room_for(301)


# --- what there is

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    {kib} kB\nBuffers:  1 kB\n"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, str]], None]:
    """system({"/proc/meminfo": text, ...}): the only files that there are."""

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.lstrip("/"))

    return write


def cgroup2(most: str, current: int, inactive: int) -> dict[str, str]:
    root = "/sys/fs/cgroup/memory."
    return {
        f"{root}max": f"{most}\n",
        f"{root}current": f"{current}\n",
        f"{root}stat": f"anon 5\nfile 7\ninactive_file {inactive}\nslab 3\n",
    }


def cgroup1(most: int, usage: int, inactive: int) -> dict[str, str]:
    root = "/sys/fs/cgroup/memory/memory."
    return {
        f"{root}limit_in_bytes": f"{most}\n",
        f"{root}usage_in_bytes": f"{usage}\n",
        f"{root}stat": f"cache 9\ninactive_file 1\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"/proc/meminfo": MEMINFO.format(kib=2000)}, 2000 * 1024),
        ({"/proc/meminfo": "MemTotal: 5 kB\n"}, None),  # a kernel before 3.14
        ({"/proc/meminfo": "MemAvailable: many kB\n"}, None),
        # A container may take what it has not taken yet, and what the kernel can drop of that.
        (cgroup2("10000", 7000, 500), 3500),
        (cgroup2("max", 7000, 500), None),
        (cgroup2("10000", 12000, 500), 0),
        (cgroup1(10000, 7000, 600), 3600),
        (cgroup1(2**63 - 4096, 7000, 0), 2**63 - 4096 - 7000),  # version 1's word for "no limit"
        # The less of the two counts, whichever it is.
        ({"/proc/meminfo": MEMINFO.format(kib=2), **cgroup2("10000", 7000, 500)}, 2048),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), **cgroup2("10000", 7000, 500)}, 3500),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), **cgroup2("max", 7000, 500)}, 2000 * 1024),
        ({"/proc/meminfo": MEMINFO.format(kib=2000), "/sys/fs/cgroup/memory.max": "10000\n"}, 2000 * 1024),
    ],
)
def test_available_memory_is_that_of_the_machine_or_its_container(
    system: Callable[[dict[str, str]], None], files: dict[str, str], expected: int | None
) -> None:
    system(files)
    assert available_bytes() == expected


def test_resident_memory_is_read_in_pages(
    system: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PAGE_SIZE": 4096}.__getitem__)
    system({"/proc/self/statm": "900 300 20 1 0 100 0\n"})
    assert memory.resident_bytes() == 300 * 4096
    system({"/proc/self/statm": "\n"})
    assert memory.resident_bytes() is None


def test_this_machine_says_something_believable() -> None:
    held, peak, left = memory.resident_bytes(), memory.peak_bytes(), available_bytes()
    if held is None or peak is None or left is None:
        pytest.skip("not on this system")
    assert 10 * MB < held < 100 * GB
    assert peak >= 0.9 * held
    assert 0 <= left < 100_000 * GB


# --- freed memory


class Libc:
    """Stands for glibc: keeps the calls."""

    def __init__(self, name: object = None) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append(("mallopt", parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append(("malloc_trim", pad))
        return 1


KEEP = [("mallopt", -4, 0), ("mallopt", -1, 2**31 - 1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
GIVE_BACK = [("mallopt", -4, 65536), ("mallopt", -1, 128 * 1024), ("malloc_trim", 0)]


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: fake)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    return fake


def test_freed_memory_is_kept_meanwhile_and_returned_at_the_end(libc: Libc) -> None:
    with keep_freed_memory():
        assert libc.calls == KEEP
    assert libc.calls == KEEP + GIVE_BACK


def test_freed_memory_is_returned_after_an_error_and_from_within_another(libc: Libc) -> None:
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        raise ZeroDivisionError
    assert libc.calls == KEEP + GIVE_BACK
    libc.calls.clear()
    with keep_freed_memory():
        with keep_freed_memory():
            pass
        inner = list(libc.calls)
    assert inner == KEEP + KEEP + GIVE_BACK
    assert libc.calls == inner + GIVE_BACK


def test_huge_pages_are_not_kept_but_returned(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cleared so fast that keeping them has no use."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    with keep_freed_memory():
        assert libc.calls == []
    assert libc.calls == GIVE_BACK[-1:]
    libc.calls.clear()
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    with keep_freed_memory():
        pass
    assert libc.calls == KEEP + GIVE_BACK


@pytest.mark.parametrize("error", [OSError("no such library"), TypeError("None on Windows")])
def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with keep_freed_memory():
        done = True
    assert done
    with pytest.raises(ZeroDivisionError), keep_freed_memory():
        raise ZeroDivisionError


def test_without_mallopt_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # as on macOS
    with keep_freed_memory():
        done = True
    assert done


# --- in a session

BASE = 500 * MB


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Segmenter]]:
    """limited(checkpoint, bytes, ...): a session that may take this much beyond what it holds without a case."""
    monkeypatch.setattr("attunet3d.segmenter.resident_bytes", lambda: BASE)

    def make(checkpoint: Path, beyond: int | None, **overrides: Any) -> Segmenter:
        limit = None if beyond is None else (BASE + beyond) / 1e9
        values = {**TINY, **PLAIN, "max_window_voxels": 10**6, "backend": "torch", **overrides}
        return Segmenter(checkpoint, "cpu", "fp32", memory_limit=limit, **values)

    with machine(available=None, resident=BASE):
        yield make


def test_a_session_with_little_memory_takes_smaller_windows(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path]
) -> None:
    """Those, and that mask, which a session has whose windows were set to be as small."""
    ct = write_phantom()
    ample = limited(tiny_checkpoint, None).segment(ct).record
    assert ample["windows"]["run"] == 1
    third = math.prod(ample["windows"]["size"]) // 3
    per_voxel = network_bytes_per_voxel(AttentionUNet(channels=TINY["channels"]), torch.float32)
    images = 4 * 4 * math.prod(ample["model_grid_shape"])
    tight = limited(tiny_checkpoint, images + third * per_voxel + per_voxel // 2).segment(ct)
    windows = tight.record["windows"]
    assert windows["run"] > 1
    assert min(windows["size"]) >= 32
    assert windows["batch"] * math.prod(windows["size"]) <= third
    assert tight.record["memory_mb"]["predicted"] < ample["memory_mb"]["predicted"]
    small = limited(tiny_checkpoint, None, max_window_voxels=third).segment(ct)
    assert small.record["windows"] == windows
    assert (small.mask == tight.mask).all()
    assert tight.mask.any()


def test_little_memory_changes_nothing_where_the_network_sees_each_voxel_alone(
    limited: Callable[..., Segmenter], tmp_path: Path, write_phantom: Callable[..., Path]
) -> None:
    """Here the mask is known: soft tissue above 40 HU, of the model grid. Windows of any size must find it."""
    checkpoint = tmp_path / "pointwise.pt"
    torch.save({"weight": torch.tensor([0.0, 10.0]).view(2, 1, 1, 1, 1), "bias": torch.tensor([5.0, 0.0])}, checkpoint)
    pointwise = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
        "hu_window": [-160.0, 240.0],  # 40 HU is half way
    }
    ct = write_phantom()
    ample = limited(checkpoint, None, **pointwise).segment(ct)
    per_voxel = network_bytes_per_voxel(torch.nn.Identity(), torch.float32)
    images = 4 * 4 * math.prod(ample.record["model_grid_shape"])
    tight = limited(checkpoint, images + 40_000 * per_voxel, **pointwise).segment(ct)
    assert (ample.record["windows"]["run"], tight.record["windows"]["run"] > 1) == (1, True)
    assert 0.05 < ample.mask.mean() < 0.9
    # Blending rounds: of voxels whose logit is 0 but for that, some may change sides.
    assert (ample.mask != tight.mask).mean() < 1e-4


def test_a_session_with_far_too_little_memory_refuses_and_writes_nothing(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    session = limited(tiny_checkpoint, 1 * MB)
    message = r"a CT of 60 x 56 x 44 voxels needs .* and there are 0\.5 GiB: close"
    with pytest.raises(MemoryLimitError, match=message):
        session.segment(write_phantom(), tmp_path / "out")
    (case,) = session.segment_all([write_phantom()], tmp_path / "out")
    assert isinstance(case.error, MemoryLimitError)
    assert not (tmp_path / "out").exists()
