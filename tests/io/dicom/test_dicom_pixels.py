"""Stored pixels to HU: every transfer syntax, position of the stored bits, rescale of each image, padding."""

import shutil
import struct

import numpy as np
import pydicom
import pytest
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import ct_dataset, edit, item, phantom, save, write_enhanced, write_series
from pydicom import encaps
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from attunet3d.errors import UnreadableInputError, UnsupportedImageError
from attunet3d.io import read_ct, read_volume
from attunet3d.io.dicom import pixels as dicom_pixels

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
pydicom_3 = pytest.mark.skipif(int(pydicom.__version__.split(".")[0]) < 3, reason="pydicom 2 cannot write these files")


@pydicom_3
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("syntax", [*NATIVE, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_lossless_transfer_syntaxes_written_here(tmp_path, syntax, dtype):
    hu = phantom((40, 36, 3))
    for path in write_series(tmp_path, hu, dtype=dtype):
        ds = pydicom.dcmread(path)
        if syntax in (RLELossless, JPEG2000Lossless):
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            ds.PixelData = ds.pixel_array.astype(ds.pixel_array.dtype.newbyteorder(">")).tobytes()
            ds["PixelData"].VR = "OW"
        ds.file_meta.TransferSyntaxUID = syntax
        fresh = pydicom.Dataset()
        fresh.update(ds)
        fresh.file_meta = ds.file_meta
        pydicom.dcmwrite(
            path,
            fresh,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
            enforce_file_format=True,
        )
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


@pydicom_3
def test_only_the_codestream_of_a_jp2_file_is_decoded(tmp_path, monkeypatch):
    """Without its boxes, with which the decoder would run other code."""
    hu = phantom((40, 36, 2))
    decoded = []
    decode = dicom_pixels._frames

    def watched(ds, images):
        decoded.extend(encaps.generate_frames(ds.PixelData, number_of_frames=1))
        return decode(ds, images)

    monkeypatch.setattr(dicom_pixels, "_frames", watched)
    for path in write_series(tmp_path, hu):
        ds = pydicom.dcmread(path)
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        (stream,) = encaps.generate_frames(ds.PixelData, number_of_frames=1)
        image = struct.pack(">IIHBBBB", 36, 40, 1, 15 | 0x80, 7, 0, 0)
        boxes = _box(b"jP  ", b"\r\n\x87\n") + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
        boxes += _box(b"jp2h", _box(b"ihdr", image) + _box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17)))
        ds.PixelData = encaps.encapsulate([boxes + _box(b"jp2c", stream)])
        ds.save_as(path)
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)
    assert len(decoded) == 2
    assert all(frame.startswith(b"\xff\x4f\xff\x51") for frame in decoded)


def _box(kind, content):
    return struct.pack(">I", 8 + len(content)) + kind + content


# Of one slice. The bounds of lossy ones, HU, largest and mean: JPEG-LS promises one stored value (its NEAR parameter);
# the JPEG processes store steps of 2 HU in 12 bits, and of 32 HU in 8 bits, and round frequencies on top; JPEG 2000 as
# compressed here.
LOSSLESS = ["", "1.2", "1.2.1", "1.2.1.99", "1.2.2", "1.2.4.57", "1.2.4.70", "1.2.4.80", "1.2.4.90", "1.2.5"]
LOSSY = {
    "1.2.4.50": (80, 32),
    "1.2.4.51": (40, 4),
    "1.2.4.53": (40, 4),
    "1.2.4.55": (40, 4),
    "1.2.4.81": (1, 1),
    "1.2.4.91": (6, 1),
}


def _real_slice(folder, end, **tags):
    """The slice in a transfer syntax, twice, to make a volume."""
    (path,) = (DATA / "dicom_edge" / "transfer_syntaxes").glob(f"CTImage.dcm_*_1.2.840.10008.{end}.dcm" if end else end)
    folder.mkdir()
    for k in range(2):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient = [-161.4, -148.8, 4.7 + k]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.save_as(folder / f"{k}.dcm")
    return read_ct(folder)[0].astype(int)


@needs_data
@pytest.mark.parametrize("end", [*LOSSLESS[1:], *LOSSY])
def test_real_transfer_syntaxes(tmp_path, end):
    plain = pydicom.dcmread(DATA / "dicom_edge" / "transfer_syntaxes" / "CTImage.dcm").pixel_array.T.astype(int) - 1024
    found = _real_slice(tmp_path / "scan", end)
    for k in range(2):
        apart = np.abs(found[:, :, k] - plain)
        most, mean = LOSSY.get(end, (0, 0))
        assert apart.max() <= most
        assert apart.mean() <= mean
        assert mean == 0 or apart.max() > 0, "this file was taken to be lossy"


