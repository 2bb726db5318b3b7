"""Connected components of masks."""

from __future__ import annotations

import cc3d
import numpy as np
import torch


def keep_largest_component(mask: torch.Tensor) -> None:
    """Set all but the largest connected component (26 neighbours) of a class map (X, Y, Z) to 0, in place."""
    box = bounding_box(mask)
    if box is None:
        return
    # Only the box that holds foreground: component labels take 4 bytes a voxel.
    part = np.ascontiguousarray(mask[box].cpu().numpy())
    largest = cc3d.largest_k((part > 0).astype(np.uint8), k=1, connectivity=26)
    mask[box] = torch.from_numpy(part * (largest > 0)).to(mask)


def bounding_box(mask: torch.Tensor) -> tuple[slice, slice, slice] | None:
    """The smallest box of a mask (X, Y, Z) that holds every voxel that is not 0, or None if there is none."""
    # Along the axes as they lie in memory, whole planes first: seconds become milliseconds in a long CT.
    order = sorted(range(3), key=lambda axis: -mask.stride(axis))
    part = mask.permute(order)
    box = [slice(0, n) for n in mask.shape]
    for dim, axis in enumerate(order):
        others = [other for other in range(3) if other != dim]
        # amax, unlike sum, makes no wider copy of the mask.
        hit = torch.nonzero(part.amax(dim=others)).flatten()
        if hit.numel() == 0:
            return None
        box[axis] = slice(int(hit[0]), int(hit[-1]) + 1)
        part = part.narrow(dim, box[axis].start, box[axis].stop - box[axis].start)
    return box[0], box[1], box[2]
