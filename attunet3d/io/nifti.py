"""NIfTI in: one slab at a time, so that a scaled or floating-point CT never stands in memory as floats."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.slabs import StoredImage, read_failed

# Everything in the header that places the image; with these copied, each viewer puts a mask where it puts the CT.
GEOMETRY_FIELDS = (
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
DEFLATE_MAX_RATIO = 1032  # Deflate cannot expand by more: a header that asks for more is damaged.
DISAGREEMENT_MM = 0.1
LENGTH_UNITS = {0: "unknown", 1: "metres", 2: "mm", 3: "microns"}  # the low bits of xyzt_units

_DECODE_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


def open_nifti(path: Path) -> StoredImage:
    """Header of a .nii or .nii.gz file, and its voxels to come.

    Trailing dimensions of size 1 are dropped. Raises UnreadableInputError, UnsupportedImageError (not one 3D scalar
    image) and GeometryError (units other than mm).
    """
    disabled = nibabel_logger.disabled
    nibabel_logger.disabled = True  # it prints about every header detail that it repairs
    try:
        image = nib.load(path)
        affine = np.asarray(image.affine, np.float64)
    except _DECODE_ERRORS as e:
        raise read_failed(path, e) from e
    finally:
        nibabel_logger.disabled = disabled
    header, stored, dtype = image.header, tuple(image.shape), image.dataobj.dtype
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "colour"
        raise UnsupportedImageError(f"{path}: {kind} voxels ({dtype}); give a CT with one real value per voxel")
    if len(stored) < 3 or any(n != 1 for n in stored[3:]):
        cure = "extract one volume" if len(stored) > 3 else "give the whole scan"
        raise UnsupportedImageError(f"{path}: {len(stored)}D image of shape {stored}; expected 3D (X, Y, Z): {cure}")
    shape = (stored[0], stored[1], stored[2])
    if min(shape) < 1:
        raise UnreadableInputError(f"{path}: the header says shape {shape}, without voxels; export the file again")
    unit = LENGTH_UNITS.get(int(header["xyzt_units"]) & 7, "an unknown unit")
    if unit not in ("mm", "unknown"):
        raise GeometryError(f"{path}: the header gives lengths in {unit}; save the image again with lengths in mm")
    _check_size(path, image.dataobj.offset + dtype.itemsize * shape[0] * shape[1] * shape[2])
    return StoredImage(path, shape, affine, _facts(image), _slabs(path, image.dataobj, shape))


def _facts(image: Any) -> dict[str, Any]:
    header = image.header
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    warnings = []
    if not qform_code and not sform_code:
        warnings.append("the NIfTI header gives no orientation (sform and qform codes 0); nibabel's default is assumed")
    if qform_code and sform_code:
        apart = _disagreement_mm(image)
        if not apart <= DISAGREEMENT_MM:
            warnings.append(f"sform and qform of the NIfTI header disagree by up to {apart:.2f} mm; the sform is used")
    return {
        "format": "nifti",
        "nifti_version": 2 if isinstance(image, nib.Nifti2Image) else 1,
        "sform_code": sform_code,
        "qform_code": qform_code,
        "nifti_geometry": {field: header[field].tolist() for field in GEOMETRY_FIELDS},
        "warnings": warnings,
    }


def _disagreement_mm(image: Any) -> float:
    """Largest distance between the corners of the image as its sform and as its qform place it."""
    try:
        shift = (image.header.get_sform() - image.header.get_qform())[:3]
    except (HeaderDataError, ValueError):  # the quaternion is no rotation
        return float("inf")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]])).reshape(3, -1)
    return float(np.linalg.norm(shift[:, :3] @ corners + shift[:, 3:], axis=0).max())


def _check_size(path: Path, expected: int) -> None:
    """Refuse before memory is asked for: a damaged header can claim terabytes."""
    size = path.stat().st_size
    compressed = path.suffix.lower() == ".gz"
    if size * (DEFLATE_MAX_RATIO if compressed else 1) < expected:
        raise UnreadableInputError(
            f"{path}: truncated, {size} bytes where the header promises {expected}"
            f"{' uncompressed' if compressed else ''}; copy or export the file again"
        )


def _slabs(path: Path, proxy: Any, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The (X, Y) slabs, read in sequence: nibabel's own slicing decompresses a .nii.gz from its start for each slab."""
    scaled = (proxy.slope, proxy.inter) != (1, 0)
    size = shape[0] * shape[1] * proxy.dtype.itemsize
    try:
        with ImageOpener(path) as f:
            f.seek(proxy.offset)
            for k in range(shape[2]):
                data = f.read(size)
                if len(data) < size:
                    raise EOFError(f"the voxels end in slice {k} of {shape[2]}")
                slab = np.frombuffer(data, proxy.dtype).reshape(shape[:2], order="F")
                yield slab * np.float64(proxy.slope) + np.float64(proxy.inter) if scaled else slab
            f.read(1)  # Reaching the end makes gzip verify its checksum.
    except _DECODE_ERRORS as e:
        raise read_failed(path, e) from e
