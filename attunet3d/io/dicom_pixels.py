"""One DICOM series to one CT volume: the geometry verdict and the decoding."""

import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.dicom import numbers
from attunet3d.io.dicom_guard import check_pixel_data, check_size, dcmread
from attunet3d.io.dicom_series import (
    ENHANCED_CT,
    SAME_COSINE,
    SAME_POSITION_MM,
    SAME_SPACING,
    Series,
    SliceHeader,
)
from attunet3d.io.slabs import LPS_TO_RAS, StoredImage, check_affine, read_failed

# A slice may lie this far (mm) from where the affine puts it. Headers that round positions to 0.1 mm stay within it,
# and it is far below what a mask can show. A missing slice moves some slice by half a spacing or more, so the second
# limit finds every missing slice, however thin the slices are.
MAX_DISPLACEMENT_MM = 0.1
MAX_DISPLACEMENT_OF_SPACING = 0.25

UNIT_TOLERANCE = 5e-3  # direction cosines rounded to three decimals

AIR_HU = -1024  # what CT scanners themselves write outside the scanned field
HIGHEST_HU = 3071  # of the 12-bit CT scale
EXPORT_AGAIN = "export the complete series again"

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_RLE = "1.2.840.10008.1.2.5"
_Numbers = tuple[float, ...] | None
_DECODERS = ("pylibjpeg", "libjpeg", "openjpeg")


def open_series(series: Series) -> StoredImage:
    """One CT series as an image whose voxels are still to be decoded.

    A tilted gantry gives a sheared affine. Raises UnsupportedImageError (not a CT in HU, or of several patients),
    GeometryError (slices missing, doubled, or not on one grid) and UnreadableInputError (pixels or headers damaged,
    decoder missing).
    """
    if series.damaged:
        raise UnreadableInputError(
            f"{series.damaged[0]}: DICOM header truncated or damaged; it may be a slice of this series: {EXPORT_AGAIN}"
        )
    if len(series.patients) > 1:
        raise UnsupportedImageError(
            f"{series.folder}: series {series.uid} mixes images of {len(series.patients)} patients (by PatientID); "
            "export each patient's scan apart"
        )
    notes: list[str] = []
    slices = _only_images(series, notes)
    slices = _without_copies(slices, notes)
    slices, affine = _on_one_grid(slices, series.folder)
    facts = {
        "format": "dicom",
        "series_uid": series.uid,
        "slices": len(slices),
        "gantry_tilt_deg": round(tilt_deg(affine), 3),
        "warnings": notes,
    }
    if any(s.lossy for s in slices):
        notes.append("the images were compressed with loss")
    shape = (slices[0].columns, slices[0].rows, len(slices))
    return StoredImage(series.folder, shape, affine, facts, _slabs(slices, notes), tuple(s.path for s in slices))


def _only_images(series: Series, notes: list[str]) -> list[SliceHeader]:
    """The slices, if they can be parts of one CT volume."""
    slices = list(series.slices)
    if not series.is_localizer and any(s.is_localizer for s in slices):
        slices = [s for s in slices if not s.is_localizer]
        notes.append(f"{len(series.slices) - len(slices)} localizer images in the series were left out")
    for s in slices:
        if s.modality not in ("CT", ""):
            raise UnsupportedImageError(f"{s.path}: modality {s.modality}; this reads CT only: choose a CT series")
        if s.sop_class in ENHANCED_CT or s.frames > 1:
            raise UnsupportedImageError(
                f"{s.path}: multi-frame CT ({s.frames} frames) is not supported; "
                "convert it to NIfTI, or to single slices"
            )
        if s.samples != 1 or not s.photometric.startswith("MONOCHROME"):
            raise UnsupportedImageError(
                f"{s.path}: colour image ({s.photometric or 'no photometric interpretation'}, "
                f"{s.samples} samples per pixel); give the original CT series"
            )
        if s.rescale_type not in ("", "HU", "US"):
            raise UnsupportedImageError(f"{s.path}: values in {s.rescale_type}, not HU; give the CT series in HU")
    if not series.is_ct:
        raise UnsupportedImageError(f"{series.folder}: series {series.uid} holds no CT images; choose a CT series")
    for s in slices:
        check_size(s)
    return slices


