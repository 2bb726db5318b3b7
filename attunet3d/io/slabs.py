"""Convert stored voxels slab by slab to one array: int16 HU for CT, uint8 for label maps.

Each format is opened as a ``StoredImage``; the rules for valid CTs and label maps are here, once for all formats.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.hounsfield import ValueCounts, check_hu, looks_like

# Tolerance for integers stored as floats or scaled: relative, and absolute for 0 and 1.
_LABEL_ROUNDING = 1e-6

_MOST_CLIPPED = 0.01  # fraction of voxels beyond int16: near metal a few may overflow, see `to_hu`

# Spacings outside these limits are not in millimetres: inner-ear CT has 0.1 mm voxels, the thickest slices are 10 mm.
MIN_SPACING_MM = 0.05
MAX_SPACING_MM = 20.0
_MAX_ORIGIN_MM = 1e5  # 100 m from the scanner's origin; NIfTI's float32 would still hold it to 0.01 mm

# Beyond these limits an image is unusual, but possible (a phantom, a scan from head to foot): there is a warning.
_USUAL_SPACING_MM = (0.1, 10.0)
_SMALLEST_TRUNK_MM = 60.0  # a premature baby's is wider
_LARGEST_BODY_MM = 2500.0
_MANY_VOXELS = 100_000  # so many voxels in so small an image suggest lengths in cm

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima")
IMAGE_SUFFIXES = NIFTI_SUFFIXES + _ITK_SUFFIXES

# 1024 x 1024 x 2048, the body from head to foot in 1 mm slices on the finest matrix: no CT has more voxels, so no
# label map either.
MOST_VOXELS = 2**31

DEFLATE_MAX_RATIO = 1032  # deflate cannot expand by more: a header that claims more is damaged

_INT16 = np.iinfo(np.int16)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class StoredImage:
    """A 3D image as stored in a file, before its voxels are read.

    Attributes:
        path: the file or DICOM folder.
        shape: (X, Y, Z).
        affine: from voxel indices to RAS+ mm.
        metadata: see ``Volume``; "warnings" is a list.
        slabs: yields Z arrays (X, Y) in order, with scale and offset applied.
        files: the DICOM images of a series in the order of Z; empty for other formats.
        frames: the slices' frame numbers in a multi-frame DICOM file; empty otherwise.

    Raises:
        UnsupportedImageError: more than MOST_VOXELS voxels; raised before any is read or memory is allocated.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    metadata: dict[str, Any]
    slabs: Iterator[np.ndarray]
    files: tuple[Path, ...] = ()
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if math.prod(self.shape) > MOST_VOXELS:
            shape = " x ".join(map(str, self.shape))
            raise UnsupportedImageError(
                f"{self.path}: {shape} voxels, more than any CT ({MOST_VOXELS}); "
                "check the header, or crop the image to the abdomen"
            )


def to_hu(image: StoredImage) -> np.ndarray:
    """Read the voxels in HU, int16 (X, Y, Z), in Fortran order.

    Fractions are rounded to the nearest integer. A few values beyond int16 are clipped, with a warning in
    ``image.metadata``.

    Raises:
        GeometryError: the affine is unusable.
        UnsupportedImageError: a single slice, non-finite voxels, or values that cannot be HU.
    """
    if min(image.shape) < 2:
        raise UnsupportedImageError(
            f"{image.path}: single slice (shape {image.shape}); a CT volume needs at least 2 slices: "
            "give the whole scan"
        )
    check_affine(image.path, image.affine)
    hu = np.empty(image.shape, np.int16, order="F")
    low, high, clipped, values = math.inf, -math.inf, 0, ValueCounts()
    for k, slab in enumerate(image.slabs):
        slab_low, slab_high = _finite_range(image.path, k, slab)
        low, high = min(low, slab_low), max(high, slab_high)
        values.add(slab)
        if slab.dtype != np.int16:
            if slab.dtype.kind == "f":
                slab = np.rint(slab)
            if slab_low < _INT16.min or slab_high > _INT16.max:
                clipped += int(((slab < _INT16.min) | (slab > _INT16.max)).sum())
                slab = np.clip(slab.astype(np.float64), _INT16.min, _INT16.max)
        hu[:, :, k] = slab
    if clipped > _MOST_CLIPPED * hu.size:
        raise UnsupportedImageError(
            f"{image.path}: {clipped} of {hu.size} values reach beyond int16 ({low:g} to {high:g}), too many for "
            f"metal: the sign or scale is wrong; {looks_like(values)}"
        )
    if clipped:
        image.metadata["warnings"].append(
            f"values {low:g} to {high:g} reach beyond int16 and were clipped to {_INT16.min}..{_INT16.max}"
        )
    image.metadata["warnings"] += check_hu(image.path, values, low, high)
    return hu


