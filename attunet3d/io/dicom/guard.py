"""Check the sizes that a DICOM file claims before memory is allocated: image size, deflated data, codestreams.

A few bytes can claim gigabytes. pydicom inflates a deflated file as a whole, and decoders take the size of an image
from its codestream, even if Rows and Columns differ.
"""

import io
import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pydicom
from pydicom import encaps, filereader
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from attunet3d.errors import UnreadableInputError, UnsupportedImageError

_MAX_SIDE = 8192  # rows or columns: eight times those of the finest CT
MAX_INFLATED_BYTES = 256 * 2**20  # of a deflated file: a slice has half a megabyte, up to a few
_MAX_BITS_ALLOCATED = 32
_RLE_MAX_RATIO = 64  # PackBits cannot expand by more: two bytes encode up to 128

_PIECE = 2**20
_SMALL = 2**15  # bytes; a slice of 512 x 512 has half a million
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
RLE = "1.2.840.10008.1.2.5"
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 53, 55, 57, 70, 80, 81))  # 80 and 81 are JPEG-LS
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203))

# Start-of-frame markers hold the image's size: ITU T.81, table B.1; F7 is that of JPEG-LS (T.87).
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _HIERARCHICAL = 0xDA, 0xDE
_JPEG_2000_START = b"\xff\x4f\xff\x51"  # start of codestream, then the marker of its size (T.800, A.5.1)


class _Deflated(Exception):
    """The data set of a file is deflated."""


class _Reader(io.BufferedReader):
    """A file whose ``read`` allocates no more memory than the file has bytes, unlike that of Python's files.

    Reading to the end, which pydicom only does to inflate a file, raises ``_Deflated``.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _Deflated
        if size > _PIECE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


class _InMemory(io.BytesIO):
    """A small file in memory: pydicom calls ``tell`` for each element, a system call for a file on disk."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            raise _Deflated
        return super().read(size)


class _Size(NamedTuple):
    rows: int
    columns: int
    samples: int
    bits: int


def dcmread(path: str | os.PathLike[str], **options: Any) -> pydicom.FileDataset:
    """Read a file like ``pydicom.dcmread``, but with no more memory than the file, or its inflated data, has bytes.

    Raises:
        UnreadableInputError: more than ``MAX_INFLATED_BYTES`` of inflated data.
        Exception: any type that pydicom or zlib raises for a damaged file.
    """
    with _opened(path) as file:
        try:
            ds = pydicom.dcmread(file, **options)
        except _Deflated:
            file.seek(0)
            filereader.read_preamble(file, force=True)
            meta = filereader._read_file_meta_info(file)
            ds = pydicom.dcmread(_inflated(file), **{**options, "force": True})
            meta.TransferSyntaxUID = ExplicitVRLittleEndian  # since the data are inflated
            ds.file_meta = pydicom.dataset.FileMetaDataset(meta)
        if not ds.file_meta.get("TransferSyntaxUID"):  # a bare data set, as in old archives
            ds.file_meta.TransferSyntaxUID = _syntax_as_read(ds)
    ds.filename = os.fspath(path)
    return ds


def _opened(path: str | os.PathLike[str]) -> _Reader | _InMemory:
    raw = open(path, "rb", buffering=0)  # noqa: SIM115
    if os.fstat(raw.fileno()).st_size > _SMALL:
        return _Reader(raw)
    with raw:
        return _InMemory(raw.read(_SMALL), os.fspath(path))


def _syntax_as_read(ds: pydicom.Dataset) -> UID:
    if hasattr(ds, "original_encoding"):
        implicit, little_endian = ds.original_encoding
    else:  # pydicom 2
        implicit, little_endian = ds.is_implicit_VR, ds.is_little_endian
    if not little_endian:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def check_size(path: os.PathLike[str], rows: int, columns: int) -> None:
    """Check that an image has from 1 to ``_MAX_SIDE`` rows and columns.

    Raises:
        UnsupportedImageError: it does not.
    """
    if not (1 <= rows <= _MAX_SIDE and 1 <= columns <= _MAX_SIDE):
        raise UnsupportedImageError(
            f"{path}: Rows x Columns {rows} x {columns}; a CT has 1 to {_MAX_SIDE} of each: export the series again"
        )


