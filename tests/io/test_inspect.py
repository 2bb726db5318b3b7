"""Series and stacks in a folder with known answers: kind, geometry and verdict."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import ct_dataset, edit, phantom, save, write_series
from pydicom.uid import ExplicitVRLittleEndian

from attunet3d.errors import (
    AmbiguousSeriesError,
    GeometryError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io import read_ct, read_volume
from attunet3d.io.dicom.find import choose_series, find_series
from attunet3d.io.inspect import inspect_path

STORAGE = "1.2.840.10008.5.1.4.1.1."
CORONAL = [1, 0, 0, 0, 0, -1]


def _uids(folder):
    return [s.uid for s in find_series(folder)]


def test_nested_folders_odd_names_and_junk(tmp_path):
    """One series in three folders, with arbitrary file names; a DICOMDIR, a text and noise are ignored."""
    paths = write_series(tmp_path / "all", phantom(), uid="1.2.3")
    for k, place in enumerate(["a/b/c/d/IM 1", "a/.hidden", "a/ünï.txt", "x/1.2.3.nii", "x/y/DICOM", "x/-v"]):
        target = tmp_path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        paths[k].rename(target)
    directory = ct_dataset(tmp_path / "DICOMDIR", np.zeros((2, 2), np.int16), (0, 0, 0), "9.9")
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = "1.2.840.10008.1.3.10"
    assert directory.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    save(directory, tmp_path / "DICOMDIR")
    (tmp_path / "a" / "notes.dcm.txt").write_text("nothing")
    (tmp_path / "x" / "Thumbs.db").write_bytes(np.random.default_rng(0).bytes(4000))
    (found,) = inspect_path(tmp_path)
    assert (found.number, found.uid, found.kind, found.files) == (1, "1.2.3", "CT", 6)
    assert found.size == (12, 10, 6)
    assert found.spacing_mm == (0.7, 0.8, 2.5)
    assert (found.plane, found.axes, found.gantry_tilt_deg) == ("axial", "LPS", 0)
    assert (found.usable, found.verdict, found.warnings) == (True, "can be segmented", ())


STACKS = {
    "orientations": {"ImageOrientationPatient": CORONAL, "step": (0, 3, 0)},
    "sizes": {"shape": (10, 12, 4)},
    "pixel spacings": {"PixelSpacing": [0.5, 0.5]},
    "frames of reference": {"FrameOfReferenceUID": "5.6"},
    "acquisitions at the same positions": {"AcquisitionNumber": 2},
}


def _two_stacks(folder, shape=(12, 10, 4), **tags):
    first, second = phantom(), phantom(shape, seed=1)
    write_series(folder / "1", first, uid="1.2.3", FrameOfReferenceUID="5.5", AcquisitionNumber=1)
    tags = {"FrameOfReferenceUID": "5.5", "AcquisitionNumber": 1, **tags}
    write_series(folder / "2", second, uid="1.2.3", **tags)
    return first, second


@pytest.mark.parametrize("differ", STACKS)
def test_stacks_in_one_series_are_told_apart(tmp_path, differ):
    first, second = _two_stacks(tmp_path, **STACKS[differ])
    found = inspect_path(tmp_path)
    assert [(f.uid, f.files, f.verdict) for f in found] == [
        ("1.2.3#1", 6, "can be segmented"),
        ("1.2.3#2", 4, "can be segmented"),
    ]
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.3#1")[0], first)
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.3#2")[0], second)
    with pytest.raises(AmbiguousSeriesError, match=r"1\.2\.3 holds 2 stacks.*1\.2\.3#1 \(6 files.*1\.2\.3#2 \(4 files"):
        read_ct(tmp_path, series_uid="1.2.3")
    if differ == "orientations":
        assert [f.plane for f in found] == ["axial", "coronal"]
        assert read_volume(tmp_path).metadata["series_uid"] == "1.2.3#1", "the axial one is preferred"
    else:
        with pytest.raises(AmbiguousSeriesError, match="2 CT series; choose one with series_uid"):
            read_ct(tmp_path)


@pytest.mark.parametrize("tags", [{"Rows": 12, "Columns": 10}, {"ImageOrientationPatient": CORONAL}])
def test_one_odd_slice_is_no_stack(tmp_path, tags):
    """It would pass for another stack, and the rest, with a gap, for a complete scan."""
    edit(write_series(tmp_path, phantom(), uid="1.2.3")[5], **tags)
    (found,) = inspect_path(tmp_path)
    assert found.uid == "1.2.3"
    assert "mixes several scans" in found.verdict
    with pytest.raises(GeometryError, match="mixes several scans"):
        read_ct(tmp_path)


def test_a_scan_of_several_acquisitions_is_not_split(tmp_path):
    """Slices of a step-and-shoot scan have an acquisition for every pair, and a copied file repeats its position."""
    hu = phantom()
    paths = write_series(tmp_path, hu, uid="1.2.3")
    for k, path in enumerate(paths):
        edit(path, AcquisitionNumber=k // 2 + 1, FrameOfReferenceUID=f"5.{k}")
    shutil.copy(paths[1], tmp_path / "copy")
    assert _uids(tmp_path) == ["1.2.3"]
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_two_scans_of_several_acquisitions_are_two_stacks(tmp_path):
    """Acquisitions 1 and 2 go down the patient; 3 and 4 go down again."""
    for phase in range(2):
        for k, path in enumerate(write_series(tmp_path / str(phase), phantom(seed=phase), uid="1.2.3")):
            edit(path, AcquisitionNumber=2 * phase + k // 3 + 1)
    assert [len(s.slices) for s in find_series(tmp_path)] == [6, 6]
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.3#2")[0], phantom(seed=1))


def test_localizers_of_a_series_with_two_stacks_are_separate(tmp_path):
    _two_stacks(tmp_path, AcquisitionNumber=2)
    scout = {"uid": "1.2.3", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path / "0", phantom()[:, :, :1], **scout)
    assert [f.kind for f in inspect_path(tmp_path)] == ["CT", "CT", "CT localizer"]


@pytest.mark.parametrize("tags", [{"ImageOrientationPatient": CORONAL}, {"ImageOrientationPatient": None}])
def test_an_axial_series_with_a_fault_is_not_left_out(tmp_path, tags):
    """Its first file has another orientation, or none: it still counts beside a valid series."""
    paths = write_series(tmp_path / "1", phantom(), uid="1.2.3")
    edit(min(paths), **tags)
    write_series(tmp_path / "2", phantom(), uid="1.2.4")
    with pytest.raises(AmbiguousSeriesError, match="2 CT series"):
        read_ct(tmp_path)


KINDS = {
    "CT": {},
    "CT localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
    "CT derived (MIP)": {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"]},
    "CT derived (MinIP)": {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MIN_IP"]},
    "CT derived (MPR)": {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]},
    "CT derived (projection)": {"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE"]},
    "CT secondary capture": {"SOPClassUID": STORAGE + "7", "ImageType": ["DERIVED", "SECONDARY"]},
    "CT dose report": {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"]},
    "dose report": {"SOPClassUID": STORAGE + "88.67", "Modality": "SR", "Rows": None, "ImageType": None},
    "structured report": {"SOPClassUID": STORAGE + "88.22", "Modality": "SR", "Rows": None, "ImageType": None},
    "segmentation": {"SOPClassUID": STORAGE + "66.4", "Modality": "SEG"},
    "RT structure set": {"SOPClassUID": STORAGE + "481.3", "Modality": "RTSTRUCT", "Rows": None},
    "MR": {"SOPClassUID": STORAGE + "4", "Modality": "MR"},
}


def test_kinds(tmp_path):
    for k, tags in enumerate(KINDS.values()):
        write_series(tmp_path / str(k), phantom(), uid=f"1.2.{k + 10}", **tags)
    found = inspect_path(tmp_path)
    assert [f.kind for f in found] == list(KINDS)
    assert found[0].usable
    for f in found:
        if not f.kind.startswith("CT") or f.kind == "CT secondary capture":
            assert not f.usable
            assert "choose a CT series" in f.verdict
    assert choose_series(find_series(tmp_path)).uid == "1.2.10", "the only slices of the scanner itself"


def test_lossy_images_are_derived_but_original(tmp_path):
    write_series(tmp_path, phantom(), ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    assert inspect_path(tmp_path)[0].kind == "CT"


def test_a_mip_is_used_if_there_is_nothing_else(tmp_path):
    write_series(tmp_path, phantom(), ImageType=["DERIVED", "SECONDARY", "MIP"])
    np.testing.assert_array_equal(read_ct(tmp_path)[0], phantom())


def _missing_slice(folder):
    write_series(folder, phantom())[3].unlink()


def _uneven_with_tilt(folder):
    tilted = [1, 0, 0, 0, 0.9396926, -0.3420201]  # 20 degrees
    edit(write_series(folder, phantom(), ImageOrientationPatient=tilted)[5], ImagePositionPatient=[-100, -50, 34])


def _tilt(folder):
    write_series(folder, phantom(), ImageOrientationPatient=[1, 0, 0, 0, 0.9396926, -0.3420201])


def _single(folder):
    write_series(folder, phantom()[:, :, :1])


def _sagittal(folder):
    write_series(folder, phantom(), step=(2, 0, 0), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


def _oblique(folder):
    turned = [1, 0, 0, 0, 0.7071068, -0.7071068]
    write_series(folder, phantom(), step=(0, 1.4142136, 1.4142136), ImageOrientationPatient=turned)


@pytest.mark.parametrize(
    ("build", "verdict", "spacing", "plane", "axes", "tilt"),
    [
        (_missing_slice, "1 slice is missing", (0.7, 0.8, None), "axial", "LPS", 0),
        (_uneven_with_tilt, "uneven", (0.7, 0.8, None), "axial", "LPS", 20),
        (_tilt, "can be segmented", (0.7, 0.8, 2.5), "axial", "LPS", 20),
        (_single, "single slice", (0.7, 0.8, None), "axial", "LPS", None),
        # In LPS, P x I is y x -z = -x: to the right.
        (_sagittal, "can be segmented", (0.7, 0.8, 2), "sagittal", "PIR", 0),
        (_oblique, "can be segmented", (0.7, 0.8, 2), "oblique", "LPS", 0),
    ],
)
def test_geometry_and_verdict(tmp_path, build, verdict, spacing, plane, axes, tilt):
    build(tmp_path)
    (found,) = inspect_path(tmp_path)
    assert verdict in found.verdict
    assert found.usable == (found.verdict == "can be segmented")
    assert found.spacing_mm == pytest.approx(spacing)
    assert found.plane == plane
    if plane != "oblique":  # at 45 degrees the letters are a matter of rounding
        assert found.axes == axes
    assert found.gantry_tilt_deg == (None if tilt is None else pytest.approx(tilt, abs=0.01))


def test_two_patients(tmp_path):
    """In one series they are an error; in two series one has to be chosen, though only one holds slices to segment."""
    write_series(tmp_path / "apart" / "1", phantom(), uid="1.2.3", PatientID="4711")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PatientID": "0815"}
    write_series(tmp_path / "apart" / "2", phantom(), uid="1.2.4", **scout)
    with pytest.raises(
        AmbiguousSeriesError, match=r"2 CT series of 2 patients; .*or choose one.*1\.2\.3 .*1\.2\.4 "
    ) as caught:
        read_ct(tmp_path / "apart")
    assert "4711" not in str(caught.value)
    np.testing.assert_array_equal(read_ct(tmp_path / "apart", series_uid="1.2.3")[0], phantom())

    write_series(tmp_path / "mixed" / "1", phantom(), uid="1.2.5", PatientID="4711")
    write_series(tmp_path / "mixed" / "2", phantom((10, 12, 6)), uid="1.2.5", PatientID="0815")
    with pytest.raises(UnsupportedImageError, match=r"1\.2\.5 mixes images of 2 patients.*separately") as caught:
        read_ct(tmp_path / "mixed")
    assert "4711" not in str(caught.value)
    (found,) = inspect_path(tmp_path / "mixed")
    assert found.verdict == str(caught.value)


@pytest.mark.parametrize(
    ("first", "second", "patients"),
    [
        ({"PatientName": "DOE^JANE"}, {"PatientName": "ROE^RICHARD"}, 2),
        ({"PatientName": "DOE^JANE"}, {"PatientName": "Doe Jane "}, 1),
        ({"PatientID": None, "PatientName": "DOE^JANE"}, {"PatientID": None, "PatientName": "ROE^RICHARD"}, 2),
        ({"PatientID": None, "PatientName": None}, {"PatientID": "", "PatientName": ""}, 0),
        ({"PatientID": "4711"}, {"PatientID": None, "PatientName": None}, 1),
        ({"PatientID": "4711"}, {"PatientID": None}, 1),
        ({"PatientID": "4711"}, {"PatientName": None}, 1),
        ({"PatientID": "4711"}, {"PatientID": "0815"}, 2),
    ],
)
def test_patients_are_told_apart_by_name_too(tmp_path, first, second, patients):
    """A name has many spellings; an image without name and ID is no other patient."""
    hu = phantom()
    write_series(tmp_path / "1", hu[:, :, :3], uid="1.2.3", **first)
    write_series(tmp_path / "2", hu[:, :, 3:], uid="1.2.3", origin=(-100, -50, 27.5), **second)
    (series,) = find_series(tmp_path)
    assert series.patients == patients
    if patients < 2:
        np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)
        return
    with pytest.raises(UnsupportedImageError, match="mixes images of 2 patients") as caught:
        read_ct(tmp_path)
    assert not any(word in str(caught.value) for word in ("DOE", "ROE", "doe", "roe", "4711"))


def test_table_and_json_are_complete_and_without_patient_data(run, tmp_path):
    patient = {"PatientID": "MRN4711", "PatientBirthDate": "19700101"}
    write_series(tmp_path / "ct", phantom(), uid="1.2.3", **patient)
    shutil.copy(next((tmp_path / "ct").iterdir()), tmp_path / "ct" / "copy")
    report = {"SOPClassUID": STORAGE + "88.67", "Modality": "SR", "Rows": None, "PixelSpacing": None}
    write_series(tmp_path / "dose", phantom()[:, :, :1], uid="1.2.4", ImageOrientationPatient=None, **report, **patient)

    code, table, stderr = run("inspect", tmp_path)
    assert (code, stderr) == (0, "")
    lines = table.splitlines()
    assert lines[0].split() == ["kind", "files", "size", "spacing", "mm", "orientation", "tilt"]
    assert " ".join(lines[1].split()) == "1 CT 7 12 x 10 x 6 0.7 x 0.8 x 2.5 axial LPS 0.0°"
    copies = "1 duplicate image with one SOPInstanceUID left out"
    assert [line.strip() for line in lines[2:5]] == ["1.2.3", "can be segmented", f"warning: {copies}"]
    assert " ".join(lines[5].split()) == "2 dose report 1 - - - -"
    assert lines[6].strip() == "1.2.4"

    code, text, stderr = run("inspect", tmp_path, "--json")
    assert (code, stderr) == (0, "")
    listed = json.loads(text, parse_constant=pytest.fail)
    assert listed["path"] == str(tmp_path)
    ct, dose = listed["series"]
    assert ct == {
        "number": 1,
        "uid": "1.2.3",
        "kind": "CT",
        "files": 7,
        "size": [12, 10, 6],
        "spacing_mm": [0.7, 0.8, 2.5],
        "plane": "axial",
        "axes": "LPS",
        "gantry_tilt_deg": 0.0,
        "usable": True,
        "verdict": "can be segmented",
        "warnings": [copies],
    }
    assert dose.keys() == ct.keys()
    assert (dose["size"], dose["spacing_mm"], dose["usable"]) == (None, [None, None, None], False)
    for secret in ("DOE", "JANE", "MRN", "4711", "1970"):
        assert secret not in table.replace(str(tmp_path), "") + text.replace(str(tmp_path), "")


def test_image_file(run, tmp_path):
    """Voxels of 2 x 3 x 4 mm, stored from right to left: the first axis points to the left."""
    image = nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([-2.0, 3, 4, 1]))
    nib.save(image, tmp_path / "ct.nii.gz")
    (found,) = inspect_path(tmp_path / "ct.nii.gz")
    assert (found.uid, found.kind, found.size, found.spacing_mm) == (None, "NIfTI", (5, 6, 7), (2, 3, 4))
    assert (found.plane, found.axes, found.usable) == ("axial", "LAS", True)
    assert "voxels" in found.verdict
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 1), np.int16), np.eye(4)), tmp_path / "flat.nii.gz")
    assert "single slice" in inspect_path(tmp_path / "flat.nii.gz")[0].verdict
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.diag([90.0, 1, 1, 1])), tmp_path / "huge.nii.gz")
    assert "voxel size 90" in inspect_path(tmp_path / "huge.nii.gz")[0].verdict
    code, stdout, _ = run("inspect", tmp_path / "ct.nii.gz")
    assert code == 0
    assert "5 x 6 x 7" in stdout


def test_nothing_to_list_is_an_error(run, tmp_path):
    with pytest.raises(InputNotFoundError, match="no DICOM files"):
        inspect_path(tmp_path)
    with pytest.raises(InputNotFoundError, match="does not exist"):
        inspect_path(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UnreadableInputError, match="unknown format"):
        inspect_path(tmp_path / "notes.txt")
    code, stdout, stderr = run("inspect", tmp_path)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")


@needs_data
def test_real_series():
    (lidc,) = inspect_path(DATA / "lidc0001" / "dicom")
    assert (lidc.kind, lidc.size, lidc.spacing_mm) == ("CT", (512, 512, 133), (0.703125, 0.703125, 2.5))
    assert lidc.usable, "though every slice claims a frame of reference of its own"
    (tilted,) = inspect_path(DATA / "dicom_edge" / "ge_gantry_tilt_uneven")
    assert "gap of 1.14 mm" in tilted.verdict
    assert "uneven" in tilted.verdict
    assert tilted.gantry_tilt_deg == pytest.approx(18.5, abs=0.01)
    (unnamed,) = inspect_path(DATA / "dicom_edge" / "jpeg2000_no_uids")
    assert (unnamed.uid, unnamed.verdict) == ("no-uid-1", "can be segmented")
    assert [f.kind for f in inspect_path(DATA / "dicom_edge" / "seg")] == ["segmentation"] * 3 + ["CT"]
    mixed = inspect_path(DATA / "dicom_edge" / "transfer_syntaxes")
    assert [f.kind for f in mixed] == ["structured report", "CT", "US", "CT", "CT"]
    assert not any(f.usable for f in mixed)
    assert "coincide with another" in mixed[1].verdict or "but other pixels" in mixed[1].verdict
