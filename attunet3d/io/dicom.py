"""DICOM in: find the series in a folder, and choose one. Its geometry is the matter of dicom_geometry.py.

DICOM speaks LPS+ mm and (row, column); what leaves this module is RAS+ mm and (X, Y, Z) = (column, row, slice).
"""

import hashlib
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import replace
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
from attunet3d.io.dicom_series import ENHANCED_CT, Series, SliceHeader, stacks
from attunet3d.io.folders import files_below
from attunet3d.io.slabs import IMAGE_SUFFIXES

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR

# The header scan parses these and skips the rest. Of the patient's data it reads ID and name, and keeps only a hash of
# them to tell patients apart; the key makes the hash worthless elsewhere.
HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientName",
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
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_HASH_KEY = secrets.token_bytes(16)

# Beside series that are so, the others count only when chosen: the property of `Series`, and what the others are.
_PREFERRED = (
    ("is_volume", "a single image"),
    ("is_original", "made from the scanner's slices"),
    ("is_axial", "not axial"),
)


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
                headers = _read_headers(path)
            except OSError as e:
                raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
            except Exception:  # pydicom lets any parser's exception through
                damaged.append(path)
                continue
            if not headers:
                others.append(path)
            for header in headers:
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

    Raises AmbiguousSeriesError for several series, and where there are several patients; UnsupportedImageError for
    none; InputNotFoundError for an unknown UID.
    """
    if uid is not None:
        return _with_uid(series, uid, _folder(series))
    candidates, _ = candidate_series(series)
    if len(candidates) > 1:
        raise AmbiguousSeriesError(
            f"{_folder(series)}: {len(candidates)} CT series; choose one with --series UID, or segment each with "
            f"--all-series: {_listed(candidates)}"
        )
    return candidates[0]


def candidate_series(series: Sequence[Series]) -> tuple[list[Series], dict[str, str]]:
    """The CT series of a folder among which there is a choice, and by UID why each of the others is left out.

    These count only when chosen by UID: localizers, and beside other CT series single images (bolus timing, dose
    pages), what was made from the scanner's slices (MIPs, reformats, screenshots), and what is not axial.
    Raises AmbiguousSeriesError where there are several patients, UnsupportedImageError where there is no CT.
    """
    cts = [s for s in series if s.is_ct]
    left_out = {s.uid: f"{s.kind}, no CT images" for s in series if not s.is_ct}
    left_out |= {s.uid: s.kind for s in cts if s.is_localizer}
    candidates = [s for s in cts if not s.is_localizer]
    if not candidates:
        kinds = sorted({s.kind for s in series})
        raise UnsupportedImageError(
            f"{_folder(series)}: no CT image series, only {', '.join(kinds)}; give the folder of a CT scan"
        )
    for preferred, reason in _PREFERRED:
        worse = {s.uid: f"{s.kind}, {reason}" for s in candidates if not getattr(s, preferred)}
        if len(worse) < len(candidates):
            left_out |= worse
            candidates = [s for s in candidates if s.uid not in worse]
    patients = _patients(cts)
    listed = candidates if _patients(candidates) == patients else cts
    if patients > 1 and len(listed) > 1:
        raise AmbiguousSeriesError(
            f"{_folder(series)}: {len(listed)} CT series of {patients} patients; segment each patient's folder, or "
            f"choose one with --series UID: {_listed(listed)}"
        )
    return candidates, left_out


def _folder(series: Sequence[Series]) -> str:
    return os.path.commonpath([s.folder for s in series])


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


def _read_headers(path: Path) -> list[SliceHeader]:
    """One for a file with one image, one for each frame of a multi-frame image, none for what is not DICOM.

    Raises whatever pydicom raises for a damaged header.
    """
    with path.open("rb") as f:
        start = f.read(132)
        # Some old files lack the preamble and begin with the data set: group 0008 or 0002, little endian.
        bare = start[128:] != b"DICM" and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
        if start[128:] != b"DICM" and not bare:
            if not start and path.suffix.lower() == ".dcm":
                raise InvalidDicomError("empty file")
            return []
    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS, force=bare)
    except Exception:
        if bare:  # some other binary file
            return []
        raise
    meta = getattr(ds, "file_meta", None)
    sop_class = str(ds.get("SOPClassUID") or "")
    if str((meta or {}).get("MediaStorageSOPClassUID", "")) == MEDIA_DIRECTORY:
        return []
    if not (sop_class or ds.get("Modality") or ds.get("Rows")):
        if bare:
            return []
        raise InvalidDicomError("no image or object in this file")
    header = SliceHeader(
        path=path,
        sop_class=sop_class,
        sop_instance=str(ds.get("SOPInstanceUID") or ""),
        series_uid=str(ds.get("SeriesInstanceUID") or ""),
        patient=_hash_of_patient(ds),
        modality=str(ds.get("Modality") or ""),
        image_type=_image_type(ds, "ImageType"),
        description=" ".join(str(ds.get("SeriesDescription") or "").split()),
        rows=int(ds.get("Rows") or 0),
        columns=int(ds.get("Columns") or 0),
        spacing=numbers(ds, "PixelSpacing", 2),
        orientation=numbers(ds, "ImageOrientationPatient", 6),
        position=numbers(ds, "ImagePositionPatient", 3),
        frame_of_reference=str(ds.get("FrameOfReferenceUID") or ""),
        acquisition=_acquisition(ds),
        stack="",
        frames=int(ds.get("NumberOfFrames") or 1),
        frame=None,
        samples=int(ds.get("SamplesPerPixel") or 1),
        photometric=str(ds.get("PhotometricInterpretation") or ""),
        lossy=str(ds.get("LossyImageCompression") or "") == "01",
        rescale=_rescale(ds),
        rescale_type=str(ds.get("RescaleType") or ""),
    )
    frames = ds.get("PerFrameFunctionalGroupsSequence")
    if not frames or not (header.modality == "CT" or sop_class in ENHANCED_CT):
        return [header]
    if len(frames) != header.frames:
        raise InvalidDicomError("as many functional groups as frames are needed")
    shared = (ds.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    return [_frame_header(header, number, frame, shared) for number, frame in enumerate(frames)]


def _frame_header(file: SliceHeader, number: int, frame: pydicom.Dataset, shared: pydicom.Dataset) -> SliceHeader:
    """What the functional groups of a multi-frame image say of one frame, or of all; else what the file says."""

    def group(name: str) -> pydicom.Dataset:
        found = frame.get(name) or shared.get(name)
        return found[0] if found else pydicom.Dataset()

    content, values = group("FrameContentSequence"), group("PixelValueTransformationSequence")
    kind = _image_type(group("CTImageFrameTypeSequence"), "FrameType")
    return replace(
        file,
        frame=number,
        image_type=kind or file.image_type,
        spacing=numbers(group("PixelMeasuresSequence"), "PixelSpacing", 2),
        orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        position=numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        acquisition=_acquisition(content) or file.acquisition,
        stack=str(content.get("StackID") or ""),
        rescale=_rescale(values) or file.rescale,
        rescale_type=str(values.get("RescaleType") or "") or file.rescale_type,
    )


def _hash_of_patient(ds: pydicom.Dataset) -> str:
    """Empty where the header names nobody. How a name is spelled out in spaces and carets differs between machines."""
    identity = str(ds.get("PatientID") or "").strip()
    name = " ".join(str(ds.get("PatientName") or "").replace("^", " ").casefold().split())
    if not identity and not name:
        return ""
    return hashlib.blake2b(f"{identity}\0{name}".encode(errors="backslashreplace"), key=_HASH_KEY).hexdigest()


def _acquisition(ds: pydicom.Dataset) -> tuple[int, ...]:
    """Temporal position and acquisition number, of a file or of a frame's content; empty where there is neither."""
    found = [numbers(ds, name, 1) for name in ("TemporalPositionIndex", "FrameAcquisitionNumber", "AcquisitionNumber")]
    return tuple(int((number or (0,))[0]) for number in found) if any(found) else ()


def _rescale(ds: pydicom.Dataset) -> tuple[float, float] | None:
    """None where the header gives neither; NaN stands for the one that is missing beside the other, or is broken."""
    if not any(name in ds for name in ("RescaleSlope", "RescaleIntercept")):
        return None
    slope, intercept = (numbers(ds, name, 1) or (math.nan,) for name in ("RescaleSlope", "RescaleIntercept"))
    return slope[0], intercept[0]


def _image_type(ds: pydicom.Dataset, name: str) -> tuple[str, ...]:
    return tuple(str(v).upper() for v in _values(ds, name) or ())


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
