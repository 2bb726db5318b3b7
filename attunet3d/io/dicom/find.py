"""Find the DICOM series in a folder, and choose one."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from attunet3d.errors import (
    AmbiguousSeriesError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io.dicom.folder import InSameFolders, read_folder
from attunet3d.io.dicom.header import SliceHeader
from attunet3d.io.dicom.scattered import merge_scattered
from attunet3d.io.dicom.series import Series, patients_of
from attunet3d.io.dicom.stacks import (
    same_frame_of_reference,
    same_orientation,
    same_size,
    same_spacing,
    same_study,
    stacks,
)
from attunet3d.io.slabs import DICOM_SUFFIXES, IMAGE_SUFFIXES, MIN_SPACING_MM

_MOST_LISTED = 20  # series listed in a message

# If some series have such a property, those without it are left out unless selected: the property, and the reason.
_PREFERRED = (
    ("is_volume", "images at a single position"),
    ("is_original", "derived from the scanner's slices"),
    ("is_axial", "not axial"),
)


def find_series(folder: str | os.PathLike[str]) -> list[Series]:
    """Find all DICOM series in ``folder`` and its subfolders, of any modality and file names, ordered by UID.

    A series with several stacks (see ``stacks``) becomes several entries: 1.2.3#1, 1.2.3#2. Only headers are read.
    Files other than DICOM are ignored, and so is DICOMDIR.

    Raises:
        InputNotFoundError: the folder has no DICOM file.
        UnreadableInputError: all DICOM files are damaged, or one cannot be opened.
    """
    here = read_folder(folder)
    found: dict[tuple[Any, ...], list[SliceHeader]] = {}
    for header in here.headers:
        key: tuple[Any, ...] = (header.series_uid,)
        if not header.series_uid:
            orientation = tuple(round(cosine, 2) for cosine in header.orientation or ())
            of_series = (header.study_uid, header.series_number, header.modality, orientation)
            key = ("", header.path.parent, *of_series, header.rows, header.columns)
        found.setdefault(key, []).append(header)
    if not found and here.damaged:
        raise UnreadableInputError(
            f"{here.damaged[0]}: DICOM header truncated or damaged, like all {len(here.damaged)} DICOM files here; "
            "export the scan again"
        )
    if not found:
        hint = "give the folder of one DICOM scan"
        images = [p.name for p in here.others if p.name.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            hint = f"to read {images[0]}, give that file"
        links = f", {here.links} links to folders, which are not followed" if here.links else ""
        raise InputNotFoundError(
            f"{folder}: no DICOM files in this folder ({len(here.others)} other files{links}); {hint}"
        )
    damaged = InSameFolders(here.damaged)
    not_dicom = InSameFolders(p for p in here.others if p.suffix.lower() in DICOM_SUFFIXES)
    series: list[Series] = []
    unnamed = 0
    for key, headers in sorted(found.items(), key=lambda item: tuple(map(str, item[0]))):
        uid = key[0]
        if not uid:
            unnamed += 1
            uid = f"no-uid-{unnamed}"
        folders = {h.path.parent for h in headers}
        parts = stacks(headers) if patients_of(headers) < 2 else [tuple(headers)]
        names = [f"{uid}#{k}" for k in range(1, len(parts) + 1)] if len(parts) > 1 else [uid]
        nearby = damaged(folders), (), not_dicom(folders)
        series += [Series(name, part, *nearby) for name, part in zip(names, parts, strict=True)]
    series = merge_scattered(series)
    single = _SingleImages(series)
    return [replace(s, strays=strays) if (strays := single.strays(s)) else s for s in series]


class _SingleImages:
    """The series of a single image: each may belong to another series, with a damaged UID."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = [s for s in series if len(s.images) == 1 and s.images[0].position is not None]
        self._positions = np.array([s.images[0].position for s in self._series]).reshape(-1, 3)

    def strays(self, series: Series) -> tuple[SliceHeader, ...]:
        """Return the images at the position of the next slice of a series."""
        heights = series.heights
        gaps = sorted(b - a for a, b in pairwise(heights) if b - a >= MIN_SPACING_MM)
        first = series.images[0]
        if not gaps or first.normal is None:
            return ()
        step = gaps[(len(gaps) - 1) // 2]
        height = self._positions @ np.array(first.normal)
        beyond = np.maximum(heights[0] - height, height - heights[-1])
        near = [self._series[n] for n in np.flatnonzero(np.abs(beyond - step) < step / 4)]
        folders = {s.path.parent for s in series.slices}
        return tuple(s.images[0] for s in near if s.images[0].path.parent in folders and _may_belong(series, s))


def _may_belong(series: Series, single: Series) -> bool:
    first, image = series.images[0], single.images[0]
    # With the same UID, the fields that make it another object may be the damaged ones.
    return (
        (single.uid.partition("#")[0] == series.uid.partition("#")[0] or (single.is_original and single.is_ct))
        and patients_of([first, image]) < 2
        and all(same(first, image) for same in (same_study, same_size, same_spacing, same_orientation))
        and any(same_frame_of_reference(s, image) for s in (first, series.images[-1]))
    )


def choose_series(series: Sequence[Series], uid: str | None = None) -> Series:
    """Return the series with this UID ("1.2.3", or "1.2.3#2" for a stack of it), or the only CT to segment.

    Raises:
        AmbiguousSeriesError: the folder has several CT series or patients.
        UnsupportedImageError: it has no CT.
        InputNotFoundError: no series has this UID.
    """
    if uid is not None:
        return _with_uid(series, uid, _folder(series))
    candidates, _ = candidate_series(series)
    if len(candidates) > 1:
        if all(len(s.images) == 1 and s.images[0].frames == 1 for s in candidates):
            raise AmbiguousSeriesError(
                f"{_folder(series)}: {len(candidates)} CT series of one image each, which do not make up a scan "
                "(even slice spacing; same size, pixel spacing, orientation and patient); export the scan again, with "
                f"one SeriesInstanceUID, or give a folder with it alone: {_listed(candidates)}"
            )
        raise AmbiguousSeriesError(
            f"{_folder(series)}: {len(candidates)} CT series; choose one with series_uid, or segment each of "
            f"segmentable_series: {_listed(candidates)}",
            arguments=("series_uid", "segmentable_series"),
        )
    return candidates[0]


def candidate_series(series: Sequence[Series]) -> tuple[list[Series], dict[str, str]]:
    """Return the CT series of a folder that can be chosen, and by UID the reason why each other one is left out.

    Left out unless selected by UID are localizers and, if there are other CT series, single images (bolus timing, dose
    pages), images derived from the scanner's slices (MIPs, reformats, screenshots), and images that are not axial.

    Raises:
        AmbiguousSeriesError: the folder has several patients.
        UnsupportedImageError: it has no CT.
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
        better = _Coverage([s for s in candidates if getattr(s, preferred)])
        worse = {s.uid for s in candidates if not getattr(s, preferred) and better.covers(s)}
        left_out |= {s.uid: f"{s.kind}, {reason}" for s in candidates if s.uid in worse}
        candidates = [s for s in candidates if s.uid not in worse]
    patients = _patients(cts)
    listed = candidates if _patients(candidates) == patients else cts
    if patients > 1 and len(listed) > 1:
        raise AmbiguousSeriesError(
            f"{_folder(series)}: {len(listed)} CT series of {patients} patients; segment each patient's folder, or "
            f"choose one with series_uid: {_listed(listed)}",
            arguments=("series_uid",),
        )
    return candidates, left_out


class _Coverage:
    """The parts of the body that series cover."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._any = bool(series)
        placed = [(s, s.z_range) for s in series]
        known = [(s, z, s.extent / max(len(s.images) - 1, 1)) for s, z in placed if z is not None]
        self._lowest, self._highest, self._step = np.array([(*z, step) for _, z, step in known]).reshape(-1, 3).T
        self._spaces = np.array([s.images[0].frame_of_reference for s, _, _ in known], str)

    def covers(self, worse: Series) -> bool:
        """Return whether one of them covers the part of the body that another series shows.

        If none does, a derived series may be all that was kept of a scan, or of another part of the body. Reformats
        along the body may reach far beyond it.
        """
        if not self._any or not worse.is_volume:
            return self._any
        z, space = worse.z_range, worse.images[0].frame_of_reference
        if z is None:
            return False
        shared = np.minimum(self._highest, z[1]) - np.maximum(self._lowest, z[0]) + 2 * self._step
        same_space = (self._spaces == space) | (self._spaces == "") | (space == "")
        return bool(np.any(same_space & (shared >= (0.75 if worse.is_axial else 0.3) * (z[1] - z[0]))))


def left_out_cts(series: Sequence[Series]) -> list[str]:
    """Return UID and reason for each CT series that ``choose_series`` leaves out, except localizers."""
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
    if len(scattered) == 1:  # a scan with several UIDs
        return scattered[0]
    parts = [s for s in series if s.uid.startswith(f"{uid}#")]
    if parts:
        raise AmbiguousSeriesError(
            f"{folder}: series {uid} holds {len(parts)} stacks, which `attunet3d inspect` describes; "
            f"choose one with series_uid: {_listed(parts)}",
            arguments=("series_uid",),
        )
    raise InputNotFoundError(f"{folder}: no series {uid}; there are: {_listed(series)}")


def _listed(series: Sequence[Series]) -> str:
    more = f"; and {len(series) - _MOST_LISTED} more" if len(series) > _MOST_LISTED else ""
    return "; ".join(str(s) for s in series[:_MOST_LISTED]) + more
