"""CT and label files: voxels, position in the patient, and refusals with their messages."""

import contextlib
import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import phantom, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImaged

from attunet3d.errors import (
    AttUNet3dError,
    GeometryError,
    InputNotFoundError,
    UnreadableInputError,
    UnsupportedImageError,
)
from attunet3d.io import CTReader, LabelReader, read_ct, read_label, read_volume

# MONAI tells every user of LoadImage that a GPU decoder is absent.
quiet_monai = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")

# LAS, 0.7 x 0.8 x 2.5 mm: exact in float32, as NIfTI stores it.
AFFINE = np.array([[-0.75, 0, 0, 100], [0, 0.5, 0, -50], [0, 0, 2.5, 20], [0, 0, 0, 1]])


def save_nifti(path, array, affine=AFFINE, **header):
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nib.save(nib.Nifti1Image(array, None, image.header), path)  # no affine: nibabel would correct the header to it
    return path


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "CT.NII.GZ", "with space.nii"])
def test_nifti_int16_as_stored(tmp_path, name):
    hu = phantom()
    volume = read_volume(save_nifti(tmp_path / name, hu))
    assert volume.array.dtype == np.int16
    assert volume.array.flags.f_contiguous
    assert volume.array.flags.writeable
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.affine.dtype == np.float64
    assert (volume.metadata["format"], volume.metadata["sform_code"], volume.metadata["qform_code"]) == ("nifti", 1, 0)
    assert volume.metadata["warnings"] == []
    json.dumps(volume.metadata)


@pytest.mark.parametrize("dtype", [">i2", "i4", "i8", "f4", "f8", ">f4"])
def test_nifti_other_types(tmp_path, dtype):
    hu = phantom()
    image = nib.Nifti1Image(hu.astype(dtype), AFFINE, dtype=np.dtype(dtype))
    nib.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(read_ct(tmp_path / "ct.nii.gz")[0], hu)


