"""DICOM in: find the series in a folder, and choose one. Its geometry is the matter of dicom_geometry.py."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attunet3d.errors import (
    AmbiguousSeriesError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io.dicom_header import SliceHeader, read_headers
from attunet3d.io.dicom_series import Series, stacks
from attunet3d.io.folders import files_below
from attunet3d.io.slabs import IMAGE_SUFFIXES

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
                headers = read_headers(path)
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


def _listed(series: Sequence[Series]) -> str:
    return "; ".join(str(s) for s in series)
