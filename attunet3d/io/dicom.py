"""DICOM in: find the series in a folder, choose one, judge its geometry, decode it to HU.

DICOM speaks LPS+ mm and (row, column); what leaves this module is RAS+ mm and (X, Y, Z) = (column, row, slice).
"""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from attunet3d.errors import (
    AmbiguousSeriesError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io.slabs import IMAGE_SUFFIXES

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced, legacy converted enhanced
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR

# The header scan parses these and skips the rest: patient data are never read.
HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "SeriesDescription",
    "SeriesNumber",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "RescaleType",
]


@dataclass(frozen=True)
class SliceHeader:
    """What the header of one DICOM file says; None or empty where it says nothing. Lengths in mm, LPS+."""

    path: Path
    sop_class: str
    sop_instance: str
    series_uid: str
    modality: str
    image_type: tuple[str, ...]
    description: str
    rows: int
    columns: int
    spacing: tuple[float, ...] | None  # between rows, between columns
    orientation: tuple[float, ...] | None  # direction of increasing column index, then of increasing row index
    position: tuple[float, ...] | None  # of the first voxel's centre
    frames: int
    samples: int
    photometric: str
    lossy: bool
    rescale_type: str

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in self.image_type


@dataclass(frozen=True)
class Series:
    """The files of one series. `uid` is made up ("no-uid-1") for files that carry none."""

    uid: str
    slices: tuple[SliceHeader, ...]
    damaged: tuple[Path, ...] = field(default=())  # DICOM files beside them whose header cannot be read

    @property
    def description(self) -> str:
        return self.slices[0].description

    @property
    def modality(self) -> str:
        return self.slices[0].modality

    @property
    def folder(self) -> Path:
        return self.slices[0].path.parent

    @property
    def is_ct(self) -> bool:
        """Whether this holds CT images: not a report, a segmentation, a screenshot or another modality."""
        return all(
            s.sop_class in (CT_IMAGE_STORAGE, *ENHANCED_CT, "") and s.modality in ("CT", "") and s.rows > 0
            for s in self.slices
        ) and any(s.sop_class or s.modality for s in self.slices)

    @property
    def is_localizer(self) -> bool:
        return all(s.is_localizer for s in self.slices)

    def __str__(self) -> str:
        name = f' "{self.description}"' if self.description else ""
        return f"{self.uid} ({len(self.slices)} {'file' if len(self.slices) == 1 else 'files'}{name})"


