"""Make a CT volume from a DICOM series: check its images and their positions in the patient.

Each rule is listed in docs/reference/dicom.md with its test. Images that are refused are never repaired by guessing.
"""

import filecmp
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.dicom.guard import check_size
from attunet3d.io.dicom.header import SliceHeader
from attunet3d.io.dicom.pixels import EXPORT_AGAIN, hu_slabs
from attunet3d.io.dicom.series import NO_CT, Series
from attunet3d.io.dicom.stacks import same_orientation, same_size, same_spacing
from attunet3d.io.slabs import LPS_TO_RAS, MAX_SPACING_MM, MIN_SPACING_MM, StoredImage, check_affine

# Largest distance of a slice from its position by the affine: mm, or fraction of the spacing. Positions rounded to 0.1
# mm stay within it, and it is far below the resolution of a mask. A missing slice displaces another by at least half a
# spacing, so the limit for thin slices detects each missing one.
_MAX_DISPLACEMENT_MM = 0.1 + 1e-6
_MAX_DISPLACEMENT_OF_THICK = 0.025
_MAX_DISPLACEMENT_OF_THIN = 0.25

_UNIT_TOLERANCE = 5e-3  # for direction cosines rounded to three decimals
TILT_WARNING_DEG = 0.1  # above the effect of rounded positions
_FARTHEST_MM = 1e5  # from the scanner's origin: 100 m
_HIGHEST_SLOPE, _HIGHEST_INTERCEPT = 1e3, 1e6  # HU


def open_series(series: Series, *, allow_uneven: bool = False) -> StoredImage:
    """Open a CT series as an image whose voxels are not yet decoded. A tilted gantry gives a sheared affine.

    Args:
        series: the series.
        allow_uneven: interpolate linearly between slices with uneven spacing or gaps, with a warning in the metadata.
            ``StoredImage.files`` is empty then.

    Raises:
        UnsupportedImageError: not a CT in HU, or of several patients.
        GeometryError: slices are missing, duplicate, or not on one grid.
        UnreadableInputError: pixels or headers are damaged, or a decoder is missing.
    """
    if series.damaged:
        raise UnreadableInputError(
            f"{series.damaged[0]}: DICOM header truncated or damaged; it may be a slice of this series: {EXPORT_AGAIN}"
        )
    if series.strays:
        raise UnreadableInputError(
            f"{series.strays[0].path}: alone in its series, but located where the next slice of {series.uid} would be; "
            f"its header may be damaged: {EXPORT_AGAIN}"
        )
    if series.patients > 1:
        raise UnsupportedImageError(
            f"{series.folder}: series {series.uid} mixes images of {series.patients} patients (by PatientID and "
            "PatientName); export each patient's scan separately"
        )
    warnings: list[str] = []
    slices = _without_copies(_only_images(series, warnings), warnings)
    slices, positions = _in_order(slices)
    planes = _even_planes(slices, positions, series.folder, allow_uneven)
    count = len(slices) if planes is None else len(planes)
    affine = _affine(slices[0], positions, count)
    check_affine(series.folder, affine)
    tilt = tilt_deg(affine)
    if tilt > TILT_WARNING_DEG:
        warnings.append(f"the gantry was tilted by {tilt:.1f} degrees: the affine is sheared, and no voxel is moved")
    warnings += _uid_warnings(slices) + _content_warnings(series, slices)
    slabs = hu_slabs(slices, warnings)
    files = tuple(s.path for s in slices)
    frames = tuple(s.frame for s in slices if s.frame is not None)
    if planes is not None:
        warnings.append(
            f"the {len(slices)} slices have uneven spacing: {count} evenly spaced ones, "
            f"{np.linalg.norm(affine[:3, 2]):.4g} mm apart, were interpolated linearly between them"
        )
        slabs, files, frames = _interpolated(slabs, planes), (), ()
    metadata = {
        "format": "dicom",
        "series_uid": series.uid,
        "slices": len(slices),
        "gantry_tilt_deg": round(tilt, 3),
        "warnings": warnings,
    }
    shape = (slices[0].columns, slices[0].rows, count)
    return StoredImage(series.folder, shape, affine, metadata, slabs, files, frames)


def _affine(first: SliceHeader, positions: np.ndarray, count: int) -> np.ndarray:
    """Return the affine to RAS+ mm of ``count`` evenly spaced slices from the first position to the last (LPS+ mm)."""
    between_rows, between_columns = first.spacing or ()
    axes = np.array(first.orientation).reshape(2, 3)
    row_step, column_step = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row_step * between_columns, column_step * between_rows
    lps[:3, 2] = (positions[-1] - positions[0]) / (count - 1)
    lps[:3, 3] = positions[0]
    return LPS_TO_RAS @ lps