@needs_data
@pytest.mark.parametrize("name", ["CT1_J2KR", "CT2_J2KR"])
def test_real_jpeg_2000_with_rescale(tmp_path, name):
    """The companion files hold the same pixels as decoded by pydicom; the rescale is that of the header."""
    path = DATA / "dicom_edge" / "transfer_syntaxes" / name
    for k in range(2):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient, ds.SOPInstanceUID = [0, 0, k], generate_uid()
        ds.save_as(tmp_path / f"{k}.dcm")
    stored = ds.pixel_array.astype(float)
    padding = stored == ds.get("PixelPaddingValue", np.inf)
    hu = np.where(padding & (stored < -1024), -1024, stored * ds.RescaleSlope + ds.RescaleIntercept)
    np.testing.assert_array_equal(read_ct(tmp_path)[0][:, :, 0], hu.T)


@needs_data
@pytest.mark.parametrize(("name", "kind"), [("no-pixel-data", "structured report"), ("no-pixel-spacing", "US")])
def test_real_files_that_are_no_ct(tmp_path, name, kind):
    shutil.copy(DATA / "dicom_edge" / "transfer_syntaxes" / f"{name}.dcm", tmp_path)
    with pytest.raises(UnsupportedImageError, match=f"no CT image series, only {kind}; give the folder of a CT scan"):
        read_ct(tmp_path)


def _stored(folder, words, tags):
    """A volume with these words in each row."""
    stored = np.tile(np.array(words).astype(np.uint16), (2, 1))
    for k in range(2):
        named = {name: value for name, value in tags.items() if isinstance(name, str)}
        ds = ct_dataset(folder / str(k), stored, (0, 0, k), "1.2.3", **named)
        for number in tags.keys() - named.keys():
            ds.add_new(number, *tags[number])
        save(ds, folder / str(k))
    return read_volume(folder)


TWELVE = {"BitsStored": 12, "HighBit": 11}
UP_TO_15 = {"BitsStored": 12, "HighBit": 15}
# Words of 16 bits that mean -1000 and 40 HU. In 12 bits -1000 is 0xC18, and 40 is 0x028; with an intercept of -1024
# they are stored as 24 and 1064, 0x018 and 0x428.
SIGNED = {"PixelRepresentation": 1, "RescaleIntercept": 0}
UNSIGNED = {"PixelRepresentation": 0, "RescaleIntercept": -1024}
OVERLAY = {0x60000100: ("US", 16), 0x60000102: ("US", 15)}  # bits allocated, and its own one
MINUS_1000_AND_40 = {
    "16 bits signed": ([0xFC18, 0x0028], SIGNED),
    "16 bits unsigned": ([0x0018, 0x0428], UNSIGNED),
    "12 bits unsigned": ([0x0018, 0x0428], TWELVE | UNSIGNED),
    "12 bits signed, the sign repeated above": ([0xFC18, 0x0028], TWELVE | SIGNED),
    "12 bits signed, zeros above": ([0x0C18, 0x0028], TWELVE | SIGNED),
    "upper 12 bits unsigned": ([0x0180, 0x4280], UP_TO_15 | UNSIGNED),
    "upper 12 bits signed": ([0xC180, 0x0280], UP_TO_15 | SIGNED),
    "an overlay above": ([0x8018, 0x0428], TWELVE | UNSIGNED | OVERLAY),
}


@pytest.mark.parametrize("case", MINUS_1000_AND_40)
def test_stored_bits(tmp_path, case):
    words, tags = MINUS_1000_AND_40[case]
    volume = _stored(tmp_path, words, tags)
    assert volume.array[:, 0, 0].tolist() == [-1000, 40]
    assert volume.metadata["warnings"] == []


@pytest.mark.parametrize("padding", [("SS", -2000), ("US", 63536)])
@pytest.mark.parametrize("tags", [SIGNED, UNSIGNED, TWELVE | UNSIGNED, TWELVE | SIGNED])
def test_padding_whatever_its_sign_and_bits(tmp_path, tags, padding):
    """-2000 and 63536 are one word, 0xF830; it needs more than 12 bits unsigned, and is 0x830 in 12 bits signed."""
    water = -tags["RescaleIntercept"]
    volume = _stored(tmp_path, [0xF830, water], tags | {0x00280120: padding})
    assert volume.array[:, 0, 0].tolist() == [-1024, 0]
    assert volume.metadata["warnings"] == ["4 padding voxels were set to -1024 HU"]


