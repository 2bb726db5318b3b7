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

from attunet3d import AttentionUNet, Segmenter
from attunet3d.errors import ConfigError, MemoryLimitError
from attunet3d.io.output_formats import FORMATS
from attunet3d.networks.folding import fold
from attunet3d.networks.memory import network_bytes_per_voxel
from attunet3d.runtime import free_memory, process_memory
from attunet3d.runtime.process_memory import keep_freed_memory
from attunet3d.segmenter import memory_plan
from attunet3d.segmenter.memory_plan import MemoryPlan, plan_memory

CPU = torch.device("cpu")
MB, GB = 10**6, 10**9
SHAPE, MODEL = (512, 512, 300), (200, 200, 150)
SMALLEST = 32**3


def machine(available: int | None, resident: int | None = 500 * MB) -> Any:
    """A context in which this is what the system says."""
    return mock.patch.multiple(memory_plan, available_bytes=lambda: available, resident_bytes=lambda: resident)


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
    # A DICOM SEG is made of copies of the mask, which a large CT has to have room for when the network is done.
    large = (512, 512, 1500)
    seg = FORMATS["dicom-seg"]
    written = plan(large, writing_bytes=seg.writing_bytes(math.prod(large)))
    assert written.peak_bytes - 500 * MB > 5 * math.prod(large)
    assert plan(writing_bytes=seg.writing_bytes(math.prod(SHAPE))).peak_bytes == plan().peak_bytes


@torch.no_grad()
def test_bytes_of_a_network_grow_with_its_width_and_precision() -> None:
    wide, narrow = AttentionUNet(), AttentionUNet(channels=(4, 4, 8, 8, 8))
    assert network_bytes_per_voxel(wide, torch.float32) > network_bytes_per_voxel(narrow, torch.float32)
    assert network_bytes_per_voxel(wide, torch.float32) > 1.8 * network_bytes_per_voxel(wide, torch.bfloat16)
    # Skip and upsampled features of the finest level are there at once; apart, twice or three times one of them.
    assert network_bytes_per_voxel(wide, torch.float32) >= (16 + 32) * 4
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        apart = network_bytes_per_voxel(wide, dtype, split=True)
        assert (2.5 * 16 + 5) * size < apart < network_bytes_per_voxel(wide, dtype)
    gated = AttentionUNet(gate_first_skip=True)  # makes more copies at the finest level
    assert network_bytes_per_voxel(gated, torch.float32, split=True) == network_bytes_per_voxel(gated, torch.float32)
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
        f"a CT of 512 x 512 x 300 voxels needs {needed / 2**30:.2f} GiB of memory, and there are 0.50 GiB: "
        "close other programs, crop the CT to the abdomen, or use a machine with more"
    )


def test_a_ct_turned_against_the_model_grid_takes_more_to_resample() -> None:
    """Its copy on the way there; on the way back, for each voxel of a slab, the places of its neighbours."""
    straight, turned = (plan(window=SMALLEST, per_voxel=1, oblique=oblique).peak_bytes for oblique in (False, True))
    assert turned > straight + 0.9 * 2 * math.prod(SHAPE)
    flat = (512, 512, 20)
    straight, turned = (
        plan(flat, (120, 120, 20), window=SMALLEST, oblique=oblique).peak_bytes for oblique in (False, True)
    )
    assert turned > straight + 900 * 512 * 512


def test_room_beside_a_case() -> None:
    found = MemoryPlan(peak_bytes=700, allowed_bytes=1000, limit_voxels=None)
    assert found.has_room_for(300)
    assert not found.has_room_for(301)


# --- what there is


