"""Compare a mask with a reference in patient space: overlap, surface distances in mm, volumes in mL."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from attunet3d.errors import ConfigError, GeometryError
from attunet3d.transforms.boxes import bounding_box
from attunet3d.transforms.grid import voxel_ml
from attunet3d.transforms.placing import little_apart, place_on

METRICS = (
    "dice",
    "precision",
    "recall",
    "assd_mm",
    "hd95_mm",
    "nsd",
    "prediction_ml",
    "reference_ml",
    "difference_ml",
)

# Added to the tolerance (mm), since float32 affines are rounded.
_ROUNDING_MM = 1e-4


def score(
    prediction: str | Path,
    reference: str | Path,
    *,
    prediction_label: int | Sequence[int] | None = None,
    reference_label: int | Sequence[int] | None = None,
    tolerance_mm: float = 2.0,
    warn: Callable[[str], object] = lambda text: None,
) -> dict[str, float]:
    """Compare two label maps of one CT in patient space.

    Args:
        prediction: label map (NIfTI, NRRD, MetaImage).
        reference: label map on the same voxels; it may have another orientation.
        prediction_label: foreground value or values of the prediction. By default 1; a file with other values than 0
            and 1 is then refused.
        reference_label: like ``prediction_label``, for the reference.
        tolerance_mm: largest distance at which surfaces agree, for ``nsd``.
        warn: called with each warning: the files are the same, headers differ slightly, or the prediction
            contains only other organs.

    Returns:
        The metrics of ``compare_masks``.

    Raises:
        GeometryError: the two do not have the same voxels in patient space.
        ConfigError: the label values or the tolerance are invalid.
        InputNotFoundError, UnreadableInputError: a file cannot be read.
        UnsupportedImageError: a file is not a label map, or has unexpected values.
    """
    from attunet3d.io import read_label
    from attunet3d.transforms.labels import LabelValues, check_values

    masks: list[np.ndarray] = []
    affines: list[np.ndarray] = []
    for path, labels, name in ((prediction, prediction_label, "prediction"), (reference, reference_label, "reference")):
        chosen = [labels] if isinstance(labels, int) else [1] if labels is None else labels
        argument = f"{name}_label"
        hint = f"; say which count with {argument}"
        wanted = replace(LabelValues.of(chosen, hint=hint + "=[{found}]", lack=hint), arguments=(argument,))
        if labels is not None:  # an explicit choice excludes all other values
            wanted = replace(wanted, allowed=None)
        label, affine = read_label(path)
        # An empty map is valid. One with only other organs may be a mistake; in a reference it is an error.
        empty = not label.any()
        for note in check_values(path, label, wanted, may_lack=empty or name == "prediction"):
            if not empty:
                warn(note)
        masks.append(foreground(label, wanted.pancreas))
        affines.append(affine)
    if os.path.samefile(prediction, reference):
        warn(f"{prediction}: is both prediction and reference")
    names = f"{prediction} and {reference}"
    masks[1] = place_on(masks[1], affines[1], masks[0].shape, affines[0], names)
    if apart := little_apart(label.shape, affines[1], affines[0], names):
        warn(apart)
    return compare_masks(masks[0], masks[1], affines[0], tolerance_mm=tolerance_mm)


def compare_masks(
    prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray, tolerance_mm: float = 2.0
) -> dict[str, float]:
    """Compute overlap, surface distances and volumes of two masks on one grid.

    Outside the volume is background: a mask that is cut off by the border of the volume has a surface there.

    Args:
        prediction: boolean (X, Y, Z).
        reference: boolean (X, Y, Z).
        affine: from voxel indices to mm, (4, 4); may be oblique or sheared.
        tolerance_mm: largest distance at which surfaces agree, for ``nsd``.

    Returns:
        ``dice``, ``precision`` and ``recall`` of the voxels.

        ``assd_mm``: average symmetric surface distance, the "S2S" of Oktay et al. (arXiv:1804.03999): the mean of the
        distances from each surface voxel of one mask to the nearest of the other, in both directions.

        ``hd95_mm``: the larger of the two 95th percentiles of those distances.

        ``nsd``: normalized surface Dice (Nikolov et al., arXiv:1809.04430): the fraction of both surfaces, by area,
        within ``tolerance_mm`` of the other one.

        ``prediction_ml``, ``reference_ml`` and ``difference_ml``, prediction minus reference.

        Empty masks:

        ====================  ====  =========  ======  =======  =======  ===
        empty                 dice  precision  recall  assd_mm  hd95_mm  nsd
        ====================  ====  =========  ======  =======  =======  ===
        both                  nan   nan        nan     nan      nan      nan
        prediction only       0     0          0       inf      inf      0
        reference only        0     0          0       inf      inf      0
        ====================  ====  =========  ======  =======  =======  ===

        The metrics of two empty masks are undefined; means leave them out (Maier-Hein et al., Metrics reloaded, Nature
        Methods 21, 2024).

    Raises:
        GeometryError: the shapes differ or are not (X, Y, Z).
        ConfigError: the tolerance is negative or not finite.
    """
    prediction, reference = np.asarray(prediction, bool), np.asarray(reference, bool)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise GeometryError(
            f"the masks have the shapes {prediction.shape} and {reference.shape}; give two of one shape (X, Y, Z)"
        )
    if not 0 <= tolerance_mm < math.inf:
        raise ConfigError(f"the tolerance is {tolerance_mm} mm; give 0 or more")
    # Only the box of both: a pancreas fills about a hundredth of an abdominal CT.
    box = bounding_box(prediction | reference) or (slice(0),) * 3
    prediction, reference = prediction[box], reference[box]
    # Not by MONAI, which sums in float32: that is exact up to 16.8 million voxels only.
    both = int(np.count_nonzero(prediction & reference))
    predicted, referenced = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if predicted and referenced:
        overlap = (2 * both / (predicted + referenced), both / predicted, both / referenced)
        surfaces = _compare_surfaces(prediction, reference, affine, tolerance_mm)
    elif predicted or referenced:
        overlap, surfaces = (0.0, 0.0, 0.0), (math.inf, math.inf, 0.0)
    else:
        overlap, surfaces = (math.nan,) * 3, (math.nan,) * 3
    each = voxel_ml(affine)
    volumes = (predicted * each, referenced * each, (predicted - referenced) * each)
    return dict(zip(METRICS, (*overlap, *surfaces, *volumes), strict=True))


def foreground(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return the mask (bool) of the voxels that have one of the values."""
    mask = label == values[0]
    for value in values[1:]:
        mask |= label == value
    return mask