def test_padding_range(tmp_path):
    """From -2000 to -1900, whichever end is given first; -1800 is not padding."""
    for ends in ((-2000, -1900), (-1900, -2000)):
        tags = {"PixelPaddingValue": ends[0], "PixelPaddingRangeLimit": ends[1]}
        words = np.array([-2000, -1950, -1800, 40], np.int16)
        assert _stored(tmp_path, words, SIGNED | tags).array[:, 0, 0].tolist() == [-1024, -1024, -1800, 40]


BEYOND = {
    "unsigned": ([0x1018, 0x0428], TWELVE | UNSIGNED),
    "signed": ([0x1C18, 0x0028], TWELVE | SIGNED),
    "below": ([0x0181, 0x4280], UP_TO_15 | UNSIGNED),
    "3096 beside -1000": ([0xFC18, 0x0C18], TWELVE | SIGNED),
}


@pytest.mark.parametrize("case", BEYOND)
def test_values_beyond_the_stored_bits_are_refused(tmp_path, case):
    """Truncated to BitsStored they would be wrong; "3096 beside -1000" shows that zeros above mean positive values."""
    words, tags = BEYOND[case]
    with pytest.raises(UnsupportedImageError, match=r"2 stored values need more than the 12 bits .* export"):
        _stored(tmp_path, words, tags)


@pytest.mark.parametrize(
    "tags", [{"BitsStored": 17}, {"BitsStored": 0}, {"HighBit": 16}, {"BitsStored": 12, "HighBit": 5}]
)
def test_impossible_bits_are_refused(tmp_path, tags):
    with pytest.raises(UnreadableInputError, match=r"bits stored, up to bit .* of 16, are impossible; export"):
        _stored(tmp_path, [0, 1064], UNSIGNED | tags)


def test_frames_have_rescales_of_their_own(tmp_path):
    hu = phantom()
    write_enhanced(tmp_path / "ct", hu, intercepts=[-1024, -1000, 0, 24, -1024, 5])
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_no_rescale_is_said(tmp_path):
    hu = phantom()
    write_series(tmp_path, hu, intercept=0, RescaleSlope=None, RescaleIntercept=None)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.metadata["warnings"] == [
        "the images give no rescale slope and intercept; stored values are taken as HU"
    ]


def test_lossy_images_are_read_with_a_warning(tmp_path):
    write_series(tmp_path, phantom(), LossyImageCompression="01")
    assert read_volume(tmp_path).metadata["warnings"] == ["the images were compressed lossily"]


def test_modality_table_is_refused(tmp_path):
    table = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="HU")
    with pytest.raises(UnsupportedImageError, match=r"ModalityLUTSequence.*rescale to HU"):
        _stored(tmp_path, [0, 1064], {"ModalityLUTSequence": table})


def test_rescale_in_some_slices_only_is_refused(tmp_path):
    edit(write_series(tmp_path, phantom())[2], RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(UnsupportedImageError, match="only some images of the series give rescale slope and intercept"):
        read_ct(tmp_path)


@pytest.mark.parametrize(
    "tags", [{"RescaleSlope": None}, {"RescaleIntercept": None}, {"RescaleSlope": 0}, {"RescaleSlope": -1}]
)
def test_broken_rescale_is_refused(tmp_path, tags):
    write_series(tmp_path, phantom(), **tags)
    with pytest.raises(UnsupportedImageError, match=r"rescale slope and intercept \[.*\] are incomplete or invalid"):
        read_ct(tmp_path)


@pytest.mark.parametrize(("extra", "said"), [(200, "440 bytes"), (2, "242 bytes"), (-2, "truncated, 238 bytes")])
def test_native_pixels_are_as_many_as_promised(tmp_path, extra, said):
    """More bytes than claimed, and it is unknown which are extra: the image may be shifted."""
    path = write_series(tmp_path, phantom())[3]
    data = pydicom.dcmread(path).PixelData
    edit(path, PixelData=bytes(extra) + data if extra > 0 else data[:extra])
    with pytest.raises(UnreadableInputError, match=f"{said} of pixels where the header promises 240"):
        read_ct(tmp_path)


def test_modified_hu_are_read_with_a_warning(tmp_path):
    hu = phantom()
    write_series(tmp_path, hu, RescaleType="HU_MOD")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert "modified HU" in volume.metadata["warnings"][0]
