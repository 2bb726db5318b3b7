"""DICOM files that claim more data than they hold are refused before they are inflated or decoded."""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import SHARED_DATA as DATA
from conftest import needs_data
from dicom_files import edit, phantom, save, write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from traced import traced

from attunet3d.errors import UnreadableInputError, UnsupportedImageError
from attunet3d.io import read_ct
from attunet3d.io.dicom import guard as dicom_guard
from attunet3d.io.dicom.find import find_series
from attunet3d.io.dicom.geometry import open_series

# JPEG's start of image; start of frame with bits, rows, columns, samples; start of scan, and nothing more.
JPEG = b"\xff\xd8" + struct.pack(">HHBHHB3s", 0xFFC0, 11, 8, 10, 12, 1, b"\1\x11\0") + b"\xff\xda\0\x08" + bytes(20)
# JPEG 2000's start of codestream; then size: columns, rows, offsets, tiles, components of 16 bits, not subsampled.
JPEG_2000 = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH3B", 41, 0, 12, 10, 0, 0, 12, 10, 0, 0, 1, 15, 1, 1) + bytes(20)


def _deflate(path: Path, extra: bytes = b"") -> None:
    """Deflate the data set as in transfer syntax 1.2.840.10008.1.2.1.99 , with trailing bytes."""
    ds = pydicom.dcmread(path)
    plain = path.read_bytes()
    at = plain.index(b"\x08\0\x08\0CS")  # ImageType, the first element after the file's meta information
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(plain[at:] + extra) + packer.flush()
    head = pydicom.filebase.DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(head, ds.file_meta)
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + packed)


def _encapsulate(path: Path, syntax: str, frames: list[bytes], **tags: object) -> None:
    ds = pydicom.dcmread(path)
    ds.PixelData = pydicom.encaps.encapsulate(frames)
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = syntax
    for name, value in tags.items():
        setattr(ds, name, value)
    save(ds, path)


def test_deflated_series_is_read(tmp_path: Path) -> None:
    hu = phantom()
    for path in write_series(tmp_path, hu):
        _deflate(path)
    np.testing.assert_array_equal(read_ct(tmp_path)[0], hu)