def _content_warnings(series: Series, slices: Sequence[SliceHeader]) -> list[str]:
    """Return warnings about the files of a series and the meaning of their values."""
    warnings: list[str] = []
    if any(not s.sop_class for s in slices):
        warnings.append("images have no SOPClassUID; they are CT by their Modality")
    if series.not_dicom:
        names = ", ".join(path.name for path in series.not_dicom[:3])
        warnings.append(
            f"{_count(series.not_dicom, 'file')} beside the images, such as {names}, named like DICOM, but not DICOM"
        )
    if any(s.rescale_type == "HU_MOD" for s in slices):
        warnings.append("values are modified HU (RescaleType HU_MOD), such as those of mono-energetic images")
    if any(s.lossy for s in slices):
        warnings.append("the images were compressed lossily")
    if slices[0].rescale is None:
        warnings.append("the images give no rescale slope and intercept; stored values are taken as HU")
    return warnings


def _uid_warnings(slices: Sequence[SliceHeader]) -> list[str]:
    """Return warnings about slices that belong together, though not by their UIDs."""
    series, studies = {s.series_uid for s in slices}, {s.study_uid for s in slices} - {""}
    warnings, why = [], "by their positions and all other fields they are one scan"
    if series == {""}:
        warnings.append(
            "images have no SeriesInstanceUID: those with the same folder, orientation and size are one series"
        )
    elif len(series) > 1:
        several = f"{len(series - {''})} SeriesInstanceUIDs{', and some have none' if '' in series else ''}"
        warnings.append(f"the images carry {several}: {why}")
    if len(studies) > 1:
        warnings.append(f"the images carry {len(studies)} StudyInstanceUIDs: {why}")
    return warnings


def _only_images(series: Series, warnings: list[str]) -> list[SliceHeader]:
    """Return the slices without localizers.

    Raises:
        UnsupportedImageError: they cannot make up a CT volume in HU.
    """
    slices = list(series.slices)
    if series.is_ct and series.is_localizer:
        raise UnsupportedImageError(
            f"{series.folder}: series {series.uid} holds localizer images, which make up no volume; choose a CT series"
        )
    derived = series.kind.removeprefix("CT derived (").removesuffix(")")
    if derived in NO_CT:
        raise UnsupportedImageError(
            f"{series.folder}: series {series.uid} is derived ({derived}), not a CT in HU at its position; "
            "choose the original scan"
        )
    if derived != series.kind:
        warnings.append(f"the images are derived ({derived}), not the scanner's own slices")
    localizers = [s for s in slices if s.is_localizer]
    if localizers:
        slices = [s for s in slices if not s.is_localizer]
        warnings.append(f"{_count(localizers, 'localizer image')} in the series left out")
    for s in slices:
        if s.modality not in ("CT", ""):
            raise UnsupportedImageError(f"{s.path}: modality {s.modality}; this reads CT only: choose a CT series")
        if s.frames > 1 and s.frame is None:
            raise UnsupportedImageError(
                f"{s.path}: {s.frames} frames in one file, without functional groups that give their positions; "
                "give single slices, or an Enhanced CT"
            )
        if s.samples != 1 or not s.photometric.startswith("MONOCHROME"):
            raise UnsupportedImageError(
                f"{s.path}: colour image ({s.photometric or 'no photometric interpretation'}, "
                f"{s.samples} samples per pixel); give the original CT series"
            )
        if s.rescale_type not in ("", "HU", "HU_MOD", "US"):
            raise UnsupportedImageError(f"{s.path}: values in {s.rescale_type}, not HU; give the CT series in HU")
        if (s.rescale is None) != (slices[0].rescale is None):
            raise UnsupportedImageError(
                f"{s.path}: only some images of the series give rescale slope and intercept; {EXPORT_AGAIN}"
            )
        slope, intercept = s.rescale or (1.0, 0.0)
        if not (0 < slope <= _HIGHEST_SLOPE and abs(intercept) <= _HIGHEST_INTERCEPT):
            raise UnsupportedImageError(
                f"{s.path}: rescale slope and intercept {_shown((slope, intercept))} are incomplete or invalid; "
                f"{EXPORT_AGAIN}"
            )
    if not series.is_ct:
        raise UnsupportedImageError(f"{series.folder}: series {series.uid} holds no CT images; choose a CT series")
    for s in slices:
        check_size(s.path, s.rows, s.columns)
    return slices


