"""Positions of the images of a series: accepted, interpolated on request, or refused, with known answers."""

import shutil

import numpy as np
import pydicom
import pytest
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import edit, phantom, raw_elements, write_enhanced, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attunet3d.errors import AmbiguousSeriesError, GeometryError, UnsupportedImageError
from attunet3d.io import read_ct, read_volume
from attunet3d.io.dicom.find import find_series
from attunet3d.io.inspect import inspect_path

COS, SIN = np.cos(np.radians(20)), np.sin(np.radians(20))
# Columns and rows of the image and the step to the next slice, LPS; the patient axes that they run along, RAS letters.
LYING = {
    "supine, head first": ([1, 0, 0, 0, 1, 0], (0, 0, 2.5), "LPS"),
    "supine, feet first": ([1, 0, 0, 0, 1, 0], (0, 0, -2.5), "LPS"),
    "prone, head first": ([-1, 0, 0, 0, -1, 0], (0, 0, 2.5), "RAS"),
    "prone, feet first": ([-1, 0, 0, 0, -1, 0], (0, 0, -2.5), "RAS"),
    "on the right side": ([0, 1, 0, -1, 0, 0], (0, 0, 2.5), "PRS"),
    "mirrored": ([-1, 0, 0, 0, 1, 0], (0, 0, 2.5), "RPI"),
    "coronal": ([1, 0, 0, 0, 0, -1], (0, 3, 0), "LIP"),
    "sagittal": ([0, 1, 0, 0, 0, -1], (2, 0, 0), "PIR"),
    "oblique": ([1, 0, 0, 0, COS, SIN], (0, -2.5 * SIN, 2.5 * COS), "LPS"),
}


@pytest.mark.parametrize("lying", LYING)
def test_each_voxel_stays_where_its_slice_says(tmp_path, lying):
    """For any patient position: voxel (column i, row j) of a slice is at position + i, j steps, and nowhere else."""
    axes, step, codes = LYING[lying]
    hu = phantom()
    write_series(tmp_path, hu, step=step, ImageOrientationPatient=[round(a, 6) for a in axes])
    (found,) = inspect_path(tmp_path)
    assert (found.axes, found.usable) == (codes, True)
    array, affine = read_ct(tmp_path)
    column, row = np.array(axes[:3]) * 0.7, np.array(axes[3:]) * 0.8
    for i, j, k in ((0, 0, 0), (11, 0, 5), (0, 9, 0), (3, 4, 2)):
        lps = np.array([-100, -50, 20]) + k * np.array(step) + i * column + j * row
        voxel = np.linalg.inv(affine) @ [-lps[0], -lps[1], lps[2], 1]
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
        assert array[tuple(np.rint(voxel[:3]).astype(int))] == hu[i, j, k]


@pytest.mark.parametrize("tilt", [-18.5, 0.05, 30])
def test_tilt_is_said_and_changes_no_voxel(tmp_path, tilt):
    hu = phantom((12, 10, 4))
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    write_series(tmp_path, hu, step=(0, 0, 5), ImageOrientationPatient=[1, 0, 0, 0, round(cos, 8), round(-sin, 8)])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["gantry_tilt_deg"] == pytest.approx(abs(tilt), abs=1e-3)
    said = f"the gantry was tilted by {abs(tilt):.1f} degrees: the affine is sheared, and no voxel is moved"
    assert volume.metadata["warnings"] == ([said] if abs(tilt) > 0.1 else [])


def _ramp(heights):
    """HU that increase by 10 per mm, so that linear interpolation gives the height of a plane; and soft tissue."""
    hu = np.empty((6, 5, len(heights)))
    hu[:] = -200 + 10 * np.array(heights)
    hu[0] = 40
    return np.rint(hu).astype(np.int16)


def _write_at(folder, hu, heights, **tags):
    for path, z in zip(write_series(folder, hu, **tags), heights, strict=True):
        edit(path, ImagePositionPatient=[-100, -50, z])
    return folder


