"""Sliding-window inference: the settings, and the windows of an image."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attunet3d.errors import ConfigError
from attunet3d.inferers.stitching import Cancel, Progress, body_box, embed, inside, stitch
from attunet3d.inferers.tiling import cover, scan

# A batch of this many voxels keeps a GPU busy; a single window keeps a CPU busy.
_GPU_BATCH_VOXELS = 4_000_000
# A network of five levels needs 16 voxels; below twice that, windows have too little context.
SMALLEST_SIDE = 32
# No axis of a CT is longer on a 2 mm grid, and for much longer windows torch takes many times the planned memory.
_LARGEST_SIDE = 1024


@dataclass(frozen=True)
class WindowPlan:
    """The windows of an image.

    Attributes:
        roi: window size, voxels.
        jobs: batch index and first voxel of each window to run.
        skipped: number of windows without a voxel above ``skip_below``, which are not run.
        box: the part of the image that the windows cover.
        batch: windows per forward pass.
    """

    roi: tuple[int, ...]
    jobs: list[tuple[int, tuple[int, ...]]]
    skipped: int
    box: tuple[slice, ...]
    batch: int

    def region(self, size: Sequence[int]) -> tuple[slice, ...]:
        """Return the box with a margin of one voxel, within the image."""
        return tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(self.box, size, strict=True))

    @property
    def voxels(self) -> int:
        """Voxels per forward pass."""
        return self.batch * math.prod(self.roi)


class SlidingWindow:
    """Run a network on overlapping windows and blend its logits with Gaussian weights.

    Args:
        roi_size: window size in voxels, one number or one per axis, -1 for the whole axis; smaller images are padded
            with 0.
        sw_batch_size: windows per forward pass; None chooses for the device.
        overlap: fraction of ``roi_size`` by which windows overlap, in [0, 1).
        sigma_scale: standard deviation of the Gaussian weights as a fraction of the window size.
        skip_below: windows without a voxel above this value are not run, and their voxels are background. With the HU
            window scaled to [0, 1], 0 is its lower end: such a window has no soft tissue. None runs all windows.
        body_threshold: windows cover the box of the voxels above this value; outside it all is background. None covers
            the whole image.
        max_window_voxels: use few windows of ``roi_size`` or larger, up to this many voxels, see ``cover``. None uses
            MONAI's windows of ``roi_size``.
        single_logit: for two classes, return only the difference of the logits, foreground minus background.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int | None = None,
        overlap: float = 0.25,
        sigma_scale: float = 0.125,
        skip_below: float | None = None,
        body_threshold: float | None = None,
        max_window_voxels: int | None = None,
        single_logit: bool = True,
    ) -> None:
        sides = [roi_size] if isinstance(roi_size, int) else list(roi_size)
        if not sides or any(type(side) is not int or side == 0 or not -1 <= side <= _LARGEST_SIDE for side in sides):
            raise ConfigError(
                f"roi_size must be voxels, or -1 for a whole axis, and at most {_LARGEST_SIDE}, got {roi_size}"
            )
        if not _is_number(overlap) or not 0.0 <= overlap < 1.0:
            raise ConfigError(f"overlap must be in [0, 1), got {overlap}")
        for name, count in {"sw_batch_size": sw_batch_size, "max_window_voxels": max_window_voxels}.items():
            if count is not None and (type(count) is not int or count < 1):
                raise ConfigError(f"{name} must be at least 1, got {count!r}; give a whole number")
        for name, value in {"skip_below": skip_below, "body_threshold": body_threshold}.items():
            if value is not None and not _is_number(value):
                raise ConfigError(f"{name} must be a number or null, got {value!r}")
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.sigma_scale = sigma_scale
        self.skip_below = None if skip_below is None else float(skip_below)
        self.body_threshold = None if body_threshold is None else float(body_threshold)
        self.max_window_voxels = max_window_voxels
        self.single_logit = single_logit
        self._least = 1

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return logits (B, classes, X, Y, Z), float32, of an image (B, C, X, Y, Z); one channel for two classes."""
        image = inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs
        plan = self.plan(image)
        logits = self.run(image, network, plan, args=args, kwargs=kwargs)
        return embed(logits, plan.box, [slice(0, n) for n in image.shape[2:]])

    def plan(self, image: Tensor, limit_voxels: int | None = None) -> WindowPlan:
        """Plan the windows of an image (B, C, X, Y, Z), with at most ``limit_voxels`` per forward pass if given.

        Raises:
            ConfigError: ``roi_size`` has another number of axes than the image.
        """
        size = tuple(image.shape[2:])
        roi = self._roi(size)
        while limit_voxels is not None and math.prod(roi) > limit_voxels and max(roi) > SMALLEST_SIDE:
            longest = roi.index(max(roi))
            roi[longest] = max((roi[longest] - 1) // 16 * 16, SMALLEST_SIDE)
        everything = tuple(slice(0, n) for n in size)
        body = everything if self.body_threshold is None else body_box(image, self.body_threshold)
        box = body or everything
        if self.max_window_voxels is None:
            tiling = scan(box, roi, self.overlap)
        else:
            tiling = cover(size, box, roi, self.overlap, min(self.max_window_voxels, limit_voxels or sys.maxsize))
        jobs = [(b, start) for b in range(len(image)) for start in tiling.starts]
        run = jobs if body is not None else []
        if self.skip_below is not None:
            above = image > self.skip_below
            run = [(b, start) for b, start in run if bool(above[b][inside(start, tiling.roi, size)].any())]
        batch = self._batch(math.prod(tiling.roi), image.device)
        if limit_voxels is not None:
            batch = max(1, min(batch, limit_voxels // math.prod(tiling.roi)))
        return WindowPlan(tiling.roi, run, len(jobs) - len(run), box, batch)

    def most_voxels(self, size: Sequence[int], device: torch.device) -> int:
        """Return the maximum number of voxels per forward pass for images of this size."""
        roi = self._roi(size)
        window = math.prod(roi)
        if self.max_window_voxels is not None:
            whole = math.prod(max(r, math.ceil(n / 16) * 16) for r, n in zip(roi, size, strict=True))
            window = max(window, min(whole, self.max_window_voxels))
        if self.sw_batch_size is None and device.type != "cpu":
            return max(window, _GPU_BATCH_VOXELS)
        return window * self._batch(window, device)

    def make_at_least(self, side: int) -> None:
        """Set the minimum size of a network, to which windows over whole axes are padded.

        Raises:
            ConfigError: ``roi_size`` is smaller along an axis.
        """
        sides = [self.roi_size] if isinstance(self.roi_size, int) else self.roi_size
        if any(0 < n < side for n in sides):
            raise ConfigError(f"roi_size must be at least {side} voxels along each axis, got {self.roi_size}")
        self._least = side

    def least_voxels(self, size: Sequence[int], smaller: bool) -> int:
        """Return the minimum number of voxels per forward pass for images of this size.

        Args:
            size: size of the image, voxels.
            smaller: whether windows may be smaller than ``roi_size``, down to ``SMALLEST_SIDE``.
        """
        whole = math.prod(self._roi(size))
        return min(whole, SMALLEST_SIDE ** len(size)) if smaller else whole

    def run(
        self,
        image: Tensor,
        network: Callable[..., Tensor],
        plan: WindowPlan,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Run a network on the windows of an image and blend its logits.

        Args:
            image: (B, C, X, Y, Z).
            network: window (b, C, *roi) -> logits (b, classes, *roi).
            plan: from ``plan``.
            progress: called as ``progress(done, total)`` after each forward pass.
            cancel: called before each forward pass; true stops.
            args, kwargs: passed on to the network.

        Returns:
            float32 (B, channels, *plan.box); outside the box all is background.

        Raises:
            CancelledError: ``cancel`` returned true.
        """
        return self._stitch(
            image,
            network,
            plan,
            single_logit=self.single_logit,
            progress=progress,
            cancel=cancel,
            args=args,
            kwargs=kwargs,
        )

    def average(
        self,
        image: Tensor,
        network: Callable[[Tensor], Tensor],
        plan: WindowPlan,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> Tensor:
        """Run a network that returns maps instead of logits, like ``run``; all channels are kept, 0 outside windows."""
        return self._stitch(image, network, plan, single_logit=False, background=0.0, progress=progress, cancel=cancel)

    def _stitch(self, image: Tensor, network: Callable[..., Tensor], plan: WindowPlan, **options: Any) -> Tensor:
        return stitch(
            image,
            network,
            plan.roi,
            plan.jobs,
            region=plan.box,
            sw_batch_size=plan.batch,
            sigma_scale=self.sigma_scale,
            **options,
        )

    def _roi(self, size: Sequence[int]) -> list[int]:
        roi = [self.roi_size] * len(size) if isinstance(self.roi_size, int) else list(self.roi_size)
        if len(roi) != len(size):
            raise ConfigError(f"roi_size {self.roi_size} has {len(roi)} axes, the image {len(size)}")
        return [r if r > 0 else max(n, self._least) for r, n in zip(roi, size, strict=True)]

    def _batch(self, window_voxels: int, device: torch.device) -> int:
        if self.sw_batch_size is not None:
            return self.sw_batch_size
        return 1 if device.type == "cpu" else max(1, _GPU_BATCH_VOXELS // window_voxels)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
