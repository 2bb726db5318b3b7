"""A label map laid over its CT: the same voxels, whatever order and direction they are stored in."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from attunet3d.errors import GeometryError

# Corresponding voxel centres this far apart (mm) are at one place: float32 affines and DICOM's decimal strings differ
# by less. Up to a share of a voxel they still belong together: programs write headers with few digits.
_SAME_PLACE_MM = 0.01
MOST_VOXELS_APART = 0.1


def place_on(
    label: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target_affine: np.ndarray, what: str
) -> np.ndarray:
    """A label map with its axes permuted and flipped to those of another grid; exact, nothing is resampled.

    Args:
        label: (X, Y, Z) on a grid of its own.
        affine: that grid's, voxel to RAS+ mm.
        shape: of the grid to place it on.
        target_affine: that grid's, voxel to RAS+ mm.
        what: the two in words, target first, for messages: ``"a.nii.gz and b.nii.gz"``.

    Returns:
        A view of ``label``, of the shape ``shape``.

    Raises:
        GeometryError: the two grids do not have the same voxels in the patient, to within a tenth of a voxel.
    """
    turn = io_orientation(np.linalg.inv(target_affine) @ affine)
    turned = apply_orientation(label, turn)
    if turned.shape != tuple(shape):
        raise GeometryError(
            f"{what} have different voxels: {_describe(shape, target_affine)} and {_describe(label.shape, affine)}; "
            "resample one to the other's grid first"
        )
    distance, voxels = _apart(label.shape, affine, target_affine)
    if distance > _SAME_PLACE_MM and voxels > MOST_VOXELS_APART:
        raise GeometryError(
            f"{what} lie {distance:.2f} mm apart in the patient: {_describe(shape, target_affine)} and "
            f"{_describe(label.shape, affine)}; are they of one CT?"
        )
    return turned


def little_apart(shape: tuple[int, ...], affine: np.ndarray, target_affine: np.ndarray, what: str) -> str:
    """What to say of a label map that `place_on` takes although the headers differ; "" where they do not.

    Args:
        shape: of the label map as it is stored.
        affine, target_affine, what: as in `place_on`.
    """
    distance, voxels = _apart(shape, affine, target_affine)
    if distance <= _SAME_PLACE_MM:
        return ""
    return f"{what} lie {distance:.2f} mm ({voxels:.2f} voxels) apart by their headers: taken as at one place"


def _apart(shape: tuple[int, ...], affine: np.ndarray, target_affine: np.ndarray) -> tuple[float, float]:
    """How far, in mm and in voxels of the target, the corners of a grid lie from those that they are laid on."""
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