@pytest.mark.parametrize(("dtype", "slope", "inter"), [(np.uint16, 1, -1024), (np.int16, 0.5, -0.25)])
def test_nifti_scaled(tmp_path, dtype, slope, inter):
    """HU = stored * slope + intercept, rounded to nearest."""
    stored = np.arange(8 * 6 * 4).reshape(8, 6, 4).astype(dtype) * 10 + (0 if dtype == np.uint16 else -900)
    image = nib.Nifti1Image(stored.astype(dtype), AFFINE)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "x.nii")
    # nibabel rescales on saving; put the stored values and the scale there ourselves
    raw = bytearray((tmp_path / "x.nii").read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    raw[352:] = stored.astype(dtype).tobytes(order="F")
    (tmp_path / "x.nii").write_bytes(raw)
    array, _ = read_ct(tmp_path / "x.nii")
    np.testing.assert_array_equal(array, np.rint(stored.astype(float) * slope + inter))


def test_floats_are_rounded_to_nearest_and_clipped_with_a_warning(tmp_path):
    hu = phantom().astype(np.float32)
    hu[5, 5, 1], hu[5, 5, 2], hu[5, 5, 3] = 39.6, -39.6, 1e6
    volume = read_volume(save_nifti(tmp_path / "ct.nii", hu))
    assert volume.array[5, 5, 1:4].tolist() == [40, -40, 32767]
    assert volume.metadata["warnings"] == ["values -1000 to 1e+06 reach beyond int16 and were clipped to -32768..32767"]


def test_integers_beyond_int16_are_clipped(tmp_path):
    hu = phantom().astype(np.int64)
    hu[0, 0, 0] = 10**12
    nib.save(nib.Nifti1Image(hu, AFFINE, dtype="i8"), tmp_path / "ct.nii")
    assert read_ct(tmp_path / "ct.nii")[0][0, 0, 0] == 32767


def test_trailing_dimensions_of_one_are_dropped(tmp_path):
    hu = phantom()
    np.testing.assert_array_equal(read_ct(save_nifti(tmp_path / "ct.nii", hu[..., None, None]))[0], hu)


def test_nifti_without_orientation_is_read_with_a_warning(tmp_path):
    path = save_nifti(tmp_path / "ct.nii", phantom(), sform_code=0)
    volume = read_volume(path)
    assert "no orientation" in volume.metadata["warnings"][0]
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


def test_nifti_with_two_different_orientations_is_read_with_a_warning(tmp_path):
    path = tmp_path / "ct.nii"
    image = nib.Nifti1Image(phantom(), AFFINE)
    image.set_sform(AFFINE, code=1)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    image.set_qform(moved, code=1)
    nib.save(image, path)
    volume = read_volume(path)
    assert volume.metadata["warnings"] == [
        "sform and qform of the NIfTI header disagree by up to 3.00 mm; the sform is used"
    ]
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".MHA"])
def test_itk_formats_are_lps(tmp_path, suffix, compressed):
    """Identity direction and origin (10, 20, 30) in LPS: in RAS the first voxel is at (-10, -20, 30)."""
    hu = phantom()
    image = sitk.GetImageFromArray(np.ascontiguousarray(hu.T))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10, 20, 30))
    sitk.WriteImage(image, str(tmp_path / f"ct{suffix.lower()}"), compressed)
    path = (tmp_path / f"ct{suffix.lower()}").rename(tmp_path / f"ct{suffix}")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.array.flags.f_contiguous
    expected = [[-0.7, 0, 0, -10], [0, -0.8, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, rtol=1e-12)
    assert volume.metadata["warnings"] == []


def test_oblique_nrrd(tmp_path):
    """Index axes X, Y, Z point to S, R and A: in RAS the columns are +z, +x and +y."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(phantom().T))
    image.SetDirection([0, -1, 0, 0, 0, -1, 1, 0, 0])
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    expected = [[0, 2, 0, 0], [0, 0, 3, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(read_ct(tmp_path / "ct.nrrd")[1], expected, atol=1e-12)


def test_nrrd_without_space_is_read_with_a_warning(tmp_path):
    hu = phantom()
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 10 6\nspacings: 1 1 2\nendian: little\nencoding: raw\n\n"
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + hu.tobytes(order="F"))
    volume = read_volume(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(volume.array, hu)
    assert "no space" in volume.metadata["warnings"][0]


def test_series_uid_for_a_file_is_ignored_with_a_warning(tmp_path):
    volume = read_volume(save_nifti(tmp_path / "ct.nii", phantom()), series_uid="1.2.3")
    assert volume.metadata["warnings"] == ["a series was asked for, but ct.nii is not DICOM"]


@pytest.mark.parametrize("low", [-1024, -100])
def test_air_or_fat_is_enough_to_be_a_ct(tmp_path, low):
    hu = np.where(phantom() < -100, low, phantom())
    assert read_ct(save_nifti(tmp_path / "ct.nii", hu))[0].min() == low


def _nifti(array, affine=AFFINE, name="ct.nii.gz", **header):
    return lambda folder: save_nifti(folder / name, array, affine, **header)


def _bytes(name, data):
    def build(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return build


def _cut(name, keep):
    def build(folder):
        path = folder / name
        if ".nii" in name:
            save_nifti(path, phantom())
        else:
            sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(phantom().T)), str(path))
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return build


def _itk(array, name, vector=False):
    def build(folder):
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=vector), str(folder / name))
        return folder / name

    return build


def _flipped_bit(folder):
    """A damaged voxel within intact compression: only the checksum tells."""
    path = save_nifti(folder / "ct.nii", phantom())
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[-6] ^= 1
    (folder / "ct.nii.gz").write_bytes(packed)
    return folder / "ct.nii.gz"


def _huge_header(folder):
    path = save_nifti(folder / "ct.nii.gz", phantom())
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def _one_dicom_file(folder):
    return write_series(folder, phantom())[0]


def _mhd_alone(folder):
    path = _itk(np.ascontiguousarray(phantom().T), "ct.mhd")(folder)
    (folder / "ct.raw").unlink()
    return path


def _sheared_flat(folder):
    flat = AFFINE.copy()
    flat[:3, 1] = -flat[:3, 0]
    return save_nifti(folder / "ct.nii", phantom(), flat)


RGB = np.zeros((12, 10, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SMALL = np.diag([0.01, 1, 1, 1.0])
THICK = np.diag([1, 1, 25, 1.0])
NAN = phantom().astype(np.float32)
NAN[3, 3, 3] = np.nan
INF = np.where(np.isnan(NAN), np.inf, NAN)
NOISE = np.random.default_rng(0).bytes(5000)

REFUSED = {
    "missing": (lambda f: f / "nope.nii", InputNotFoundError, ["nope.nii", "check the path"]),
    "unknown suffix": (_bytes("ct.xyz", NOISE), UnreadableInputError, [".xyz", ".nii.gz", "DICOM folder"]),
    "no suffix": (_bytes("ct", NOISE), UnreadableInputError, ["without suffix"]),
    "numpy": (_bytes("ct.npy", NOISE), UnreadableInputError, [".npy"]),
    "one DICOM file": (_one_dicom_file, UnsupportedImageError, ["single DICOM file", "give the folder"]),
    "empty nii": (_bytes("ct.nii", b""), UnreadableInputError, ["copy or export"]),
    "empty nii.gz": (_bytes("ct.nii.gz", b""), UnreadableInputError, ["copy or export"]),
    "random nii": (_bytes("ct.nii", NOISE), UnreadableInputError, ["copy or export"]),
    "random nii.gz": (_bytes("ct.nii.gz", NOISE), UnreadableInputError, ["copy or export"]),
    "random gzip": (_bytes("ct.nii.gz", gzip.compress(NOISE)), UnreadableInputError, ["copy or export"]),
    "random mha": (_bytes("ct.mha", NOISE), UnreadableInputError, ["copy or export"]),
    "random nrrd": (_bytes("ct.nrrd", NOISE), UnreadableInputError, ["copy or export"]),
    "cut nii": (_cut("ct.nii", 0.7), UnreadableInputError, ["truncated", "where the header promises"]),
    "cut nii header": (_cut("ct.nii", 0.1), UnreadableInputError, ["copy or export"]),
    "cut nii.gz": (_cut("ct.nii.gz", 0.7), UnreadableInputError, ["truncated", "copy or export"]),
    "cut nii.gz trailer": (_cut("ct.nii.gz", 0.998), UnreadableInputError, ["truncated", "copy or export"]),
    "cut mha": (_cut("ct.mha", 0.7), UnreadableInputError, ["truncated", "copy or export"]),
    "cut nrrd": (_cut("ct.nrrd", 0.7), UnreadableInputError, ["truncated", "copy or export"]),
    "flipped bit": (_flipped_bit, UnreadableInputError, ["CRC", "copy or export"]),
    "huge header": (_huge_header, UnreadableInputError, ["54000000000352", "copy or export"]),
    "mhd without raw": (_mhd_alone, UnreadableInputError, ["data file that ct.mhd names"]),
    "4D": (_nifti(np.zeros((4, 5, 6, 3), np.int16)), UnsupportedImageError, ["(4, 5, 6, 3)", "extract one volume"]),
    "2D": (_nifti(np.zeros((8, 9), np.int16)), UnsupportedImageError, ["2D", "(8, 9)", "whole scan"]),
    "single slice": (_nifti(phantom()[:, :, :1]), UnsupportedImageError, ["(12, 10, 1)", "at least 2"]),
    "RGB": (_nifti(RGB), UnsupportedImageError, ["colour", "one real value"]),
    "complex": (_nifti(np.zeros((4, 5, 6), np.complex64)), UnsupportedImageError, ["complex", "one real value"]),
    "vector nrrd": (_itk(np.zeros((6, 5, 4, 3), np.float32), "v.nrrd", True), UnsupportedImageError, ["3 values"]),
    "vector mha": (_itk(np.zeros((6, 5, 4, 3), np.int16), "v.mha", True), UnsupportedImageError, ["3 values"]),
    "2D mha": (_itk(np.zeros((5, 4), np.int16), "v.mha"), UnsupportedImageError, ["(4, 5)", "whole scan"]),
    "4D nrrd": (_itk(np.zeros((2, 6, 5, 4), np.int16), "v.nrrd"), UnsupportedImageError, ["4D", "extract one volume"]),
    "NaN": (_nifti(NAN), UnsupportedImageError, ["1 NaN or infinite voxels in slice 3", "-1024"]),
    "infinite": (_nifti(INF), UnsupportedImageError, ["1 NaN or infinite voxels in slice 3"]),
    "mask": (_nifti((phantom() > 0).astype(np.uint8)), UnsupportedImageError, ["0 to 1", "HU", "mask"]),
    "all zero": (_nifti(np.zeros((4, 5, 6), np.int16)), UnsupportedImageError, ["0 to 0", "HU"]),
    "8-bit": (_nifti(np.arange(240).reshape(6, 8, 5).astype(np.uint8)), UnsupportedImageError, ["0 to 239", "8-bit"]),
    "HU + 1024": (_nifti(phantom() + np.int16(1024)), UnsupportedImageError, ["24 to 1223", "subtract 1024"]),
    "normalised": (_nifti(np.clip(phantom() / 100, -1, 1)), UnsupportedImageError, ["-1 to 1", "without normal"]),
    "only air": (_nifti(np.full((4, 5, 6), -1000, np.int16)), UnsupportedImageError, ["-1000 to -1000", "HU"]),
    "metres": (_nifti(phantom(), xyzt_units=1), GeometryError, ["lengths in metres", "in mm"]),
    "microns": (_nifti(phantom(), xyzt_units=3), GeometryError, ["lengths in microns", "in mm"]),
    "tiny voxels": (_nifti(phantom(), SMALL), GeometryError, ["0.01 x 1 x 1 mm", "correct the spacing"]),
    "thick slices": (_nifti(phantom(), THICK), GeometryError, ["1 x 1 x 25 mm", "correct the spacing"]),
    "zero spacing": (_nifti(phantom(), srow_x=[0, 0, 0, 0]), GeometryError, ["0 x 0.5", "correct the spacing"]),
    "singular": (_sheared_flat, GeometryError, ["singular", "correct the orientation"]),
    "NaN affine": (_nifti(phantom(), srow_x=[np.nan, 0, 0, 0]), GeometryError, ["non-finite", "valid header"]),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:.*is.deprecated")
def test_refused(tmp_path, case):
    build, error, parts = REFUSED[case]
    path = build(tmp_path)
    with pytest.raises(AttUNet3dError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    for part in (str(path), *parts):
        assert part in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.dcm", "ct.ima", "ct", "ct.nrrd", "ct.mha", "ct.txt"])
@pytest.mark.parametrize("held", ["plain.nii", "packed.nii.gz", "other.nrrd", "other.mha"])
def test_files_are_read_by_their_content(tmp_path, name, held):
    """Whatever its name: gzipped or not, and with another format's suffix."""
    path = save_nifti(tmp_path / "plain.nii", phantom())
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    for other in ("other.nrrd", "other.mha"):
        image = sitk.GetImageFromArray(np.ascontiguousarray(phantom().T))
        image.SetSpacing((0.5, 0.5, 2.0))
        sitk.WriteImage(image, str(tmp_path / other))
    (tmp_path / held).rename(tmp_path / name)
    found = read_volume(tmp_path / name)
    np.testing.assert_array_equal(found.array, phantom())
    kind = {"plain.nii": "nifti", "packed.nii.gz": "nifti", "other.nrrd": "nrrd", "other.mha": "metaimage"}[held]
    assert found.metadata["format"] == kind
    suffixes = {"nifti": (".nii", ".gz"), "nrrd": (".nrrd",), "metaimage": (".mha",)}[kind]
    told = any("by its content, but not by its name" in text for text in found.metadata["warnings"])
    assert told != name.endswith(suffixes)


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.dcm"])
def test_gzip_with_truncated_or_other_content(tmp_path, name):
    packed = gzip.compress(save_nifti(tmp_path / "whole.nii", phantom()).read_bytes())
    (tmp_path / name).write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(UnreadableInputError, match=r"truncated or damaged.*copy or export the file again"):
        read_volume(tmp_path / name)
    (tmp_path / name).write_bytes(write_series(tmp_path / "series", phantom())[0].read_bytes())
    with pytest.raises(UnsupportedImageError, match="a single DICOM file; give the folder"):
        read_volume(tmp_path / name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["nifti", "dicom"]),
    changes=st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_headers_raise_typed_errors_only(tmp_path, kind, changes):
    """Whatever a few wrong bytes do: a volume, or an error that says what to do. Never a traceback or a warning."""
    if kind == "nifti":
        path = victim = save_nifti(tmp_path / "ct.nii", phantom())
        changes = [(position % 348, value) for position, value in changes]
    else:
        path, victim = tmp_path / "scan", write_series(tmp_path / "scan", phantom()[:, :, :3], uid="1.2.3")[1]
    data = bytearray(victim.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    victim.write_bytes(data)
    with contextlib.suppress(AttUNet3dError):
        assert read_volume(path).array.dtype == np.int16


def test_labels_of_any_number_type(tmp_path):
    labels = np.arange(8 * 6 * 4).reshape(8, 6, 4)
    for dtype in (np.uint8, np.int32, np.float32):
        nib.save(nib.Nifti1Image(labels.astype(dtype), AFFINE), tmp_path / "y.nii.gz")
        array, affine = read_label(tmp_path / "y.nii.gz")
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, labels)
        np.testing.assert_array_equal(affine, AFFINE)
    sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.uint8).T), str(tmp_path / "y.nrrd"))
    np.testing.assert_array_equal(read_label(tmp_path / "y.nrrd")[0], labels)