def test_this_machine_says_something_believable() -> None:
    held, peak, left = process_memory.resident_bytes(), process_memory.peak_bytes(), free_memory.available_bytes()
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
RETURN_AT_ONCE = [("mallopt", -3, 2 * 2**20)]  # M_MMAP_THRESHOLD: a huge page
AS_BEFORE = [("mallopt", -3, 32 * 2**20), ("malloc_trim", 0)]


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(process_memory.ctypes, "CDLL", lambda name: fake)
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
    """They are cleared so fast that keeping them has no use; smaller tensors than those are kept all the same."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    with keep_freed_memory():
        assert libc.calls == RETURN_AT_ONCE
    assert libc.calls == RETURN_AT_ONCE + AS_BEFORE
    libc.calls.clear()
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    with keep_freed_memory():
        pass
    assert libc.calls == KEEP + GIVE_BACK


def test_where_there_is_no_room_for_holes_freed_memory_is_returned_whatever_the_pages(libc: Libc) -> None:
    with keep_freed_memory(never=True):
        assert libc.calls == RETURN_AT_ONCE
    assert libc.calls == RETURN_AT_ONCE + AS_BEFORE


def test_holes_are_counted_where_memory_is_kept_and_it_is_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of several sizes leave more of them."""
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    ample, windows = plan(), 2_500_000
    one, several = ample.fragmentation(windows, False), ample.fragmentation(windows, True)
    assert one is not None
    assert several is not None
    assert 0 < one < several <= windows * 300
    assert ample.peak_with(windows, one) == ample.peak_bytes + one
    assert plan(limit_bytes=ample.peak_bytes + 2 * one).fragmentation(windows, False) == one
    assert plan(limit_bytes=ample.peak_bytes + 2 * one - 1).fragmentation(windows, False) is None
    assert plan(limit_bytes=None).fragmentation(windows, False) == one  # what there is is not known
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert ample.fragmentation(windows, True) == 0


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
    monkeypatch.setattr("attunet3d.segmenter.session.resident_bytes", lambda: BASE)
    monkeypatch.setattr("attunet3d.segmenter.session.FIRST_CASE_BYTES", 0)

    def make(checkpoint: Path, beyond: int | None, **overrides: Any) -> Segmenter:
        limit = None if beyond is None else (BASE + beyond) / 1e9
        values = {**TINY, **PLAIN, "max_window_voxels": 10**6, "backend": "torch", **overrides}
        return Segmenter(checkpoint, "cpu", "fp32", memory_limit=limit, **values)

    with machine(available=None, resident=BASE):
        yield make


def for_voxels(record: dict[str, Any], voxels: int, network: torch.nn.Module | None = None) -> int:
    """Memory for the images of a case and for so many voxels in the network, and half of one more."""
    tiny = network or AttentionUNet(channels=TINY["channels"])
    per_voxel = network_bytes_per_voxel(tiny, torch.float32, split=True)
    return 4 * 4 * math.prod(record["model_grid_shape"]) + voxels * per_voxel + per_voxel // 2


def said_of_memory(record: dict[str, Any]) -> list[str]:
    """The warnings, but for that of windows other than the recipe's, which these tests set."""
    return [line for line in record["warnings"] if "recipe" not in line]


def test_the_mask_does_not_depend_on_memory(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    """With room for the windows it is the one mask; without, there is none, and the message says what would help."""
    ct = write_phantom()
    ample = limited(tiny_checkpoint, None).segment(ct)
    size = ample.record["windows"]["size"]
    assert ample.record["windows"]["run"] == 1
    just_enough = limited(tiny_checkpoint, for_voxels(ample.record, math.prod(size))).segment(ct)
    assert just_enough.record["windows"] == ample.record["windows"]
    assert just_enough.record["warnings"] == ample.record["warnings"]
    assert (just_enough.mask == ample.mask).all()
    assert ample.mask.any()
    tight = limited(tiny_checkpoint, for_voxels(ample.record, math.prod(size) - 1))
    with pytest.raises(MemoryLimitError) as refused:
        tight.segment(ct, tmp_path / "out")
    assert str(refused.value) == (
        f"{ct}: windows of {size[0]} x {size[1]} x {size[2]} voxels need 0.48 GiB of memory, and there are 0.48 GiB: "
        "close other programs, use a machine with more, or set allow_smaller_windows=True, which changes the "
        "mask"
    )
    assert not (tmp_path / "out").exists()


def test_fewer_windows_are_run_at_once_before_anything_is_refused(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path]
) -> None:
    ct = write_phantom()
    values = {"max_window_voxels": 40_000, "sw_batch_size": 3}
    ample = limited(tiny_checkpoint, None, **values).segment(ct)
    window = math.prod(ample.record["windows"]["size"])
    assert ample.record["windows"]["batch"] == 3
    assert ample.record["windows"]["run"] > 3
    for batch in (1, 2):
        tight = limited(tiny_checkpoint, for_voxels(ample.record, batch * window), **values).segment(ct)
        assert tight.record["windows"] == {**ample.record["windows"], "batch": batch}
        assert (tight.mask != ample.mask).mean() < 1e-4  # in float32 other kernels may round differently
        (warning,) = said_of_memory(tight.record)
        assert warning.startswith(f"memory was short: {batch} windows were run at once instead of 3; that may round")
        assert tight.record["memory_mb"]["predicted"] < ample.record["memory_mb"]["predicted"]