def find_series(folder: str | os.PathLike[str]) -> list[Series]:
    """All DICOM series under `folder`, of any modality, whatever the files are called; ordered by UID.

    Reads headers only. Files that are not DICOM are ignored, and DICOMDIR is.
    Raises InputNotFoundError if there is no DICOM file, UnreadableInputError if there are only damaged ones.
    """
    folder = Path(folder)
    found: dict[tuple[Any, ...], list[SliceHeader]] = {}
    damaged: list[Path] = []
    others: list[Path] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break the standard; many scanners write them
        for path in _files(folder):
            try:
                header = _read_header(path)
            except OSError as e:
                raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
            except Exception:  # pydicom lets any parser's exception through
                damaged.append(path)
                continue
            if header is None:
                others.append(path)
                continue
            key: tuple[Any, ...] = (header.series_uid,)
            if not header.series_uid:
                key = ("", path.parent, header.modality, header.orientation, header.rows, header.columns)
            found.setdefault(key, []).append(header)
    if not found and damaged:
        raise UnreadableInputError(
            f"{damaged[0]}: DICOM header truncated or damaged, like all {len(damaged)} DICOM files here; "
            "export the scan again"
        )
    if not found:
        cure = "give the folder of one DICOM scan"
        images = [p.name for p in others if p.name.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            cure = f"to read {images[0]}, give that file"
        raise InputNotFoundError(f"{folder}: no DICOM files in this folder ({len(others)} other files); {cure}")
    series, unnamed = [], 0
    for key, headers in sorted(found.items(), key=lambda item: tuple(map(str, item[0]))):
        uid = key[0]
        if not uid:
            unnamed += 1
            uid = f"no-uid-{unnamed}"
        folders = {h.path.parent for h in headers}
        series.append(Series(uid, tuple(headers), tuple(p for p in damaged if p.parent in folders)))
    return series


def choose_series(series: Sequence[Series], uid: str | None = None) -> Series:
    """The series with this UID, or the only CT series there is.

    Localizers count only when chosen by UID, and so do single images beside a longer series (bolus timing, dose pages).
    Raises AmbiguousSeriesError for several, UnsupportedImageError for none, InputNotFoundError for an unknown UID.
    """
    folder = os.path.commonpath([s.folder for s in series])
    if uid is not None:
        for s in series:
            if s.uid == uid:
                return s
        raise InputNotFoundError(f"{folder}: no series {uid}; there are: {_listed(series)}")
    candidates = [s for s in series if s.is_ct and not s.is_localizer]
    candidates = [s for s in candidates if len(s.slices) > 1 or s.slices[0].frames > 1] or candidates
    if len(candidates) > 1:
        raise AmbiguousSeriesError(
            f"{folder}: {len(candidates)} CT series; choose one with --series UID: {_listed(candidates)}"
        )
    if not candidates:
        kinds = sorted({_kind(s) for s in series})
        raise UnsupportedImageError(
            f"{folder}: no CT image series, only {', '.join(kinds)}; give the folder of a CT scan"
        )
    return candidates[0]


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() or path.is_symlink():  # not a pipe; a dead link may stand for a slice
                yield path


def _read_header(path: Path) -> SliceHeader | None:
    """None for what is not a DICOM image or object. Raises whatever pydicom raises for a damaged header."""
    with path.open("rb") as f:
        start = f.read(132)
        # Some old files lack the preamble and begin with the data set: group 0008 or 0002, little endian.
        bare = start[128:] != b"DICM" and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
        if start[128:] != b"DICM" and not bare:
            if not start and path.suffix.lower() == ".dcm":
                raise InvalidDicomError("empty file")
            return None
        f.seek(0)
        try:
            ds = pydicom.dcmread(f, stop_before_pixels=True, specific_tags=HEADER_TAGS, force=bare)
        except Exception:
            if bare:  # some other binary file
                return None
            raise
    meta = getattr(ds, "file_meta", None)
    sop_class = str(ds.get("SOPClassUID") or "")
    if str((meta or {}).get("MediaStorageSOPClassUID", "")) == MEDIA_DIRECTORY:
        return None
    if not (sop_class or ds.get("Modality") or ds.get("Rows")):
        if bare:
            return None
        raise InvalidDicomError("no image or object in this file")
    return SliceHeader(
        path=path,
        sop_class=sop_class,
        sop_instance=str(ds.get("SOPInstanceUID") or ""),
        series_uid=str(ds.get("SeriesInstanceUID") or ""),
        modality=str(ds.get("Modality") or ""),
        image_type=tuple(str(v).upper() for v in _values(ds, "ImageType") or ()),
        description=" ".join(str(ds.get("SeriesDescription") or "").split()),
        rows=int(ds.get("Rows") or 0),
        columns=int(ds.get("Columns") or 0),
        spacing=numbers(ds, "PixelSpacing", 2),
        orientation=numbers(ds, "ImageOrientationPatient", 6),
        position=numbers(ds, "ImagePositionPatient", 3),
        frames=int(ds.get("NumberOfFrames") or 1),
        samples=int(ds.get("SamplesPerPixel") or 1),
        photometric=str(ds.get("PhotometricInterpretation") or ""),
        lossy=str(ds.get("LossyImageCompression") or "") == "01",
        rescale_type=str(ds.get("RescaleType") or ""),
    )


def _values(ds: pydicom.Dataset, name: str) -> list[Any] | None:
    value = ds.get(name)
    if value is None or value == "":
        return None
    return [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else list(value)


def numbers(ds: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers, or None: what is broken is as good as missing."""
    try:
        found = tuple(float(v) for v in _values(ds, name) or ())
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def _kind(series: Series) -> str:
    modality = series.modality or "unknown modality"
    if series.is_localizer:
        return f"{modality} localizer"
    if modality == "CT":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above: the UID may be malformed
            return f"CT objects of class {pydicom.uid.UID(series.slices[0].sop_class).name or 'unknown'}"
    return modality


def _listed(series: Sequence[Series]) -> str:
    return "; ".join(str(s) for s in series)