@pytest.mark.parametrize(
    ("value", "parts"), [(0.5, ["value 0.5", "nearest"]), (-1, ["-1 to", "0 to 255"]), (256, ["256", "0 to 255"])]
)
def test_labels_refused(tmp_path, value, parts):
    labels = np.zeros((5, 5, 5), np.float32)
    labels[2, 2, 2] = value
    path = save_nifti(tmp_path / "y.nii.gz", labels)
    with pytest.raises(UnsupportedImageError) as caught:
        read_label(path)
    assert all(part in str(caught.value) for part in (str(path), "slice 2", *parts))


def test_label_folder_refused(tmp_path):
    with pytest.raises(UnsupportedImageError, match="a folder; labels are read from a NIfTI"):
        read_label(tmp_path)


@quiet_monai
@pytest.mark.parametrize("reader", [CTReader, "attunet3d.io.CTReader"])
def test_monai_loads_a_file_and_a_folder(tmp_path, reader):
    hu = phantom()
    (tmp_path / "scan").mkdir()
    file = save_nifti(tmp_path / "ct.nii.gz", hu)
    write_series(tmp_path / "scan", hu)
    load = LoadImaged(keys=["image"], reader=reader, ensure_channel_first=True, dtype=None)
    for path, name in ((str(file), str(file)), (f"{tmp_path}/scan/", str(tmp_path / "scan"))):
        image = load({"image": path})["image"]
        assert isinstance(image, MetaTensor)
        assert image.numpy().dtype == np.int16
        np.testing.assert_array_equal(image.numpy()[0], hu)
        np.testing.assert_array_equal(image.affine, read_ct(path)[1])
        np.testing.assert_array_equal(image.meta["original_affine"], read_ct(path)[1])
        assert image.meta["filename_or_obj"] == name
        assert image.meta["space"] == "RAS"
        assert json.loads(image.meta["source"]) == read_volume(path).metadata


