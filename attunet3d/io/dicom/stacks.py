"""Split a series UID into stacks: different objects, different grids, or scans of the same positions."""

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import numpy as np

from attunet3d.io.dicom.header import MARKS, SliceHeader
from attunet3d.io.grouping import Key, grouped
from attunet3d.io.slabs import MIN_SPACING_MM

_SAME_COSINE = 1e-3  # 0.06 degrees: 0.4 mm at the edge of a 400 mm field, less than a voxel
_SAME_SPACING = 1e-3  # relative
_SAME_THICKNESS = 1.25  # times: thin and thick reconstructions differ by more

# Times differ within a scan too: they are only compared if positions are scanned repeatedly.
_TIMES = ("TriggerTime", "AcquisitionTime")

_Slices = list[SliceHeader]
_Same = Callable[[SliceHeader, SliceHeader], bool]


def stacks(slices: Sequence[SliceHeader]) -> list[tuple[SliceHeader, ...]]:
    """Split the images of a series UID into stacks.

    Stacks are different objects (a screenshot or a report among CT images); differ in study, size, pixel spacing,
    orientation or frame of reference; or are scans of the same positions (phases, kernels, acquisitions, see
    ``MARKS``). Except for other objects, no single image is split off: it would be taken for a separate stack, and the
    other slices for a complete one. Localizers stay with a single stack, and are separated from several.
    """
    parts: list[_Slices] = []
    for objects in grouped(slices, _KEYS[_same_object], _same_object):
        images = [s for s in objects if not s.is_localizer]
        found = [images] if images else []
        for same in (same_study, same_size, same_spacing, same_orientation, same_frame_of_reference):
            found = [group for part in found for group in _split(part, same)]
        found = [scan for part in found for scan in scans_of(part)]
        localizers = [s for s in objects if s.is_localizer]
        if localizers:
            found = [objects] if len(found) < 2 else [*found, localizers]
        parts += found
    return [tuple(part) for part in parts]


def _split(slices: _Slices, same: _Same) -> list[_Slices]:
    groups = grouped(slices, _KEYS[same], same)
    return groups if all(len(group) > 1 for group in groups) else [slices]


def _same_object(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether modality and class are the same or missing."""
    return (a.modality == b.modality or not (a.modality and b.modality)) and (
        a.sop_class == b.sop_class or not (a.sop_class and b.sop_class)
    )


def same_study(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether two images are of the same study, as far as known."""
    return a.study_uid == b.study_uid or not (a.study_uid and b.study_uid)


def same_size(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether two images have the same number of rows and columns."""
    return (a.rows, a.columns) == (b.rows, b.columns)


def same_frame_of_reference(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether two images have the same frame of reference, as far as known."""
    return a.frame_of_reference == b.frame_of_reference or not (a.frame_of_reference and b.frame_of_reference)


def same_spacing(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether pixel spacings are equal up to rounding, or one is missing."""
    if a.spacing is None or b.spacing is None:
        return True
    return all(abs(x - y) <= _SAME_SPACING * abs(y) for x, y in zip(a.spacing, b.spacing, strict=True))


def same_orientation(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether directions of rows and columns are equal up to rounding, or missing in one image."""
    if a.orientation is None or b.orientation is None:
        return True
    return all(abs(x - y) <= _SAME_COSINE for x, y in zip(a.orientation, b.orientation, strict=True))


# Fields that these functions require to be equal unless one is missing.
_KEYS: dict[_Same, Callable[[SliceHeader], Key]] = {
    _same_object: lambda s: (s.modality or None, s.sop_class or None),
    same_study: lambda s: (s.study_uid or None,),
    same_frame_of_reference: lambda s: (s.frame_of_reference or None,),
    same_size: lambda s: (s.rows, s.columns),
    same_spacing: lambda s: (),
    same_orientation: lambda s: (),
}


def scans_of(slices: _Slices) -> list[_Slices]:
    """Separate scans of the same positions by the first mark that distinguishes all of them."""
    if any(s.position is None or s.normal is None for s in slices):
        return [slices]
    repeated = _repeats(_heights(slices))
    for k, name in enumerate(MARKS):
        if name in _TIMES and not repeated:
            continue
        groups = _by_mark([s for s in slices if s.marks[k] is not None], k, name)
        scans = _joined(groups) if len(groups) > 1 else []
        found = [part for scan in scans for part in scans_of(scan)] if len(scans) > 1 else []
        if found and not any(len(scan) < 2 or _repeats(_heights(scan)) for scan in found):
            # Images without the mark belong to one of them, but it is unknown to which.
            unknown = [s for s in slices if s.marks[k] is None]
            return [*found, unknown] if unknown else found
    return [slices]


def _by_mark(slices: _Slices, k: int, name: str) -> list[_Slices]:
    """Group slices by mark, in ascending order; similar thicknesses are one group, since headers round them."""
    ordered = sorted(slices, key=lambda s: s.marks[k])  # type: ignore[arg-type, return-value]
    if name != "SliceThickness":
        return [list(group) for _, group in groupby(ordered, key=lambda s: s.marks[k])]
    groups: list[_Slices] = []
    for s in ordered:
        if not groups or float(s.marks[k] or 0) > _SAME_THICKNESS * float(groups[-1][-1].marks[k] or 0):
            groups.append([])
        groups[-1].append(s)
    return groups


def _joined(groups: list[_Slices]) -> list[_Slices]:
    """Join groups, in the order of their marks, into scans: a group at other positions continues the scan.

    A group whose slices alternate with others of the scan, or have their positions, starts the next scan. Joined scans
    must cover the same positions: otherwise it is uncertain that a group continues another, and each group is a scan.
    """
    heights = [_heights(group) for group in groups]
    lowest = np.array([h[0] for h in heights]) - MIN_SPACING_MM
    highest = np.array([h[-1] for h in heights]) + MIN_SPACING_MM
    starts = [0]
    for k in range(1, len(groups)):
        scan = slice(starts[-1], k)
        near = np.flatnonzero((lowest[scan] <= highest[k]) & (highest[scan] >= lowest[k]))
        if any(_alternate(heights[k], heights[starts[-1] + n]) for n in near):
            starts.append(k)
    joined = [[s for group in groups[a:b] for s in group] for a, b in pairwise([*starts, len(groups)])]
    if 1 < len(joined) < len(groups) and not all(_same_positions(joined[0], scan) for scan in joined):
        return groups
    return joined


def _alternate(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether slices at these heights coincide or, where both overlap, alternate: blocks of one scan do not."""
    low, high = max(a[0], b[0]) - MIN_SPACING_MM, min(a[-1], b[-1]) + MIN_SPACING_MM
    a, b = (heights[(heights >= low) & (heights <= high)] for heights in (a, b))
    both = np.concatenate([a, b])
    if not (len(a) and len(b)):
        return False
    owner = np.repeat([0, 1], [len(a), len(b)])[np.argsort(both, kind="stable")]
    return _repeats(np.sort(both)) or np.count_nonzero(np.diff(owner)) > min(len(a), len(b))


def _same_positions(a: _Slices, b: _Slices) -> bool:
    return len(a) == len(b) and bool(np.all(np.abs(_heights(a) - _heights(b)) < MIN_SPACING_MM))


def _heights(slices: _Slices) -> np.ndarray:
    """Return positions along the first slice's normal, ascending, mm."""
    return np.sort(np.array([s.position for s in slices]) @ np.array(slices[0].normal))


def _repeats(heights: np.ndarray) -> bool:
    return bool(np.any(np.diff(heights) < MIN_SPACING_MM))
