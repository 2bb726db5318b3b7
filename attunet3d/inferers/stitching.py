"""Run a network on windows of an image and blend the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import CancelledError
from attunet3d.transforms.boxes import bounding_box

Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]
Job = tuple[int, tuple[int, ...]]
# Logit of the background in voxels that no window covers; with one channel, that of the foreground is its negative.
_BACKGROUND = 1.0


def body_box(image: Tensor, above: float) -> tuple[slice, ...] | None:
    """Return the smallest box with all voxels of an image (B, C, *spatial) above a value; None if it has none."""
    return bounding_box((image > above).flatten(0, 1).any(dim=0))


def embed(logits: Tensor, box: Sequence[slice], region: Sequence[slice]) -> Tensor:
    """Pad logits (B, C, *box) of a part of an image with background to a larger part, (B, C, *region)."""
    if tuple(box) == tuple(region):
        return logits
    shape = [s.stop - s.start for s in region]
    out = _background(logits.shape[0], logits.shape[1], shape, logits.device)
    inner = tuple(slice(b.start - r.start, b.stop - r.start) for b, r in zip(box, region, strict=True))
    out[(slice(None), slice(None)) + inner] = logits
    return out


def stitch(
    image: Tensor,
    network: Callable[..., Tensor],
    roi: Sequence[int],
    jobs: Sequence[Job],
    *,
    region: Sequence[slice] | None = None,
    sw_batch_size: int = 1,
    sigma_scale: float = 0.125,
    single_logit: bool = True,
    background: float = _BACKGROUND,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Run ``network`` on windows of an image and blend its logits with Gaussian weights.

    Args:
        image: (B, C, *spatial); beyond it windows are padded with 0.
        network: window (b, C, *roi) -> logits (b, classes, *roi).
        roi: window size, voxels.
        jobs: batch index and first voxel of each window to run.
        region: the part of the image to return logits for; by default all of it.
        sw_batch_size: windows per forward pass.
        sigma_scale: standard deviation of the Gaussian as a fraction of the window size.
        single_logit: for two classes, return only the difference of the logits, in one channel.
        background: logit of the background in voxels that no window covers; 0 if the network returns no logits.
        progress: called as ``progress(done, total)`` after each forward pass.
        cancel: called before each forward pass; true stops.
        args, kwargs: passed on to the network.

    Returns:
        float32 (B, channels, *region). Voxels that no window covers are background.

    Raises:
        CancelledError: ``cancel`` returned true.
    """
    kwargs = kwargs or {}
    size = tuple(image.shape[2:])
    region = tuple(region or (slice(0, n) for n in size))
    shape = tuple(s.stop - s.start for s in region)

    def forward(batch: Sequence[Job]) -> Tensor:
        if cancel is not None and cancel():
            raise CancelledError("cancelled")
        windows = [_window(image[b], start, roi) for b, start in batch]
        out = network(windows[0][None] if len(windows) == 1 else torch.stack(windows), *args, **kwargs)
        return (out[:, 1:2] - out[:, 0:1] if single_logit and out.shape[1] == 2 else out).float()

    if not jobs:  # only air: one window is run to find the number of channels
        return _background(len(image), forward([(0, (0,) * len(roi))]).shape[1], shape, image.device, background)
    weight = gaussian(roi, sigma_scale, image.device) if len(jobs) > 1 else None
    total = torch.zeros((len(image), 1, *shape), device=image.device) if len(jobs) > 1 else None
    logits: Tensor | None = None
    steps = range(0, len(jobs), sw_batch_size)
    for step, first in enumerate(steps):
        batch = jobs[first : first + sw_batch_size]
        out = forward(batch)
        if logits is None:
            logits = _background(len(image), out.shape[1], shape, image.device, background)
            if total is not None:
                logits.zero_()
        for (b, start), values in zip(batch, out, strict=True):
            in_region, in_window = _overlap(start, roi, region)
            if weight is None or total is None:  # the only window: nothing to blend
                logits[b][in_region] = values[in_window]
            else:
                logits[b][in_region] += values[in_window] * weight[in_window[1:]]
                total[b][in_region] += weight[in_window[1:]]
        if progress is not None:
            progress(step + 1, len(steps))
    if logits is None:
        raise RuntimeError("no window was run")
    if total is not None:
        untouched = total == 0
        logits /= total.masked_fill_(untouched, 1.0)
        logits[:, :1].masked_fill_(untouched, background if logits.shape[1] > 1 else -background)
    return logits


def _background(
    batch: int, channels: int, shape: Sequence[int], device: torch.device, background: float = _BACKGROUND
) -> Tensor:
    """Return logits (batch, channels, *shape) of background, which is the first of several channels."""
    logits = torch.zeros((batch, channels, *shape), device=device)
    logits[:, :1] = background if channels > 1 else -background
    return logits


def gaussian(roi: Sequence[int], sigma_scale: float, device: torch.device | None = None) -> Tensor:
    """Return the weights of a window, float32: a Gaussian around its centre, and at least 0.001 in the corners."""
    weight = torch.ones((), device=device)
    for n in roi:
        distance = torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-(distance**2) / (2 * (sigma_scale * n) ** 2))
    return weight.clamp_(min=1e-3)


def inside(start: Sequence[int], roi: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Return the part of an image (C, *spatial) within a window."""
    return (slice(None), *(slice(max(s, 0), min(s + r, n)) for s, r, n in zip(start, roi, size, strict=True)))


def _window(image: Tensor, start: Sequence[int], roi: Sequence[int]) -> Tensor:
    """Cut a window (C, *roi) out of an image (C, *spatial), padded with 0."""
    size = tuple(image.shape[1:])
    part = image[inside(start, roi, size)]
    sides = [(max(-s, 0), max(s + r - n, 0)) for s, r, n in zip(start, roi, size, strict=True)]
    if any(side != (0, 0) for side in sides):
        part = F.pad(part, [n for side in reversed(sides) for n in side])
    return part


def _overlap(
    start: Sequence[int], roi: Sequence[int], region: Sequence[slice]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the overlap of a window and the region: in the region (C, *region), and in the window (C, *roi)."""
    in_region: list[slice] = [slice(None)]
    in_window: list[slice] = [slice(None)]
    for s, r, side in zip(start, roi, region, strict=True):
        first, last = max(s, side.start), min(s + r, side.stop)
        last = max(first, last)
        in_region.append(slice(first - side.start, last - side.start))
        in_window.append(slice(first - s, last - s))
    return tuple(in_region), tuple(in_window)
