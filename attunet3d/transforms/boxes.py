"""Bounding boxes of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def bounding_box(mask: np.ndarray | Tensor, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the smallest box with all voxels of a mask above 0; None if the mask is empty.

    Args:
        mask: an array or a tensor, on any device, with any number of axes.
        margin: voxels added on each side, within the array.
    """
    if 0 in mask.shape:
        return None
    if not isinstance(mask, np.ndarray) and mask.device.type == "cpu":
        mask = mask.numpy()  # no copy; numpy computes maxima several times as fast
    strides = mask.strides if isinstance(mask, np.ndarray) else mask.stride()
    box = [slice(0, n) for n in mask.shape]
    # The axis with the largest stride first, in whole planes of memory: seconds become milliseconds in a long CT.
    for axis in sorted(range(mask.ndim), key=lambda axis: -abs(strides[axis])):
        hit = _above_zero(mask[tuple(box)], axis)
        if not len(hit):
            return None
        box[axis] = slice(int(hit[0]), int(hit[-1]) + 1)
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, mask.shape, strict=True))


def _above_zero(mask: np.ndarray | Tensor, axis: int) -> np.ndarray:
    """Return the indices along an axis at which a mask has voxels above 0."""
    others = tuple(other for other in range(mask.ndim) if other != axis)
    # Maxima, unlike sums, make no wider copy of the mask.
    most = mask.max(axis=others) if isinstance(mask, np.ndarray) else mask.amax(dim=others).cpu().numpy()
    return np.flatnonzero(most > 0)
