"""How well a mask agrees with a reference in the patient: overlap, surface distances in mm, volumes in mL."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from attunet3d.errors import ConfigError, GeometryError

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

# Corresponding voxel centres may lie this far apart (mm): float32 affines and DICOM's decimal strings differ by less.
_SAME_PLACE_MM = 0.01

# A distance of exactly the tolerance is within it, also where a float32 affine makes it this much (mm) longer.
_ROUNDING_MM = 1e-4


def score(
    prediction: str | Path,
    reference: str | Path,
    *,
    prediction_label: int | Sequence[int] | None = None,
    reference_label: int | Sequence[int] | None = None,
    tolerance_mm: float = 2.0,
) -> dict[str, float]:
    """Compare two label maps of one CT in patient space.

    Args:
        prediction: label map (NIfTI, NRRD, MetaImage).
        reference: label map on the same voxels; its axes may run another way.
        prediction_label: the value or values that count as foreground in the prediction; by default every value but 0.
        reference_label: the same for the reference.
        tolerance_mm: how far apart two surfaces may lie and still agree, for the normalized surface Dice.

    Returns:
        The metrics of `compare_masks`.

    Raises:
        GeometryError: the two are not on the same voxels of the patient.
        ConfigError: an empty list of labels, or a tolerance that is none.
        InputNotFoundError, UnreadableInputError, UnsupportedImageError: a file that is no label map.
    """
    from attunet3d.io import read_label

    mask, affine = read_label(prediction)
    other, other_affine = read_label(reference)
    other = place_on(other, other_affine, mask.shape, affine, f"{prediction} and {reference}")
    return compare_masks(
        foreground(mask, prediction_label), foreground(other, reference_label), affine, tolerance_mm=tolerance_mm
    )


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
        both                  1     1          1       0        0        1
        prediction only       0     0          0       inf      inf      0
        reference only        0     0          0       inf      inf      0
        ====================  ====  =========  ======  =======  =======  ===

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
    import torch

    from attunet3d.transforms.components import bounding_box

    # Only the box that holds both: a pancreas fills about a hundredth of an abdominal CT.
    box = bounding_box(torch.from_numpy(prediction | reference)) or (slice(0), slice(0), slice(0))
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
        overlap, surfaces = (1.0, 1.0, 1.0), (0.0, 0.0, 1.0)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    volumes = (predicted * voxel_ml, referenced * voxel_ml, (predicted - referenced) * voxel_ml)
    return dict(zip(METRICS, (*overlap, *surfaces, *volumes), strict=True))


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
        GeometryError: the two grids do not have the same voxels in the patient, to within 0.01 mm.
    """
    turn = io_orientation(np.linalg.inv(target_affine) @ affine)
    turned = apply_orientation(label, turn)
    turned_affine = affine @ inv_ornt_aff(turn, label.shape)
    if turned.shape != tuple(shape):
        raise GeometryError(
            f"{what} have different voxels: {_describe(shape, target_affine)} and {_describe(label.shape, affine)}; "
            "resample one to the other's grid first"
        )
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    distance = np.linalg.norm((corners @ (turned_affine - target_affine).T)[:, :3], axis=1).max()
    if distance > _SAME_PLACE_MM:
        raise GeometryError(
            f"{what} lie {distance:.2f} mm apart in the patient: {_describe(shape, target_affine)} and "
            f"{_describe(label.shape, affine)}; are they of one CT?"
        )
    return turned


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The distribution of each metric over the cases of a study.

    Args:
        rows: a mapping for each case: "case" and the metrics of `compare_masks`.

    Returns:
        For each metric a dict of ``n`` (cases), ``mean`` and ``sd`` (of the sample: n - 1) of the finite values,
        ``median``, ``min`` and ``max`` of all, and ``infinite``, how many are. What is not defined (the sd of one case)
        or not finite is None, so that the summary is valid JSON. ``worst``: the names of the 5 cases with the lowest
        Dice, the lowest first, ties by name.
    """
    names = [name for name in rows[0] if name != "case"] if rows else list(METRICS)
    summary: dict[str, Any] = {name: _distribution([row[name] for row in rows]) for name in names}
    summary["worst"] = [row["case"] for row in sorted(rows, key=lambda row: (row["dice"], row["case"]))[:5]]
    return summary


def write_metrics_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table of cases as CSV in UTF-8, whole or not at all; the folder is made if it does not exist.

    Args:
        path: of the file.
        rows: a mapping for each case, all with the same keys, which become the header; "case" comes first. By default
            the header of `compare_masks`.

    Numbers have 6 decimals, so that one voxel (0.0001 mL and more) and the summary can be worked out from the table; an
    infinite distance is ``inf``. A text that a spreadsheet would take for a formula gets an apostrophe before it.

    Raises:
        OutputError: the file cannot be written.
    """
    from attunet3d.io.writer import make_folder, write_text_atomic

    columns = sorted(rows[0], key=lambda column: column != "case") if rows else ["case", *METRICS]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(row[column]) for column in row} for row in rows)
    make_folder(Path(path).parent)
    return write_text_atomic(path, table.getvalue())


def _distribution(values: Sequence[float]) -> dict[str, float | None]:
    finite = [value for value in values if math.isfinite(value)]
    ends = (statistics.median(values), min(values), max(values)) if values else (math.inf,) * 3
    median, lowest, highest = (end if math.isfinite(end) else None for end in ends)
    return {
        "n": len(values),
        "mean": statistics.fmean(finite) if finite else None,
        "sd": statistics.stdev(finite) if len(finite) > 1 else None,
        "median": median,
        "min": lowest,
        "max": highest,
        "infinite": len(values) - len(finite),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def foreground(label: np.ndarray, values: int | Sequence[int] | None) -> np.ndarray:
    """Whether each voxel has one of the values, or any but 0 for None: bool. Raises ConfigError for an empty list."""
    if values is None:
        return label != 0
    wanted = [values] if isinstance(values, int) else list(values)
    if not wanted:
        raise ConfigError("no label value is given to count as foreground; give one or more, or None for all but 0")
    mask = label == wanted[0]
    for value in wanted[1:]:
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


def _describe(shape: tuple[int, ...], affine: np.ndarray) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in nib.affines.voxel_sizes(affine))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm"