def _compare_surfaces(
    prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray, tolerance_mm: float
) -> tuple[float, float, float]:
    """Compute ASSD (mm), HD95 (mm) and normalized surface Dice of two masks that are not empty.

    The definitions are those of MONAI's ``compute_average_surface_distance``, ``compute_hausdorff_distance`` and
    ``compute_surface_dice(use_subvoxels=True)``, which are not used: their spacing cannot describe the sheared grid of
    a tilted gantry, and for a mask that is scattered over the body they take minutes and gigabytes.
    """
    from monai.metrics.utils import get_code_to_measure_table
    from scipy.ndimage import binary_erosion

    # Outside the box or the volume is background.
    pair = [np.pad(mask, 1) for mask in (prediction, reference)]
    there, back = _distances([mask ^ binary_erosion(mask) for mask in pair], affine)
    assd = float(np.concatenate([there, back]).mean())
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back))

    # Surface elements, each between 2 x 2 x 2 voxels and weighted by its area, instead of surface voxels of equal
    # weight: with thick slices the sides of a voxel have different areas.
    table, kernel = get_code_to_measure_table([float(s) for s in nib.affines.voxel_sizes(affine)])
    codes = [_neighbourhood_codes(mask, kernel[0, 0].numpy().astype(np.uint8)) for mask in pair]
    elements = [(code > 0) & (code < 255) for code in codes]
    area, near = 0.0, 0.0
    for code, element, distances in zip(codes, elements, _distances(elements, affine), strict=True):
        areas = table.numpy().astype(np.float64)[code[element]]
        area += areas.sum()
        near += areas[distances <= tolerance_mm + _ROUNDING_MM].sum()
    return assd, hd95, float(near / area)


def _neighbourhood_codes(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Encode which of each 2 x 2 x 2 voxels are in the mask as the sum of their weights: uint8 (X-1, Y-1, Z-1)."""
    codes = np.zeros([n - 1 for n in mask.shape], np.uint8)
    for offset, weight in np.ndenumerate(weights):
        codes += weight * mask[tuple(slice(i, i + n) for i, n in zip(offset, codes.shape, strict=True))]
    return codes


def _distances(surfaces: Sequence[np.ndarray], affine: np.ndarray) -> list[np.ndarray]:
    """Return the distances in mm from each voxel of a surface to the nearest of the other, in both directions."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    axes, spacing = affine[:3, :3], nib.affines.voxel_sizes(affine)
    cosines = axes.T @ axes / np.outer(spacing, spacing)
    perpendicular = np.allclose(cosines, np.eye(3), rtol=0, atol=1e-5)
    distances = []
    for one, other in (surfaces, surfaces[::-1]):
        voxels = np.argwhere(one)
        if perpendicular:
            # Indices of the nearest voxels, not distances: a quarter of the memory, in time independent of shapes.
            nearest = distance_transform_edt(~other, sampling=spacing, return_distances=False, return_indices=True)
            steps = nearest[:, one].T - voxels
            distances.append(np.linalg.norm(steps @ axes.T, axis=1))
        else:
            distances.append(KDTree(np.argwhere(other) @ axes.T).query(voxels @ axes.T)[0])
    return distances
