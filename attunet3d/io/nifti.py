"""Read NIfTI slab by slab, so that a scaled or floating-point CT is never in memory as floats as a whole."""

import gzip
import math
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import HeaderDataError

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.formats import is_gzip
from attunet3d.io.slabs import StoredImage, check_file_size, read_failed

# All header fields that place the image: with these copied, each viewer shows a mask exactly where it shows the CT.
_GEOMETRY_FIELDS = (
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
MAX_OFFSET = 64 * 2**20  # of the voxels in the file: all before them has to be decompressed
_DISAGREEMENT_MM = 0.1
_LENGTH_UNITS = {0: "unknown", 1: "metres", 2: "mm", 3: "microns"}  # the low bits of xyzt_units

_DECODE_ERRORS = (OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError)


def open_nifti(path: Path) -> StoredImage:
    """Open a .nii or .nii.gz file, and read its header. Trailing dimensions of size 1 are dropped.

    Raises:
        UnreadableInputError: the file is damaged.
        UnsupportedImageError: not a single 3D scalar image.
        GeometryError: lengths in units other than mm.
    """
    disabled = nibabel_logger.disabled
    nibabel_logger.disabled = True  # it logs each header field that it repairs
    try:
        header, warnings = _read_header(path)
        affine = np.asarray(header.get_best_affine(), np.float64)
        stored, dtype, offset = tuple(header.get_data_shape()), header.get_data_dtype(), header.get_data_offset()
        slope, inter = header.get_slope_inter()
        metadata = _metadata(header, stored, warnings)
    except _DECODE_ERRORS as e:
        raise read_failed(path, e) from e
    finally:
        nibabel_logger.disabled = disabled
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "colour"
        raise UnsupportedImageError(f"{path}: {kind} voxels ({dtype}); give a CT with one real value per voxel")
    if len(stored) < 3 or any(n != 1 for n in stored[3:]):
        hint = "extract one volume" if len(stored) > 3 else "give the whole scan"
        raise UnsupportedImageError(f"{path}: {len(stored)}D image of shape {stored}; expected 3D (X, Y, Z): {hint}")
    shape = (stored[0], stored[1], stored[2])
    if min(shape) < 1:
        raise UnreadableInputError(f"{path}: the header says shape {shape}, without voxels; export the file again")
    unit = _LENGTH_UNITS.get(int(header["xyzt_units"]) & 7, "an unknown unit")
    if unit not in ("mm", "unknown"):
        raise GeometryError(f"{path}: the header gives lengths in {unit}; save the image again with lengths in mm")
    if not 0 <= offset <= MAX_OFFSET:
        raise UnreadableInputError(
            f"{path}: the header says that the voxels begin at byte {offset}, which is not 0 to {MAX_OFFSET}; "
            "copy or export the file again"
        )
    check_file_size(path, offset + dtype.itemsize * math.prod(shape), compressed=is_gzip(path))
    scale = (1.0 if slope is None else slope, 0.0 if inter is None else inter)
    return StoredImage(path, shape, affine, metadata, _slabs(path, offset, dtype, scale, shape))


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if is_gzip(path) else path.open("rb")


def _read_header(path: Path) -> tuple[Any, list[str]]:
    """Return the header and warnings. ``nibabel.load`` would also read extensions, which can claim any length."""
    with _open(path) as f:
        start = f.read(nib.Nifti2Header.template_dtype.itemsize)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start):
            header = kind(start[: kind.template_dtype.itemsize], check=False)
            warnings = []
            # By the standard, a smaller offset means 352 (NIfTI-2: 544). nibabel would take 0 literally.
            offset, least = float(header["vox_offset"]), kind.single_vox_offset
            if 0 <= offset < least:
                header["vox_offset"] = least
                if offset:
                    warnings.append(f"the NIfTI header says that the voxels begin at byte {offset:g}; {least} is meant")
            return kind.from_fileobj(BytesIO(header.binaryblock)), warnings
    raise ImageFileError("no NIfTI header" if is_gzip(path) else "no NIfTI header, and not gzipped")


def _metadata(header: Any, shape: tuple[int, ...], warnings: list[str]) -> dict[str, Any]:
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    if not qform_code and not sform_code:
        warnings.append("the NIfTI header gives no orientation (sform and qform codes 0); nibabel's default is assumed")
    if qform_code and sform_code:
        apart = _disagreement_mm(header, shape)
        if not apart <= _DISAGREEMENT_MM:
            warnings.append(f"sform and qform of the NIfTI header disagree by up to {apart:.2f} mm; the sform is used")
    return {
        "format": "nifti",
        "nifti_version": 2 if isinstance(header, nib.Nifti2Header) else 1,
        "sform_code": sform_code,
        "qform_code": qform_code,
        "nifti_geometry": {field: header[field].tolist() for field in _GEOMETRY_FIELDS},
        "warnings": warnings,
    }


def _disagreement_mm(header: Any, shape: tuple[int, ...]) -> float:
    """Return the largest distance between the corners of the image as placed by its sform and by its qform."""
    try:
        shift = (header.get_sform() - header.get_qform())[:3]
    except (HeaderDataError, ValueError):  # invalid quaternion
        return float("inf")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]])).reshape(3, -1)
    return float(np.linalg.norm(shift[:, :3] @ corners + shift[:, 3:], axis=0).max())


def _slabs(
    path: Path, offset: int, dtype: np.dtype, scale: tuple[float, float], shape: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    """Yield the (X, Y) slabs. nibabel's own slicing would decompress a .nii.gz from its start for each slab."""
    slope, inter = np.float64(scale[0]), np.float64(scale[1])
    size = shape[0] * shape[1] * dtype.itemsize
    try:
        with _open(path) as f:
            f.seek(offset)
            for k in range(shape[2]):
                data = f.read(size)
                if len(data) < size:
                    raise EOFError(f"the voxels end in slice {k} of {shape[2]}")
                slab = np.frombuffer(data, dtype).reshape(shape[:2], order="F")
                yield slab if scale == (1, 0) else slab * slope + inter
            f.read(1)  # At the end gzip verifies its checksum. What follows the voxels is not decompressed.
    except _DECODE_ERRORS as e:
        raise read_failed(path, e) from e
