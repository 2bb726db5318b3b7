"""Merge scans that are scattered over several series UIDs: some anonymisers write a new UID to each file, or none."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from attunet3d.io.dicom.header import SliceHeader
from attunet3d.io.dicom.series import Series, patients_of
from attunet3d.io.dicom.stacks import (
    same_frame_of_reference,
    same_orientation,
    same_size,
    same_spacing,
    same_study,
    scans_of,
)
from attunet3d.io.grouping import Key, KeyIndex, grouped
from attunet3d.io.slabs import MIN_SPACING_MM

_MOST_IN_A_PART = 5  # slices: more are a separate scan
_FEWEST_PARTS = 3  # the spacing of two images is always even
_USUAL_GAPS = 0.75  # fraction: slices may be missing, and the reader reports where
_SAME_GAP = 0.1  # relative

_Scan = tuple[list[Series], Series]  # its parts, and the merged series


def merge_scattered(series: Sequence[Series]) -> list[Series]:
    """Return the series of a folder, with the parts of each scan that is scattered over several series merged.

    Parts are only merged if that is unambiguous: CT images with the same patient, size, pixel spacing, orientation and
    kind, evenly spaced on one line, no two at the same position. The parts must be several that are too small for
    scans, or images without UID and the only series that they can belong to. Study and frame of reference must be the
    same, or differ in most parts.
    """
    found = list(series)
    for key, same in ((_key_with_space, _same_scan_and_space), (_key, _same_scan)):
        parts = [s for s in found if (_is_nameless(s) or len(s.images) <= _MOST_IN_A_PART) and _is_uniform(s)]
        part_of = {id(s.images[0]): s for s in parts}
        scans: list[_Scan] = []
        for group in grouped([s.images[0] for s in parts], key, same):
            scans += _scans_among([part_of[id(image)] for image in group])
        found = _replaced(found, scans)
    return _replaced(found, _completed([s for s in found if _is_uniform(s)]))


def _completed(series: Sequence[Series]) -> list[_Scan]:
    """Add images without UID to the only series that they can belong to."""
    hosts = [([s], s) for s in series if not _is_nameless(s)]
    keys = KeyIndex()
    for _, host in hosts:
        keys.add(_key_with_space(host.slices[0]))
    for nameless in [s for s in series if _is_nameless(s)]:
        fit = [n for n in keys.matching(_key_with_space(nameless.slices[0])) if _can_hold(hosts[n][1], nameless)]
        for parts, whole in _scans_among([hosts[fit[0]][1], nameless], fewest=2) if len(fit) == 1 else ():
            hosts[fit[0]] = ([*hosts[fit[0]][0], *parts[1:]], whole)
    return [(parts, whole) for parts, whole in hosts if len(parts) > 1]


def _is_nameless(s: Series) -> bool:
    return not s.slices[0].series_uid


def _is_uniform(s: Series) -> bool:
    """Return whether this holds only CT images of one kind on one grid."""
    if not s.is_ct or any(i.position is None or i.normal is None or i.is_localizer for i in s.slices):
        return False
    return all(_same_scan(s.slices[0], i) for i in s.slices)


def _can_hold(host: Series, nameless: Series) -> bool:
    """Return whether images without UID can belong to a series.

    A single image at the end of a series cannot: it may be damaged, which the reader reports.
    """
    a, b = host.slices[0], nameless.slices[0]
    between = len(nameless.slices) > 1 or host.heights[0] < nameless.heights[0] < host.heights[-1]
    return between and _same_scan_and_space(a, b) and a.series_number == b.series_number


def _scans_among(group: Sequence[Series], fewest: int = _FEWEST_PARTS) -> list[_Scan]:
    """Find the scans in a group: the parts of each, in their order, and the merged series."""
    if len(group) < fewest:
        return []
    owner = {id(image): n for n, s in enumerate(group) for image in s.slices}
    found = []
    for scan in scans_of([image for s in group for image in s.slices]):
        parts = [group[n] for n in sorted({owner[id(image)] for image in scan})]
        complete = sum(len(s.slices) for s in parts) == len(scan)
        if len(parts) >= fewest and complete and _is_even(scan) and _is_one_space(scan, len(parts)):
            found.append((parts, _whole(parts, scan)))
    return found


def _replaced(series: Sequence[Series], scans: Sequence[_Scan]) -> list[Series]:
    """Replace the first part of each scan by the scan, and remove the others."""
    scan_of = {id(part): whole for parts, whole in scans for part in parts}
    return list({id(found): found for found in (scan_of.get(id(s), s) for s in series)}.values())


def _whole(parts: Sequence[Series], scan: Sequence[SliceHeader]) -> Series:
    """Merge parts under the UID of the first that has one, without a stack number if all are stacks of one series."""
    named = [s.uid for s in parts if not _is_nameless(s)] or [parts[0].uid]
    one = len({uid.partition("#")[0] for uid in named}) == 1
    return Series(
        named[0].partition("#")[0] if one else named[0],
        tuple(scan),
        damaged=_together(s.damaged for s in parts),
        not_dicom=_together(s.not_dicom for s in parts),
    )


def _together(files: Iterable[tuple[Path, ...]]) -> tuple[Path, ...]:
    """Concatenate without duplicates. Parts in the same folder share their tuple."""
    shared = {id(paths): paths for paths in files}.values()
    return tuple(dict.fromkeys(path for paths in shared for path in paths))


def _is_one_space(scan: Sequence[SliceHeader], parts: int) -> bool:
    studies, spaces = ({uid for uid in uids if uid} for uids in zip(*map(_study_and_space, scan), strict=True))
    return all(len(uids) < 2 or len(uids) > parts / 2 for uids in (studies, spaces))


def _study_and_space(image: SliceHeader) -> tuple[str, str]:
    return image.study_uid, image.frame_of_reference


def _is_even(scan: Sequence[SliceHeader]) -> bool:
    """Return whether images lie on a line, most with the same spacing, no two at the same position."""
    positions = np.array([s.position for s in scan])
    heights = positions @ np.array(scan[0].normal)
    order = np.argsort(heights)
    gaps = np.diff(heights[order])
    if gaps.min() < MIN_SPACING_MM:
        return False
    typical = np.sort(gaps)[(len(gaps) - 1) // 2]
    travel = positions[order[-1]] - positions[order[0]]
    along = (heights - heights[order[0]]) / (heights[order[-1]] - heights[order[0]])
    offset = np.linalg.norm(positions - positions[order[0]] - np.outer(along, travel), axis=1)
    return bool(np.mean(np.abs(gaps - typical) <= _SAME_GAP * typical) >= _USUAL_GAPS and offset.max() < typical / 4)


def _same_scan(a: SliceHeader, b: SliceHeader) -> bool:
    return (
        patients_of([a, b]) < 2
        and (a.image_type, a.rescale is None, a.rescale_type) == (b.image_type, b.rescale is None, b.rescale_type)
        and all(same(a, b) for same in (same_size, same_spacing, same_orientation))
    )


def _same_scan_and_space(a: SliceHeader, b: SliceHeader) -> bool:
    return _same_scan(a, b) and same_study(a, b) and same_frame_of_reference(a, b)


def _key(image: SliceHeader) -> Key:
    """Return the fields that ``_same_scan`` requires to be equal unless one is missing."""
    kind = (image.rows, image.columns, image.image_type, image.rescale is None, image.rescale_type)
    return (*(text or None for text in image.patient), kind)


def _key_with_space(image: SliceHeader) -> Key:
    return (*_key(image), *(uid or None for uid in _study_and_space(image)))
