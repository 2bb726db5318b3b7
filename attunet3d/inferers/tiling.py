"""Choose the positions of windows: MONAI's regular scan, or few large windows that cover a box."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Choice = tuple[tuple[int, int], ...]  # number of windows and their size, for each axis
# A network of five levels halves its input four times; windows that are multiples of this are halved exactly.
_MULTIPLE = 16


@dataclass(frozen=True)
class Tiling:
    """Windows of one size in an image.

    Attributes:
        roi: window size, voxels.
        starts: first voxel of each window; windows may extend beyond the image, which is padded with 0.
    """

    roi: tuple[int, ...]
    starts: list[tuple[int, ...]]


def scan(box: Sequence[slice], roi: Sequence[int], overlap: float) -> Tiling:
    """Scan a box as MONAI does: in steps of ``roi * (1 - overlap)``, with the last window moved back to the end.

    A box smaller than the window is centred in it.
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
    """Cover a box of an image with the windows that have the fewest voxels in total, then with the fewest windows.

    Windows are ``roi`` or larger, at most ``max_voxels``, and overlap by at least ``overlap * roi`` voxels, whatever
    their size: blending needs a length, not a fraction of the window. They start at multiples of 16 voxels from the
    start of the box, so that a network of five levels pools the same voxels in all of them: other shifts would change
    the mask. Windows larger than the box include the image around it.

    Args:
        size: size of the image, voxels.
        box: part of the image to cover.
        roi: size of the smallest window, which is used even if ``max_voxels`` is smaller.
        overlap: fraction of ``roi``, in [0, 1).
        max_voxels: voxels of the largest window.
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
    """One axis of the box: number, size and positions of the windows that cover it."""

    def __init__(self, size: int, side: slice, roi: int, overlap: float) -> None:
        self.size = size
        self.start, self.stop = side.start, side.stop
        self.roi = roi
        # Windows start at multiples of this; it is smaller for small windows, as in tests.
        self.unit = min(_MULTIPLE, 2 ** int(math.log2(max(roi // 2, 1))))
        self.shared = min(math.ceil(overlap * roi), roi - self.unit)

    def _step(self, window: int) -> int:
        return (window - self.shared) // self.unit * self.unit

    def choices(self) -> list[tuple[int, int]]:
        """Return (number of windows, their size), from one window to as many as it takes of size ``roi``."""
        extent = self.stop - self.start
        most = max(math.ceil((extent - self.roi) / self._step(self.roi)), 0) + 1
        return [(count, self._window(extent, count)) for count in range(1, most + 1)]

    def _window(self, extent: int, count: int) -> int:
        """Return the smallest size with which ``count`` windows cover ``extent``."""
        window = self.roi
        while window + (count - 1) * self._step(window) < extent:
            window = (window // self.unit + 1) * self.unit
        return window

    def starts(self, count: int, window: int) -> list[int]:
        """Space windows evenly on multiples of the unit; a single one lies inside the image if possible."""
        if count == 1:
            beyond = max(self.start + window - self.size, 0)
            return [self.start - min(beyond, self.start) // self.unit * self.unit]
        units = math.ceil(max(self.stop - window - self.start, 0) / self.unit)
        return [self.start + round(index * units / (count - 1)) * self.unit for index in range(count)]
