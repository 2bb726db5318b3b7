"""Align a label map with its CT if both have the same voxels, in another order or direction of axes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from attunet3d.errors import GeometryError

# Voxel centres coincide if they are at most this far apart (mm): float32 affines and DICOM's decimal strings differ by
# less. Up to a fraction of a voxel the grids are still treated as equal: programs write headers with few digits.
_SAME_PLACE_MM = 0.01
_MOST_VOXELS_APART = 0.1


def place_on(
    label: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target_affine: np.ndarray, what: str
) -> np.ndarray:
    """Permute and flip the axes of a label map to those of another grid, without resampling.

    Args:
        label: (X, Y, Z) on its own grid.
        affine: of that grid, from voxel indices to RAS+ mm.
        shape: of the target grid.
        target_affine: of the target grid, from voxel indices to RAS+ mm.
        what: names of both, target first, for messages: "a.nii.gz and b.nii.gz".

    Returns:
        A view of ``label`` with the shape ``shape``.

    Raises:
        GeometryError: the two grids differ by more than a tenth of a voxel.
    """
    turn = io_orientation(np.linalg.inv(target_affine) @ affine)
    turned = apply_orientation(label, turn)
    if turned.shape != tuple(shape):
        raise GeometryError(
            f"{what} have different voxels: {_describe(shape, target_affine)} and {_describe(label.shape, affine)}; "
            "resample one to the other's grid first"
        )
    distance, voxels = _apart(label.shape, affine, target_affine)
    if distance > _SAME_PLACE_MM and voxels > _MOST_VOXELS_APART:
        raise GeometryError(
            f"{what} lie {distance:.2f} mm apart in the patient: {_describe(shape, target_affine)} and "
            f"{_describe(label.shape, affine)}; are they of one CT?"
        )
    return turned


def little_apart(shape: tuple[int, ...], affine: np.ndarray, target_affine: np.ndarray, what: str) -> str:
    """Return a warning if the headers differ, but by so little that ``place_on`` accepts them; otherwise "".

    Args:
        shape: of the label map as stored.
        affine, target_affine, what: as in ``place_on``.
    """
    distance, voxels = _apart(shape, affine, target_affine)
    if distance <= _SAME_PLACE_MM:
        return ""
    return f"{what} lie {distance:.2f} mm ({voxels:.2f} voxels) apart according to their headers: treated as aligned"


def _apart(shape: tuple[int, ...], affine: np.ndarray, target_affine: np.ndarray) -> tuple[float, float]:
    """Return the largest distance of corresponding grid corners, in mm and in voxels of the target."""
    turn = io_orientation(np.linalg.inv(target_affine) @ affine)
    turned_affine = affine @ inv_ornt_aff(turn, shape)
    turned_shape = np.array(shape)[np.argsort(turn[:, 0])]
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(turned_shape - 1), 1]
    moved = corners @ (turned_affine - target_affine).T
    voxels = moved @ np.linalg.inv(target_affine).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max()), float(np.abs(voxels[:, :3]).max())


def _describe(shape: tuple[int, ...], affine: np.ndarray) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in nib.affines.voxel_sizes(affine))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm"