def test_smaller_windows_are_taken_where_that_is_allowed_and_said(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path]
) -> None:
    """Those, and that mask, which a session has whose windows were set to be as small."""
    ct = write_phantom()
    ample = limited(tiny_checkpoint, None, allow_smaller_windows=True).segment(ct).record
    assert not said_of_memory(ample)
    third = math.prod(ample["windows"]["size"]) // 3
    tight = limited(tiny_checkpoint, for_voxels(ample, third), allow_smaller_windows=True).segment(ct)
    windows = tight.record["windows"]
    assert windows["run"] > 1
    assert min(windows["size"]) >= 32
    assert windows["batch"] * math.prod(windows["size"]) <= third
    assert tight.record["memory_mb"]["predicted"] < ample["memory_mb"]["predicted"]
    ran, full = (" x ".join(map(str, size)) for size in (windows["size"], ample["windows"]["size"]))
    assert said_of_memory(tight.record) == [
        f"memory was short: windows of {ran} voxels were run instead of {full}; they have less context around each "
        "voxel, so the mask differs from that of full windows"
    ]
    small = limited(tiny_checkpoint, None, max_window_voxels=third).segment(ct)
    assert small.record["windows"] == windows
    assert not said_of_memory(small.record)  # windows that are set are full ones
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
        "allow_smaller_windows": True,
        "allow_code": True,
    }
    ct = write_phantom()
    ample = limited(checkpoint, None, **pointwise).segment(ct)
    tight = limited(checkpoint, for_voxels(ample.record, 40_000, torch.nn.Identity()), **pointwise).segment(ct)
    assert (ample.record["windows"]["run"], tight.record["windows"]["run"] > 1) == (1, True)
    assert 0.05 < ample.mask.mean() < 0.9
    # Blending rounds: of voxels whose logit is 0 but for that, some may change sides.
    assert (ample.mask != tight.mask).mean() < 1e-4