def _without_copies(slices: list[SliceHeader], warnings: list[str]) -> list[SliceHeader]:
    """Drop duplicates: images with the same SOPInstanceUID, position and pixels.

    Raises:
        UnsupportedImageError: images with the same SOPInstanceUID and position have different pixels.
    """
    seen: dict[tuple[Any, ...], SliceHeader] = {}
    for s in slices:
        first = seen.setdefault((s.sop_instance or s.path, s.frame, s.position), s)
        if first is not s and not _same_pixels(first, s):
            raise UnsupportedImageError(
                f"{s.path}: SOPInstanceUID and position of {first.path.name}, but other pixels; "
                "remove the one that does not belong to this series"
            )
    if len(seen) < len(slices):
        warnings.append(f"{_count(slices[len(seen) :], 'duplicate image')} with one SOPInstanceUID left out")
    if len({(s.sop_instance, s.frame) for s in seen.values() if s.sop_instance}) < len(seen) and slices[0].sop_instance:
        warnings.append("images at different positions have the same SOPInstanceUID, which should be unique")
    return list(seen.values())


def _same_pixels(a: SliceHeader, b: SliceHeader) -> bool:
    """Return whether two files have the same pixels, even if compressed differently."""
    if filecmp.cmp(a.path, b.path, shallow=False):
        return True
    first, second = (next(hu_slabs([s], [])) for s in (a, b))
    return np.array_equal(first, second)


def _in_order(slices: list[SliceHeader]) -> tuple[list[SliceHeader], np.ndarray]:
    """Sort the slices along their common normal; also return their positions (Z, 3), LPS+ mm.

    Raises:
        GeometryError: a position is missing or occurs twice, or the slices are not parallel and of one size.
    """
    for s in slices:
        for name, value in (
            ("ImagePositionPatient", s.position),
            ("ImageOrientationPatient", s.orientation),
            ("PixelSpacing", s.spacing),
        ):
            if value is None or max(map(abs, value)) > _FARTHEST_MM or (name == "PixelSpacing" and min(value) < 0):
                raise GeometryError(f"{s.path}: {name} is missing or invalid; {EXPORT_AGAIN}, from the original images")
    if len(slices) < 2:
        raise GeometryError(f"{slices[0].path}: single slice; a CT volume needs at least 2: give the whole series")
    _check_uniform(slices)
    first = slices[0]
    axes = np.array(first.orientation).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_UNIT_TOLERANCE):
        raise GeometryError(
            f"{first.path}: ImageOrientationPatient {_shown(first.orientation)} is not two perpendicular unit vectors; "
            f"{EXPORT_AGAIN}"
        )
    normal = np.cross(*axes)
    slices = sorted(slices, key=lambda s: float(normal @ np.array(s.position)))
    positions = np.array([s.position for s in slices])
    close = np.diff(positions @ normal) < MIN_SPACING_MM
    if close.any():
        k = int(np.flatnonzero(close)[0])
        shared = int((np.append(close, False) | np.insert(close, 0, False)).sum())
        raise GeometryError(
            f"{first.path.parent}: {shared} of {len(slices)} slices coincide with another, such as {_named(slices[k])} "
            f"and {_named(slices[k + 1])}, both at {_shown(slices[k].position)}; "
            "if the series mixes phases or reconstructions, export them separately; if one is a duplicate, remove it"
        )
    return slices, positions


def _check_uniform(slices: Sequence[SliceHeader]) -> None:
    sizes = [(float(s.rows), float(s.columns)) for s in slices]
    for name, values, same in (
        ("Rows x Columns", sizes, same_size),
        ("PixelSpacing", [s.spacing for s in slices], same_spacing),
        ("ImageOrientationPatient", [s.orientation for s in slices], same_orientation),
    ):
        usual = Counter(values).most_common(1)[0][0]
        reference = next(s for s, value in zip(slices, values, strict=True) if value == usual)
        for s, value in zip(slices, values, strict=True):
            if not same(reference, s):
                raise GeometryError(
                    f"{s.path}: {name} {_shown(value)} differs from {_shown(usual)} in {reference.path.name}; "
                    "the series mixes several scans: export them separately"
                )