def test_deflated_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slice of 64 KB that inflates to 64 MiB, where 1 MiB is the limit: neither scan nor decoder uses more."""
    monkeypatch.setattr(dicom_guard, "MAX_INFLATED_BYTES", 2**20)
    paths = write_series(tmp_path, phantom())
    # An element of 64 MiB after the pixels, in a private group.
    _deflate(paths[2], struct.pack("<HH2sHI", 0x7FE1, 0x1001, b"OB", 0, 2**26) + bytes(2**26))
    assert paths[2].stat().st_size < 10**5

    def refused() -> None:
        with pytest.raises(UnreadableInputError, match="more than 1 MiB"):
            dicom_guard.dcmread(paths[2])
        with pytest.raises(UnreadableInputError, match=f"{paths[2].name}.*damaged"):
            read_ct(tmp_path)

    assert traced(refused)[1] < 2**24


@pytest.mark.parametrize(("rows", "columns"), [(20000, 12), (10, 8193), (65535, 65535)])
def test_more_rows_or_columns_than_any_ct(tmp_path: Path, rows: int, columns: int) -> None:
    write_series(tmp_path, phantom(), Rows=rows, Columns=columns)
    with pytest.raises(UnsupportedImageError, match=rf"Rows x Columns {rows} x {columns}; a CT has 1 to 8192"):
        open_series(find_series(tmp_path)[0])


def _patched(data: bytes, at: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return data[:at] + struct.pack(form, value) + data[at + size :]


CONTRADICTIONS = {
    "JPEG rows": (JPEGBaseline8Bit, _patched(JPEG, 7, ">H", 60000), "60000 x 12"),
    "JPEG columns": (JPEGBaseline8Bit, _patched(JPEG, 9, ">H", 60000), "10 x 60000"),
    "JPEG samples": (JPEGBaseline8Bit, _patched(JPEG, 11, ">B", 3), "3 samples"),
    "JPEG bits": (JPEGBaseline8Bit, _patched(JPEG, 6, ">B", 24), "24 bits"),
    "JPEG twice": (JPEGBaseline8Bit, JPEG[:15] + JPEG[2:], "no image size"),
    "JPEG without": (JPEGBaseline8Bit, b"\xff\xd8\xff\xda" + bytes(30), "no image size"),
    "no JPEG": (JPEGBaseline8Bit, bytes(30), "no image size"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", _patched(_patched(JPEG, 2, ">H", 0xFFF7), 7, ">H", 9), "9 x 12"),
    "JPEG 2000 columns": (JPEG2000Lossless, _patched(JPEG_2000, 8, ">I", 2**30), "10 x 1073741824"),
    "JPEG 2000 rows": (JPEG2000Lossless, _patched(JPEG_2000, 12, ">I", 2**30), "1073741824 x 12"),
    "JPEG 2000 components": (JPEG2000Lossless, _patched(JPEG_2000, 40, ">H", 3), "3 samples"),
    "JPEG 2000 bits": (JPEG2000Lossless, _patched(JPEG_2000, 42, ">B", 37), "38 bits"),
    "JPEG 2000 subsampled": (JPEG2000Lossless, _patched(JPEG_2000, 43, ">B", 2), "no image size"),
    "no JPEG 2000": (JPEG2000Lossless, bytes(60), "no image size"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_codestream_of_another_size_is_not_decoded(tmp_path: Path, case: str) -> None:
    syntax, data, found = CONTRADICTIONS[case]
    for path in write_series(tmp_path, phantom()):
        _encapsulate(path, syntax, [data])
    with pytest.raises(UnreadableInputError, match=found) as caught:
        read_ct(tmp_path)
    assert "export the complete series again" in str(caught.value)


@pytest.mark.parametrize(("syntax", "data"), [(JPEGBaseline8Bit, JPEG), (JPEG2000Lossless, JPEG_2000)])
def test_codestream_of_the_right_size_goes_to_the_decoder(tmp_path: Path, syntax: str, data: bytes) -> None:
    """So each refusal above is due to the one changed value."""
    path = write_series(tmp_path, phantom())[0]
    _encapsulate(path, syntax, [data])
    dicom_guard.check_pixel_data(pydicom.dcmread(path), path)


def test_rle_of_a_few_bytes_for_a_huge_image(tmp_path: Path) -> None:
    for path in write_series(tmp_path, phantom()):
        _encapsulate(path, RLELossless, [struct.pack("<16I", 2, 64, 66, *[0] * 13) + bytes(4)], Rows=8000, Columns=8000)
    with pytest.raises(UnreadableInputError, match="68 bytes of RLE for an image of 128000000"):
        read_ct(tmp_path)


def test_more_frames_than_claimed(tmp_path: Path) -> None:
    path = write_series(tmp_path, phantom())[0]
    _encapsulate(path, RLELossless, [bytes(70), bytes(70)], NumberOfFrames=3)
    with pytest.raises(UnreadableInputError, match="compressed frames"):
        dicom_guard.check_pixel_data(pydicom.dcmread(path), path)


def test_too_many_bits_for_a_decoder(tmp_path: Path) -> None:
    path = write_series(tmp_path, phantom())[0]
    _encapsulate(path, RLELossless, [bytes(70)], BitsAllocated=64000)
    with pytest.raises(UnreadableInputError, match="64000 bits a pixel"):
        dicom_guard.check_pixel_data(pydicom.dcmread(path), path)


def test_huge_declared_length(tmp_path: Path) -> None:
    """Pixels of 4 GB in a file of 1 KB, which is complete: no memory is allocated for the rest."""
    hu = phantom()
    for path in write_series(tmp_path, hu):
        data = path.read_bytes()
        at = data.index(b"\xe0\x7f\x10\x00OW") + 8
        path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :])
    (found, _), size = traced(lambda: read_ct(tmp_path))
    np.testing.assert_array_equal(found, hu)
    assert size < 2**24


def test_padding_of_a_billion_values(tmp_path: Path) -> None:
    """A range is not enumerated value by value; values of tissue within it are kept."""
    hu = phantom()
    for path in write_series(tmp_path, hu, PixelPaddingValue=-32768, PixelPaddingRangeLimit=0):
        data = path.read_bytes()
        old = b"\x28\0\x21\x01SS\x02\0\0\0"
        assert old in data
        path.write_bytes(data.replace(old, b"\x28\0\x21\x01UL\x04\0\xff\xff\xff\x7f"))
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        assert lines < 10**6, "as many as there are values"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        (found, _), size = traced(lambda: read_ct(tmp_path))
    finally:
        sys.settrace(before)
    np.testing.assert_array_equal(found, hu)
    assert size < 2**24


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, which writes them all the same
def test_escapes_in_header_texts_reach_no_message(tmp_path: Path) -> None:
    hu = phantom()
    write_series(tmp_path / "a", hu, uid="1.2.3", SeriesDescription="\x1b[31mred\x07 \u202eright to left")
    edit(write_series(tmp_path / "b", hu, uid="1.2.4")[0], Modality="C\x1b[2JT")
    for series in find_series(tmp_path):
        for header in series.slices:
            assert all(text.isprintable() for text in (header.modality, header.description, str(series), series.kind))
    assert find_series(tmp_path / "a")[0].description == "?"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_long_texts_are_cut(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), SeriesDescription="d" * 5000)
    assert find_series(tmp_path)[0].description == "d" * 63 + "…"


@needs_data
@pytest.mark.parametrize("name", ["CTImage*.4.50.dcm", "CTImage*.4.70.dcm", "CTImage*.4.80.dcm", "CTImage*.4.90.dcm"])
def test_real_codestreams_pass(name: str) -> None:
    """Written by other programs: checked here, decoded in test_dicom.py."""
    (path,) = (DATA / "dicom_edge" / "transfer_syntaxes").glob(name)
    ds = pydicom.dcmread(path)
    dicom_guard.check_pixel_data(ds, path)
    ds.Rows += 1
    with pytest.raises(UnreadableInputError, match="compressed pixels of 512 x 512"):
        dicom_guard.check_pixel_data(ds, path)
