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
    sides: list[slice] = []
    for axis in range(3):
        other = [a for a in range(3) if a != axis]
        hit = torch.nonzero((mask != 0).any(dim=other[1]).any(dim=other[0])).flatten()
        if hit.numel() == 0:
            return None
        sides.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return sides[0], sides[1], sides[2]
