"""Scale HU to the input range of the network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def scale_hu_(hu: Tensor, window: Sequence[float]) -> Tensor:
    """Map the HU window (low, high) to [0, 1] and clip, in place on a float32 volume.

    The operations, and their order, are those of MONAI's ``ScaleIntensityRange(low, high, 0, 1, clip=True)``.
    """
    low, high = float(window[0]), float(window[1])
    return hu.sub_(low).div_(high - low).clamp_(0.0, 1.0)