def to_labels(image: StoredImage) -> np.ndarray:
    """Read the voxels as a label map, uint8 (X, Y, Z), in Fortran order.

    Raises:
        GeometryError: the affine is unusable.
        UnsupportedImageError: values are not integers in 0..255, apart from the rounding of a file's scale.
    """
    check_affine(image.path, image.affine)
    labels = np.empty(image.shape, np.uint8, order="F")
    for k, slab in enumerate(image.slabs):
        low, high = _finite_range(image.path, k, slab)
        if low < -_LABEL_ROUNDING or high > 255 * (1 + _LABEL_ROUNDING):
            raise UnsupportedImageError(
                f"{image.path}: values {low:g} to {high:g} in slice {k}; a label map holds integers from 0 to 255: "
                "give a segmentation, not an image"
            )
        if slab.dtype.kind == "f":
            whole = np.rint(slab)
            fraction = np.abs(slab - whole) > _LABEL_ROUNDING * np.maximum(whole, 1)
            if fraction.any():
                raise UnsupportedImageError(
                    f"{image.path}: value {slab[fraction].flat[0]:g} in slice {k}; a label map holds integers from 0 "
                    "to 255: threshold probabilities, and resample labels with nearest neighbour"
                )
            slab = whole
        labels[:, :, k] = slab
    return labels


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Check that an affine (4, 4), from voxel indices to mm, is finite, invertible and plausible.

    Raises:
        GeometryError: it is not.
    """
    if not np.all(np.isfinite(affine)):
        raise GeometryError(f"{path}: the affine holds non-finite values; save the image again with a valid header")
    with np.errstate(over="ignore"):  # infinite spacings are too large as well
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shown = " x ".join(f"{s:.4g}" for s in spacing)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise GeometryError(
            f"{path}: voxel size {shown} mm; expected {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm: "
            "correct the spacing in the header"
        )
    farthest = float(np.abs(affine[:3, 3]).max())
    if farthest > _MAX_ORIGIN_MM:
        raise GeometryError(
            f"{path}: the first voxel is {farthest:.4g} mm from the scanner's origin; correct the origin in the header"
        )
    # Volume relative to an orthogonal voxel of the same edges: 1 without shear, 0 when two axes are parallel.
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise GeometryError(
            f"{path}: the affine is singular (axes {shown} mm long but parallel); correct the orientation"
        )


def unusual_size(shape: tuple[int, int, int], affine: np.ndarray) -> list[str]:
    """Return warnings: one if an image is too small or too large for a patient, as with lengths not in mm."""
    with np.errstate(over="ignore", invalid="ignore"):  # such affines are refused by `check_affine`
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        extent = spacing * shape
    small = sorted(extent)[1] < _SMALLEST_TRUNK_MM and math.prod(shape) >= _MANY_VOXELS
    large = extent.max() > _LARGEST_BODY_MM
    if not (small or large or spacing.min() < _USUAL_SPACING_MM[0] or spacing.max() > _USUAL_SPACING_MM[1]):
        return []
    voxel, whole = (" x ".join(f"{mm:.4g}" for mm in lengths) for lengths in (spacing, extent))
    return [f"voxels of {voxel} mm make an image of {whole} mm, unusual for a CT: check that its lengths are in mm"]


def check_file_size(path: Path, expected: int, *, compressed: bool) -> None:
    """Check that a file can hold as many bytes as its header says: a damaged one may claim terabytes.

    Raises:
        UnreadableInputError: it cannot hold ``expected`` bytes.
    """
    size = path.stat().st_size
    if size * (DEFLATE_MAX_RATIO if compressed else 1) < expected:
        raise UnreadableInputError(
            f"{path}: truncated, {size} bytes where the header promises {expected}"
            f"{' uncompressed' if compressed else ''}; copy or export the file again"
        )


def read_failed(
    path: Path, error: BaseException | None = None, hint: str = "copy or export the file again"
) -> UnreadableInputError:
    """Return the error for a file that cannot be decoded; the text of ``error`` is quoted on one line."""
    if not os.access(path, os.R_OK):
        return UnreadableInputError(f"{path}: no permission to read it; check its permissions")
    detail = " ".join(str(error or "").split())[:160]
    return UnreadableInputError(
        f"{path}: cannot be read, truncated or damaged{f' ({detail})' if detail else ''}; {hint}"
    )


def _finite_range(path: Path, k: int, slab: np.ndarray) -> tuple[float, float]:
    low, high = float(slab.min()), float(slab.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(slab.size - np.isfinite(slab).sum())
        raise UnsupportedImageError(
            f"{path}: {count} NaN or infinite voxels in slice {k}; "
            "replace them, outside the scanned field with -1024 HU"
        )
    return low, high
