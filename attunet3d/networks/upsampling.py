"""Upsample linearly by integer factors, axis by axis: like ``F.interpolate``, but with a deterministic gradient.

The gradient of ``F.interpolate`` is summed by atomic additions on GPUs, in an order that differs between runs, and
takes several times as long on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def whole_factor(coarse: Sequence[int], fine: Sequence[int]) -> int:
    """Return the integer factor above 1 by which ``fine`` is larger than ``coarse`` on every axis; 0 if none."""
    factor = fine[0] // coarse[0]
    return factor if factor > 1 and all(m * factor == n for m, n in zip(coarse, fine, strict=True)) else 0


class Upsample(torch.autograd.Function):
    """Linear upsampling from (B, C, *coarse) to (B, C, *coarse * factor), with ``align_corners=False``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return upsample(x, factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].movedim(1, -1)
        for axis in range(1, gradient.ndim - 1):  # outermost axis first: the largest, in the longest contiguous runs
            gradient = _gather_axis(gradient, axis, ctx.factor)
        return gradient.movedim(-1, 1), None


def upsample(x: Tensor, factor: int) -> Tensor:
    """Upsample (B, C, *coarse) like ``Upsample``, without a gradient."""
    x = x.movedim(1, -1)  # (B, *coarse, C), the memory order of channels-last volumes
    for axis in range(x.ndim - 2, 0, -1):
        x = _stretch_axis(x, axis, factor)
    return x.movedim(-1, 1)


def _shares(factor: int) -> list[tuple[int, float]]:
    """Return, for each new voxel within an old one, the side (-1 or +1) of the nearer neighbour, and its weight."""
    offsets = [(r + 0.5) / factor - 0.5 for r in range(factor)]
    return [(-1 if offset < 0 else 1, abs(offset)) for offset in offsets]


def _stretch_axis(x: Tensor, axis: int, factor: int) -> Tensor:
    n = x.shape[axis]
    out = x.new_empty([factor * m if dim == axis else m for dim, m in enumerate(x.shape)])
    before, after = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
    lines = (slice(None),) * axis
    for r, (side, weight) in enumerate(_shares(factor)):
        new = out[lines + (slice(r, None, factor),)]
        # Beyond the outermost voxel centres values are constant.
        if side < 0:
            torch.lerp(before, after, 1 - weight, out=new.narrow(axis, 1, n - 1))
            new.select(axis, 0).copy_(x.select(axis, 0))
        else:
            torch.lerp(before, after, weight, out=new.narrow(axis, 0, n - 1))
            new.select(axis, n - 1).copy_(x.select(axis, n - 1))
    return out


def _gather_axis(gradient: Tensor, axis: int, factor: int) -> Tensor:
    """Compute the transpose of ``_stretch_axis``: each old voxel sums over the new ones that it contributed to."""
    n = gradient.shape[axis] // factor
    lines = (slice(None),) * axis
    parts = [gradient[lines + (slice(r, None, factor),)] for r in range(factor)]
    total = torch.zeros(parts[0].shape, dtype=gradient.dtype, device=gradient.device)
    for part, (side, weight) in zip(parts, _shares(factor), strict=True):
        total.add_(part, alpha=1 - weight)
        inner, outer = (1, 0) if side < 0 else (0, 1)
        total.narrow(axis, outer, n - 1).add_(part.narrow(axis, inner, n - 1), alpha=weight)
        edge = 0 if side < 0 else n - 1
        total.select(axis, edge).add_(part.select(axis, edge), alpha=weight)
    return total
