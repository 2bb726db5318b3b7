"""Connected components of masks."""

from __future__ import annotations

import cc3d
import numpy as np
import torch

from attunet3d.errors import ConfigError
from attunet3d.transforms.boxes import bounding_box


def keep_largest_component(mask: torch.Tensor, share: float = 1.0) -> None:
    """Set all but the largest connected component (26 neighbours) of a class map (X, Y, Z) to 0, in place.

    With ``share`` below 1, components with at least this fraction of the voxels of the largest one are kept too:
    networks trained on few cases may find an organ in pieces.

    Raises:
        ConfigError: ``share`` is not above 0 and at most 1.
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"keep_components must be a share of the largest, above 0 and up to 1, got {share!r}")
    box = bounding_box(mask)
    if box is None:
        return
    # Only the box of the foreground: component labels take 4 bytes per voxel.
    part = np.ascontiguousarray(mask[box].cpu().numpy())
    foreground = (part > 0).astype(np.uint8)
    if share == 1:
        keep = cc3d.largest_k(foreground, k=1, connectivity=26) > 0
    else:
        components = cc3d.connected_components(foreground, connectivity=26)
        voxels = np.bincount(components.ravel())
        voxels[0] = 0
        keep = (voxels >= share * voxels.max())[components]
    mask[box] = torch.from_numpy(part * keep).to(mask)
