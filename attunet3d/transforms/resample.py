"""Linear resampling between voxel grids in patient space, slab by slab.

Arrays are (..., X, Y, Z); an affine maps voxel indices (voxel centres) to RAS+ mm. A volume extends half a voxel beyond
the outermost voxel centres, with the values of those; outside it the fill value is used. Only one slab at a time is in
floating point.

Along each axis linear interpolation only uses the two nearest voxels: on a coarse target others are lost, and noise is
not averaged. With ``antialias`` each value on a coarser target is the mean over all voxels within one target step, with
weights that decrease linearly to 0. If the target is not coarser, both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from attunet3d.transforms.grid import ALIGNED_TOLERANCE, Grid, aligned_axes, crop

AIR_HU = -1024.0  # outside the field of view
# Lower and upper neighbour of each position, and the upper one's weight.
Taps = tuple[Tensor, Tensor, Tensor]
# Fractions of two classes that differ by less are equal up to rounding.
_TIE = 1e-4


def resample_slabs(
    volume: Tensor, source: Grid, target: Grid, *, fill: float, antialias: bool = False, slab: int = 8
) -> Iterator[tuple[slice, Tensor]]:
    """Resample ``volume`` linearly onto ``target``, a slab at a time.

    Args:
        volume: (..., X, Y, Z) of any real dtype on the grid ``source``.
        source: the grid of ``volume``.
        target: the grid to sample on.
        fill: value outside the source volume.
        antialias: average where the target is coarser; along the axes of the source if the grids are rotated.
        slab: planes of the target's last axis per step.

    Yields:
        The slice of the target's last axis, and its values (..., X, Y, n) in float32.
    """
    to_source = np.linalg.inv(np.asarray(source.affine, np.float64)) @ np.asarray(target.affine, np.float64)
    axes = aligned_axes(to_source, target.shape)
    if axes is None and antialias:
        volume, source = _shrunk(volume, source, np.linalg.norm(to_source[:3, :3], axis=1), fill)
        to_source = np.linalg.inv(source.affine) @ np.asarray(target.affine, np.float64)
    for start in range(0, target.shape[2], slab):
        planes = slice(start, min(start + slab, target.shape[2]))
        if axes is None:
            yield planes, _sample_general(volume, to_source, target.shape, planes, fill)
        else:
            yield planes, _sample_separable(volume, to_source, axes, target.shape, planes, fill, antialias)


def resample_image(volume: Tensor, source: Grid, target: Grid, *, fill: float, antialias: bool = False) -> Tensor:
    """Resample ``volume`` (..., X, Y, Z) linearly onto ``target``; float32."""
    out = torch.empty((*volume.shape[:-3], *target.shape), dtype=torch.float32, device=volume.device)
    for planes, values in resample_slabs(volume, source, target, fill=fill, antialias=antialias):
        out[..., planes] = values
    return out


def resample_label(label: Tensor, source: Grid, target: Grid, *, antialias: bool = False) -> Tensor:
    """Resample a label map of integers (X, Y, Z) onto ``target``, uint8: the class with the largest fraction wins.

    The fractions are the linear interpolation of each class. With two classes they can be equal in whole planes of
    voxels, as with 1 mm slices on a 2 mm grid: every other voxel of those becomes background, so that volume and
    centroid are preserved.
    """
    classes = [int(value) for value in torch.unique(label) if value != 0]
    out = torch.zeros(target.shape, dtype=torch.uint8, device=label.device)
    share = torch.full(target.shape, 0.5 if len(classes) == 1 else 0.0, device=label.device)
    if len(classes) > 1:
        share = resample_image((label == 0).to(torch.uint8), source, target, fill=1.0, antialias=antialias)
    odd = [torch.arange(n, device=label.device) % 2 == 1 for n in target.shape]
    share += torch.where(odd[0][:, None, None] ^ odd[1][:, None] ^ odd[2], -_TIE, _TIE)
    for value in classes:
        one = (label == value).to(torch.uint8)
        for planes, values in resample_slabs(one, source, target, fill=0.0, antialias=antialias):
            wins = values > share[..., planes]
            out[..., planes][wins] = value
            share[..., planes][wins] = values[wins]
    return out


def class_map(logits: Tensor) -> Tensor:
    """Return the class of each voxel, uint8 (X, Y, Z), by logits (C, X, Y, Z); C = 1 is the logit of the foreground."""
    return (logits[0] > 0).to(torch.uint8) if logits.shape[0] == 1 else logits.argmax(dim=0).to(torch.uint8)


def mask_from_logits(logits: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample logits onto ``target``, and convert them to a class map, uint8 (X, Y, Z).

    With two classes only their difference is resampled: linear interpolation and subtraction commute.

    Args:
        logits: (C, X, Y, Z); C = 1 is the logit of the foreground, with C >= 2 the class with the largest logit wins.
        source: grid of the logits: the model grid, or a box of it; outside it all is background.
        target: grid of the CT.
    """
    if logits.shape[0] == 2:
        logits = logits[1:2] - logits[0:1]
    # Logits of 0 outside the grid are background, as ties are.
    return _to_bytes(logits, source, target, class_map)


