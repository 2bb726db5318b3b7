"""Images of one scan under several series UIDs: some anonymisers give each file one of its own, or leave some empty."""

from collections.abc import Callable, Sequence

import numpy as np

from attunet3d.io.dicom_header import SliceHeader
from attunet3d.io.dicom_series import Series, patients_of
from attunet3d.io.dicom_stacks import (
    same_frame_of_reference,
    same_orientation,
    same_size,
    same_spacing,
    same_study,
    scans_of,
)
from attunet3d.io.slabs import MIN_SPACING_MM

MOST_IN_A_PART = 5  # slices: what is no scan by itself
FEWEST_PARTS = 3  # two images are at even distances wherever they lie
USUAL_GAPS = 0.75  # of all: a slice may be missing, which the reader tells with its place
SAME_GAP = 0.1  # relative


def gathered(series: Sequence[Series]) -> list[Series]:
    """The series of a folder, with the parts of each scan that lies scattered over several of them put together.

    Parts are put together where that leaves no choice: CT images of one patient, size, pixel spacing, orientation and
    kind, which lie at even distances in one line, no two at one place. They are several parts that are no scan by
    themselves, or images without UID and the only series that they can belong to. Study and space are the same, or
    most parts have one of their own.
    """
    found = list(series)
    for same in (_same_scan_and_space, _same_scan):
        parts = [s for s in found if (_is_nameless(s) or len(s.images) <= MOST_IN_A_PART) and _is_uniform(s)]
        for group in _groups(parts, same):
            found = _put_together(found, group)
    for nameless in [s for s in found if _is_nameless(s) and _is_uniform(s)]:
        hosts = [s for s in found if not _is_nameless(s) and _is_uniform(s) and _can_hold(s, nameless)]
        if len(hosts) == 1:
            found = _put_together(found, [hosts[0], nameless], fewest=2)
    return found


def _is_nameless(s: Series) -> bool:
    return not s.slices[0].series_uid


def _is_uniform(s: Series) -> bool:
    """Whether this holds CT images of one kind on one grid, and nothing else."""
    if not s.is_ct or any(i.position is None or i.normal is None or i.is_localizer for i in s.slices):
        return False
    return all(_same_scan(s.slices[0], i) for i in s.slices)


def _can_hold(host: Series, nameless: Series) -> bool:
    """An image alone at the end of a series is left to the reader, which takes it for damaged."""
    a, b = host.slices[0], nameless.slices[0]
    between = len(nameless.slices) > 1 or host.heights[0] < nameless.heights[0] < host.heights[-1]
    return between and _same_scan_and_space(a, b) and a.series_number == b.series_number


def _put_together(found: list[Series], group: Sequence[Series], fewest: int = FEWEST_PARTS) -> list[Series]:
    """`found` with those of `group` that make up a scan as one series, in the place of the first."""
    if len(group) < fewest:
        return found
    whose = {id(image): s for s in group for image in s.slices}
    for scan in scans_of([image for s in group for image in s.slices]):
        parts = {id(whose[id(image)]): whose[id(image)] for image in scan}
        complete = sum(len(s.slices) for s in parts.values()) == len(scan)
        if len(parts) >= fewest and complete and _is_even(scan) and _is_one_space(scan, len(parts)):
            whole = _whole([s for s in found if id(s) in parts], scan)
            first = next(s for s in found if id(s) in parts)
            found = [whole if s is first else s for s in found if s is first or id(s) not in parts]
    return found


def _whole(parts: Sequence[Series], scan: Sequence[SliceHeader]) -> Series:
    """Under the UID of the first part that has one, without the number of a stack where all parts are of one series."""
    named = [s.uid for s in parts if not _is_nameless(s)] or [parts[0].uid]
    one = len({uid.partition("#")[0] for uid in named}) == 1
    return Series(
        named[0].partition("#")[0] if one else named[0],
        tuple(scan),
        damaged=tuple(dict.fromkeys(path for s in parts for path in s.damaged)),
        no_dicom=tuple(dict.fromkeys(path for s in parts for path in s.no_dicom)),
    )


def _is_one_space(scan: Sequence[SliceHeader], parts: int) -> bool:
    studies, spaces = ({uid for uid in uids if uid} for uids in zip(*map(_study_and_space, scan), strict=True))
    return all(len(uids) < 2 or len(uids) > parts / 2 for uids in (studies, spaces))


def _study_and_space(image: SliceHeader) -> tuple[str, str]:
    return image.study_uid, image.frame_of_reference


def _is_even(scan: Sequence[SliceHeader]) -> bool:
    """Whether images lie in one line, most of them at one distance, and none where another one is."""
    positions = np.array([s.position for s in scan])
    heights = positions @ np.array(scan[0].normal)
    order = np.argsort(heights)
    gaps = np.diff(heights[order])
    if gaps.min() < MIN_SPACING_MM:
        return False
    typical = np.sort(gaps)[(len(gaps) - 1) // 2]
    travel = positions[order[-1]] - positions[order[0]]
    along = (heights - heights[order[0]]) / (heights[order[-1]] - heights[order[0]])
    beside = np.linalg.norm(positions - positions[order[0]] - np.outer(along, travel), axis=1)
    return bool(np.mean(np.abs(gaps - typical) <= SAME_GAP * typical) >= USUAL_GAPS and beside.max() < typical / 4)


def _same_scan(a: SliceHeader, b: SliceHeader) -> bool:
    return (
        patients_of([a, b]) < 2
        and (a.image_type, a.rescale is None, a.rescale_type) == (b.image_type, b.rescale is None, b.rescale_type)
        and all(same(a, b) for same in (same_size, same_spacing, same_orientation))
    )


def _same_scan_and_space(a: SliceHeader, b: SliceHeader) -> bool:
    return _same_scan(a, b) and same_study(a, b) and same_frame_of_reference(a, b)


def _groups(parts: Sequence[Series], same: Callable[[SliceHeader, SliceHeader], bool]) -> list[list[Series]]:
    groups: list[list[Series]] = []
    for s in parts:
        for group in groups:
            if same(group[0].images[0], s.images[0]):
                group.append(s)
                break
        else:
            groups.append([s])
    return groups
