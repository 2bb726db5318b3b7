"""Where windows lie: what ``cover`` promises of every box, and ``scan`` beside MONAI's own windows."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from attunet3d.inferers.tiling import Tiling, cover, scan

examples = settings(max_examples=150)


@dataclass(frozen=True)
class Case:
    """The arguments of ``cover``, and what is to be known of them."""

    size: tuple[int, ...]
    box: tuple[slice, ...]
    roi: tuple[int, ...]
    overlap: float
    max_voxels: int

    def cover(self) -> Tiling:
        return cover(self.size, self.box, self.roi, self.overlap, self.max_voxels)

    @property
    def extents(self) -> list[int]:
        return [side.stop - side.start for side in self.box]

    @property
    def shared(self) -> list[int]:
        """Voxels that neighbours share: the overlap, rounded up; at least 16 are new, or they would not move on."""
        return [min(math.ceil(self.overlap * r), r - 16) for r in self.roi]


@st.composite
def cases(draw: st.DrawFn, smallest: int = 32, multiple: int = 1) -> Case:
    """A box of an image, and windows from much smaller to much larger than it. ``multiple``: of it are the windows."""
    size, box, roi = [], [], []
    for _ in range(3):
        start, extent, after = draw(st.integers(0, 60)), draw(st.integers(1, 180)), draw(st.integers(0, 60))
        size.append(start + extent + after)
        box.append(slice(start, start + extent))
        roi.append(draw(st.integers(smallest // multiple, 96 // multiple)) * multiple)
    overlap = draw(st.one_of(st.sampled_from([0.0, 0.25, 0.251, 0.5, 0.501]), st.floats(0.0, 0.99)))
    max_voxels = draw(st.one_of(st.integers(1, 200_000), st.integers(200_000, 4_000_000)))
    return Case(tuple(size), tuple(box), tuple(roi), overlap, max_voxels)


def on_axis(tiling: Tiling, axis: int) -> list[int]:
    """The different first voxels of the windows on one axis, in order."""
    return sorted({start[axis] for start in tiling.starts})


@given(case=st.one_of(cases(), cases(smallest=8)))
@examples
def test_every_voxel_of_the_box_lies_in_a_window(case: Case) -> None:
    tiling = case.cover()
    for axis, side in enumerate(case.box):
        seen = {n for start in on_axis(tiling, axis) for n in range(start, start + tiling.roi[axis])}
        assert seen >= set(range(side.start, side.stop))
    # Each place on one axis meets each place on the others, once: so what holds for the axes holds for the box.
    assert len(set(tiling.starts)) == len(tiling.starts) == math.prod(len(on_axis(tiling, axis)) for axis in range(3))


@given(case=cases())
@examples
def test_windows_are_the_smallest_or_larger_multiples_of_16_up_to_the_cap(case: Case) -> None:
    found = case.cover().roi
    for window, roi in zip(found, case.roi, strict=True):
        assert window == roi or (window > roi and window % 16 == 0)
    assert found == case.roi or math.prod(found) <= case.max_voxels


@given(case=cases(smallest=8))
@examples
def test_small_windows_keep_to_the_cap_too(case: Case) -> None:
    found = case.cover().roi
    assert all(window >= roi for window, roi in zip(found, case.roi, strict=True))
    assert found == case.roi or math.prod(found) <= case.max_voxels


@given(case=st.one_of(cases(), cases(multiple=16)))
@examples
def test_neighbours_share_at_least_the_overlap_of_the_smallest_window(case: Case) -> None:
    tiling = case.cover()
    for axis, shared in enumerate(case.shared):
        for before, after in itertools.pairwise(on_axis(tiling, axis)):
            assert before + tiling.roi[axis] - after >= shared


@given(case=cases())
@examples
def test_windows_start_on_a_lattice_of_16_voxels_from_the_box(case: Case) -> None:
    """So that five levels pool the same voxels together, whatever the windows."""
    tiling = case.cover()
    for axis, side in enumerate(case.box):
        assert all((start - side.start) % 16 == 0 for start in on_axis(tiling, axis))


@given(case=cases())
@examples
def test_windows_leave_the_image_only_where_the_lattice_makes_them(case: Case) -> None:
    tiling = case.cover()
    for axis, (total, side) in enumerate(zip(case.size, case.box, strict=True)):
        starts = on_axis(tiling, axis)
        first, last = starts[0], starts[-1] + tiling.roi[axis]
        assert first >= 0
        if len(starts) > 1:  # from the box's first voxel to its last, and less than a step of the lattice more
            assert first == side.start
            assert last < side.stop + 16
        elif last > total:  # one window, that could not start a step earlier
            assert first < 16 or last - 16 < total


@given(case=cases())
@examples
def test_no_more_is_run_than_with_the_smallest_windows(case: Case) -> None:
    tiling = case.cover()
    fewest = [
        1 if extent <= roi else math.ceil((extent - roi) / ((roi - shared) // 16 * 16)) + 1
        for extent, roi, shared in zip(case.extents, case.roi, case.shared, strict=True)
    ]
    assert len(tiling.starts) * math.prod(tiling.roi) <= math.prod(fewest) * math.prod(case.roi)
    # Larger windows are for having fewer of them.
    assert all(len(on_axis(tiling, axis)) <= n for axis, n in enumerate(fewest))


@given(case=cases(multiple=16))
@examples
def test_one_window_where_the_box_fits_into_the_cap(case: Case) -> None:
    """Of smallest windows that are multiples of 16: of others two small ones may take less than one, rounded up."""
    one = [max(roi, math.ceil(extent / 16) * 16) for roi, extent in zip(case.roi, case.extents, strict=True)]
    tiling = case.cover()
    if math.prod(one) <= case.max_voxels or tuple(one) == case.roi:
        assert tiling.roi == tuple(one)
        assert len(tiling.starts) == 1
    else:
        assert len(tiling.starts) > 1


def whole(*size: int) -> list[tuple[int, int]]:
    return [(0, n) for n in size]


@pytest.mark.parametrize(
    ("size", "box", "roi", "overlap", "max_voxels", "windows", "starts"),
    [
        # 160 x 128 x 112 would take in all; of the ways to cut one axis in two, the first costs least: two of 96 that
        # share 32, the next step of the lattice after 24.
        ((150, 120, 110), whole(150, 120, 110), 96, 0.25, 2_000_000, (96, 128, 112), [(0, 0, 0), (64, 0, 0)]),
        ((150, 120, 110), whole(150, 120, 110), 96, 0.25, 2_300_000, (160, 128, 112), [(0, 0, 0)]),
        # The box is 80 and 90 long: one window of 80, and of 96.
        ((200, 200, 64), [(50, 130), (40, 130), (0, 64)], 64, 0.25, 2_000_000, (80, 96, 64), [(50, 40, 0)]),
        # At the end of the image it moves back into it, by 32; then by 32 of the 34 it sticks out; then by none of 6.
        ((200, 112, 112), [(120, 200), (0, 50), (0, 50)], 112, 0.25, 1, (112, 112, 112), [(88, 0, 0)]),
        ((198, 112, 112), [(120, 198), (0, 50), (0, 50)], 112, 0.25, 1, (112, 112, 112), [(88, 0, 0)]),
        ((200, 112, 112), [(94, 200), (0, 50), (0, 50)], 112, 0.25, 1, (112, 112, 112), [(94, 0, 0)]),
        # But not beyond its beginning: an image smaller than the window.
        ((70, 64, 64), [(20, 60), (0, 64), (0, 64)], 64, 0.25, 1, (64, 64, 64), [(20, 0, 0)]),
        ((50, 64, 64), [(20, 50), (0, 64), (0, 64)], 64, 0.25, 1, (64, 64, 64), [(4, 0, 0)]),
        # No larger window is allowed: 64s that share 16, as many as it takes: 64 + 2 * 48 = 160.
        ((160, 64, 64), whole(160, 64, 64), 64, 0.25, 1, (64, 64, 64), [(0, 0, 0), (48, 0, 0), (96, 0, 0)]),
        # Four could cover 208, and are spread over 192, the box and the rest of a step: 3, 2 and 3 steps apart.
        (
            (180, 64, 64),
            whole(180, 64, 64),
            64,
            0.25,
            1,
            (64, 64, 64),
            [(0, 0, 0), (48, 0, 0), (80, 0, 0), (128, 0, 0)],
        ),
        # What counts is what is run, then the number: three of 48 are less than two of 80, and one of 144 is too large.
        ((144, 32, 32), whole(144, 32, 32), 32, 0.0, 120_000, (48, 32, 32), [(0, 0, 0), (48, 0, 0), (96, 0, 0)]),
    ],
)
def test_windows_by_hand(
    size: tuple[int, int, int],
    box: list[tuple[int, int]],
    roi: int,
    overlap: float,
    max_voxels: int,
    windows: tuple[int, int, int],
    starts: list[tuple[int, int, int]],
) -> None:
    assert cover(size, [slice(*side) for side in box], [roi] * 3, overlap, max_voxels) == Tiling(windows, starts)


@given(
    size=st.tuples(*[st.integers(1, 120)] * 3),
    first=st.tuples(*[st.integers(0, 50)] * 3),
    roi=st.tuples(*[st.integers(8, 96)] * 3),
    overlap=st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0.0, 0.75)),
)
@examples
def test_scan_is_monais(
    size: tuple[int, int, int], first: tuple[int, int, int], roi: tuple[int, int, int], overlap: float
) -> None:
    """The windows of its inferer on the box alone: where that is too small it is padded, half of it before."""
    padded = tuple(max(n, r) for n, r in zip(size, roi, strict=True))
    before = [f - (p - n) // 2 for f, p, n in zip(first, padded, size, strict=True)]
    interval = _get_scan_interval(padded, roi, 3, [overlap] * 3)
    expected = [
        tuple(int(s.start) + b for s, b in zip(window, before, strict=True))
        for window in dense_patch_slices(padded, roi, interval)
    ]
    box = [slice(f, f + n) for f, n in zip(first, size, strict=True)]
    assert scan(box, roi, overlap) == Tiling(roi, expected)
