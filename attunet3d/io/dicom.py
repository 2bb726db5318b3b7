"""DICOM in: find the series in a folder, and choose one. Its geometry and voxels are the matter of dicom_pixels.py.

DICOM speaks LPS+ mm and (row, column); what leaves this module is RAS+ mm and (X, Y, Z) = (column, row, slice).
"""

import hashlib
import math
import os
import secrets
import warnings
from collections.abc import Sequence
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
from attunet3d.io.dicom_guard import dcmread
from attunet3d.io.dicom_series import Series, SliceHeader, stacks
from attunet3d.io.folders import files_below
from attunet3d.io.slabs import IMAGE_SUFFIXES

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR

# The header scan parses these and skips the rest. Of the patient's data it reads the ID, and keeps only a hash of it to
# tell patients apart; the key makes the hash worthless elsewhere.
HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "SeriesDescription",
    "SeriesNumber",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "FrameOfReferenceUID",
    "AcquisitionNumber",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "RescaleType",
]
_HASH_KEY = secrets.token_bytes(16)


def find_series(folder: str | os.PathLike[str]) -> list[Series]:
    """All DICOM series under `folder`, of any modality, whatever the files are called; ordered by UID.

    A series that holds several stacks (see `stacks`) becomes several entries: 1.2.3#1, 1.2.3#2.
    Reads headers only. Files that are not DICOM are ignored, and DICOMDIR is.
    Raises InputNotFoundError if there is no DICOM file, UnreadableInputError for only damaged ones or
    for one that may not be opened.
    """
    folder = Path(folder)
    found: dict[tuple[Any, ...], list[SliceHeader]] = {}
    damaged: list[Path] = []
    others: list[Path] = []
    files, links = files_below(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break the standard; many scanners write them
        for path in files:
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
        beside_them = f", {links} links to folders, which are not followed" if links else ""
        raise InputNotFoundError(
            f"{folder}: no DICOM files in this folder ({len(others)} other files{beside_them}); {cure}"
        )
    series: list[Series] = []
    unnamed = 0
    for key, headers in sorted(found.items(), key=lambda item: tuple(map(str, item[0]))):
        uid = key[0]
        if not uid:
            unnamed += 1
            uid = f"no-uid-{unnamed}"
        folders = {h.path.parent for h in headers}
        beside = tuple(p for p in damaged if p.parent in folders)
        whole = Series(uid, tuple(headers), beside)
        parts = stacks(headers) if len(whole.patients) < 2 else []
        series += [Series(f"{uid}#{k}", part, beside) for k, part in enumerate(parts, 1)] if len(parts) > 1 else [whole]
    return series


def choose_series(series: Sequence[Series], uid: str | None = None) -> Series:
    """The series with this UID ("1.2.3", or "1.2.3#2" for a stack of it), or the only CT there is to segment.

    These count only when chosen by UID: localizers, and beside other CT series single images (bolus timing, dose
    pages), what was made from the scanner's slices (MIPs, reformats, screenshots), and what is not axial.
    Raises AmbiguousSeriesError for several series, and where there are several patients; UnsupportedImageError for
    none; InputNotFoundError for an unknown UID.
    """
    folder = os.path.commonpath([s.folder for s in series])
    if uid is not None:
        return _with_uid(series, uid, folder)
    cts = [s for s in series if s.is_ct]
    candidates = [s for s in cts if not s.is_localizer]
    if not candidates:
        kinds = sorted({s.kind for s in series})
        raise UnsupportedImageError(
            f"{folder}: no CT image series, only {', '.join(kinds)}; give the folder of a CT scan"
        )
    for preferred in ("is_volume", "is_original", "is_axial"):
        candidates = [s for s in candidates if getattr(s, preferred)] or candidates
    if len(candidates) == 1 and _patients(cts) > 1:
        candidates = cts
    if len(candidates) > 1:
        patients = _patients(candidates)
        of = f" of {patients} patients" if patients > 1 else ""
        raise AmbiguousSeriesError(
            f"{folder}: {len(candidates)} CT series{of}; choose one with --series UID: {_listed(candidates)}"
        )
    return candidates[0]


def _patients(series: Sequence[Series]) -> int:
    return len({patient for s in series for patient in s.patients})


def _with_uid(series: Sequence[Series], uid: str, folder: str) -> Series:
    for s in series:
        if s.uid == uid:
            return s
    parts = [s for s in series if s.uid.startswith(f"{uid}#")]
    if parts:
        raise AmbiguousSeriesError(
            f"{folder}: series {uid} holds {len(parts)} stacks, which `attunet3d inspect` describes; "
            f"choose one with --series UID: {_listed(parts)}"
        )
    raise InputNotFoundError(f"{folder}: no series {uid}; there are: {_listed(series)}")


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
    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS, force=bare)
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
        patient=_hash(str(ds.get("PatientID") or "").strip()),
        modality=str(ds.get("Modality") or ""),
        image_type=tuple(str(v).upper() for v in _values(ds, "ImageType") or ()),
        description=" ".join(str(ds.get("SeriesDescription") or "").split()),
        rows=int(ds.get("Rows") or 0),
        columns=int(ds.get("Columns") or 0),
        spacing=numbers(ds, "PixelSpacing", 2),
        orientation=numbers(ds, "ImageOrientationPatient", 6),
        position=numbers(ds, "ImagePositionPatient", 3),
        frame_of_reference=str(ds.get("FrameOfReferenceUID") or ""),
        acquisition=_acquisition(ds),
        frames=int(ds.get("NumberOfFrames") or 1),
        samples=int(ds.get("SamplesPerPixel") or 1),
        photometric=str(ds.get("PhotometricInterpretation") or ""),
        lossy=str(ds.get("LossyImageCompression") or "") == "01",
        rescale_type=str(ds.get("RescaleType") or ""),
    )


def _hash(patient_id: str) -> str:
    return (
        hashlib.blake2b(patient_id.encode(errors="backslashreplace"), key=_HASH_KEY).hexdigest() if patient_id else ""
    )


def _acquisition(ds: pydicom.Dataset) -> int | None:
    found = numbers(ds, "AcquisitionNumber", 1)
    return int(found[0]) if found else None


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


def _listed(series: Sequence[Series]) -> str:
    return "; ".join(str(s) for s in series)
