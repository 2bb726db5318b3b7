"""The sliding window's settings: which windows are run, what skipping may leave out, memory, progress, cancelling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from toy_networks import Foreground, Recording, is_foreground, noise, small_network

from attunet3d.errors import CancelledError, ConfigError
from attunet3d.inferers import SlidingWindow
from attunet3d.inferers.windows import WindowPlan

CPU = torch.device("cpu")
# Stands for any device but the CPU: tensors of any size without memory.
GPU_LIKE = torch.device("meta")

examples = settings(max_examples=100)


@dataclass(frozen=True)
class Scene:
    """An image of air with blobs in it, and how to run it."""

    image: Tensor
    window: SlidingWindow
    threshold: float

    @property
    def tissue(self) -> Tensor:
        """(B, X, Y, Z)."""
        return (self.image > self.threshold).any(dim=1)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    threshold = draw(st.sampled_from([0.0, 0.25, -3.0]))
    size = draw(st.tuples(*[st.integers(5, 44)] * 3))
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    image = torch.full((batch, channels, *size), threshold)
    for _ in range(draw(st.integers(1, 3))):
        low = [draw(st.integers(0, n - 1)) for n in size]
        blob = [slice(n, n + draw(st.integers(1, 12))) for n in low]
        place = (draw(st.integers(0, batch - 1)), draw(st.integers(0, channels - 1)), *blob)
        image[place] = threshold + draw(st.floats(1e-3, 1.0))
    window = SlidingWindow(
        draw(st.one_of(st.just(16), st.tuples(*[st.integers(12, 24)] * 3), st.just((16, -1, 12)))),
        draw(st.integers(1, 5)),
        draw(st.sampled_from([0.0, 0.25, 0.5])),
        skip_below=threshold,
        body_threshold=draw(st.sampled_from([None, threshold, threshold - 1])),
        max_window_voxels=draw(st.one_of(st.none(), st.integers(1, 50_000))),
    )
    return Scene(image, window, threshold)


def reached(image: Tensor, plan: WindowPlan) -> Tensor:
    """Which voxels (B, X, Y, Z) lie in a window that is run."""
    found = torch.zeros((len(image), *image.shape[2:]), dtype=torch.bool)
    for b, start in plan.jobs:
        found[(b, *(slice(max(s, 0), max(s + r, 0)) for s, r in zip(start, plan.roi, strict=True)))] = True
    return found


# --- the rule for skipping: nothing above the threshold is left out


@given(scene=scenes())
@examples
def test_every_voxel_above_the_threshold_is_in_a_window_that_is_run(scene: Scene) -> None:
    plan = scene.window.plan(scene.image)
    assert not (scene.tissue & ~reached(scene.image, plan)).any()
    outside = scene.tissue.clone()
    outside[(slice(None), *plan.box)] = False
    assert not outside.any()


@given(scene=scenes(), limit=st.integers(1, 20_000))
@examples
def test_that_holds_where_memory_limits_the_windows(scene: Scene, limit: int) -> None:
    plan = scene.window.plan(scene.image, limit)
    assert not (scene.tissue & ~reached(scene.image, plan)).any()


@given(scene=scenes())
@examples
def test_every_window_that_is_run_holds_something_above_the_threshold(scene: Scene) -> None:
    plan = scene.window.plan(scene.image)
    assert plan.jobs
    for b, start in plan.jobs:
        place = tuple(slice(max(s, 0), s + r) for s, r in zip(start, plan.roi, strict=True))
        assert scene.tissue[(b, *place)].any()


@given(scene=scenes(), channels=st.integers(1, 3), single_logit=st.booleans())
@examples
def test_logits_are_foreground_where_windows_were_run_and_background_elsewhere(
    scene: Scene, channels: int, single_logit: bool
) -> None:
    """Of a network that says foreground everywhere: so the map shows where it was asked."""
    scene.window.single_logit = single_logit
    logits = scene.window(scene.image, Foreground(channels))
    plan = scene.window.plan(scene.image)
    expected = torch.zeros_like(scene.tissue)
    inside = (slice(None), *plan.box)
    expected[inside] = reached(scene.image, plan)[inside]
    assert logits.shape[1] == (1 if channels == 2 and single_logit else channels)
    assert torch.equal(is_foreground(logits), expected)
    assert logits.dtype == torch.float32


@given(scene=scenes())
@settings(examples, max_examples=60)
def test_logits_belong_to_the_voxels_they_were_computed_from(scene: Scene) -> None:
    """A network that looks at each voxel alone says the same whatever the windows."""
    torch.manual_seed(1)
    image = scene.image + torch.rand_like(scene.image).mul_(0.5) * (scene.image > scene.threshold)
    network = nn.Conv3d(image.shape[1], 3, 1)
    with torch.no_grad():
        found, expected = scene.window(image, network), network(image)
    tissue = scene.tissue[:, None].expand_as(expected)
    torch.testing.assert_close(found[tissue], expected[tissue], rtol=1e-4, atol=1e-4)


@given(
    size=st.tuples(*[st.integers(20, 90)] * 3),
    first=st.tuples(*[st.integers(0, 40)] * 3),
    roi=st.tuples(*[st.sampled_from([32, 48, 64])] * 3),
    overlap=st.floats(0.0, 0.6),
    max_window_voxels=st.integers(1, 400_000),
)
@settings(examples, max_examples=25)
def test_a_network_that_pools_16_voxels_sees_the_same_in_all_windows(
    size: tuple[int, ...], first: tuple[int, ...], roi: tuple[int, ...], overlap: float, max_window_voxels: int
) -> None:
    """Five levels pool blocks of 16: from the box's first voxel on, whatever the windows and their overlap."""
    start = [min(f, n - 1) for f, n in zip(first, size, strict=True)]
    image = torch.zeros(1, 1, *size)
    body = (0, 0, *(slice(f, n) for f, n in zip(start, size, strict=True)))
    image[body] = noise(*(n - f for f, n in zip(start, size, strict=True))).abs() + 0.01

    def network(x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool3d(x, 16), scale_factor=16, mode="nearest")

    found = SlidingWindow(roi, 1, overlap, body_threshold=0.0, max_window_voxels=max_window_voxels)(image, network)
    blocks = [-(-(n - f) // 16) * 16 for f, n in zip(start, size, strict=True)]
    padding = [side for f, n, b in zip(start, size, blocks, strict=True) for side in (b - (n - f), 0)][::-1]
    expected = network(F.pad(image[body][None, None], padding))
    inner = tuple(slice(0, n - f) for f, n in zip(start, size, strict=True))
    torch.testing.assert_close(found[body], expected[(0, 0, *inner)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_tissue_gets_what_it_gets_without_skipping(seed: int, overlap: float) -> None:
    """Every window that holds a voxel above the threshold is run, so at that voxel nothing may change."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 1, 40, 33, 27)
    blob = [slice(n, n + 6) for n in torch.randint(0, 20, (3,), generator=generator).tolist()]
    x[(0, 0, *blob)] = torch.rand(6, 6, 6, generator=generator) * 1.5 - 0.5
    network = Recording(small_network())
    with torch.no_grad():
        skipping = SlidingWindow((12, 12, 12), 4, overlap, skip_below=0.0)(x, network)
        run = sum(network.batches)
        network.windows.clear()
        whole = SlidingWindow((12, 12, 12), 4, overlap)(x, network)
    assert 0 < run < sum(network.batches)
    tissue = (x > 0).expand_as(whole)
    torch.testing.assert_close(skipping[tissue], whole[tissue], rtol=1e-5, atol=1e-5)


def test_only_windows_with_something_above_the_threshold_are_run() -> None:
    x = torch.zeros(1, 1, 32, 32, 32)  # 8 windows of 16 without overlap
    x[0, 0, 3, 20, 7] = 0.01  # in the window (0, 1, 0)
    x[0, 0, 31, 31, 31] = 0.5  # in the window (1, 1, 1)
    network = Recording(Foreground())
    window = SlidingWindow((16, 16, 16), 4, overlap=0.0, skip_below=0.0)
    mask = is_foreground(window(x, network))
    assert network.batches == [2]
    assert window.plan(x).skipped == 6
    expected = torch.zeros(1, 32, 32, 32, dtype=torch.bool)
    expected[0, :16, 16:, :16] = True
    expected[0, 16:, 16:, 16:] = True
    assert torch.equal(mask, expected)


def test_the_box_of_the_body_is_what_windows_are_laid_over() -> None:
    """A body of 40 voxels in an image of 80: one window, which no scan of the image would have."""
    x = torch.zeros(1, 1, 80, 80, 80)
    x[0, 0, 20:60, 17:57, 33:73] = 0.5
    window = SlidingWindow(32, overlap=0.25, body_threshold=0.0, max_window_voxels=48**3)
    plan = window.plan(x)
    assert plan.box == (slice(20, 60), slice(17, 57), slice(33, 73))
    assert plan.roi == (48, 48, 48)  # the next multiple of 16
    assert plan.jobs == [(0, (20, 17, 33))]
    assert plan.skipped == 0
    assert plan.region((80, 80, 80)) == (slice(19, 61), slice(16, 58), slice(32, 74))
    assert plan.region((60, 57, 80)) == (slice(19, 60), slice(16, 57), slice(32, 74))
    # MONAI's windows over the box: 32 and its last 32 voxels.
    scanned = SlidingWindow(32, overlap=0.25, body_threshold=0.0).plan(x)
    assert scanned.box == plan.box
    assert scanned.jobs == [(0, start) for start in product((20, 28), (17, 25), (33, 41))]
    # What was in windows, but not in the box, is background.
    mask = is_foreground(window(x, Foreground()))
    assert torch.equal(mask, x[:, 0] > 0)


def test_a_higher_threshold_for_the_body_leaves_what_is_between_to_the_background() -> None:
    """Noise in the air, a table: above ``skip_below`` perhaps, but not the body."""
    x = torch.zeros(1, 1, 32, 32, 32)
    x[0, 0, 2:6, 2:6, 2:6] = 0.25
    x[0, 0, 10:20, 11:21, 12:22] = 0.75
    for max_window_voxels in (None, 32**3):
        window = SlidingWindow(16, skip_below=0.0, body_threshold=0.25, max_window_voxels=max_window_voxels)
        mask = is_foreground(window(x, Foreground()))
        assert torch.equal(mask, x[:, 0] > 0.25)


def test_a_value_at_the_threshold_is_air_and_one_above_is_not() -> None:
    for max_window_voxels, body_threshold in product((None, 32**3), (None, 0.25)):
        window = SlidingWindow(
            (16, 16, 16), skip_below=0.25, body_threshold=body_threshold, max_window_voxels=max_window_voxels
        )
        for value, found in ((0.25, False), (0.2501, True)):
            mask = is_foreground(window(torch.full((1, 1, 16, 16, 16), value), Foreground()))
            assert mask.unique().tolist() == [found]


def test_no_threshold_runs_all() -> None:
    network = Recording(Foreground())
    mask = is_foreground(SlidingWindow((16, 16, 16), 3, overlap=0.0)(torch.zeros(1, 1, 32, 32, 32), network))
    assert network.batches == [3, 3, 2]
    assert mask.all()
    large = SlidingWindow((16, 16, 16), 1, overlap=0.0, max_window_voxels=32**3)
    network.windows.clear()
    assert is_foreground(large(torch.zeros(1, 1, 32, 32, 32), network)).all()
    assert [tuple(x.shape) for x in network.windows] == [(1, 1, 32, 32, 32)]


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("corner", list(product((0, 1), repeat=3))[::3])
def test_skipped_voxels_are_background_whatever_the_number_of_channels(
    channels: int, corner: tuple[int, int, int]
) -> None:
    x = torch.zeros(1, 1, 32, 32, 32)
    window = tuple(slice(16 * c, 16 * c + 16) for c in corner)
    x[(0, 0, *window)] = 1.0
    logits = SlidingWindow((16, 16, 16), overlap=0.0, skip_below=0.0, single_logit=False)(x, Foreground(channels))
    assert logits.shape == (1, channels, 32, 32, 32)
    assert torch.equal(is_foreground(logits)[0], x[0, 0] > 0)


def test_each_volume_of_a_batch_is_judged_by_itself() -> None:
    x = torch.zeros(2, 1, 16, 16, 32)
    x[1, 0, :, :, 20] = 1.0
    network = Recording(Foreground())
    mask = is_foreground(SlidingWindow((16, 16, 16), 4, overlap=0.0, skip_below=0.0)(x, network))
    assert network.batches == [1]
    assert torch.equal(network.windows[0][0], x[1, :, :, :, 16:])
    assert not mask[0].any()
    assert not mask[1, :, :, :16].any()
    assert mask[1, :, :, 16:].all()


@pytest.mark.parametrize(
    ("channels", "single_logit", "given"), [(1, True, 1), (2, True, 1), (2, False, 2), (5, True, 5)]
)
@pytest.mark.parametrize(
    "settings",
    [
        {"skip_below": 0.0},
        {"skip_below": 0.0, "body_threshold": 0.0},
        {"skip_below": 0.0, "body_threshold": 0.0, "max_window_voxels": 40_000},
        {"body_threshold": 0.0},
    ],
)
@pytest.mark.parametrize("size", [(20, 20, 20), (5, 40, 7)])
def test_nothing_but_air_is_background(
    size: tuple[int, ...], settings: dict[str, Any], channels: int, single_logit: bool, given: int
) -> None:
    """Whatever the network says; one window is run to learn how many channels it has."""
    network = Recording(Foreground(channels))
    window = SlidingWindow((16, 16, 16), single_logit=single_logit, **settings)
    logits = window(torch.zeros(2, 1, *size), network)
    assert network.batches == [1]
    assert logits.shape == (2, given, *size)
    assert not is_foreground(logits).any()


def test_padding_is_not_tissue() -> None:
    """A volume smaller than the window is padded with 0: by itself that must not keep a window of air alive."""
    logits = SlidingWindow((16, 16, 16), skip_below=-0.25)(torch.full((1, 1, 8, 8, 8), -0.5), Foreground())
    assert not is_foreground(logits).any()


# --- the ends of the image


@pytest.mark.parametrize(
    ("max_window_voxels", "first"),
    [
        (None, (5, 0, 3)),  # MONAI's: (16 - 5) // 2 zeros before the first voxel, (16 - 9) // 2
        (16**3, (0, 0, 0)),
    ],
)
def test_windows_that_reach_beyond_the_image_see_zeros_there(
    max_window_voxels: int | None, first: tuple[int, int, int]
) -> None:
    x = noise(1, 1, 5, 16, 9)
    network = Recording(Foreground())
    SlidingWindow(16, max_window_voxels=max_window_voxels)(x, network)
    (seen,) = network.windows
    expected = torch.zeros(1, 1, 16, 16, 16)
    expected[(0, 0, *(slice(f, f + n) for f, n in zip(first, (5, 16, 9), strict=True)))] = x[0, 0]
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("size", [(7, 8, 9), (1, 1, 1), (15, 3, 31)])
@pytest.mark.parametrize("max_window_voxels", [None, 1, 32**3])
def test_odd_sizes_smaller_than_a_window_come_back_in_place(
    size: tuple[int, ...], max_window_voxels: int | None
) -> None:
    x = noise(1, 1, *size).abs() + 0.01

    def network(windows: Tensor) -> Tensor:
        return 3 * windows - 1  # known for each voxel by itself

    found = SlidingWindow(16, 1, 0.5, skip_below=0.0, max_window_voxels=max_window_voxels)(x, network)
    torch.testing.assert_close(found, 3 * x - 1, rtol=1e-5, atol=1e-5)


# --- how much is run at once


@pytest.mark.parametrize("max_window_voxels", [None, 24 * 32 * 32])
def test_windows_per_forward_pass_do_not_change_the_logits(max_window_voxels: int | None) -> None:
    x, network = noise(2, 1, 40, 33, 21), Recording(small_network(classes=3))
    found, passes = [], []
    for sw_batch_size in (1, 2, 3, 100):
        network.windows.clear()
        window = SlidingWindow(16, sw_batch_size, 0.25, skip_below=0.0, max_window_voxels=max_window_voxels)
        with torch.no_grad():
            found.append(window(x, network))
        assert max(network.batches) <= sw_batch_size
        passes.append(len(network.batches))
    windows = passes[0]
    assert passes == [windows, math.ceil(windows / 2), math.ceil(windows / 3), 1]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def test_a_limit_makes_windows_smaller_longest_axis_first_and_then_the_batch() -> None:
    x = torch.zeros(1, 1, 200, 200, 200)
    window = SlidingWindow((96, 96, 64), 8, overlap=0.0)
    assert window.plan(x).voxels == 8 * 96 * 96 * 64
    assert window.plan(x, 96 * 96 * 64 * 3).batch == 3
    # 96 x 96 x 64 is a voxel too many: 80 x 96 x 64, then 80 x 80 x 64.
    assert window.plan(x, 96 * 96 * 64 - 1).roi == (80, 96, 64)
    assert window.plan(x, 80 * 96 * 64 - 1).roi == (80, 80, 64)
    assert window.plan(x, 80 * 80 * 64 - 1).roi == (64, 80, 64)
    smallest = window.plan(x, 1)
    assert (smallest.roi, smallest.batch) == ((32, 32, 32), 1)


@given(
    roi=st.tuples(*[st.integers(8, 128)] * 3),
    size=st.tuples(*[st.integers(20, 200)] * 3),
    limit=st.one_of(st.integers(1, 100_000), st.integers(100_000, 3_000_000)),
    max_window_voxels=st.one_of(st.none(), st.integers(1, 3_000_000)),
    sw_batch_size=st.one_of(st.none(), st.integers(1, 4)),
    device=st.sampled_from([CPU, GPU_LIKE]),
)
@examples
def test_a_limit_is_kept_with_windows_of_no_less_than_32_voxels_a_side(
    roi: tuple[int, ...],
    size: tuple[int, ...],
    limit: int,
    max_window_voxels: int | None,
    sw_batch_size: int | None,
    device: torch.device,
) -> None:
    window = SlidingWindow(roi, sw_batch_size, 0.25, max_window_voxels=max_window_voxels)
    plan = window.plan(torch.empty(1, 1, *size, device=device), limit)
    assert all(found >= min(wanted, 32) for found, wanted in zip(plan.roi, roi, strict=True))
    assert plan.voxels <= limit or (max(plan.roi) <= 32 and plan.batch == 1)


@given(
    roi=st.one_of(st.tuples(*[st.integers(16, 128)] * 3), st.just((64, -1, 48))),
    size=st.tuples(*[st.integers(20, 300)] * 3),
    max_window_voxels=st.one_of(st.none(), st.integers(1, 3_000_000)),
    sw_batch_size=st.one_of(st.none(), st.integers(1, 4)),
)
@pytest.mark.parametrize("device", [CPU, GPU_LIKE], ids=["CPU", "GPU"])
@examples
def test_most_voxels_bounds_every_plan(
    device: torch.device,
    roi: tuple[int, ...],
    size: tuple[int, ...],
    max_window_voxels: int | None,
    sw_batch_size: int | None,
) -> None:
    """On a GPU, where smaller windows go into larger batches, those of every size."""
    window = SlidingWindow(roi, sw_batch_size, 0.25, max_window_voxels=max_window_voxels)
    image = torch.empty(1, 1, *size, device=GPU_LIKE)
    plan = window.plan(image)
    voxels = math.prod(plan.roi) * window._batch(math.prod(plan.roi), device)
    assert voxels <= window.most_voxels(size, device)


def test_a_gpu_gets_some_million_voxels_at_a_time_and_a_cpu_one_window() -> None:
    window = SlidingWindow(96, None, 0.25)
    assert window.plan(torch.empty(1, 1, 200, 200, 200)).batch == 1
    assert window.plan(torch.empty(1, 1, 200, 200, 200, device=GPU_LIKE)).batch == 4_000_000 // 96**3


# --- progress and cancelling


@pytest.mark.parametrize(("sw_batch_size", "steps"), [(1, 8), (3, 3), (8, 1), (100, 1)])
def test_progress_reaches_its_total(sw_batch_size: int, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    window = SlidingWindow((16, 16, 16), sw_batch_size, overlap=0.0)
    image = torch.zeros(1, 1, 32, 32, 32)
    window.run(image, Foreground(), window.plan(image), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(step + 1, steps) for step in range(steps)]


def test_progress_counts_only_windows_that_are_run() -> None:
    x = torch.zeros(1, 1, 32, 32, 32)
    x[..., 31] = 1.0
    seen: list[tuple[int, int]] = []
    window = SlidingWindow((16, 16, 16), 1, overlap=0.0, skip_below=0.0)
    window.run(x, Foreground(), window.plan(x), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelling_ends_before_the_next_forward_pass(after: int) -> None:
    network = Recording(Foreground())
    window = SlidingWindow((16, 16, 16), 2, overlap=0.0)  # 4 forward passes
    image = torch.zeros(1, 1, 32, 32, 32)
    with pytest.raises(CancelledError):
        window.run(image, network, window.plan(image), cancel=lambda: len(network.windows) == after)
    assert network.batches == [2] * after


def test_cancelling_is_asked_where_all_is_air_too() -> None:
    network = Recording(Foreground())
    window = SlidingWindow((16, 16, 16), skip_below=0.0)
    image = torch.zeros(1, 1, 32, 32, 32)
    with pytest.raises(CancelledError):
        window.run(image, network, window.plan(image), cancel=lambda: True)
    assert network.batches == []


# --- what is refused


@pytest.mark.parametrize("overlap", [1.0, -0.1, 25.0, float("nan")])
def test_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match=rf"overlap must be in \[0, 1\), got {overlap}"):
        SlidingWindow((16, 16, 16), overlap=overlap)


@pytest.mark.parametrize("roi", [0, -2, [], [16, 0, 16], (16, 16, -3)])
def test_windows_without_voxels_are_refused(roi: int | tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"roi_size must be voxels, or -1 .*, got "):
        SlidingWindow(roi)


def test_numbers_below_one_and_axes_that_are_missing_are_refused() -> None:
    with pytest.raises(ConfigError, match="sw_batch_size must be at least 1, got 0"):
        SlidingWindow(16, 0)
    with pytest.raises(ConfigError, match="max_window_voxels must be at least 1, got 0"):
        SlidingWindow(16, max_window_voxels=0)
    with pytest.raises(ConfigError, match=r"roi_size \(16, 16\) has 2 axes, the image 3"):
        SlidingWindow((16, 16))(torch.zeros(1, 1, 16, 16, 16), Foreground())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_size": (16.0, 16, 16)}, "roi_size must be voxels"),
        ({"roi_size": (16, True, 16)}, "roi_size must be voxels"),
        ({"roi_size": (32, 32, 3232)}, "at most 1024"),
        ({"roi_size": 16, "sw_batch_size": 1.5}, "sw_batch_size must be at least 1, got 1.5; give a whole number"),
        ({"roi_size": 16, "max_window_voxels": "9"}, "max_window_voxels must be .*, got '9'"),
        ({"roi_size": 16, "overlap": "0"}, "overlap must be"),
        ({"roi_size": 16, "skip_below": [0]}, r"skip_below must be a number or null, got \[0\]"),
        ({"roi_size": 16, "body_threshold": 10**400}, "body_threshold must be a number or null"),
    ],
)
def test_what_is_no_number_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SlidingWindow(**arguments)


def test_windows_too_small_for_a_network_are_refused() -> None:
    window = SlidingWindow((16, -1, 32))
    window.make_at_least(16)
    assert window.plan(torch.zeros(1, 1, 40, 5, 40)).roi == (16, 16, 32)
    assert window.plan(torch.zeros(1, 1, 40, 50, 40)).roi == (16, 50, 32)
    with pytest.raises(ConfigError, match=r"at least 16 voxels along each axis, got \[7, 32, 32\]"):
        SlidingWindow([7, 32, 32]).make_at_least(16)