UNEVEN = {
    # heights of the slices; of the planes they are interpolated to
    "one missing": ([0, 2, 4, 8, 10], [0, 2, 4, 6, 8, 10]),
    "three missing in two gaps": ([0, 2, 8, 10, 14, 16, 18], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
    "two thicknesses": ([0, 4, 8, 12, 18, 24], [0, 4, 8, 12, 16, 20, 24]),
    "two close ones": ([0, 5, 5.5, 10, 15, 20], [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20]),
}


@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("tilt", [0, 20])
def test_uneven_slices(tmp_path, case, tilt):
    heights, planes = UNEVEN[case]
    axes = [1, 0, 0, 0, COS, -SIN] if tilt else [1, 0, 0, 0, 1, 0]
    _write_at(tmp_path, _ramp(heights), heights, ImageOrientationPatient=[round(float(a), 8) for a in axes])
    with pytest.raises(GeometryError, match=r"gap of .* mm is usual .*allow_uneven=True interpolates") as refused:
        read_ct(tmp_path)
    assert ("missing" in str(refused.value)) == ("missing" in case)
    volume = read_volume(tmp_path, allow_uneven=True)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, planes[1]], atol=1e-9)
    np.testing.assert_array_equal(volume.array[3, 2], -200 + 10 * np.array(planes))
    assert volume.metadata["slices"] == len(heights)
    assert (
        f"the {len(heights)} slices have uneven spacing: {len(planes)} evenly spaced ones, {planes[1]:g} mm apart, "
        "were interpolated linearly between them"
    ) in volume.metadata["warnings"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(gaps=st.lists(st.sampled_from([1, 1.5, 2, 3, 4.5, 7]), min_size=2, max_size=8))
def test_interpolation_is_exact_where_hu_change_linearly(tmp_path, gaps):
    """Each plane has the HU of its height, whatever the gaps, up to rounding."""
    folder = tmp_path / "-".join(map(str, gaps))
    heights = np.cumsum([0, *gaps])
    if not folder.exists():
        _write_at(folder, _ramp(heights), heights)
    array, affine = read_ct(folder, allow_uneven=True)
    planes = np.arange(array.shape[2]) * affine[2, 2]
    assert planes[-1] == pytest.approx(heights[-1])
    np.testing.assert_allclose(array[5, 0], -200 + 10 * planes, atol=1.01)


def test_evenly_spaced_slices_are_unchanged(tmp_path):
    hu = phantom()
    write_series(tmp_path, hu)
    volume = read_volume(tmp_path, allow_uneven=True)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == []


NEVER_EVEN = {
    "a gap wider than any slice": ([0, 2, 4, 30], {}, "gap of 26 mm .*too wide to interpolate"),
    "two at one place": ([0, 2, 2, 4], {}, "coincide with another"),
    "off the line": ([0, 2, 4, 6], {"ImagePositionPatient": [-98, -50, 4]}, "off the line"),
    "not parallel": ([0, 2, 4, 6], {"ImageOrientationPatient": [1, 0, 0, 0, COS, SIN]}, "mixes several scans"),
}


@pytest.mark.parametrize("case", NEVER_EVEN)
def test_what_cannot_be_interpolated_is_refused_even_so(tmp_path, case):
    heights, tags, words = NEVER_EVEN[case]
    paths = write_series(tmp_path, _ramp(heights))
    for path, z in zip(paths, heights, strict=True):
        edit(path, ImagePositionPatient=[-100, -50, z])
    if tags:
        edit(paths[2], **tags)
    with pytest.raises(GeometryError, match=words):
        read_ct(tmp_path, allow_uneven=True)


def test_places_of_missing_slices_are_named(tmp_path):
    heights = [0, 2, 4, 12, 14]
    _write_at(tmp_path, _ramp(heights), heights)
    places = r"\[-100, -50, 6\], \[-100, -50, 8\], \[-100, -50, 10\]"
    with pytest.raises(GeometryError, match=f"3 slices are missing, at {places}:"):
        read_ct(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("PixelSpacing", [1e9, 1]), ("PixelSpacing", [-1, 1]), ("ImagePositionPatient", [1e300, 0, 0])]
)
def test_absurd_numbers_are_refused(tmp_path, name, value):
    write_series(tmp_path, phantom(), **{name: value})
    with pytest.raises(GeometryError, match=f"{name} is missing or invalid"):
        read_ct(tmp_path)


def test_enhanced_ct(tmp_path):
    """One file with frames in reverse order."""
    hu = phantom()
    write_enhanced(tmp_path / "ct", hu)
    (found,) = inspect_path(tmp_path)
    assert (found.kind, found.files, found.size, found.axes) == ("CT multi-frame", 1, (12, 10, 6), "LPS")
    assert (found.spacing_mm, found.verdict) == ((0.7, 0.8, 2.5), "can be segmented")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_array_equal(volume.affine, [[-0.7, 0, 0, 100], [0, -0.8, 0, 50], [0, 0, 2.5, 20], [0, 0, 0, 1]])
    assert volume.metadata["slices"] == 6


