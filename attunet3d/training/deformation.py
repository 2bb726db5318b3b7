"""Smooth random deformations of the body and of single organs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# 2^4 steps: 1/16 of the flow is less than the distance of two grid points, so that nothing folds.
_SQUARINGS = 4


def random_flow(
    random: np.random.RandomState,
    shape: Sequence[int],
    step_mm: Sequence[float],
    scales: Sequence[Sequence[float]] = (),
    organs: Tensor | None = None,
    organ_shift: float = 0.0,
    organ_scale: float = 0.0,
) -> Tensor:
    """Draw a diffeomorphic displacement field (3, *shape) in mm: it never folds.

    A stationary velocity field is drawn and integrated over unit time (scaling and squaring; Arsigny et al., MICCAI
    2006). It is the sum of

    - white noise on coarse grids, interpolated linearly, and
    - a translation and a growth of each organ, which fade out over the surrounding tissue.

    Args:
        random: random state.
        shape: grid points, three.
        step_mm: distance of neighbouring points, mm, three.
        scales: pairs of point distance and standard deviation of the displacement, mm, one for each coarse grid.
        organs: label map (*shape), a number for each organ, 0 elsewhere.
        organ_shift: standard deviation of the translation of an organ along each axis, mm.
        organ_scale: standard deviation of the logarithm of an organ's growth.
    """
    size = tuple(int(n) for n in shape)
    step = np.asarray(step_mm, dtype=np.float64)
    velocity = torch.zeros((3, *size))
    for distance, deviation in scales:
        points = np.maximum(np.rint((np.array(size) - 1) * step / distance), 1).astype(int) + 1
        noise = torch.from_numpy(random.normal(0.0, deviation, (3, *points)).astype(np.float32))
        velocity += F.interpolate(noise[None], size=size, mode="trilinear", align_corners=True)[0]
    if organs is not None and (organ_shift > 0 or organ_scale > 0):
        velocity += _organ_velocity(random, organs, step, organ_shift, organ_scale)
    return _follow(velocity, step)


def _organ_velocity(
    random: np.random.RandomState, organs: Tensor, step: np.ndarray, shift: float, scale: float
) -> Tensor:
    numbers = [int(n) for n in torch.unique(organs) if n > 0]
    total = torch.zeros((3, *organs.shape))
    if not numbers:
        return total
    masks = torch.stack([organs == n for n in numbers]).float()  # (organs, *shape)
    inside = masks.sum(dim=(1, 2, 3))
    axes = [torch.arange(n) * float(d) for n, d in zip(organs.shape, step, strict=True)]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).float()  # mm
    centres = torch.einsum("oxyz,cxyz->oc", masks, positions) / inside[:, None]
    near = F.max_pool3d(masks[None], 3, stride=1, padding=1)  # 1 in the organ, even if thin, 0 from 3 points on
    for _ in range(2):
        near = F.avg_pool3d(near, 3, stride=1, padding=1)
    near = near / near.sum(dim=1, keepdim=True).clamp(min=1)
    moves = torch.from_numpy(random.normal(0.0, shift, (len(numbers), 3)).astype(np.float32)) if shift else None
    growths = random.normal(0.0, scale, len(numbers)) if scale else np.zeros(len(numbers))
    for index in range(len(numbers)):
        own = (positions - centres[index][:, None, None, None]) * float(growths[index])
        if moves is not None:
            own += moves[index][:, None, None, None]
        total += near[0, index] * own
    return total


def _follow(velocity: Tensor, step: np.ndarray) -> Tensor:
    """Integrate a velocity field (3, *shape), mm, over unit time; returns displacements in mm."""
    shape = velocity.shape[1:]
    to_unit = torch.tensor([2 / (max(n - 1, 1) * float(d)) for n, d in zip(shape, step, strict=True)])
    axes = [torch.linspace(-1, 1, n) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (3, *shape), -1 and 1 at the outermost points
    flow = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        there = grid + flow * to_unit[:, None, None, None]
        positions = there.flip(0).permute(1, 2, 3, 0)[None]
        flow = (
            flow + F.grid_sample(flow[None], positions, mode="bilinear", padding_mode="border", align_corners=True)[0]
        )
    return flow