@quiet_monai
def test_monai_batches_of_different_formats(tmp_path):
    """The metadata of different formats are collated and decollated."""
    hu = phantom()
    write_series(tmp_path / "scan", hu)
    cases = [{"image": str(save_nifti(tmp_path / "ct.nii", hu))}, {"image": str(tmp_path / "scan")}]
    data = Dataset(cases, LoadImaged(keys="image", reader=CTReader, ensure_channel_first=True))
    (batch,) = DataLoader(data, batch_size=2)
    first, second = decollate_batch(batch)
    assert json.loads(first["image"].meta["source"])["format"] == "nifti"
    assert json.loads(second["image"].meta["source"])["format"] == "dicom"


@quiet_monai
def test_monai_passes_our_errors_on(tmp_path):
    """LoadImage would fall back on readers that accept a mask as a CT; Compose chains the error as its cause."""
    path = str(save_nifti(tmp_path / "mask.nii", np.zeros((4, 5, 6), np.uint8)))
    load = LoadImaged(keys="image", reader=CTReader)
    with pytest.raises(UnsupportedImageError, match="not a CT in HU"):
        load({"image": path})
    with pytest.raises(RuntimeError) as caught:
        Compose([load])({"image": path})
    assert isinstance(caught.value.__cause__, UnsupportedImageError)
    with pytest.raises(UnsupportedImageError, match="one of 2 files"):
        load({"image": [path, path]})