def _without_copies(slices: list[SliceHeader], notes: list[str]) -> list[SliceHeader]:
    """Drop files that are the same SOP instance at the same place."""
    seen: dict[tuple[Any, ...], SliceHeader] = {}
    for s in slices:
        seen.setdefault((s.sop_instance or s.path, s.position), s)
    if len(seen) < len(slices):
        notes.append(f"{len(slices) - len(seen)} duplicate files (same SOPInstanceUID) were left out")
    return list(seen.values())


def _on_one_grid(slices: list[SliceHeader], folder: Path) -> tuple[list[SliceHeader], np.ndarray]:
    """The slices in order along their normal, and the affine (voxel to RAS+ mm). Raises GeometryError."""
    for s in slices:
        for name, value in (
            ("ImagePositionPatient", s.position),
            ("ImageOrientationPatient", s.orientation),
            ("PixelSpacing", s.spacing),
        ):
            if value is None:
                raise GeometryError(f"{s.path}: {name} is missing or invalid; {EXPORT_AGAIN}, from the original images")
    if len(slices) < 2:
        raise GeometryError(f"{slices[0].path}: single slice; a CT volume needs at least 2: give the whole series")
    _check_uniform(slices)
    first = slices[0]
    row_step, column_step = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(row_step, column_step)
    axes = np.stack([row_step, column_step])
    if not np.allclose(axes @ axes.T, np.eye(2), atol=UNIT_TOLERANCE):
        raise GeometryError(
            f"{first.path}: ImageOrientationPatient {first.orientation} is not two perpendicular unit vectors; "
            f"{EXPORT_AGAIN}"
        )
    slices = sorted(slices, key=lambda s: float(normal @ np.array(s.position)))
    positions = np.array([s.position for s in slices])  # (Z, 3), mm, LPS+
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    _check_even(slices, positions, normal, folder)
    lps = np.eye(4)
    lps[:3, 0] = row_step * first.spacing[1]  # type: ignore[index]
    lps[:3, 1] = column_step * first.spacing[0]  # type: ignore[index]
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    affine = LPS_TO_RAS @ lps
    check_affine(folder, affine)
    return slices, affine


def _check_uniform(slices: Sequence[SliceHeader]) -> None:
    first = slices[0]
    for s in slices[1:]:
        for name, a, b, same in (
            ("Rows x Columns", (first.rows, first.columns), (s.rows, s.columns), None),
            ("PixelSpacing", first.spacing, s.spacing, {"rtol": SAME_SPACING, "atol": 0}),
            ("ImageOrientationPatient", first.orientation, s.orientation, {"rtol": 0, "atol": SAME_COSINE}),
        ):
            equal = a == b if same is None else np.allclose(a, b, **same)  # type: ignore[arg-type]
            if not equal:
                raise GeometryError(
                    f"{s.path}: {name} {_shown(b)} differs from {_shown(a)} in {first.path.name}; "
                    "the series mixes several scans: export them apart"
                )


def _check_even(slices: Sequence[SliceHeader], positions: np.ndarray, normal: np.ndarray, folder: Path) -> None:
    """Raise GeometryError unless the slices lie on a straight line at equal steps."""
    gaps = np.diff(positions @ normal)  # (Z - 1,), mm, in ascending order
    typical = float(np.median(gaps))
    doubled = np.flatnonzero(gaps < SAME_POSITION_MM)
    if len(doubled):
        k = int(doubled[0])
        raise GeometryError(
            f"{folder}: {len(doubled) + 1} slices or more share a position, such as {slices[k].path.name} and "
            f"{slices[k + 1].path.name} at {_shown(slices[k].position)}; "
            "the series mixes several phases or reconstructions: export them apart"
        )
    n = len(slices)
    expected = positions[0] + np.outer(np.arange(n) / (n - 1), positions[-1] - positions[0])
    displaced = np.linalg.norm(positions - expected, axis=1)
    if displaced.max() <= min(MAX_DISPLACEMENT_MM, MAX_DISPLACEMENT_OF_SPACING * typical):
        return
    odd = np.flatnonzero(np.abs(gaps - typical) > MAX_DISPLACEMENT_OF_SPACING * typical)
    if len(odd) == 0:
        k = int(displaced.argmax())
        raise GeometryError(
            f"{folder}: {slices[k].path.name} lies {displaced[k]:.2f} mm off the even grid of its series "
            f"(gaps {gaps.min():.4g} to {gaps.max():.4g} mm); give a series with even slices"
        )
    k = int(odd[0])
    missing = np.rint(gaps[odd] / typical) - 1
    whole = bool(np.all(missing > 0) and np.allclose(gaps[odd] / typical, missing + 1, atol=0.1))
    verdict = (
        f"{int(missing.sum())} slices are missing: {EXPORT_AGAIN}"
        if whole
        else "the slice spacing is uneven: give a series with even slices, or resample it"
    )
    raise GeometryError(
        f"{folder}: gap of {gaps[k]:.4g} mm between {slices[k].path.name} and {slices[k + 1].path.name} "
        f"where {typical:.4g} mm is usual ({len(odd)} such gaps in {n} slices); {verdict}"
    )


