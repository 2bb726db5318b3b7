"""Read CTs and label maps from NIfTI, NRRD and MetaImage files and DICOM folders.

Arrays are (X, Y, Z); affines map voxel indices to RAS+ mm. pydicom and SimpleITK are imported only when needed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.errors import UnreadableInputError, UnsupportedImageError
from attunet3d.io.cases import SeriesCase
from attunet3d.io.formats import format_of
from attunet3d.io.nifti import open_nifti
from attunet3d.io.paths import PathLike, existing
from attunet3d.io.slabs import DICOM_SUFFIXES, NIFTI_SUFFIXES, StoredImage, to_hu, to_labels, unusual_size

NAMES = {"nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage"}
_SUFFIXES = {
    "nifti": NIFTI_SUFFIXES,
    "nrrd": (".nrrd", ".nhdr"),
    "metaimage": (".mha", ".mhd"),
    "dicom": DICOM_SUFFIXES,
}


@dataclass(frozen=True)
class Volume:
    """A CT in memory.

    Attributes:
        array: int16 HU (X, Y, Z).
        affine: float64 (4, 4), from voxel indices to RAS+ mm.
        metadata: JSON-serializable: "format" ("nifti", "dicom", "nrrd" or "metaimage"), "warnings" (a list of
            sentences), and for NIfTI "sform_code" and "qform_code", for DICOM "series_uid", "slices" and
            "gantry_tilt_deg".
    """

    array: np.ndarray
    affine: np.ndarray
    metadata: dict[str, Any]


def open_ct(path: PathLike, *, series_uid: str | None = None, allow_uneven: bool = False) -> StoredImage:
    """Open a CT file or DICOM folder: read its grid from the header, but not yet its voxels (see ``to_hu``).

    Args:
        path: a file, a DICOM folder, or a ``SeriesCase``, one series of a folder.
        series_uid: selects one of several DICOM series.
        allow_uneven: interpolate between DICOM slices with uneven spacing, which are refused otherwise.

    Raises:
        InputNotFoundError: the path does not exist, or the folder has no such series.
        UnreadableInputError: a file is damaged, of an unknown format, or must not be opened.
        UnsupportedImageError: not a single 3D CT.
        GeometryError: the position or orientation of the image is missing, invalid or unsupported.
        AmbiguousSeriesError: the folder holds several CT series.
    """
    given = path
    path = existing(path)
    if path.is_dir():
        from attunet3d.io.dicom.find import choose_series, find_series, left_out_cts
        from attunet3d.io.dicom.geometry import open_series

        series = [given.series] if isinstance(given, SeriesCase) else find_series(path)
        image = open_series(choose_series(series, series_uid), allow_uneven=allow_uneven)
        others = left_out_cts(series) if series_uid is None else []
        if others:
            image.metadata["warnings"].append(f"other CT series were left out: {'; '.join(others)}")
        return image
    image = open_file(path)
    image.metadata["warnings"] += unusual_size(image.shape, image.affine)
    if series_uid is not None:
        image.metadata["warnings"].append(f"a series was asked for, but {path.name} is not DICOM")
    return image


def read_volume(path: PathLike, *, series_uid: str | None = None, allow_uneven: bool = False) -> Volume:
    """Read a CT from a file or a DICOM folder. Arguments and errors are those of ``open_ct``."""
    image = open_ct(path, series_uid=series_uid, allow_uneven=allow_uneven)
    return Volume(to_hu(image), image.affine, image.metadata)


def read_ct(
    path: PathLike, *, series_uid: str | None = None, allow_uneven: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels of a CT, int16 HU (X, Y, Z), and its affine to RAS+ mm. Arguments and errors: ``open_ct``."""
    volume = read_volume(path, series_uid=series_uid, allow_uneven=allow_uneven)
    return volume.array, volume.affine


def read_label(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map, uint8 (X, Y, Z), and its affine to RAS+ mm from a NIfTI, NRRD or MetaImage file.

    Raises:
        InputNotFoundError: the file does not exist.
        UnreadableInputError: it is damaged, or of an unknown format.
        UnsupportedImageError: not a single 3D image of integers from 0 to 255.
        GeometryError: the affine is missing or unusable.
    """
    image = open_label(path)
    return to_labels(image), image.affine


def open_file(path: Path) -> StoredImage:
    """Open an image file in the format of its content, or else of its suffix. Errors are those of ``open_ct``."""
    if not path.is_file():
        raise UnreadableInputError(f"{path}: a pipe or device; give an image file, or a DICOM folder")
    name = path.name.lower()
    try:
        by_content = format_of(path)
    except OSError as e:
        raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
    by_name = next((kind for kind, suffixes in _SUFFIXES.items() if name.endswith(suffixes)), None)
    kind = by_content or by_name
    if kind is None and name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        raise UnreadableInputError(
            f"{path}: one of a pair of files (header and image); convert the pair to a single .nii.gz file"
        )
    if kind is None:
        raise UnreadableInputError(
            f"{path}: unknown format {''.join(path.suffixes[-2:]) or 'without suffix'}; "
            "give a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or a DICOM folder"
        )
    if kind == "dicom":
        raise UnsupportedImageError(f"{path}: a single DICOM file; give the folder that holds the whole series")
    if kind == "nifti":
        image = open_nifti(path)
    else:
        from attunet3d.io.itk import open_itk

        image = open_itk(path)
    if kind != by_name:
        image.metadata["warnings"].append(f"the file is {NAMES[kind]} by its content, but not by its name")
    return image


def open_label(path: PathLike) -> StoredImage:
    """Open the file of a label map like ``open_file``, but read only its header. Errors are those of ``read_label``."""
    path = existing(path)
    if path.is_dir():
        raise UnsupportedImageError(
            f"{path}: a folder; labels are read from a NIfTI, NRRD or MetaImage file: give that"
        )
    return open_file(path)
