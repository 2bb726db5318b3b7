"""Voxel grids in patient space.

Arrays are (..., X, Y, Z); an affine maps voxel indices (voxel centres) to RAS+ mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attunet3d.errors import ConfigError

# Two grids are treated as aligned if that moves no sample by more than so many voxels of the source.
ALIGNED_TOLERANCE = 1e-3
_SPACINGS = (0.01, 1000.0)  # mm


@dataclass(frozen=True)
class Grid:
    """A voxel grid in patient space: shape (X, Y, Z), and affine, float64 (4, 4), from voxel indices to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


def voxel_ml(affine: np.ndarray) -> float:
    """Return the volume of a voxel in mL, for an affine in mm."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000


def model_grid(source: Grid, spacing: float | tuple[float, float, float]) -> Grid:
    """Return the RAS+ grid with a spacing (mm) that covers ``source`` up to its voxel edges.

    It is centred on ``source``. For an oblique or sheared source it covers the bounding box.

    Raises:
        ConfigError: the spacing is out of range.
    """
    step = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,))
    least, most = _SPACINGS
    if not ((step >= least) & (step <= most)).all():  # nor NaN
        raise ConfigError(f"spacing must be {least:g} to {most:g} mm, got {spacing}")
    sides = [(-0.5, n - 0.5) for n in source.shape]
    corners = np.array([(x, y, z, 1.0) for x in sides[0] for y in sides[1] for z in sides[2]])
    edges = (corners @ np.asarray(source.affine, dtype=np.float64).T)[:, :3]
    low, high = edges.min(axis=0), edges.max(axis=0)
    # The tolerance (voxels) keeps rounding errors of the affine, float32 in NIfTI, from adding a voxel to an exact fit.
    shape = np.maximum(np.ceil((high - low) / step - ALIGNED_TOLERANCE).astype(int), 1)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = (low + high) / 2 - (shape - 1) / 2 * step
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def crop(grid: Grid, box: Sequence[slice]) -> Grid:
    """Return the grid of a box of voxels of ``grid``."""
    affine = np.array(grid.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    shape = tuple(s.stop - s.start for s in box)
    return Grid((shape[0], shape[1], shape[2]), affine)


def is_oblique(source: Grid, target: Grid) -> bool:
    """Return whether two grids are rotated or sheared relative to each other: resampling then takes more memory."""
    to_source = np.linalg.inv(np.asarray(source.affine, np.float64)) @ np.asarray(target.affine, np.float64)
    return aligned_axes(to_source, target.shape) is None


def aligned_axes(to_source: np.ndarray, shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Return the source axis along which each target axis runs, or None if the grids are rotated or sheared."""
    linear = to_source[:3, :3]
    axes = np.abs(linear).argmax(axis=0)
    if len(set(axes.tolist())) < 3:
        return None
    rest = linear.copy()
    rest[axes, [0, 1, 2]] = 0.0
    moved = np.abs(rest) @ np.maximum(np.asarray(shape) - 1, 1)
    return (int(axes[0]), int(axes[1]), int(axes[2])) if moved.max() < ALIGNED_TOLERANCE else None
