"""Where windows lie: MONAI's regular scan, or a box covered by as few and as large windows as are allowed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Choice = tuple[tuple[int, int], ...]  # per axis the number of windows and their size
# A network of five levels halves its input four times: sizes that are multiples of this lose nothing on the way.
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


def scan(size: Sequence[int], roi: Sequence[int], overlap: float) -> Tiling:
    """MONAI's windows: steps of ``roi * (1 - overlap)``, the last one moved back to the end.

    An image smaller than the window lies in its middle. -1 in ``roi`` is the image's own size.
    """
    roi = tuple(n if r is None or r <= 0 else int(r) for r, n in zip(roi, size, strict=True))
    starts: list[list[int]] = []
    for r, n in zip(roi, size, strict=True):
        if n <= r:
            starts.append([-((r - n) // 2)])
            continue
        step = max(int(r * (1 - overlap)), 1)
        count = math.ceil((n - r) / step) + 1
        starts.append([min(i * step, n - r) for i in range(count)])
    return Tiling(tuple(roi), list(itertools.product(*starts)))


def cover(size: Sequence[int], box: Sequence[slice], roi: Sequence[int], overlap: float, max_voxels: int) -> Tiling:
    """Cover ``box`` of an image with the windows that are cheapest in total, and few.

    Windows are ``roi`` or larger, at most ``max_voxels``, and overlap by at least ``overlap * roi`` voxels: what blurs
    seams is a length, not a share of whatever the window's size is. Where they are larger than the box they take in
    the image around it.

    Args:
        size: the image, voxels.
        box: what has to be covered.
        roi: smallest window; it is used as it is where ``max_voxels`` is smaller.
        overlap: share of ``roi``, in [0, 1).
        max_voxels: largest window.
    """
    extents = [s.stop - s.start for s in box]
    shared = [min(math.ceil(overlap * r), r - 1) for r in roi]
    choices = [
        [(n, _window(extent, n, r, o)) for n in range(1, _most(extent, r, o) + 1)]
        for extent, r, o in zip(extents, roi, shared, strict=True)
    ]

    def allowed(choice: Choice) -> bool:
        smallest = all(w <= r for (_, w), r in zip(choice, roi, strict=True))
        return smallest or math.prod(w for _, w in choice) <= max_voxels

    def cost(choice: Choice) -> tuple[int, int]:
        count = math.prod(n for n, _ in choice)
        return count * math.prod(w for _, w in choice), count

    plan = min(filter(allowed, itertools.product(*choices)), key=cost)  # the smallest windows are always allowed
    starts = [
        _starts(n, window, side, total, o) for (n, window), side, total, o in zip(plan, box, size, shared, strict=True)
    ]
    return Tiling(tuple(w for _, w in plan), list(itertools.product(*starts)))


def _most(extent: int, roi: int, shared: int) -> int:
    """How many windows of the smallest size cover an axis."""
    return 1 if extent <= roi else math.ceil((extent - shared) / (roi - shared))


def _window(extent: int, count: int, roi: int, shared: int) -> int:
    """The smallest window of which ``count`` cover an axis."""
    needed = math.ceil((extent + (count - 1) * shared) / count)
    return roi if needed <= roi else math.ceil(needed / _MULTIPLE) * _MULTIPLE


def _starts(count: int, window: int, side: slice, total: int, shared: int) -> list[int]:
    """Evenly spaced windows over one side of the box, centred on it, and inside the image where they can be."""
    extent = side.stop - side.start
    span = min(count * window - (count - 1) * shared, max(extent, window))
    first = side.start - (span - extent) // 2
    first = min(max(first, 0), total - span) if span <= total else -((span - total) // 2)
    if count == 1:
        return [first]
    return [first + round(i * (span - window) / (count - 1)) for i in range(count)]
