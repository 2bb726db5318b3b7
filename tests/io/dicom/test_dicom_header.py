"""Fields of a header, whatever the encoding of its numbers and texts."""

import struct

import numpy as np
import pydicom
import pytest
from dicom_files import phantom, raw_elements, write_series
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from attunet3d.io.dicom.header import SliceHeader, read_headers

SYNTAXES = {
    ImplicitVRLittleEndian: (True, True),
    ExplicitVRLittleEndian: (False, True),
    ExplicitVRBigEndian: (False, False),
}


def header(path) -> SliceHeader:
    (found,) = read_headers(path)
    return found


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_numbers_and_texts_in_each_transfer_syntax(tmp_path, syntax):
    path, *_ = write_series(
        tmp_path, phantom()[:, :, :1], SeriesNumber=7, KVP=120.5, AcquisitionTime="101112.25", ImageType=["A", "B C"]
    )
    ds = pydicom.dcmread(path)
    ds.PixelData = b""
    ds.file_meta.TransferSyntaxUID = syntax
    implicit, little = SYNTAXES[syntax]
    if int(pydicom.__version__.split(".")[0]) < 3:
        ds.is_implicit_VR, ds.is_little_endian = implicit, little
        dcmwrite(path, ds, write_like_original=True)
    else:
        for element in ds:
            element.value  # noqa: B018  (decoded before its bytes change their order)
        dcmwrite(path, ds, implicit_vr=implicit, little_endian=little)
    found = header(path)
    assert (found.rows, found.columns, found.samples, found.frames) == (10, 12, 1, 1)
    assert found.spacing == (0.8, 0.7)
    assert found.position == (-100, -50, 20)
    assert found.rescale == (1, -1024)
    assert found.image_type == ("A", "B C")
    assert (found.modality, found.description) == ("CT", "portal venous")
    assert {120.5, 101112.25, 7.0} <= set(found.marks)


@pytest.mark.skipif(pydicom.__version__ < "3", reason="pydicom 2 does not decode these bytes")
def test_other_scripts_are_decoded(tmp_path):
    """ISO 2022 writes Japanese in bytes that are all ASCII, between escapes."""
    path, *_ = write_series(tmp_path, phantom()[:, :, :1])
    raw_elements(
        path,
        {
            "SpecificCharacterSet": b"ISO 2022 IR 6\\ISO 2022 IR 87",
            "SeriesDescription": "腹部".encode("iso2022_jp"),
        },
    )
    assert header(path).description == "腹部"
    raw_elements(path, {"SpecificCharacterSet": b"ISO_IR 192", "SeriesDescription": "Größe".encode()})
    assert header(path).description == "Größe"


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"Rows": struct.pack("<H", 300)}, 300),
        ({"Rows": ("IS", b"300 ")}, 300),
        ({"Rows": ("UL", struct.pack("<L", 70000))}, 70000),
        ({"Rows": b""}, 0),
        ({"Rows": None}, 0),
    ],
    ids=["US", "IS", "UL", "empty", "missing"],
)
def test_rows_in_other_encodings(tmp_path, values, rows):
    path, *_ = write_series(tmp_path, phantom()[:, :, :1])
    raw_elements(path, values)
    assert header(path).rows == rows


def test_invalid_numbers(tmp_path):
    path, *_ = write_series(tmp_path, np.zeros((4, 4, 1), np.int16))
    for text in (b"1,5\\1", b"\\1", b"nan\\1", b"1e12\\1", b"1\\1\\1", b""):
        raw_elements(path, {"PixelSpacing": text})
        assert header(path).spacing is None, text
    raw_elements(path, {"PixelSpacing": b" 1.5 \\2\0"})
    assert header(path).spacing == (1.5, 2)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_unusual_padding_and_long_numbers(tmp_path):
    path, *_ = write_series(tmp_path, phantom()[:, :, :1])
    usual = header(path)
    raw_elements(path, {"SOPClassUID": b" " + usual.sop_class.encode(), "SeriesInstanceUID": b" 1.2.3"})
    raw_elements(path, {"ImagePositionPatient": b"1\0\\2 \\ 3", "ConvolutionKernel": b"I30f \\3"})
    found = header(path)
    assert (found.sop_class, found.series_uid, found.position) == (usual.sop_class, "1.2.3", (1, 2, 3))
    assert "I30f\\3" in found.marks
    for text, frames in ((b"1.0", 1), (b"1e0", 1), (b"0", 1), (b"2", 2)):
        raw_elements(path, {"NumberOfFrames": text})
        assert header(path).frames == frames, text
    raw_elements(path, {"NumberOfFrames": b"1", "Rows": ("DS", b"300.0")})
    assert header(path).rows == 300


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_multi_valued_id_is_one_patient_whatever_its_padding(tmp_path):
    path, *_ = write_series(tmp_path, phantom()[:, :, :1])
    found = set()
    for text in (b"A\\B", b"A \\B "):
        raw_elements(path, {"PatientID": text})
        found.add(header(path).patient)
    assert len(found) == 1
