"""Where windows lie: MONAI's regular scan, or a box covered by as few and as large windows as are allowed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Choice = tuple[tuple[int, int], ...]  # per axis the number of windows and their size
# A network of five levels halves its input four times: windows that are multiples of this lose nothing on the way.
_MULTIPLE = 16


@dataclass(frozen=True)
class Tiling:
    """Windows of one size in an image.

    Attributes:
        roi: window size, voxels.
        starts: first voxel of each window; windows may reach beyond the image, where it counts as 0.
    """

    roi: tuple[int, ...]
    starts: list[tuple[int, ...]]


def scan(box: Sequence[slice], roi: Sequence[int], overlap: float) -> Tiling:
    """MONAI's windows over a box: steps of ``roi * (1 - overlap)``, the last one moved back to the end.

    A box smaller than the window lies in its middle.
    """
    starts: list[list[int]] = []
    for side, r in zip(box, roi, strict=True):
        n = side.stop - side.start
        if n <= r:
            starts.append([side.start - (r - n) // 2])
            continue
        step = max(int(r * (1 - overlap)), 1)
        count = math.ceil((n - r) / step) + 1
        starts.append([side.start + min(i * step, n - r) for i in range(count)])
    return Tiling(tuple(roi), list(itertools.product(*starts)))


def cover(size: Sequence[int], box: Sequence[slice], roi: Sequence[int], overlap: float, max_voxels: int) -> Tiling:
    """Cover ``box`` of an image with the windows that are cheapest in total, and few.

    Windows are ``roi`` or larger, at most ``max_voxels``, and overlap by at least ``overlap * roi`` voxels: what blurs
    seams is a length, not a share of whatever the window's size is. They start at multiples of 16 voxels from the box's
    first one, so that a network of five levels pools the same voxels together in all of them, and whatever the overlap:
    shifted by less it gives another mask. Windows that are larger than the box take in the image around it.

    Args:
        size: the image, voxels.
        box: what has to be covered.
        roi: smallest window; it is used as it is where ``max_voxels`` is smaller.
        overlap: share of ``roi``, in [0, 1).
        max_voxels: largest window.
    """
    axes = [_Axis(n, side, r, overlap) for n, side, r in zip(size, box, roi, strict=True)]

    def allowed(choice: Choice) -> bool:
        smallest = all(window <= axis.roi for (_, window), axis in zip(choice, axes, strict=True))
        return smallest or math.prod(window for _, window in choice) <= max_voxels

    def cost(choice: Choice) -> tuple[int, int]:
        count = math.prod(n for n, _ in choice)
        return count * math.prod(window for _, window in choice), count

    choices = itertools.product(*(axis.choices() for axis in axes))
    plan = min(filter(allowed, choices), key=cost)  # the smallest windows are always allowed
    starts = [axis.starts(n, window) for axis, (n, window) in zip(axes, plan, strict=True)]
    return Tiling(tuple(window for _, window in plan), list(itertools.product(*starts)))


class _Axis:
    """One axis of the box: how many windows of which size cover it, and where they start."""

    def __init__(self, size: int, side: slice, roi: int, overlap: float) -> None:
        self.size = size
        self.start, self.stop = side.start, side.stop
        self.roi = roi
        # The lattice that windows start on; small windows, as in tests, have a finer one.
        self.unit = min(_MULTIPLE, 2 ** int(math.log2(max(roi // 2, 1))))
        self.shared = min(math.ceil(overlap * roi), roi - self.unit)

    def _step(self, window: int) -> int:
        return (window - self.shared) // self.unit * self.unit

    def choices(self) -> list[tuple[int, int]]:
        """(number of windows, their size) from one window to as many as are needed of size ``roi``."""
        extent = self.stop - self.start
        most = max(math.ceil((extent - self.roi) / self._step(self.roi)), 0) + 1
        return [(count, self._window(extent, count)) for count in range(1, most + 1)]

    def _window(self, extent: int, count: int) -> int:
        """The smallest window of which ``count`` cover ``extent``."""
        window = self.roi
        while window + (count - 1) * self._step(window) < extent:
            window = (window // self.unit + 1) * self.unit
        return window

    def starts(self, count: int, window: int) -> list[int]:
        """Evenly spaced windows on the lattice; a single one lies inside the image if it can."""
        if count == 1:
            beyond = max(self.start + window - self.size, 0)
            return [self.start - min(beyond, self.start) // self.unit * self.unit]
        units = math.ceil(max(self.stop - window - self.start, 0) / self.unit)
        return [self.start + round(index * units / (count - 1)) * self.unit for index in range(count)]