def bytes_from_shares(shares: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample values in [0, 1] (X, Y, Z) onto ``target``, scaled to 0..255, uint8; 0 outside ``source``."""
    return _to_bytes(shares, source, target, lambda values: values.clamp(0, 1).mul_(255).round_().to(torch.uint8))


def _to_bytes(volume: Tensor, source: Grid, target: Grid, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Resample ``volume`` (..., X, Y, Z) onto ``target``; ``convert`` makes each slab uint8 (X, Y, n); 0 outside."""
    # Fortran order, as in files; numpy's zeros take no memory until they are written to.
    out = torch.from_numpy(np.zeros(target.shape, dtype=np.uint8, order="F")).to(volume.device)
    box = _covered(source, target)
    part = out[box]
    if part.numel() == 0:
        return out
    for planes, values in resample_slabs(volume, source, crop(target, box), fill=0.0):
        part[..., planes] = convert(values)
    return out


def _covered(source: Grid, target: Grid) -> tuple[slice, slice, slice]:
    """Return the box of ``target`` with all voxels that have their centre in ``source``."""
    sides = [(-0.5, n - 0.5) for n in source.shape]
    corners = np.array([(x, y, z, 1.0) for x in sides[0] for y in sides[1] for z in sides[2]])
    index = (np.linalg.inv(target.affine) @ source.affine @ corners.T)[:3]
    # A margin of one voxel: positions on the edge count as inside.
    first = np.clip(np.floor(index.min(axis=1)) - 1, 0, target.shape).astype(int)
    last = np.clip(np.ceil(index.max(axis=1)) + 2, first, target.shape).astype(int)
    return slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2])


def _is_inside(position: Tensor, size: int) -> Tensor:
    return (position >= -0.5 - 1e-6) & (position <= size - 0.5 + 1e-6)


def _neighbours(position: Tensor, size: int) -> Taps:
    """Return lower and upper neighbour (int64) and the weight of the upper one (float32); clamped at the borders."""
    position = position.clamp(0, size - 1)
    lower = position.floor().clamp(max=max(size - 2, 0))
    weight = (position - lower).to(torch.float32)
    lower = lower.to(torch.int64)
    return lower, (lower + 1).clamp(max=size - 1), weight


def _mean_weights(position: Tensor, size: int, step: float) -> Tensor:
    """Return weights (size, positions), float32, of the mean over the voxels nearer than ``step`` to each position."""
    distance = (torch.arange(size, dtype=torch.float64)[:, None] - position.clamp(0, size - 1)).abs()
    weights = (1 - distance / step).clamp(min=0)
    return (weights / weights.sum(dim=0)).to(torch.float32)


def _weighted(values: Tensor, dim: int, taps: Taps | Tensor) -> Tensor:
    """Sample positions along ``dim``, between two neighbours or as a weighted mean of all voxels; float32."""
    if isinstance(taps, Tensor):
        values, weights = values.to(torch.float32), taps.to(values.device)
        if dim == values.ndim - 1:
            return values @ weights
        if dim == values.ndim - 2:
            return weights.mT @ values
        return (weights.mT @ values.flatten(-2)).unflatten(-1, values.shape[-2:])
    lower, upper, weight = (part.to(values.device) for part in taps)
    below = values.index_select(dim, lower).to(torch.float32)
    above = values.index_select(dim, upper).to(torch.float32)
    return below.lerp_(above, weight.view(_along(dim, values)))


def _along(dim: int, values: Tensor) -> list[int]:
    return [-1 if axis == dim else 1 for axis in range(values.ndim)]


def _shrunk(volume: Tensor, source: Grid, steps: np.ndarray, fill: float) -> tuple[Tensor, Grid]:
    """Downsample ``volume`` by means along its own axes, to a grid that is coarser by ``steps`` where they exceed 1."""
    steps = np.maximum(steps, 1.0)
    shape = tuple(int(n) for n in np.maximum(np.ceil(np.array(source.shape) / steps - ALIGNED_TOLERANCE), 1))
    to_source = np.diag([*steps, 1.0])
    to_source[:3, 3] = (np.array(source.shape) - 1) / 2 - steps * (np.array(shape) - 1) / 2  # centred
    grid = Grid((shape[0], shape[1], shape[2]), np.asarray(source.affine, np.float64) @ to_source)
    return resample_image(volume, source, grid, fill=fill, antialias=True), grid