def test_a_session_with_far_too_little_memory_refuses_and_writes_nothing(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    session = limited(tiny_checkpoint, 1 * MB)
    message = r"a CT of 60 x 56 x 44 voxels needs .* and there are 0\.47 GiB: close"
    with pytest.raises(MemoryLimitError, match=message):
        session.segment(write_phantom(), tmp_path / "out")
    (case,) = session.segment_all([write_phantom()], tmp_path / "out")
    assert isinstance(case.error, MemoryLimitError)
    assert not (tmp_path / "out").exists()


def test_a_ct_is_refused_before_it_is_read_where_no_window_can_fit(
    limited: Callable[..., Segmenter],
    tiny_checkpoint: Path,
    write_phantom: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No window is smaller than roi_size, unless smaller ones are allowed."""
    ct = write_phantom()
    record = limited(tiny_checkpoint, None).segment(ct).record
    monkeypatch.setattr("attunet3d.segmenter.reading.to_hu", lambda image: pytest.fail("the voxels were read"))
    values = {"roi_size": [48, 48, 48]}
    with pytest.raises(MemoryLimitError, match=r"a CT of 60 x 56 x 44 .*allow_smaller_windows=True"):
        limited(tiny_checkpoint, for_voxels(record, 40**3), **values).segment(ct)
    with pytest.raises(pytest.fail.Exception, match="the voxels were read"):
        limited(tiny_checkpoint, for_voxels(record, 40**3), **values, allow_smaller_windows=True).segment(ct)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_allow_smaller_windows_is_a_switch(tiny_checkpoint: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="allow_smaller_windows must be true or false"):
        Segmenter(tiny_checkpoint, **TINY, allow_smaller_windows=value)


def test_memory_is_predicted_for_the_variant_that_runs(
    limited: Callable[..., Segmenter], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 where the precision that was asked for does not run, and features together where they cannot be apart."""
    usual = limited(tiny_checkpoint, None)._bytes_per_voxel
    monkeypatch.setattr("attunet3d.runtime.torch_variants.fold", _fail_if_split)
    assert limited(tiny_checkpoint, None)._bytes_per_voxel > usual


def _fail_if_split(network: torch.nn.Module, single_logit: bool = False, split: bool = False) -> torch.nn.Module:
    if split:
        raise RuntimeError("no such operator")
    return fold(network, single_logit)


# --- a GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """gpu(free, kept, used): what a GPU has left, what torch has taken of it, and what of that is in use."""

    def set_up(free: int, kept: int = 0, used: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)

    return set_up


def plan_on_gpu(**kwargs: Any) -> MemoryPlan:
    with machine(None):
        cuda = torch.device("cuda", 0)
        return plan_memory(SHAPE, MODEL, 2_500_000, 300, cuda, base_bytes=0, limit_bytes=100 * GB, **kwargs)


def test_a_gpu_with_room_limits_nothing(gpu: Callable[..., None]) -> None:
    gpu(free=10 * GB)
    found = plan_on_gpu()
    assert found.limit_voxels is None
    assert found.peak_bytes == found.peak_with(1) == found.peak_with(10**9)  # of this process: the network is elsewhere


def test_what_torch_keeps_of_a_gpu_for_itself_is_free(gpu: Callable[..., None]) -> None:
    """After a first case nearly all of the GPU can be torch's: the next case must not be refused for that."""
    gpu(free=100 * MB, kept=10 * GB, used=1 * GB)
    assert plan_on_gpu().limit_voxels is None


def test_an_apple_gpu_takes_the_machines_own_memory() -> None:
    """There CT, image and mask are once more, as what the GPU works on."""
    device = torch.device("mps")
    with machine(None):
        here, there = (plan_memory(SHAPE, MODEL, 1, 1, on, base_bytes=0, limit_bytes=100 * GB) for on in (CPU, device))
    assert not there.on_gpu
    assert there.allowed_bytes == 100 * GB
    assert 2 * math.prod(SHAPE) >= there.elsewhere_bytes - here.elsewhere_bytes >= math.prod(SHAPE)
    with machine(None), pytest.raises(MemoryLimitError, match=r"needs .* of memory, and there are 1\.00 GiB"):
        plan_memory(SHAPE, MODEL, 2_500_000, 3000, device, base_bytes=2**30, limit_bytes=2**30)


def test_a_gpu_that_is_tight_limits_the_voxels_and_a_full_one_is_refused(gpu: Callable[..., None]) -> None:
    gpu(free=600 * MB)
    images = 4 * 4 * math.prod(MODEL)
    assert plan_on_gpu().limit_voxels == (570 * MB - images) // 300
    with pytest.raises(MemoryLimitError, match=r"needs .* of memory on cuda:0, and there are .*smaller_windows"):
        plan_on_gpu(smallest_voxels=2_000_000)
    gpu(free=100 * MB)
    with pytest.raises(MemoryLimitError, match=r"of memory on cuda:0, .* or device cpu"):
        plan_on_gpu()
