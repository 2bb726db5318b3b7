"""How well a mask agrees with a reference, on the voxels of the prediction's own grid."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from attunet3d.errors import GeometryError

# Corresponding voxel centres may lie this far apart (mm): float32 affines and DICOM's decimal strings differ by less.
_SAME_PLACE_MM = 0.01


def score(
    prediction: str | Path,
    reference: str | Path,
    *,
    prediction_label: int | None = None,
    reference_label: int | None = None,
) -> dict[str, float]:
    """Compare two label maps of one CT in patient space.

    Args:
        prediction: label map (NIfTI, NRRD, MetaImage).
        reference: label map on the same voxels; its axes may run another way.
        prediction_label: the value that counts as foreground in the prediction; by default every value but 0.
        reference_label: the same for the reference.

    Returns:
        dice, precision, recall, prediction_ml, reference_ml, difference_ml (prediction minus reference). Where a
        quotient has no denominator (both masks empty) it is NaN.

    Raises:
        GeometryError: the two are not on the same voxels of the patient.
    """
    from attunet3d.io import read_label

    mask, affine = read_label(prediction)
    other, other_affine = read_label(reference)
    other = _reorient(other, other_affine, mask.shape, affine, f"{prediction} and {reference}")
    a = mask != 0 if prediction_label is None else mask == prediction_label
    b = other != 0 if reference_label is None else other == reference_label
    return compare_masks(a, b, voxel_ml=abs(float(np.linalg.det(affine[:3, :3]))) / 1000)


def compare_masks(prediction: np.ndarray, reference: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Overlap and volumes of two boolean masks of one shape; ``voxel_ml`` is a voxel's volume in mL."""
    both = int(np.count_nonzero(prediction & reference))
    predicted, referenced = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    return {
        "dice": _ratio(2 * both, predicted + referenced),
        "precision": _ratio(both, predicted),
        "recall": _ratio(both, referenced),
        "prediction_ml": predicted * voxel_ml,
        "reference_ml": referenced * voxel_ml,
        "difference_ml": (predicted - referenced) * voxel_ml,
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _reorient(
    array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray, pair: str
) -> np.ndarray:
    """``array`` with its axes permuted and flipped to those of the grid (shape, target); exact, nothing resampled."""
    turn = ornt_transform(io_orientation(affine), io_orientation(target))
    turned = apply_orientation(array, turn)
    turned_affine = affine @ inv_ornt_aff(turn, array.shape)
    if turned.shape != shape:
        raise GeometryError(
            f"{pair} have different voxels: {_describe(shape, target)} and {_describe(array.shape, affine)}; "
            "resample one to the other's grid first"
        )
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    distance = np.linalg.norm((corners @ (turned_affine - target).T)[:, :3], axis=1).max()
    if distance > _SAME_PLACE_MM:
        raise GeometryError(
            f"{pair} lie {distance:.2f} mm apart in the patient: {_describe(shape, target)} and "
            f"{_describe(array.shape, affine)}; are they of one CT?"
        )
    return turned


def _describe(shape: tuple[int, ...], affine: np.ndarray) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in nib.affines.voxel_sizes(affine))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm"