def _sample_separable(
    volume: Tensor,
    to_source: np.ndarray,
    axes: tuple[int, int, int],
    shape: tuple[int, int, int],
    planes: slice,
    fill: float,
    antialias: bool = False,
) -> Tensor:
    # As (..., Z, Y, X), the memory order of CTs from files: index_select then copies whole planes and rows.
    first = volume.ndim - 3
    values = volume.permute(*range(first), *(first + axis for axis in reversed(axes)))
    centre = (np.asarray(shape) - 1) / 2  # small off-axis terms are evaluated at the centre, where the error is least
    samples: list[tuple[float, int, Taps | Tensor]] = []
    outside: list[Tensor] = []
    for axis in range(3):
        dim = first + 2 - axis
        start, stop = (planes.start, planes.stop) if axis == 2 else (0, shape[axis])
        row = to_source[axes[axis]]
        offset = row[3] + sum(row[other] * centre[other] for other in range(3) if other != axis)
        position = torch.from_numpy(row[axis] * np.arange(start, stop, dtype=np.float64) + offset)
        size, step = values.shape[dim], abs(float(row[axis]))
        inside = _is_inside(position, size)
        if not bool(inside.all()):
            outside.append(~inside.view(_along(dim, values)).to(values.device))
        reach = step if antialias else 1.0
        if axis == 2:  # only the planes of the source that the slab needs
            nearest = position.clamp(0, size - 1)
            low = max(math.floor(float(nearest.min()) - reach), 0)
            high = min(math.ceil(float(nearest.max()) + reach), size - 1)
            values, position, size = values.narrow(dim, low, high - low + 1), position - low, high - low + 1
        taps = _mean_weights(position, size, step) if reach > 1 + ALIGNED_TOLERANCE else _neighbours(position, size)
        samples.append((shape[axis] / volume.shape[axes[axis] - 3], dim, taps))
    # The axis that shrinks most comes first: it leaves the others less work.
    for _, dim, taps in sorted(samples, key=lambda sample: sample[0]):
        values = _weighted(values, dim, taps)
    for mask in outside:
        values.masked_fill_(mask, fill)
    return values.transpose(first, first + 2)  # (..., X, Y, n)


def _sample_general(
    volume: Tensor, to_source: np.ndarray, shape: tuple[int, int, int], planes: slice, fill: float
) -> Tensor:
    device = volume.device
    exact = torch.device("cpu") if device.type == "mps" else device  # Apple GPUs have no float64
    index = [
        torch.arange(shape[0], dtype=torch.float64, device=exact).view(-1, 1, 1),
        torch.arange(shape[1], dtype=torch.float64, device=exact).view(1, -1, 1),
        torch.arange(planes.start, planes.stop, dtype=torch.float64, device=exact).view(1, 1, -1),
    ]
    size = volume.shape[-3:]
    strides = (size[1] * size[2], size[2], 1)
    inside: Tensor | None = None
    corners: list[tuple[Tensor, Tensor, Tensor]] = []  # per source axis: offset of both neighbours, upper weight
    for axis in range(3):
        row = to_source[axis]
        position = index[0] * row[0] + index[1] * row[1] + index[2] * row[2] + row[3]  # (X, Y, n)
        lower, upper, weight = _neighbours(position, size[axis])
        within = _is_inside(position, size[axis])
        inside = within if inside is None else inside & within
        corners.append(((lower * strides[axis]).to(device), (upper * strides[axis]).to(device), weight.to(device)))
    flat = volume.reshape(*volume.shape[:-3], -1)
    values = torch.zeros((*volume.shape[:-3], *corners[0][2].shape), dtype=torch.float32, device=device)
    for x in (0, 1):
        for y in (0, 1):
            for z in (0, 1):
                offset = corners[0][x] + corners[1][y] + corners[2][z]
                weight = torch.ones((), device=device)
                for (_, _, upper_weight), upper_one in zip(corners, (x, y, z), strict=True):
                    weight = weight * (upper_weight if upper_one else 1 - upper_weight)
                values += flat[..., offset].to(torch.float32) * weight
    if inside is not None:
        values.masked_fill_(~inside.to(device), fill)
    return values