def test_phases_of_an_enhanced_ct_are_stacks(tmp_path):
    hu = phantom()
    write_enhanced(tmp_path / "ct", hu, phases=2)
    names = [s.uid.partition("#")[2] for s in find_series(tmp_path)]
    assert names == ["1", "2"]
    with pytest.raises(AmbiguousSeriesError, match=r"2 CT series.*#1 \(1 file.*#2 \(1 file"):
        read_ct(tmp_path)
    second = find_series(tmp_path)[1].uid
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid=second)[0], hu + 100)


def test_an_enhanced_ct_in_several_files(tmp_path):
    """A concatenation: the frames of both files are one volume."""
    hu = phantom()
    for name, part, z in (("b", hu[:, :, :2], 20), ("a", hu[:, :, 2:], 25)):
        write_enhanced(tmp_path / name, part, origin=(-100, -50, z), SeriesInstanceUID="1.2.3")
    array, affine = read_ct(tmp_path)
    np.testing.assert_array_equal(array, hu)
    assert affine[2].tolist() == [0, 0, 2.5, 20]


def test_uneven_frames_are_named(tmp_path):
    hu = phantom()
    path = write_enhanced(tmp_path / "ct", hu)
    edit(path, PerFrameFunctionalGroupsSequence=_moved(path, frame=2, z=99.0))
    with pytest.raises(GeometryError, match=r"gap of 5 mm between frame 4 of ct and frame 2 of ct"):
        read_ct(tmp_path)


def _moved(path, frame, z):
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    groups[frame].PlanePositionSequence[0].ImagePositionPatient = [-100, -50, z]
    return groups


def test_enhanced_ct_without_places_of_its_frames_is_refused(tmp_path):
    groups = {"SharedFunctionalGroupsSequence": None, "PerFrameFunctionalGroupsSequence": None}
    write_enhanced(tmp_path / "ct", phantom(), **groups)
    with pytest.raises(UnsupportedImageError, match="6 frames in one file, without functional groups"):
        read_ct(tmp_path)


@needs_data
def test_real_tilted_uneven_series():
    """Gaps of 4.22, one of 1.14 and of 7.38 mm, tilted by 18.5 degrees: grey values keep their heights."""
    folder = DATA / "dicom_edge" / "ge_gantry_tilt_uneven"
    volume = read_volume(folder, allow_uneven=True)
    assert volume.metadata["gantry_tilt_deg"] == pytest.approx(18.5, abs=0.1)
    step = np.linalg.norm(volume.affine[:3, 2])
    assert step == pytest.approx(2.11, abs=0.02)
    heights = sorted(s.position[2] for s in find_series(folder)[0].slices)
    assert (volume.array.shape[2] - 1) * step == pytest.approx(heights[-1] - heights[0], abs=0.01)
    assert any("uneven spacing: " in text for text in volume.metadata["warnings"])
    with pytest.raises(GeometryError, match="uneven"):
        read_ct(folder)


NUMBERS = {
    "PixelSpacing": b"0.8\\0.7",
    "ImagePositionPatient": None,  # each image's own
    "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0",
    "RescaleSlope": b"1",
    "RescaleIntercept": b"-1024",
    "SliceThickness": b"2.5",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("vr", ["LO", "SH", "ST", "LT", "UT", "UC", "UN", "OB", "CS", "IS", "FD"])
def test_numbers_under_another_vr(tmp_path, vr):
    """Numbers are read from their text, whatever the VR."""
    hu = phantom()
    paths = write_series(tmp_path / "plain", hu, SliceThickness=2.5)
    array, affine = read_ct(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "other")
    for path in paths:
        values = {}
        for name, text in NUMBERS.items():
            found = np.atleast_1d(pydicom.dcmread(path)[name].value).astype("<f8")
            data = text or "\\".join(f"{v:g}" for v in found).encode()
            values[name] = (vr, found.tobytes() if vr == "FD" else data)
        raw_elements(tmp_path / "other" / path.name, values)
    other, placed = read_ct(tmp_path / "other")
    np.testing.assert_array_equal(other, array)
    np.testing.assert_array_equal(placed, affine)
    assert inspect_path(tmp_path / "other")[0].spacing_mm == (0.7, 0.8, 2.5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("vr", ["IS", "DS", "UN", "UL", "LO"])
def test_sizes_and_bits_under_another_vr(tmp_path, vr):
    hu = phantom()
    paths = write_series(tmp_path, hu)
    for path in paths:
        ds = pydicom.dcmread(path)
        names = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
        data = {name: str(ds[name].value).encode() for name in names}
        binary = {"UN": "<u2", "UL": "<u4"}.get(vr)
        raw_elements(path, {n: (vr, np.array(int(t), binary).tobytes() if binary else t) for n, t in data.items()})
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)
