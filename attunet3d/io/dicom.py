"""DICOM in: find the series in a folder, and choose one. Its geometry is the matter of dicom_geometry.py."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from attunet3d.errors import (
    AmbiguousSeriesError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io.dicom_header import SliceHeader, read_headers
from attunet3d.io.dicom_pixels import EXPORT_AGAIN
from attunet3d.io.dicom_scattered import gathered
from attunet3d.io.dicom_series import Series, patients_of
from attunet3d.io.dicom_stacks import (
    same_frame_of_reference,
    same_orientation,
    same_size,
    same_spacing,
    same_study,
    stacks,
)
from attunet3d.io.folders import files_below
from attunet3d.io.slabs import DICOM_SUFFIXES, IMAGE_SUFFIXES, MIN_SPACING_MM

MOST_LISTED = 20  # series in a message

# Beside series that are so, the others count only when chosen: the property of `Series`, and what the others are.
_PREFERRED = (
    ("is_volume", "images of a single place"),
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
            except FileNotFoundError as e:
                raise UnreadableInputError(
                    f"{path}: a link to a file that is gone, which may be a slice; {EXPORT_AGAIN}"
                ) from e
            except OSError as e:
                raise UnreadableInputError(f"{path}: cannot be opened ({e.strerror}); check its permissions") from e
            except Exception:  # pydicom lets any parser's exception through
                if path.name.upper() != "DICOMDIR":
                    damaged.append(path)
                continue
            if not headers:
                others.append(path)
            for header in headers:
                key: tuple[Any, ...] = (header.series_uid,)
                if not header.series_uid:
                    orientation = tuple(round(cosine, 2) for cosine in header.orientation or ())
                    of_series = (header.study_uid, header.series_number, header.modality, orientation)
                    key = ("", path.parent, *of_series, header.rows, header.columns)
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
        no_dicom = tuple(p for p in others if p.parent in folders and p.suffix.lower() in DICOM_SUFFIXES)
        parts = stacks(headers) if patients_of(headers) < 2 else [tuple(headers)]
        names = [f"{uid}#{k}" for k in range(1, len(parts) + 1)] if len(parts) > 1 else [uid]
        series += [Series(name, part, beside, (), no_dicom) for name, part in zip(names, parts, strict=True)]
    series = gathered(series)
    alone = [s for s in series if len(s.images) == 1]
    return [replace(s, strays=_strays(s, alone)) for s in series]


def _strays(series: Series, alone: Sequence[Series]) -> tuple[SliceHeader, ...]:
    """Images alone in their series that lie where the next slice of this one would: damaged UIDs take them there."""
    heights = series.heights
    gaps = sorted(b - a for a, b in pairwise(heights) if b - a >= MIN_SPACING_MM)
    first = series.images[0]
    if not gaps or first.normal is None:
        return ()
    step = gaps[(len(gaps) - 1) // 2]
    folders = {s.path.parent for s in series.slices}
    found = []
    for image, whose in ((s.images[0], s) for s in alone):
        # What the same UID says to be another object may be damaged in that place.
        may_be = whose.uid.partition("#")[0] == series.uid.partition("#")[0] or (whose.is_original and whose.is_ct)
        if (
            may_be
            and image.position is not None
            and image.path.parent in folders
            and patients_of([first, image]) < 2
            and all(same(first, image) for same in (same_study, same_size, same_spacing, same_orientation))
            and any(same_frame_of_reference(s, image) for s in (first, series.images[-1]))
        ):
            height = sum(n * p for n, p in zip(first.normal, image.position, strict=True))
            if abs(max(heights[0] - height, height - heights[-1]) - step) < step / 4:
                found.append(image)
    return tuple(found)


def choose_series(series: Sequence[Series], uid: str | None = None) -> Series:
    """The series with this UID ("1.2.3", or "1.2.3#2" for a stack of it), or the only CT there is to segment.

    Raises AmbiguousSeriesError for several series, and where there are several patients; UnsupportedImageError for
    none; InputNotFoundError for an unknown UID.
    """
    if uid is not None:
        return _with_uid(series, uid, _folder(series))
    candidates, _ = candidate_series(series)
    if len(candidates) > 1:
        if all(len(s.images) == 1 and s.images[0].frames == 1 for s in candidates):
            raise AmbiguousSeriesError(
                f"{_folder(series)}: {len(candidates)} CT series of one image each, which are no one scan by their "
                "places (even distances, one size, spacing, orientation and patient); export the scan again, with one "
                f"SeriesInstanceUID, or give a folder with it alone: {_listed(candidates)}"
            )
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
        better = [s for s in candidates if getattr(s, preferred)]
        worse = [s for s in candidates if s not in better and any(_shows_as_much(b, s) for b in better)]
        left_out |= {s.uid: f"{s.kind}, {reason}" for s in worse}
        candidates = [s for s in candidates if s not in worse]
    patients = _patients(cts)
    listed = candidates if _patients(candidates) == patients else cts
    if patients > 1 and len(listed) > 1:
        raise AmbiguousSeriesError(
            f"{_folder(series)}: {len(listed)} CT series of {patients} patients; segment each patient's folder, or "
            f"choose one with --series UID: {_listed(listed)}"
        )
    return candidates, left_out


def _shows_as_much(better: Series, worse: Series) -> bool:
    """Whether one series shows the part of the body that another one does.

    A derived series may be all that was kept of a scan, beside a few timing images, or of another part of the body.
    Reformats along the body may reach far beyond it, into the black.
    """
    if not worse.is_volume:
        return True
    a, b = better.z_range, worse.z_range
    if a is None or b is None or not same_frame_of_reference(better.images[0], worse.images[0]):
        return False
    step = better.extent / max(len(better.images) - 1, 1)
    shared = min(a[1], b[1]) - max(a[0], b[0]) + 2 * step
    return shared >= (0.75 if worse.is_axial else 0.3) * (b[1] - b[0])


def passed_over(series: Sequence[Series]) -> list[str]:
    """The CT series beside the only one that `choose_series` finds, but for localizers: UID, and why it counts less."""
    _, reasons = candidate_series(series)
    return [f"{s.uid} ({reasons[s.uid]})" for s in series if s.is_ct and not s.is_localizer and s.uid in reasons]


def _folder(series: Sequence[Series]) -> str:
    return os.path.commonpath([s.folder for s in series])


def _patients(series: Sequence[Series]) -> int:
    return patients_of(header for s in series for header in s.slices)


def _with_uid(series: Sequence[Series], uid: str, folder: str) -> Series:
    for s in series:
        if s.uid == uid:
            return s
    scattered = [s for s in series if uid in s.uids and len(s.uids) > 1]
    if len(scattered) == 1:  # a scan that is under this UID and others
        return scattered[0]
    parts = [s for s in series if s.uid.startswith(f"{uid}#")]
    if parts:
        raise AmbiguousSeriesError(
            f"{folder}: series {uid} holds {len(parts)} stacks, which `attunet3d inspect` describes; "
            f"choose one with --series UID: {_listed(parts)}"
        )
    raise InputNotFoundError(f"{folder}: no series {uid}; there are: {_listed(series)}")


def _listed(series: Sequence[Series]) -> str:
    more = f"; and {len(series) - MOST_LISTED} more" if len(series) > MOST_LISTED else ""
    return "; ".join(str(s) for s in series[:MOST_LISTED]) + more