def _even_planes(
    slices: Sequence[SliceHeader], positions: np.ndarray, folder: Path, allow_uneven: bool
) -> np.ndarray | None:
    """Return None if the slices are on a straight line with even spacing.

    If only the spacing is uneven, and ``allow_uneven``, return the evenly spaced planes to interpolate, as fractional
    slice indices.

    Raises:
        GeometryError: slices are off the line, missing or unevenly spaced, or a gap is too wide to interpolate.
    """
    n = len(slices)
    travel = positions[-1] - positions[0]
    length = float(np.linalg.norm(travel))
    along = (positions - positions[0]) @ travel / length  # (Z,), mm along the line from the first to the last
    gaps = np.diff(along)
    typical = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # the lower median, which is one of the gaps
    tolerance = min(
        max(_MAX_DISPLACEMENT_MM, _MAX_DISPLACEMENT_OF_THICK * typical), _MAX_DISPLACEMENT_OF_THIN * typical
    )
    offset = np.linalg.norm(positions - positions[0] - np.outer(along, travel) / length, axis=1)
    if offset.max() > tolerance:
        k = int(offset.argmax())
        raise GeometryError(
            f"{folder}: {_named(slices[k])} lies {offset[k]:.2f} mm off the line of the other slices; "
            "give a series with slices in one line"
        )
    displaced = np.abs(along - np.linspace(0, length, n))
    if displaced.max() <= tolerance:
        return None
    unusual = np.flatnonzero(np.abs(gaps - typical) > _MAX_DISPLACEMENT_OF_THIN * typical)
    missing = np.rint(gaps[unusual] / typical).astype(int) - 1
    whole = len(unusual) > 0 and bool(
        np.all(missing > 0) and np.allclose(gaps[unusual] / typical, missing + 1, atol=0.1)
    )
    too_wide = bool(gaps.max() > MAX_SPACING_MM)
    if not allow_uneven:
        allowed = "" if too_wide else "; allow_uneven=True interpolates between them"
        if whole:
            places = [
                positions[k] + (positions[k + 1] - positions[k]) * part
                for k, count in zip(unusual, missing, strict=True)
                for part in np.arange(1, count + 1) / (count + 1)
            ]
            verdict = (
                f"{len(places)} slice{'s are' if len(places) > 1 else ' is'} missing, at "
                f"{', '.join(map(_shown, places[:9]))}{', ...' if len(places) > 9 else ''}: {EXPORT_AGAIN}{allowed}"
            )
        else:
            verdict = f"the slice spacing is uneven: give a series with even slices{allowed}"
        found = _describe_gaps(slices, gaps, displaced, unusual, typical)
        raise GeometryError(f"{folder}: {found}; {verdict}", arguments=() if too_wide else ("allow_uneven",))
    if too_wide:
        k = int(gaps.argmax())
        raise GeometryError(
            f"{folder}: gap of {gaps[k]:.4g} mm between {_named(slices[k])} and {_named(slices[k + 1])}, too wide to "
            f"interpolate (at most {MAX_SPACING_MM:g} mm); {EXPORT_AGAIN}"
        )
    # If whole slices are missing, the spacing is that of the others. Otherwise it is about the smallest gap, but not
    # less than half the typical one: two slices that happen to be close must not make a grid of thousands.
    step = typical if whole else max(float(gaps.min()), typical / 2)
    planes = np.interp(np.linspace(0, length, round(length / step) + 1), along, np.arange(n))
    nearest = np.rint(planes)
    off = np.abs(planes - nearest) * gaps[np.minimum(planes.astype(int), n - 2)]
    return np.where(off <= min(tolerance, _MAX_DISPLACEMENT_MM), nearest, planes)  # an existing slice is kept as it is


def _describe_gaps(
    slices: Sequence[SliceHeader], gaps: np.ndarray, displaced: np.ndarray, unusual: np.ndarray, typical: float
) -> str:
    """Describe uneven spacing by the first unusual gap, or else by the slice that is displaced most; all in mm."""
    if len(unusual):
        k = int(unusual[0])
        return (
            f"gap of {gaps[k]:.4g} mm between {_named(slices[k])} and {_named(slices[k + 1])} where "
            f"{typical:.4g} mm is usual ({len(unusual)} of {len(gaps)} gaps are unusual, {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm)"
        )
    k = int(displaced.argmax())
    return (
        f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm, so that {_named(slices[k])} lies "
        f"{displaced[k]:.2g} mm from its position at even spacing"
    )


def _interpolated(slabs: Iterator[np.ndarray], planes: np.ndarray) -> Iterator[np.ndarray]:
    """Interpolate linearly between the slabs on either side of each plane; ``planes`` ascend from first to last."""
    numbered = enumerate(slabs)
    index, above = next(numbered)
    for plane in planes:
        while index < plane:
            below = above
            index, above = next(numbered)
        yield below * (index - plane) + above * (1 - index + plane) if plane < index else above
    next(numbered, None)  # `hu_slabs` adds its warnings at its end


def tilt_deg(affine: np.ndarray) -> float:
    """Return the angle in degrees between the slice step and the slice normal of an affine from voxel to mm."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = affine[:3, 2]
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(normal) * np.linalg.norm(step))
    return math.degrees(math.acos(min(1.0, cosine)))


def _count(items: Sequence[Any], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _named(s: SliceHeader) -> str:
    return s.path.name if s.frame is None else f"frame {s.frame + 1} of {s.path.name}"


def _shown(values: Any) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"
