"""Which images belong together: scans of the same positions, other objects, stray images, series left out."""

import shutil

import numpy as np
import pydicom
import pytest
from dicom_files import ct_dataset, edit, item, phantom, save, write_enhanced, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from attunet3d.errors import AmbiguousSeriesError, GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io import read_ct, read_volume
from attunet3d.io.dicom import pixels as dicom_pixels
from attunet3d.io.dicom.find import find_series
from attunet3d.io.dicom.header import read_headers
from attunet3d.io.dicom.pixels import hu_slabs
from attunet3d.io.inspect import inspect_path

UID = "1.2.3"


def _scan(folder, seed, *, z=20.0, count=6, step=2.5, **tags):
    hu = phantom((12, 10, count), seed=seed)
    write_series(folder, hu, uid=UID, origin=(-100, -50, z), step=(0, 0, step), **tags)
    return hu


SCANS = {
    "acquisitions, one offset by half a step": [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "z": 21.25}],
    "acquisitions, one offset by a part of a step": [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2, "z": 20.9}],
    "temporal positions": [{"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}],
    "cardiac phases": [{"NominalPercentageOfCardiacPhase": 40}, {"NominalPercentageOfCardiacPhase": 75}],
    "kernels": [{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B60f"}],
    "kernels, one offset": [{"ConvolutionKernel": "B30f"}, {"ConvolutionKernel": "B60f", "z": 21.25}],
    "thin and thick": [{"SliceThickness": 1, "step": 1.25, "count": 12}, {"SliceThickness": 5, "z": 20.5}],
    "tube voltages": [{"KVP": 80}, {"KVP": 140}],
    "times": [{"AcquisitionTime": "101500.5"}, {"AcquisitionTime": "101512.5"}],
    "studies": [{"StudyInstanceUID": "5.1"}, {"StudyInstanceUID": "5.2"}],
    "energies, one offset": [
        {"ImageType": ["DERIVED", "PRIMARY", "MONO_40"]},
        {"ImageType": ["DERIVED", "PRIMARY", "MONO_70"], "z": 21.25},
    ],
    "series numbers, one offset": [{"SeriesNumber": 3}, {"SeriesNumber": 4, "z": 21.25}],
    "phase 0": [{"NominalPercentageOfCardiacPhase": 0}, {"NominalPercentageOfCardiacPhase": 50}],
}


@pytest.mark.parametrize("case", SCANS)
def test_scans_of_the_same_places(tmp_path, case):
    """One UID, two scans: they are not confused, nor are their slices mixed."""
    given = [_scan(tmp_path / str(k), k, **tags) for k, tags in enumerate(SCANS[case])]
    assert [f.uid for f in inspect_path(tmp_path)] == [f"{UID}#1", f"{UID}#2"]
    with pytest.raises(AmbiguousSeriesError, match="2 CT series"):
        read_ct(tmp_path, allow_uneven=True)
    for k, hu in enumerate(given, 1):
        np.testing.assert_array_equal(read_ct(tmp_path, series_uid=f"{UID}#{k}")[0], hu)


def test_two_kernels_of_two_phases_are_four_stacks(tmp_path):
    tags = [{"ConvolutionKernel": k, "AcquisitionNumber": n} for n in (1, 2) for k in ("B30f", "B60f")]
    for k, own in enumerate(tags):
        _scan(tmp_path / str(k), k, **own)
    found = find_series(tmp_path)
    assert [len(s.slices) for s in found] == [6] * 4
    assert len({(s.slices[0].marks) for s in found}) == 4


@pytest.mark.parametrize("name", ["SliceThickness", "AcquisitionTime", "KVP", "AcquisitionNumber", "ConvolutionKernel"])
def test_one_scan_whose_parts_differ_stays_whole(tmp_path, name):
    """The upper half thicker, later, with another voltage: consecutive parts are one scan."""
    hu = phantom()
    for k, path in enumerate(write_series(tmp_path, hu)):
        values = {"AcquisitionTime": f"10150{k // 3}", "ConvolutionKernel": f"B{k // 3}0f"}
        edit(path, **{name: values.get(name, 1 + k // 3)})
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_times_that_jump_about_do_not_tear_a_scan_apart(tmp_path):
    """Step and shoot: first every second slice, then those between."""
    hu = phantom()
    for k, path in enumerate(write_series(tmp_path, hu)):
        edit(path, AcquisitionTime=f"1015{k % 2:02d}", TriggerTime=100 * (k % 2))
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_a_cine_scan_at_two_table_positions(tmp_path):
    """Acquisitions 1 to 3 here, 4 to 6 there: it is uncertain which belong together, so none are joined."""
    for number in range(1, 7):
        _scan(tmp_path / str(number), number, count=4, z=20 if number < 4 else 30, AcquisitionNumber=number)
    found = find_series(tmp_path)
    assert [(len(s.slices), len({h.marks for h in s.slices})) for s in found] == [(4, 1)] * 6


def test_two_enhanced_files_of_the_same_positions(tmp_path):
    hu = phantom()
    for k in range(2):
        write_enhanced(tmp_path / str(k), hu + 100 * k, SeriesInstanceUID=UID)
    found = {s.uid: read_ct(tmp_path, series_uid=s.uid)[0] for s in find_series(tmp_path)}
    assert {int((array - hu).max()) for array in found.values()} == {0, 100}
    assert len(found) == 2


def test_alternating_frames_of_two_files(tmp_path, monkeypatch):
    """Each file is read once, though frames of both alternate."""
    hu = phantom()
    parts = [read_headers(write_enhanced(tmp_path / str(k), hu[:, :, k::2])) for k in range(2)]
    in_turn = [headers[2 - k] for k in range(3) for headers in parts]  # each file begins with its last slice
    reads = []
    original = dicom_pixels.dcmread
    monkeypatch.setattr(dicom_pixels, "dcmread", lambda path, **k: reads.append(path) or original(path, **k))
    for k, slab in enumerate(hu_slabs(in_turn, [])):
        np.testing.assert_array_equal(slab, hu[:, :, k])
    assert len(reads) == 2


@pytest.mark.parametrize("modality", ["PT", "SR", "CT"])
def test_an_object_of_another_kind_in_the_series(tmp_path, modality):
    """A report, a PET slice or a screenshot under the CT's UID: it is not a slice, and slices stay complete."""
    classes = {"PT": "1.2.840.10008.5.1.4.1.1.128", "SR": "1.2.840.10008.5.1.4.1.1.88.67"}
    sop_class = classes.get(modality, "1.2.840.10008.5.1.4.1.1.7")
    hu = _scan(tmp_path / "ct", 0)
    _scan(tmp_path / "other", 1, z=80, count=1, Modality=modality, SOPClassUID=sop_class)
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@pytest.mark.parametrize("tags", [{"SeriesInstanceUID": "1.2.4"}, {"SeriesInstanceUID": None}, {"Modality": "CS"}])
@pytest.mark.parametrize("end", [0, 5])
def test_an_image_astray_stops_its_series(tmp_path, tags, end):
    """Its UID was damaged: without it the mask would silently end one slice early."""
    edit(write_series(tmp_path, phantom(), uid=UID)[end], **tags)
    with pytest.raises(UnreadableInputError, match=r"alone in its series, but located where the next slice of 1\.2\.3"):
        read_ct(tmp_path)


def test_a_single_image_elsewhere_is_ignored(tmp_path):
    hu = _scan(tmp_path / "ct", 0)
    write_series(tmp_path / "timing", phantom()[:, :, :1], origin=(-100, -50, 24))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert any("other CT series were left out" in text for text in volume.metadata["warnings"])


def test_timing_images_of_one_place_do_not_count_beside_a_scan(tmp_path):
    hu = _scan(tmp_path / "ct", 0)
    write_series(tmp_path / "timing", phantom((12, 10, 5)), step=(0, 0, 0), uid="1.2.9")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    said = "other CT series were left out: 1.2.9 (CT, images at a single position)"
    assert volume.metadata["warnings"] == [said]


def test_a_few_original_slices_do_not_displace_a_whole_derived_series(tmp_path):
    """An archive that keeps the 3 mm reformats and two timing slices: the user has to choose."""
    hu = phantom((12, 10, 12))
    write_series(tmp_path / "mpr", hu, uid="1.2.8", ImageType=["DERIVED", "SECONDARY", "MPR"])
    write_series(tmp_path / "timing", phantom((12, 10, 2)), uid="1.2.9", origin=(-100, -50, 31))
    with pytest.raises(AmbiguousSeriesError, match=r"2 CT series.*1\.2\.8.*1\.2\.9"):
        read_ct(tmp_path)


@pytest.mark.parametrize("word", ["CPR", "VOLREN", "CBF", "SUBTRACTION", "MIP", "MPR"])
def test_derived_series_are_only_used_when_selected(tmp_path, word):
    hu = _scan(tmp_path / "ct", 0)
    write_series(tmp_path / "made", phantom(), uid="1.2.9", ImageType=["DERIVED", "SECONDARY", word])
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_localizers_are_no_volume_even_when_chosen(tmp_path):
    _scan(tmp_path, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert not inspect_path(tmp_path)[0].usable
    with pytest.raises(UnsupportedImageError, match="localizer images, which make up no volume"):
        read_ct(tmp_path, series_uid=UID)


@pytest.mark.parametrize("tags", [{"SeriesNumber": 4}, {"StudyInstanceUID": "5.2"}])
def test_series_without_uids_are_separated_by_number_and_study(tmp_path, tags):
    hu = phantom()
    write_series(tmp_path / "all", hu[:, :, :3], SeriesInstanceUID=None, SeriesNumber=3)
    for path in write_series(tmp_path / "b", hu[:, :, 3:], origin=(-100, -50, 27.5), SeriesInstanceUID=None, **tags):
        path.rename(tmp_path / "all" / f"second{path.name}")
    assert [s.files for s in find_series(tmp_path)] == [3, 3]


def test_a_copy_with_other_pixels_is_refused(tmp_path):
    paths = write_series(tmp_path, phantom())
    copy = shutil.copy(paths[2], tmp_path / "copy")
    edit(copy, PixelData=bytes(240))
    with pytest.raises(UnsupportedImageError, match=r"SOPInstanceUID and position of .*, but other pixels; remove"):
        read_ct(tmp_path)


def test_one_instance_uid_for_all_gives_a_warning(tmp_path):
    hu = _scan(tmp_path, 0, SOPInstanceUID="1.2.3.4")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == [
        "images at different positions have the same SOPInstanceUID, which should be unique"
    ]


def test_files_named_like_dicom_are_told_of(tmp_path):
    hu = _scan(tmp_path, 0)
    (tmp_path / "cut.dcm").write_bytes(bytes(100))
    (tmp_path / "notes.txt").write_text("nothing")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == ["1 file beside the images, such as cut.dcm, named like DICOM, but not DICOM"]


def test_a_damaged_dicomdir_is_ignored(tmp_path):
    hu = _scan(tmp_path, 0)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(50))
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@pytest.mark.skipif(int(pydicom.__version__.split(".")[0]) < 3, reason="pydicom 2 cannot write these files")
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("preamble", [False, True])
def test_data_sets_without_meta_information(tmp_path, implicit, preamble):
    """As in old archives: the transfer syntax is found from the data set."""
    hu = phantom()
    for path in write_series(tmp_path, hu):
        ds = pydicom.dcmread(path)
        del ds.file_meta
        ds.preamble = None
        pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=True)
        if preamble:
            path.write_bytes(bytes(128) + b"DICM" + path.read_bytes())
    assert all(f.usable for f in inspect_path(tmp_path))
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@settings(max_examples=40)
@given(spacing=st.integers(40, 600).map(lambda k: k / 100), offset=st.integers(-100, 100).map(lambda k: k / 100))
def test_positions_rounded_to_a_tenth_are_even_wherever_they_begin(spacing, offset, tmp_path_factory):
    folder, uid = tmp_path_factory.mktemp("rounded"), generate_uid()
    for k, stored in enumerate(phantom((4, 4, 20)).transpose(2, 1, 0) + np.int16(1024)):
        path = folder / str(k)
        save(ct_dataset(path, stored, (0, 0, round(offset + spacing * k, 1)), uid), path)
    assert read_ct(folder)[1][2, 2] == pytest.approx(spacing, abs=0.1 / 19)


def test_implausible_numbers_count_as_missing(tmp_path):
    """They prevent neither the list, nor reading an image in the same folder."""
    hu = _scan(tmp_path / "ct", 0)
    for path in write_series(tmp_path / "far", phantom(), uid="1.2.9", AcquisitionNumber=1):
        data = path.read_bytes().replace(b"-100.0\\-50.0\\20.0", b"1e308\\-1e308\\2.0 ")
        path.write_bytes(data)
    assert [f.usable for f in inspect_path(tmp_path)] == [True, False]
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid=UID)[0], hu)
    with pytest.raises(GeometryError, match="ImagePositionPatient is missing or invalid"):
        read_ct(tmp_path, series_uid="1.2.9")


BLOCKS = {
    "AcquisitionNumber": [[1, 3, 2], [1, 2, 1], [3, 2, 1]],
    "ConvolutionKernel": [["B", "C", "A"], ["A", "B", "A"]],
    "KVP": [[120, 100, 120]],
    "SliceThickness": [[1, 5, 1], [5, 1, 3]],
}


@pytest.mark.parametrize(("name", "values"), [(name, v) for name, given in BLOCKS.items() for v in given])
def test_blocks_of_one_scan_stay_together_in_any_order(tmp_path, name, values):
    hu = phantom((12, 10, 12))
    for k, path in enumerate(write_series(tmp_path, hu)):
        edit(path, **{name: values[k // 4]})
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_parts_of_an_enhanced_ct_stay_together_whatever_their_uids(tmp_path):
    hu = phantom((12, 10, 12))
    for part, uid in enumerate(("1.2.1", "1.2.3", "1.2.2")):
        origin = (-100, -50, 20 + 10 * part)
        write_enhanced(
            tmp_path / str(part),
            hu[:, :, 4 * part :][:, :, :4],
            origin=origin,
            SeriesInstanceUID=UID,
            SOPInstanceUID=uid,
        )
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@pytest.mark.parametrize("thicknesses", [["1.25", "1.2500001", "1.2499999"], ["1.2", "1.3"], ["1", "1.0", "0.999"]])
def test_rounded_thicknesses_do_not_split_a_scan(tmp_path, thicknesses):
    hu = phantom((12, 10, 12))
    for k, path in enumerate(write_series(tmp_path, hu)):
        edit(path, SliceThickness=thicknesses[k % len(thicknesses)])
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_frames_of_phase_0_and_50_are_two_stacks(tmp_path):
    """0 is a phase, not a missing value."""
    hu = phantom()
    path = write_enhanced(tmp_path / "ct", hu, phases=2)
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    for k, group in enumerate(groups):
        del group.FrameContentSequence[0].TemporalPositionIndex
        group.CardiacSynchronizationSequence = item(NominalPercentageOfCardiacPhase=50.0 * (k // 6))
    edit(path, PerFrameFunctionalGroupsSequence=groups)
    first, second = (read_ct(tmp_path, series_uid=s.uid)[0] for s in find_series(tmp_path))
    np.testing.assert_array_equal(first, hu)
    np.testing.assert_array_equal(second, hu + 100)


@pytest.mark.parametrize("name", ["AcquisitionNumber", "ConvolutionKernel"])
def test_one_image_without_the_mark_does_not_mix_two_scans(tmp_path, name):
    values = ("B30f", "B70f") if name == "ConvolutionKernel" else (1, 2)
    for k in range(2):
        _scan(tmp_path / str(k), k, z=20 + 1.25 * k, **{name: values[k]})
    edit(sorted((tmp_path / "1").iterdir())[0], **{name: None})
    assert len(find_series(tmp_path)) == 3
    with pytest.raises((AmbiguousSeriesError, UnreadableInputError)):
        read_ct(tmp_path, allow_uneven=True)


@pytest.mark.parametrize("tags", [{"StudyInstanceUID": None}, {"SeriesNumber": None}, {"ConvolutionKernel": None}])
def test_missing_fields_do_not_split_a_series(tmp_path, tags):
    hu = phantom()
    for k, path in enumerate(write_series(tmp_path, hu, SeriesNumber=3, ConvolutionKernel="B30f")):
        if k % 2:
            edit(path, **tags)
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@pytest.mark.parametrize("name", ["ImageOrientationPatient", "PixelSpacing"])
def test_images_without_geometry_at_the_end_are_not_dropped(tmp_path, name):
    for path in write_series(tmp_path, phantom())[4:]:
        edit(path, **{name: None})
    with pytest.raises(GeometryError, match=f"{name} is missing"):
        read_ct(tmp_path)


FAR_APART = {
    "another part of the body": {"z": -500, "count": 30},
    "much more of the body": {"z": -40, "count": 48},
    "another frame of reference": {"FrameOfReferenceUID": "7.7"},
}


@pytest.mark.parametrize("case", FAR_APART)
def test_no_series_is_passed_over_for_one_that_shows_something_else(tmp_path, case):
    tags = {"ImageType": ["DERIVED", "SECONDARY", "MPR"], **FAR_APART[case]}
    _scan(tmp_path / "head", 0)
    z, count = tags.pop("z", 20), tags.pop("count", 6)
    write_series(tmp_path / "mpr", phantom((12, 10, count)), uid="1.2.9", origin=(-100, -50, z), **tags)
    with pytest.raises(AmbiguousSeriesError, match=r"2 CT series.*1\.2\.3.*1\.2\.9"):
        read_ct(tmp_path)


def test_a_coronal_reformat_of_the_same_body_is_passed_over(tmp_path):
    """It extends beyond the axial slices, and has more images."""
    hu = phantom((12, 10, 12))
    write_series(tmp_path / "axial", hu, uid=UID)  # z from 20 to 47.5 mm
    tags = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    write_series(tmp_path / "mpr", phantom((12, 60, 40)), uid="1.2.9", origin=(-100, -50, 57), step=(0, 1, 0), **tags)
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


STRANGERS = {
    "of another patient": {"PatientID": "0815"},
    "of another study": {"StudyInstanceUID": "5.9"},
    "of another space": {"FrameOfReferenceUID": "7.7"},
    "a localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "a MIP": {"ImageType": ["DERIVED", "SECONDARY", "MIP"]},
    "MR": {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"},
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_strange_image_that_happens_to_lie_there_stops_nothing(tmp_path, case):
    hu = _scan(tmp_path, 0)
    tags = {"origin": (-100, -50, 35), "uid": "1.2.9", **STRANGERS[case]}
    (path,) = write_series(tmp_path / "other", phantom((12, 10, 1)), **tags)
    path.rename(tmp_path / "alone")
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid=UID)[0], hu)


def test_a_stray_image_is_found_beside_a_duplicate_series(tmp_path):
    paths = write_series(tmp_path, phantom(), uid=UID)
    edit(paths[5], SeriesInstanceUID="1.2.4")
    (tmp_path / "copy").mkdir()
    for path in paths[:5]:
        shutil.copy(path, tmp_path / "copy")
    with pytest.raises(UnreadableInputError, match="alone in its series"):
        read_ct(tmp_path)


def test_a_mip_alone_is_read_with_a_warning(tmp_path):
    hu = _scan(tmp_path, 0, ImageType=["DERIVED", "SECONDARY", "MIP"])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == ["the images are derived (MIP), not the scanner's own slices"]


@pytest.mark.parametrize("word", ["CBF", "SUBTRACTION", "VOLREN", "CPR"])
def test_maps_and_renderings_are_no_ct(tmp_path, word):
    _scan(tmp_path, 0, ImageType=["DERIVED", "SECONDARY", word])
    with pytest.raises(UnsupportedImageError, match=r"is derived \(.*\), not a CT in HU"):
        read_ct(tmp_path)


def test_low_dose_images_are_not_dose_pages(tmp_path):
    _scan(tmp_path, 0, ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "LOW_DOSE"])
    assert inspect_path(tmp_path)[0].kind == "CT"


def test_long_lists_of_series_are_shortened(tmp_path):
    for k in range(25):
        write_series(tmp_path / str(k), phantom((4, 4, 2)), uid=f"1.2.{k + 10}")
    with pytest.raises(AmbiguousSeriesError, match=r"25 CT series.*; and 5 more$"):
        read_ct(tmp_path)
