"""DICOM folders: known-answer geometry, decoding to HU, and an error for everything that is not one CT volume."""

import hashlib
import io
import shutil
import struct

import numpy as np
import pydicom
import pytest
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import ct_dataset, edit, phantom, save, write_series
from pydicom.uid import generate_uid

from attunet3d.errors import (
    AmbiguousSeriesError,
    AttUNet3dError,
    GeometryError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io import read_ct, read_volume
from attunet3d.io.dicom import guard as dicom_guard
from attunet3d.io.dicom.find import choose_series, find_series
from attunet3d.io.dicom.header import HEADER_TAGS


def test_axial_series_by_hand(tmp_path):
    """Rows 0.8 mm apart, columns 0.7: x gets the column spacing. RAS flips x and y of the LPS position."""
    hu = phantom()
    write_series(tmp_path / "a", hu[:, :, :3])
    uid = find_series(tmp_path)[0].uid
    write_series(tmp_path / "b" / "deep", hu[:, :, 3:], origin=(-100, -50, 27.5), uid=uid)
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / "b" / "noise.bin").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "looks_bare.raw").write_bytes(b"\x08\x00\x05\x00" + bytes(200))
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_array_equal(volume.affine, [[-0.7, 0, 0, 100], [0, -0.8, 0, 50], [0, 0, 2.5, 20], [0, 0, 0, 1]])
    assert volume.metadata == {
        "format": "dicom",
        "series_uid": uid,
        "slices": 6,
        "gantry_tilt_deg": 0.0,
        "warnings": [],
    }


def test_slices_are_ordered_along_their_normal(tmp_path):
    """With descending positions, the volume still starts at the foot end."""
    hu = phantom()
    write_series(tmp_path, hu, step=(0, 0, -2.5))
    array, affine = read_ct(tmp_path)
    np.testing.assert_array_equal(array, hu[:, :, ::-1])
    np.testing.assert_array_equal(affine[:3, 2:], [[0, 100], [0, 50], [2.5, 7.5]])


