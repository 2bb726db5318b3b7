"""Describe the series in a DICOM folder, or an image file, and whether they can be segmented."""

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from attunet3d.errors import AttUNet3dError
from attunet3d.io.dicom.find import find_series
from attunet3d.io.dicom.geometry import open_series, tilt_deg
from attunet3d.io.dicom.series import AXIAL_COSINE, Series
from attunet3d.io.paths import existing
from attunet3d.io.reader import NAMES, open_ct
from attunet3d.io.slabs import LPS_TO_RAS, MIN_SPACING_MM, StoredImage, check_affine

_USABLE_SERIES = "can be segmented"
# Unlike DICOM, the headers of other formats do not say whether the image is a CT.
_USABLE_FILE = "geometry can be segmented; whether it is a CT in HU shows when its voxels are read"
_PLANES = ("sagittal", "coronal", "axial")  # with normals along x, y, z


@dataclass(frozen=True)
class Finding:
    """A series, a stack of a series, or an image file. Values missing in the headers are None.

    Attributes:
        number: position in the list, from 1.
        uid: of the series, see ``Series``.
        kind: such as "CT", "CT localizer" or "NIfTI".
        files: number of files.
        size: columns, rows and slices.
        spacing_mm: between columns, rows and slices.
        plane: "axial", "coronal", "sagittal" or "oblique".
        axes: directions of increasing column, row and slice index, such as "LPS".
        gantry_tilt_deg: angle between the slice step and the slice normal.
        usable: whether it can be segmented, according to its headers.
        verdict: "can be segmented", or why not. Voxels are not read: pixels may still be damaged, or not in HU.
        warnings: those of the reader.
    """

    number: int
    uid: str | None
    kind: str
    files: int
    size: tuple[int, int, int] | None
    spacing_mm: tuple[float | None, float | None, float | None]
    plane: str | None
    axes: str | None
    gantry_tilt_deg: float | None
    usable: bool
    verdict: str
    warnings: tuple[str, ...]


def inspect_path(path: str | os.PathLike[str]) -> list[Finding]:
    """Describe each series of a DICOM folder, in the order of their UIDs, or a NIfTI, NRRD or MetaImage file.

    Only headers are read.

    Raises:
        InputNotFoundError: the path does not exist, or the folder has no DICOM.
        AttUNet3dError: a file cannot be used, see ``open_ct``.
    """
    path = existing(path)
    if path.is_dir():
        return [_series_finding(number, series) for number, series in enumerate(find_series(path), 1)]
    return [_file_finding(path)]


def _series_finding(number: int, series: Series) -> Finding:
    try:
        image = open_series(series)
    except AttUNet3dError as error:
        return _header_finding(number, series, str(error))
    return _image_finding(number, series.uid, series.kind, series.files, image, True, _USABLE_SERIES)


def _file_finding(path: Path) -> Finding:
    image = open_ct(path)
    usable, verdict = True, _USABLE_FILE
    try:
        check_affine(path, image.affine)
    except AttUNet3dError as error:
        usable, verdict = False, str(error)
    if min(image.shape) < 2:
        usable, verdict = False, f"{path}: single slice; a CT volume needs at least 2 slices: give the whole scan"
    return _image_finding(1, None, NAMES[image.metadata["format"]], 1, image, usable, verdict)


def _image_finding(
    number: int, uid: str | None, kind: str, files: int, image: StoredImage, usable: bool, verdict: str
) -> Finding:
    columns, rows, between = (_millimetres(step) for step in np.linalg.norm(image.affine[:3, :3], axis=0))
    plane, axes = _orientation(image.affine[:3, :3])
    return Finding(
        number=number,
        uid=uid,
        kind=kind,
        files=files,
        size=image.shape,
        spacing_mm=(columns, rows, between),
        plane=plane,
        axes=axes,
        gantry_tilt_deg=None if axes is None else round(tilt_deg(image.affine), 3),
        usable=usable,
        verdict=verdict,
        warnings=tuple(image.metadata["warnings"]),
    )


def _header_finding(number: int, series: Series, reason: str) -> Finding:
    """Describe a series that is not a volume by its first image; the spacing between its slices is unknown."""
    first = series.images[0]
    rows, columns = first.spacing or (None, None)
    plane = axes = tilt = None
    if first.orientation is not None and first.normal is not None:
        affine = np.eye(4)
        affine[:3, :3] = np.transpose([first.orientation[:3], first.orientation[3:], first.normal])
        plane, axes = _orientation((LPS_TO_RAS @ affine)[:3, :3])
        travel = _slice_travel(series)
        if axes is not None and travel is not None:
            affine[:3, 2] = travel
            tilt = round(tilt_deg(affine), 3)
    slices = len(series.slices) if first.frame is not None or len(series.slices) > 1 else first.frames
    return Finding(
        number=number,
        uid=series.uid,
        kind=series.kind,
        files=series.files,
        size=(first.columns, first.rows, slices) if first.rows and first.columns else None,
        spacing_mm=(_millimetres(columns), _millimetres(rows), None),
        plane=plane,
        axes=axes,
        gantry_tilt_deg=tilt,
        usable=False,
        verdict=reason,
        warnings=(),
    )


def _slice_travel(series: Series) -> np.ndarray | None:
    """Return the vector (LPS+ mm) from the first to the last of parallel slices; None if it has no direction."""
    normal = series.images[0].normal
    positions = [s.position for s in series.images if s.position is not None]
    if normal is None or not positions or len({s.orientation for s in series.images}) > 1:
        return None
    ordered = sorted(np.array(positions), key=lambda position: float(position @ normal))
    travel = ordered[-1] - ordered[0]
    return travel if np.linalg.norm(travel) > MIN_SPACING_MM else None


def _millimetres(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _orientation(steps: np.ndarray) -> tuple[str | None, str | None]:
    """Return plane and axis codes for ``steps`` (3, 3), whose columns are the RAS+ steps of column, row and slice."""
    normal = np.cross(steps[:, 0], steps[:, 1])
    length = np.linalg.norm(normal)
    if not (np.all(np.isfinite(steps)) and length > 0 and abs(np.linalg.det(steps)) > 0):
        return None, None
    cosines = np.abs(normal) / length
    main = int(cosines.argmax())
    affine = np.eye(4)
    affine[:3, :3] = steps
    return _PLANES[main] if cosines[main] >= AXIAL_COSINE else "oblique", "".join(nib.aff2axcodes(affine))