def check_pixel_data(ds: pydicom.Dataset, path: os.PathLike[str]) -> None:
    """Check that the size and bits of the pixels match the header.

    Raises:
        UnreadableInputError: they do not.
    """
    syntax = str(ds.file_meta.TransferSyntaxUID)
    if syntax in NATIVE:
        values = int(ds.Rows) * int(ds.Columns) * int(ds.SamplesPerPixel) * int(ds.get("NumberOfFrames") or 1)
        size = (values * int(ds.BitsAllocated) + 7) // 8
        given = len(ds.PixelData)
        if given not in (size, size + size % 2):  # elements are of even length
            cut = "truncated, " if given < size else ""
            raise _contradicts(path, f"{cut}{given} bytes of pixels where the header promises {size}")
        return
    if syntax not in (RLE, *_JPEG, *_JPEG_2000):
        return
    claimed = _Size(int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel), int(ds.BitsAllocated))
    if claimed.bits > _MAX_BITS_ALLOCATED:
        raise _contradicts(path, f"{claimed.bits} bits a pixel")
    frames = 0
    for frame in _frames(ds):
        frames += 1
        if syntax == RLE:
            size = claimed.rows * claimed.columns * claimed.samples * (claimed.bits // 8)
            if size > len(frame) * _RLE_MAX_RATIO:
                raise _contradicts(path, f"{len(frame)} bytes of RLE for an image of {size}")
            continue
        found = _jpeg_2000_size(frame) if syntax in _JPEG_2000 else _jpeg_size(frame)
        if found is None:
            raise _contradicts(path, "no image size in the compressed pixels")
        if found[:3] != claimed[:3] or found.bits > claimed.bits:
            raise _contradicts(
                path,
                f"compressed pixels of {found.rows} x {found.columns}, {found.samples} samples of {found.bits} bits, "
                f"where the header promises {claimed.rows} x {claimed.columns}, {claimed.samples} of at most "
                f"{claimed.bits}",
            )
    if frames != int(ds.get("NumberOfFrames") or 1):
        raise _contradicts(path, f"{frames} compressed frames")


def unwrap_codestreams(ds: pydicom.Dataset) -> None:
    """Strip JPEG 2000 frames in JP2 files to the codestream that ``check_pixel_data`` has checked.

    A decoder might find another codestream, with code that has had vulnerabilities (CVE-2025-54874 in OpenJPEG).
    """
    if str(ds.file_meta.TransferSyntaxUID) not in _JPEG_2000:
        return
    if all(frame.startswith(_JPEG_2000_START) for frame in _frames(ds)):
        return
    bare = [frame[frame.find(_JPEG_2000_START) :] for frame in _frames(ds)]
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        ds.pop(name, None)
    ds.PixelData = encaps.encapsulate(bare)


def _contradicts(path: os.PathLike[str], found: str) -> UnreadableInputError:
    return UnreadableInputError(f"{path}: {found}: damaged; export the complete series again")


def _inflated(file: _Reader | _InMemory) -> io.BytesIO:
    inflate, whole = zlib.decompressobj(-zlib.MAX_WBITS), io.BytesIO()
    while not inflate.eof:
        piece = file.read(_PIECE)
        if not piece:
            raise EOFError("the deflated data end early")
        whole.write(inflate.decompress(piece, MAX_INFLATED_BYTES + 1 - whole.tell()))
        if whole.tell() > MAX_INFLATED_BYTES:
            raise UnreadableInputError(
                f"{file.name}: deflated data of more than {MAX_INFLATED_BYTES >> 20} MiB; "
                "damaged, or no CT slice: export the series again, uncompressed"
            )
    whole.seek(0)
    return whole


def _frames(ds: pydicom.Dataset) -> Iterator[bytes]:
    """Yield the compressed frames as pydicom passes them to the decoder."""
    count = int(ds.get("NumberOfFrames") or 1)
    if not hasattr(encaps, "generate_frames"):  # pydicom 2
        return encaps.generate_pixel_data_frame(ds.PixelData, count)
    offsets = (ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths"))
    extended = None if None in offsets else offsets
    return encaps.generate_frames(ds.PixelData, number_of_frames=count, extended_offsets=extended)


def _jpeg_size(data: bytes) -> _Size | None:
    """Read the size from a JPEG or JPEG-LS codestream: from its only start-of-frame segment before the first scan."""
    if data[:2] != b"\xff\xd8":
        return None
    found: _Size | None = None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == _START_OF_SCAN:
            return found
        elif marker == _HIERARCHICAL or length < 2:
            return None
        else:
            if marker in _START_OF_FRAME:
                body = data[at + 4 : at + 10]
                if found is not None or len(body) < 6:
                    return None
                rows, columns = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
                found = _Size(rows, columns, samples=body[5], bits=body[0])
            at += 2 + length
    return None


def _jpeg_2000_size(data: bytes) -> _Size | None:
    """Read the size from a JPEG 2000 codestream, bare or in a JP2 file; None if components are subsampled."""
    start = data.find(_JPEG_2000_START)
    end = start + 6 + int.from_bytes(data[start + 4 : start + 6], "big") - 2
    segment = data[start + 6 : end]  # without its length
    if start < 0 or len(segment) < 39:
        return None
    right, bottom, left, top = (int.from_bytes(segment[k : k + 4], "big") for k in (2, 6, 10, 14))
    samples = int.from_bytes(segment[34:36], "big")
    components = segment[36 : 36 + 3 * samples]
    if components[1::3].strip(b"\1") or components[2::3].strip(b"\1"):
        return None  # subsampled
    bits = max((depth & 0x7F) + 1 for depth in components[::3])
    return _Size(bottom - top, right - left, samples, bits)
