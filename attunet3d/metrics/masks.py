"""How well a mask agrees with a reference in the patient: overlap, surface distances in mm, volumes in mL."""

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

# A distance of exactly the tolerance is within it, also where a float32 affine makes it this much (mm) longer.
_ROUNDING_MM = 1e-4


def score(
    prediction: str | Path,
    reference: str | Path,
    *,
    prediction_label: int | Sequence[int] | None = None,
    reference_label: int | Sequence[int] | None = None,
    tolerance_mm: float = 2.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Compare two label maps of one CT in patient space.

    Args:
        prediction: label map (NIfTI, NRRD, MetaImage).
        reference: label map on the same voxels; its axes may run another way.
        prediction_label: the value or values that count as foreground in the prediction. By default 1 does, and nothing
            else may be in the file: what the values of several structures mean has to be said.
        reference_label: the same for the reference.
        tolerance_mm: how far apart two surfaces may lie and still agree, for the normalized surface Dice.
        say: called with what is odd about the two and no error: one file twice, headers that differ a little, a
            prediction that holds other organs alone.

    Returns:
        The metrics of `compare_masks`.

    Raises:
        GeometryError: the two are not on the same voxels of the patient.
        ConfigError: label values that are none, or a tolerance that is none.
        InputNotFoundError, UnreadableInputError: a file that cannot be read.
        UnsupportedImageError: a file that is no label map, or has values that nothing explains.
    """
    from attunet3d.io import read_label
    from attunet3d.transforms.labels import LabelValues, check_values

    masks: list[np.ndarray] = []
    affines: list[np.ndarray] = []
    for path, labels, name in ((prediction, prediction_label, "prediction"), (reference, reference_label, "reference")):
        option = f"; say which count with --{name}-label"
        chosen = [labels] if isinstance(labels, int) else [1] if labels is None else labels
        wanted = LabelValues.of(chosen, cure=option + " {found}", lack=option)
        if labels is not None:  # whoever says what counts says that the rest does not
            wanted = replace(wanted, allowed=None)
        label, affine = read_label(path)
        # An empty map says that there is nothing; one of other organs may be a mistake, and of a reference it is one.
        empty = not label.any()
        for note in check_values(path, label, wanted, may_lack=empty or name == "prediction"):
            if not empty:
                say(note)
        masks.append(foreground(label, wanted.pancreas))
        affines.append(affine)
    if os.path.samefile(prediction, reference):
        say(f"{prediction}: is prediction and reference at once")
    names = f"{prediction} and {reference}"
    masks[1] = place_on(masks[1], affines[1], masks[0].shape, affines[0], names)
    if apart := little_apart(label.shape, affines[1], affines[0], names):
        say(apart)
    return compare_masks(masks[0], masks[1], affines[0], tolerance_mm=tolerance_mm)


def compare_masks(
    prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray, tolerance_mm: float = 2.0
) -> dict[str, float]:
    """Overlap, surface distances and volumes of two masks on one grid.

    Args:
        prediction: boolean (X, Y, Z).
        reference: boolean (X, Y, Z).
        affine: voxel to mm, 4 x 4; oblique and sheared ones too.
        tolerance_mm: how far apart two surfaces may lie and still agree, for ``nsd``.

    Returns:
        ``dice``, ``precision`` and ``recall`` of the voxels.

        ``assd_mm``: average symmetric surface distance, the "S2S" of Oktay et al. (arXiv:1804.03999): the mean of the
        distances from each surface voxel of one mask to the nearest of the other, both ways taken together.

        ``hd95_mm``: the larger of the two 95th percentiles of those distances.

        ``nsd``: normalized surface Dice (Nikolov et al., arXiv:1809.04430): the share of both surfaces, by area, that
        lies within ``tolerance_mm`` of the other one.

        ``prediction_ml``, ``reference_ml`` and ``difference_ml``, prediction minus reference.

        Empty masks:

        ====================  ====  =========  ======  =======  =======  ===
        empty                 dice  precision  recall  assd_mm  hd95_mm  nsd
        ====================  ====  =========  ======  =======  =======  ===
        both                  nan   nan        nan     nan      nan      nan
        prediction only       0     0          0       inf      inf      0
        reference only        0     0          0       inf      inf      0
        ====================  ====  =========  ======  =======  =======  ===

        Two empty masks have nothing to overlap: these metrics are not defined for them, and a mean is that of the other
        cases (Maier-Hein et al., Metrics reloaded, Nature Methods 21, 2024).

    What lies outside the volume is background: a mask cut off by the volume's border has a surface there.

    Raises:
        GeometryError: two shapes, or not (X, Y, Z).
        ConfigError: a tolerance that is negative or not finite.
    """
    prediction, reference = np.asarray(prediction, bool), np.asarray(reference, bool)
    if prediction.ndim != 3 or prediction.shape != reference.shape:
        raise GeometryError(
            f"the masks have the shapes {prediction.shape} and {reference.shape}; give two of one shape (X, Y, Z)"
        )
    if not 0 <= tolerance_mm < math.inf:
        raise ConfigError(f"the tolerance is {tolerance_mm} mm; give 0 or more")
    # Only the box that holds both: a pancreas fills about a hundredth of an abdominal CT.
    box = bounding_box(prediction | reference) or (slice(0),) * 3
    prediction, reference = prediction[box], reference[box]
    # Counted here: MONAI sums in float32, which is exact up to 16.8 million voxels only.
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
    """Whether each voxel has one of the values: bool."""
    mask = label == values[0]
    for value in values[1:]:
        mask |= label == value
    return mask


def _compare_surfaces(
    prediction: np.ndarray, reference: np.ndarray, affine: np.ndarray, tolerance_mm: float
) -> tuple[float, float, float]:
    """Average symmetric distance, 95th percentile (mm) and normalized surface Dice of two masks that are not empty.

    The definitions are those of MONAI's compute_average_surface_distance, compute_hausdorff_distance and
    compute_surface_dice(use_subvoxels=True). Not the functions: the spacing they take cannot describe the sheared grid
    of a tilted gantry, and where a mask is scattered over the body they need minutes and gigabytes.
    """
    from monai.metrics.utils import get_code_to_measure_table
    from scipy.ndimage import binary_erosion

    # A voxel of background around: what lies beyond the box, or the volume, is background.
    pair = [np.pad(mask, 1) for mask in (prediction, reference)]
    there, back = _distances([mask ^ binary_erosion(mask) for mask in pair], affine)
    assd = float(np.concatenate([there, back]).mean())
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back))

    # Surface elements, each between 2 x 2 x 2 voxels and weighted by its area, not surface voxels, each of which counts
    # as much: where slices are thick a voxel's long sides are a larger surface than its short ones.
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
    """Which of each 2 x 2 x 2 voxels are in the mask, as the sum of their weights: uint8 (X-1, Y-1, Z-1)."""
    codes = np.zeros([n - 1 for n in mask.shape], np.uint8)
    for offset, weight in np.ndenumerate(weights):
        codes += weight * mask[tuple(slice(i, i + n) for i, n in zip(offset, codes.shape, strict=True))]
    return codes


def _distances(surfaces: Sequence[np.ndarray], affine: np.ndarray) -> list[np.ndarray]:
    """From each voxel of one of two surfaces to the nearest of the other, in mm, and back."""
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    axes, spacing = affine[:3, :3], nib.affines.voxel_sizes(affine)
    cosines = axes.T @ axes / np.outer(spacing, spacing)
    perpendicular = np.allclose(cosines, np.eye(3), rtol=0, atol=1e-5)
    distances = []
    for one, other in (surfaces, surfaces[::-1]):
        voxels = np.argwhere(one)
        if perpendicular:
            # Each voxel's nearest, not its distance: a quarter of the memory, and time that does not depend on shapes.
            nearest = distance_transform_edt(~other, sampling=spacing, return_distances=False, return_indices=True)
            steps = nearest[:, one].T - voxels
            distances.append(np.linalg.norm(steps @ axes.T, axis=1))
        else:
            distances.append(KDTree(np.argwhere(other) @ axes.T).query(voxels @ axes.T)[0])
    return distances