def tilt_deg(affine: np.ndarray) -> float:
    """Angle between the slice step and the slice normal, in degrees, of an affine from voxel to mm."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = affine[:3, 2]
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(normal) * np.linalg.norm(step))
    return math.degrees(math.acos(min(1.0, cosine)))


def _slabs(slices: Sequence[SliceHeader], notes: list[str]) -> Iterator[np.ndarray]:
    """(X, Y) arrays in HU: int32 where the rescale is by integers, else float64."""
    unscaled = padded = 0
    for s in slices:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels, slope, intercept, padding = _decode(s)
        unscaled += slope is None or intercept is None
        a, b = (slope or (1.0,))[0], (intercept or (0.0,))[0]
        small = pixels.dtype.itemsize <= 2 and abs(a) * 65536 + abs(b) < 2**31  # else int32 might overflow
        integral = small and a.is_integer() and b.is_integer()
        hu = pixels.astype(np.int32) * int(a) + int(b) if integral else pixels * a + b
        if padding is not None:
            # Only where the padding cannot be tissue: some writers name a padding value and use it as a HU value too.
            named = (pixels >= padding[0]) & (pixels <= padding[-1])
            outside = named & ((hu < AIR_HU) | (hu > HIGHEST_HU))
            hu[outside] = AIR_HU
            padded += int(np.count_nonzero(outside))
        yield hu.T
    if unscaled:
        notes.append(f"{unscaled} slices give no rescale slope and intercept; stored values are taken as HU")
    if padded:
        notes.append(f"{padded} padding voxels were set to {AIR_HU} HU")


def _decode(s: SliceHeader) -> tuple[np.ndarray, _Numbers, _Numbers, range | None]:
    """Stored values (rows, columns), rescale slope and intercept, and the stored values that mean padding."""
    syntax = ""
    try:
        ds = dcmread(s.path, force=True)
        syntax = str(getattr(ds.file_meta, "TransferSyntaxUID", ""))
        if "PixelData" not in ds:
            raise UnreadableInputError(f"{s.path}: holds no pixel data; {EXPORT_AGAIN}")
        check_pixel_data(ds, s.path)
        pixels = ds.pixel_array
        slope, intercept = numbers(ds, "RescaleSlope", 1), numbers(ds, "RescaleIntercept", 1)
        padding = _padding(ds)
    except UnreadableInputError:
        raise
    except Exception as e:  # decoders raise whatever they like
        compressed = syntax and syntax not in (*_NATIVE, _RLE)
        name = pydicom.uid.UID(syntax).name
        if compressed and any(importlib.util.find_spec(m) is None for m in _DECODERS):
            raise UnreadableInputError(f"{s.path}: no decoder for {name}; run: pip install 'attunet3d[dicom]'") from e
        if compressed and isinstance(e, NotImplementedError):
            raise UnreadableInputError(
                f"{s.path}: {name} is not supported; convert the series to uncompressed DICOM"
            ) from e
        raise read_failed(s.path, cure=EXPORT_AGAIN) from e  # not quoted: parsers quote values, which can be a name
    if pixels.shape != (s.rows, s.columns):
        raise UnreadableInputError(
            f"{s.path}: pixels of shape {pixels.shape} where the header promises {(s.rows, s.columns)}; {EXPORT_AGAIN}"
        )
    return pixels, slope, intercept, padding


def _padding(ds: pydicom.Dataset) -> range | None:
    """Stored values that mark voxels outside the scanned field."""
    value = ds.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    if ds.get("PixelRepresentation") == 1:
        # The tag is signed or unsigned as the pixels are, but writers and parsers get that wrong.
        bits = int(ds.get("BitsAllocated") or 16)
        ends = [v - 2**bits if v >= 2 ** (bits - 1) else v for v in ends]
    return range(min(ends), max(ends) + 1)


def _shown(values: Any) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"