def test_coronal_series_by_hand(tmp_path):
    """Columns point to the left (+L), rows to the feet (-S), slices to the back (normal L x -S = +P)."""
    hu = phantom()
    write_series(tmp_path, hu, step=(0, 3, 0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    array, affine = read_ct(tmp_path)
    np.testing.assert_array_equal(array, hu)
    np.testing.assert_array_equal(affine, [[-0.7, 0, 0, 100], [0, 0, -3, 50], [0, -0.8, 0, 20], [0, 0, 0, 1]])


def test_gantry_tilt_is_a_sheared_affine(tmp_path):
    """Rows tilted by 20 degrees while the table moves along z: the step is not the normal."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    write_series(tmp_path, phantom(), step=(0, 0, 4), ImageOrientationPatient=[1, 0, 0, 0, round(c, 6), round(-s, 6)])
    volume = read_volume(tmp_path)
    expected = [[-0.7, 0, 0, 100], [0, -0.8 * c, 0, 50], [0, -0.8 * s, 4, 20], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-5)
    assert volume.metadata["gantry_tilt_deg"] == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, np.uint16), (1, 0, np.int16), (0.5, -1024, np.uint16), (2, -1000.5, np.int16)],
)
def test_rescale(tmp_path, slope, intercept, dtype):
    hu = phantom()
    write_series(tmp_path, hu, slope=slope, intercept=intercept, dtype=dtype)
    array, _ = read_ct(tmp_path)
    assert array.dtype == np.int16
    assert np.abs(array.astype(int) - hu).max() <= np.ceil(slope / 2)


def test_rescale_is_that_of_each_slice(tmp_path):
    hu = phantom()
    paths = write_series(tmp_path, hu)
    edit(paths[2], RescaleIntercept=-1000)
    array, _ = read_ct(tmp_path)
    np.testing.assert_array_equal(array - hu, np.broadcast_to([0, 0, 24, 0, 0, 0], hu.shape))


def test_values_beyond_int16_are_clipped_and_reported(tmp_path):
    hu = phantom().astype(np.int32)
    hu[5, 5, 3] = 60000
    write_series(tmp_path, hu, slope=2, intercept=-1024, dtype=np.uint16)
    volume = read_volume(tmp_path)
    assert volume.array[5, 5, 3] == 32767
    assert "60000" in volume.metadata["warnings"][0]


def test_many_values_beyond_int16_are_refused(tmp_path):
    """Signed values declared as unsigned: air at -1024 is read as 64512."""
    hu = phantom()
    for path in write_series(tmp_path, hu, intercept=0):
        edit(path, PixelRepresentation=0)
    many = int((hu < 0).sum())
    with pytest.raises(UnsupportedImageError, match=f"{many} of 720 values reach beyond int16.*sign or scale is wrong"):
        read_ct(tmp_path)


def test_padding_becomes_air(tmp_path):
    """A padding value outside the HU scale is set to air; one that may be tissue is kept."""
    hu = phantom()
    hu[0, 0, :] = -3024
    paths = write_series(tmp_path, hu, PixelPaddingValue=-2000)
    volume = read_volume(tmp_path)
    assert set(volume.array[0, 0]) == {-1024}
    assert volume.metadata["warnings"] == ["6 padding voxels were set to -1024 HU"]
    for path in paths:
        edit(path, PixelPaddingValue=1024)  # 0 HU
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_positions_rounded_to_a_tenth_are_even(tmp_path):
    """0.625 mm slices with positions written as 0.6, 1.2, 1.9, ...: off by at most 0.05 mm."""
    paths = write_series(tmp_path, phantom((8, 8, 12)))
    for k, path in enumerate(paths):
        edit(path, ImagePositionPatient=[0, 0, round(0.625 * k, 1)])
    assert read_ct(tmp_path)[1][2, 2] == pytest.approx(0.625, abs=0.01)


def test_identical_copies_are_dropped(tmp_path):
    hu = phantom()
    paths = write_series(tmp_path, hu)
    shutil.copy(paths[1], tmp_path / "copy")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == ["1 duplicate image with one SOPInstanceUID left out"]


def test_localizers_do_not_count(tmp_path):
    hu = phantom()
    uid = generate_uid()
    write_series(tmp_path / "scout", hu[:, :, :2], step=(50, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "ct", hu, uid=uid)
    write_series(tmp_path / "timing", hu[:, :, :1])
    assert read_volume(tmp_path).metadata["series_uid"] == uid


def test_series_without_uids_are_told_apart_by_folder(tmp_path):
    hu = phantom()
    write_series(tmp_path / "a", hu, uid="", SeriesInstanceUID=None, SOPClassUID=None, SOPInstanceUID=None)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == [
        "images have no SeriesInstanceUID: those with the same folder, orientation and size are one series",
        "images have no SOPClassUID; they are CT by their Modality",
    ]
    write_series(tmp_path / "b", hu + 1, uid="", SeriesInstanceUID=None)
    assert [s.uid for s in find_series(tmp_path)] == ["no-uid-1", "no-uid-2"]
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="no-uid-2")[0], hu + 1)


def test_one_of_several_series_by_uid(tmp_path):
    hu = phantom()
    write_series(tmp_path, hu, uid="1.2.3")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(".first"))
    write_series(tmp_path, hu + 7, uid="1.2.4", SeriesDescription="arterial")
    with pytest.raises(AmbiguousSeriesError) as caught:
        read_ct(tmp_path)
    message = str(caught.value)
    for part in (
        '1.2.3 (6 files, 12 x 10, every 2.5 mm, "portal venous")',
        '1.2.4 (6 files, 12 x 10, every 2.5 mm, "arterial")',
        "series_uid",
        "segmentable_series",
        str(tmp_path),
    ):
        assert part in message
    assert "\n" not in message
    assert "DOE" not in message
    np.testing.assert_array_equal(read_ct(tmp_path, series_uid="1.2.4")[0], hu + 7)
    with pytest.raises(InputNotFoundError, match=r"no series 1\.2\.5; there are: 1\.2\.3"):
        read_ct(tmp_path, series_uid="1.2.5")


def _missing_slice(folder):
    write_series(folder, phantom())[3].unlink()


def _uneven(folder):
    paths = write_series(folder, phantom())
    edit(paths[5], ImagePositionPatient=[-100, -50, 20 + 4 * 2.5 + 4])


def _shifted_sideways(folder):
    edit(write_series(folder, phantom())[2], ImagePositionPatient=[-98, -50, 25])


def _two_phases(folder):
    write_series(folder / "1", phantom(), uid="1.2.3")
    write_series(folder / "2", phantom(), uid="1.2.3")


def _change_one(**tags):
    return lambda folder: edit(write_series(folder, phantom())[4], **tags)


def _change_all(**tags):
    return lambda folder: write_series(folder, phantom(), **tags)


def _cut(size):
    def build(folder):
        path = write_series(folder, phantom())[2]
        path.write_bytes(path.read_bytes()[:size])

    return build


def _rgb(folder):
    stored = np.zeros((10, 12, 3), np.uint8)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    for k in range(2):
        save(ct_dataset(folder / str(k), stored, (0, 0, k), "1.2.3", **tags), folder / str(k))


def _enhanced(folder):
    stored = np.zeros((10 * 4, 12), np.int16)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": 4, "Rows": 10}
    save(ct_dataset(folder / "mf", stored, (0, 0, 0), "1.2.3", **tags), folder / "mf")


def _only_text(folder):
    (folder / "notes.txt").write_text("nothing")


def _only_nifti(folder):
    (folder / "ct.nii.gz").write_bytes(b"")


MR = "1.2.840.10008.5.1.4.1.1.4"
REFUSED = {
    "empty folder": (lambda folder: None, InputNotFoundError, ["no DICOM files", "give the folder"]),
    "no DICOM": (_only_text, InputNotFoundError, ["1 other file", "give the folder"]),
    "NIfTI inside": (_only_nifti, InputNotFoundError, ["ct.nii.gz", "give that file"]),
    "MR": (_change_all(SOPClassUID=MR, Modality="MR"), UnsupportedImageError, ["only MR", "folder of a CT scan"]),
    "localizer": (_change_all(ImageType=["A", "B", "LOCALIZER"]), UnsupportedImageError, ["CT localizer"]),
    "secondary capture": (
        _change_all(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"),
        UnsupportedImageError,
        ["CT secondary capture", "folder of a CT scan"],
    ),
    "RGB": (_rgb, UnsupportedImageError, ["RGB", "original CT series"]),
    "multi-frame": (_enhanced, UnsupportedImageError, ["4 frames", "Enhanced CT"]),
    "iodine map": (_change_all(RescaleType="MGML"), UnsupportedImageError, ["MGML", "in HU"]),
    "no rescale": (
        _change_all(RescaleSlope=None, RescaleIntercept=None),
        UnsupportedImageError,
        ["values 24 to ", "subtract 1024"],
    ),
    "missing slice": (
        _missing_slice,
        GeometryError,
        [
            "gap of 5 mm",
            "2.5 mm is usual",
            "1 slice is missing, at [-100, -50, 27.5]",
            "allow_uneven=True",
        ],
    ),
    "uneven": (_uneven, GeometryError, ["gap of 4 mm", "uneven", "allow_uneven=True"]),
    "sideways": (_shifted_sideways, GeometryError, ["2.00 mm off the line", "in one line"]),
    "two phases": (_two_phases, GeometryError, ["coincide with another", "export them separately"]),
    "one slice": (lambda f: write_series(f, phantom()[:, :, :1]), GeometryError, ["single slice", "whole series"]),
    "no position": (_change_one(ImagePositionPatient=None), GeometryError, ["ImagePositionPatient is missing"]),
    "no orientation": (_change_one(ImageOrientationPatient=None), GeometryError, ["ImageOrientationPatient is"]),
    "no spacing": (_change_one(PixelSpacing=None), GeometryError, ["PixelSpacing is missing", "export"]),
    "mixed spacing": (_change_one(PixelSpacing=[0.8, 0.9]), GeometryError, ["[0.8, 0.9]", "[0.8, 0.7]", "separately"]),
    "mixed orientation": (
        _change_one(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        GeometryError,
        ["ImageOrientationPatient", "separately"],
    ),
    "mixed size": (_change_one(Rows=12, Columns=10), GeometryError, ["Rows x Columns [12, 10]", "[10, 12]"]),
    "skewed": (
        _change_all(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]),
        GeometryError,
        ["perpendicular", "0.5", "export"],
    ),
    "zero spacing": (_change_all(PixelSpacing=[0, 0.7]), GeometryError, ["0.7 x 0 x 2.5 mm", "correct"]),
    "truncated pixels": (_cut(-20), UnreadableInputError, ["image", "truncated", "export"]),
    "truncated header": (_cut(300), UnreadableInputError, ["image", "export"]),
    "no pixels": (_change_one(PixelData=None), UnreadableInputError, ["no pixel data", "export"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    build, error, parts = REFUSED[case]
    build(tmp_path)
    with pytest.raises(AttUNet3dError) as caught:
        read_volume(tmp_path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    for part in (str(tmp_path), *parts):
        assert part in message
    assert "\n" not in message


def test_missing_decoder_names_the_extra(tmp_path, monkeypatch):
    for path in write_series(tmp_path, phantom()):
        ds = pydicom.dcmread(path)
        size = struct.pack(">HH8IH3B", 41, 0, 12, 10, 0, 0, 12, 10, 0, 0, 1, 15, 1, 1)  # and no more
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + size + bytes(21)])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        save(ds, path)
    with pytest.raises(UnreadableInputError, match="export the complete series again"):
        read_ct(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnreadableInputError, match=r"JPEG 2000.*pip install 'attunet3d\[dicom\]'"):
        read_ct(tmp_path)


def test_header_scan_only_reads_and_does_not_keep_patient_id_and_name(tmp_path):
    assert [tag for tag in HEADER_TAGS if tag.startswith("Patient")] == ["PatientID", "PatientName"]
    write_series(tmp_path, phantom(), PatientID="4711")
    (hashes,) = {s.patient for s in find_series(tmp_path)[0].slices}
    for found, text in zip(hashes, (b"4711", b"doe jane"), strict=True):
        assert len(found) == 128
        assert found != hashlib.blake2b(text).hexdigest(), "without a key, it could be found by trying"
        assert found not in repr(find_series(tmp_path))


def test_header_scan_reads_each_file_once_and_no_pixels(tmp_path, monkeypatch):
    """Six files of 2 MB: no more than a buffer is read beyond the header."""
    write_series(tmp_path, np.zeros((1024, 1024, 6), np.int16))
    opened, taken = [], []

    class Watched(io.FileIO):
        def readinto(self, buffer):
            taken.append(super().readinto(buffer))
            return taken[-1]

    def watched_open(path, mode, buffering):
        opened.append(path)
        return Watched(path, mode)

    monkeypatch.setattr(dicom_guard, "open", watched_open, raising=False)
    assert len(find_series(tmp_path)[0].slices) == 6
    assert sorted(opened) == sorted(tmp_path.iterdir())
    assert 0 < sum(taken) < 6 * 2**19


@needs_data
def test_lidc_series():
    """133 slices of a real CT; the corner voxel is where the data set's own NIfTI version puts it."""
    folder = DATA / "lidc0001" / "dicom"
    series = choose_series(find_series(folder))
    assert len(series.slices) == 133
    volume = read_volume(folder)
    assert volume.array.shape == (512, 512, 133)
    assert (volume.array.min(), volume.array.max()) == (-2048, 3071)
    np.testing.assert_allclose(volume.affine @ [0, 511, 0, 1], [166, -187.596878, -340, 1], atol=1e-5)


@needs_data
@pytest.mark.parametrize(
    ("folder", "shape", "spacing"),
    [("jpeg2000_no_uids", (512, 512, 20), (0.9765625, 0.9765625, 2)), ("seg", (512, 512, 3), (0.810547, 0.810547, 1))],
)
def test_edge_cases_that_are_read(folder, shape, spacing):
    array, affine = read_ct(DATA / "dicom_edge" / folder)
    assert array.shape == shape
    assert array.min() == -1024
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing)


@needs_data
def test_uneven_series_with_tilt_is_refused():
    with pytest.raises(GeometryError, match=r"4\.22 mm is usual .*1\.14 to 7\.38 mm.*uneven"):
        read_ct(DATA / "dicom_edge" / "ge_gantry_tilt_uneven")
