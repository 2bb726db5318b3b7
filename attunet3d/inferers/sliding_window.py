"""Sliding-window inference that skips windows of air and reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import BlendMode, fall_back_tuple
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import ConfigError

Progress = Callable[[int, int], None]


class SlidingWindowInferer(Inferer):
    """Run a network on overlapping windows and blend its logits with Gaussian weights.

    With the same windows and none skipped the result is that of MONAI's ``SlidingWindowInferer(mode="gaussian")``.

    Args:
        roi_size: window size in voxels, -1 for the whole axis; volumes smaller than it are padded with 0.
        sw_batch_size: windows per forward pass.
        overlap: share of a window that overlaps the next one, in [0, 1).
        sigma_scale: standard deviation of the Gaussian weights as a share of the window size.
        skip_below: windows in which no voxel is above this value are not run, and their voxels are background. With
            the HU window scaled to [0, 1], 0 is its lower end: such a window holds no soft tissue. None runs all.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: float = 0.25,
        sigma_scale: float = 0.125,
        skip_below: float | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= overlap < 1.0:
            raise ConfigError(f"overlap must be in [0, 1), got {overlap}")
        if sw_batch_size < 1:
            raise ConfigError(f"sw_batch_size must be at least 1, got {sw_batch_size}")
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.sigma_scale = sigma_scale
        self.skip_below = skip_below
        self.progress: Progress | None = None

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Image (B, C, X, Y, Z) -> logits (B, classes, X, Y, Z); ``progress(done, total)`` is called per batch."""
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        size = tuple(image.shape[2:])
        roi = fall_back_tuple(self.roi_size, size)
        image, start = _pad(image, roi)
        padded = tuple(image.shape[2:])
        interval = _get_scan_interval(padded, roi, len(roi), (self.overlap,) * len(roi))
        windows = dense_patch_slices(padded, roi, interval)
        # Index of each window to run in a (B, C, X, Y, Z) tensor.
        boxes = [(b, slice(None)) + tuple(window) for b in range(image.shape[0]) for window in windows]
        if self.skip_below is not None:
            boxes = [box for box in boxes if bool((image[box] > self.skip_below).any())]
        weight = compute_importance_map(roi, mode=BlendMode.GAUSSIAN, sigma_scale=self.sigma_scale, device=image.device)
        weight = weight.to(torch.float32)

        logits: Tensor | None = None
        total = torch.zeros((image.shape[0], 1, *padded), device=image.device)
        steps = range(0, len(boxes), self.sw_batch_size)
        for step, first in enumerate(steps):
            batch = boxes[first : first + self.sw_batch_size]
            out = network(torch.stack([image[box] for box in batch]), *args, **kwargs)
            if logits is None:
                logits = torch.zeros((image.shape[0], out.shape[1], *padded), device=image.device)
            for box, values in zip(batch, out, strict=True):
                logits[box] += values * weight
                total[box] += weight
            if self.progress is not None:
                self.progress(step + 1, len(steps))
        if logits is None:  # nothing but air: one window is run to learn how many channels there are
            box = (slice(0, 1), slice(None)) + tuple(windows[0])
            channels = network(image[box], *args, **kwargs).shape[1]
            logits = torch.zeros((image.shape[0], channels, *padded), device=image.device)
        untouched = total == 0
        logits /= total.masked_fill(untouched, 1.0)
        if bool(untouched.any()):
            # Of one channel, the foreground's logit, background is what is negative.
            logits[:, :1].masked_fill_(untouched, 1.0 if logits.shape[1] > 1 else -1.0)
        crop = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return logits[(slice(None), slice(None)) + crop]


def _pad(image: Tensor, roi: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Pad with 0 on both sides to at least one window; also the offset of the image in the result."""
    missing = [max(r - n, 0) for r, n in zip(roi, image.shape[2:], strict=True)]
    before = [m // 2 for m in missing]
    if not any(missing):
        return image, before
    sides = [side for b, m in zip(before[::-1], missing[::-1], strict=True) for side in (b, m - b)]
    return F.pad(image, sides), before
