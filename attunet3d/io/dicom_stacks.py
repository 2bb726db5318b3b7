"""One series UID may stand for several stacks: of other objects, on other grids, or scans of the same places."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from attunet3d.io.dicom_header import MARKS, SliceHeader
from attunet3d.io.slabs import MIN_SPACING_MM

SAME_COSINE = 1e-3  # 0.06 degrees: 0.4 mm at the edge of a 400 mm field, less than a voxel
SAME_SPACING = 1e-3  # relative

# Times differ within one scan too: they only count where places are scanned again.
_TIMES = ("TriggerTime", "AcquisitionTime")

_Slices = list[SliceHeader]


def stacks(slices: Sequence[SliceHeader]) -> list[tuple[SliceHeader, ...]]:
    """The images of one series UID, apart where they are several stacks.

    Stacks are of different objects (a screenshot or a report among CT images); differ in study, size, pixel spacing,
    orientation or frame of reference; or are scans of the same places (phases, kernels, acquisitions, see `MARKS`).
    Nothing but another object is taken apart where that would leave a single image: it would pass for a stack of its
    own, and the other slices for a complete one. Localizers stay with an only stack and are apart from several.
    """
    parts: list[_Slices] = []
    for objects in _groups(list(slices), _same_object):
        images = [s for s in objects if not s.is_localizer]
        found = [images] if images else []
        for same in (_same_study, _same_size, same_spacing, same_orientation, _same_frame_of_reference):
            found = [group for part in found for group in _apart(part, same)]
        found = [scan for part in found for scan in _scans(part)]
        localizers = [s for s in objects if s.is_localizer]
        if localizers:
            found = [objects] if len(found) < 2 else [*found, localizers]
        parts += found
    return [tuple(part) for part in parts]


def _groups(slices: _Slices, same: Callable[[SliceHeader, SliceHeader], bool]) -> list[_Slices]:
    groups: list[_Slices] = []
    for s in slices:
        for group in groups:
            if same(group[0], s):
                group.append(s)
                break
        else:
            groups.append([s])
    return groups


def _apart(slices: _Slices, same: Callable[[SliceHeader, SliceHeader], bool]) -> list[_Slices]:
    groups = _groups(slices, same)
    return groups if all(len(group) > 1 for group in groups) else [slices]


def _same_object(a: SliceHeader, b: SliceHeader) -> bool:
    """What an image does not say of itself is as with the others."""
    return (a.modality == b.modality or not (a.modality and b.modality)) and (
        a.sop_class == b.sop_class or not (a.sop_class and b.sop_class)
    )


def _same_study(a: SliceHeader, b: SliceHeader) -> bool:
    return a.study_uid == b.study_uid


def _same_size(a: SliceHeader, b: SliceHeader) -> bool:
    return (a.rows, a.columns) == (b.rows, b.columns)


def same_spacing(a: SliceHeader, b: SliceHeader) -> bool:
    """Whether pixel spacings agree, but for rounding."""
    if a.spacing is None or b.spacing is None:
        return a.spacing is b.spacing
    return all(abs(x - y) <= SAME_SPACING * abs(y) for x, y in zip(a.spacing, b.spacing, strict=True))


def same_orientation(a: SliceHeader, b: SliceHeader) -> bool:
    """Whether rows and columns run along the same directions, but for rounding."""
    if a.orientation is None or b.orientation is None:
        return a.orientation is b.orientation
    return all(abs(x - y) <= SAME_COSINE for x, y in zip(a.orientation, b.orientation, strict=True))


def _same_frame_of_reference(a: SliceHeader, b: SliceHeader) -> bool:
    return a.frame_of_reference == b.frame_of_reference or not (a.frame_of_reference and b.frame_of_reference)


def _scans(slices: _Slices) -> list[_Slices]:
    """Scans of the same places apart, by the first mark that tells all of them apart."""
    if any(s.position is None or s.normal is None for s in slices):
        return [slices]
    repeated = _repeats(_heights(slices))
    for k, name in enumerate(MARKS):
        marks = {s.marks[k] for s in slices}
        if len(marks) < 2 or None in marks or (name in _TIMES and not repeated):
            continue
        ordered = sorted(slices, key=lambda s: s.marks[k])  # type: ignore[arg-type, return-value]
        scans = _one_after_another([list(group) for _, group in groupby(ordered, key=lambda s: s.marks[k])])
        found = [part for scan in scans for part in _scans(scan)] if len(scans) > 1 else []
        if found and not any(len(scan) < 2 or _repeats(_heights(scan)) for scan in found):
            return found
    return [slices]


def _one_after_another(groups: list[_Slices]) -> list[_Slices]:
    """Groups in the order of their marks as scans: one goes on as long as it comes to new places.

    A group that lies among the places of the scan begins the next one. Scans of several groups must be of the same
    places: if they are not, none is known to go on with another group, and each group is a scan.
    """
    heights = np.unique(np.concatenate([_heights(group) for group in groups]))
    step = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
    scans: list[list[_Slices]] = []
    taken = np.zeros(0)
    for group in groups:
        new = _heights(group)
        overlap = min(new[-1], taken[-1]) - max(new[0], taken[0]) if len(taken) else np.inf
        if overlap > 1.01 * step or _repeats(np.sort(np.concatenate([taken, new]))):
            scans.append([])
            taken = np.zeros(0)
        scans[-1].append(group)
        taken = np.sort(np.concatenate([taken, new]))
    joined = [[s for group in scan for s in group] for scan in scans]
    if len(joined) < len(groups) and not all(_same_places(joined[0], scan) for scan in joined):
        return groups
    return joined


def _same_places(a: _Slices, b: _Slices) -> bool:
    return len(a) == len(b) and bool(np.all(np.abs(_heights(a) - _heights(b)) < MIN_SPACING_MM))


def _heights(slices: _Slices) -> np.ndarray:
    """Along the first one's normal, ascending, mm."""
    return np.sort(np.array([s.position for s in slices]) @ np.array(slices[0].normal))


def _repeats(heights: np.ndarray) -> bool:
    return bool(np.any(np.diff(heights) < MIN_SPACING_MM))