@quiet_monai
def test_monai_series_and_labels(tmp_path):
    hu = phantom()
    write_series(tmp_path / "a", hu, uid="1.2.3")
    write_series(tmp_path / "b", hu + 1, uid="1.2.4")
    image = LoadImaged(keys="image", reader=CTReader(series_uid="1.2.4"), dtype=None)({"image": str(tmp_path)})["image"]
    np.testing.assert_array_equal(image.numpy(), hu + 1)
    labels = save_nifti(tmp_path / "y.nii", np.ones((4, 5, 6), np.float32))
    label = LoadImaged(keys="label", reader=LabelReader, dtype=None)({"label": str(labels)})["label"]
    assert label.numpy().dtype == np.uint8
    np.testing.assert_array_equal(label.affine, AFFINE)


@needs_data
def test_real_ct_and_its_label_share_a_grid():
    hu, affine = read_ct(DATA / "ts_example_3mm" / "ct.nii.gz")
    labels, label_affine = read_label(DATA / "ts_example_3mm" / "pancreas.nii.gz")
    assert hu.shape == labels.shape == (122, 101, 112)
    np.testing.assert_allclose(affine, label_affine, atol=1e-4)
    assert labels.sum() == 818
    assert -30 < hu[labels == 1].mean() < 80  # no contrast, and fat between the lobules


@needs_data
def test_real_dicom_and_label_share_a_grid():
    """TotalSegmentator's pancreas (7) on the LIDC CT is stored with y reversed against the DICOM rows."""
    hu, affine = read_ct(DATA / "lidc0001" / "dicom")
    labels, label_affine = read_label(DATA / "lidc0001" / "totalsegmentator_organs.nii.gz")
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = hu.shape[1] - 1
    np.testing.assert_allclose(affine @ flip, label_affine, atol=1e-5)
    pancreas = hu[:, ::-1][labels == 7]
    assert pancreas.size == 47862
    assert 40 < pancreas.mean() < 140
