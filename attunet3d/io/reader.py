"""CT volumes and label maps from NIfTI, NRRD and MetaImage files and DICOM folders.

Arrays are (X, Y, Z); affines map voxel indices to RAS+ mm.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from attunet3d.errors import InputNotFoundError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.dicom import choose_series, find_series
from attunet3d.io.dicom_pixels import read_series
from attunet3d.io.itk import open_itk
from attunet3d.io.nifti import open_nifti
from attunet3d.io.slabs import ITK_SUFFIXES, NIFTI_SUFFIXES, StoredImage, to_hu, to_labels

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Volume:
    """A CT: `array` int16 HU (X, Y, Z), `affine` float64 (4, 4) from voxel to RAS+ mm, `source` for the run's record.

    `source` holds plain values that JSON can: "format" ("nifti", "dicom", "nrrd", "metaimage"), "warnings" (a list of
    sentences), and for NIfTI "sform_code" and "qform_code", for DICOM "series_uid", "slices" and "gantry_tilt_deg".
    """

    array: np.ndarray
    affine: np.ndarray
    source: dict[str, Any]


def read_volume(path: PathLike, *, series_uid: str | None = None) -> Volume:
    """Read a CT from a file or a DICOM folder; `series_uid` chooses among several DICOM series.

    Raises InputNotFoundError, UnreadableInputError, UnsupportedImageError, GeometryError, AmbiguousSeriesError.
    """
    path = _existing(path)
    if path.is_dir():
        array, affine, source = read_series(choose_series(find_series(path), series_uid))
        return Volume(array, affine, source)
    image = _open_file(path)
    if series_uid is not None:
        image.facts["warnings"].append(f"series {series_uid} was asked for, but {path.name} is not DICOM")
    return Volume(to_hu(image), image.affine, image.facts)


def read_ct(path: PathLike, *, series_uid: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A CT's voxels in HU, int16 (X, Y, Z), and its affine, voxel to RAS+ mm. Errors as in `read_volume`."""
    volume = read_volume(path, series_uid=series_uid)
    return volume.array, volume.affine


def read_label(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """A label map, uint8 (X, Y, Z), and its affine, voxel to RAS+ mm, from a NIfTI, NRRD or MetaImage file.

    Raises InputNotFoundError, UnreadableInputError, UnsupportedImageError, GeometryError.
    """
    image = _open_label(path)
    return to_labels(image), image.affine


class _Reader(ImageReader):
    """MONAI's interface to a reader.

    `LoadImage` swallows what `read` raises and tries MONAI's own readers instead, which would take what was refused
    here; what `get_data` raises reaches the caller. So `read` only keeps the path.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(p) for p in data]

    def get_data(self, img: list[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        if len(img) != 1:
            raise UnsupportedImageError(f"{img[0]}: one of {len(img)} files for one image; for DICOM give the folder")
        path = img[0]
        array, affine, source = self._load(path)
        meta = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's "no channel"
            ImageMetaKey.FILENAME_OR_OBJ: str(path),
            # As text, because MONAI's collation wants the same keys and lengths from every image of a batch.
            "source": json.dumps(source),
        }
        return array, meta

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        raise NotImplementedError


class CTReader(_Reader):
    """Reads CT for MONAI: `LoadImaged(keys="image", reader=CTReader, dtype=None)` gives int16 HU.

    The metadata is that of MONAI's readers (affine in RAS+ mm) and "source", the JSON text of `Volume.source`.
    `series_uid` chooses among several DICOM series. Errors as in `read_volume`.
    """

    def __init__(self, series_uid: str | None = None) -> None:
        self.series_uid = series_uid

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        volume = read_volume(path, series_uid=self.series_uid)
        return volume.array, volume.affine, volume.source


class LabelReader(_Reader):
    """Reads label maps for MONAI: `LoadImaged(keys="label", reader=LabelReader, dtype=None)` gives uint8."""

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        image = _open_label(path)
        return to_labels(image), image.affine, image.facts


def _existing(path: PathLike) -> Path:
    path = Path(path)
    if not os.path.exists(path):  # not Path.exists, which raises for names that are too long
        raise InputNotFoundError(f"{path}: does not exist; check the path")
    return path


def _open_file(path: Path) -> StoredImage:
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return open_nifti(path)
    if name.endswith(ITK_SUFFIXES):
        return open_itk(path)
    try:
        with path.open("rb") as f:
            start = f.read(132)
    except OSError as e:
        raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
    if name.endswith((".dcm", ".ima")) or start[128:] == b"DICM":
        raise UnsupportedImageError(f"{path}: a single DICOM file; give the folder that holds the whole series")
    raise UnreadableInputError(
        f"{path}: unknown format {''.join(path.suffixes[-2:]) or 'without suffix'}; "
        "give a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or a DICOM folder"
    )


def _open_label(path: PathLike) -> StoredImage:
    path = _existing(path)
    if path.is_dir():
        raise UnsupportedImageError(
            f"{path}: a folder; labels are read from a NIfTI, NRRD or MetaImage file: give that"
        )
    return _open_file(path)
