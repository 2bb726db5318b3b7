"""Ways to damage an input, each drawn from a random generator: bytes, headers, and the files of a folder."""

from __future__ import annotations

import copy
import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

Rng = np.random.Generator
Mutation = Callable[[Rng, Path], None]

HUGE = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xfe\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff"]
NUMBERS = ["nan", "inf", "-inf", "1e300", "-1", "0", "-0.0", "1e-300", "99999999999", "4294967295", "65536", "32767"]
TEXTS = [
    "",
    "../../evil",
    "/etc/passwd",
    "a\\b\\c",
    "\x1b[31mred\x07",
    "two\nlines",
    "\0",
    "%s%n",
    "x" * 5000,
    "ä\udcff",
]
TAGS = [
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *(
        "NumberOfFrames",
        "PlanarConfiguration",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "SmallestImagePixelValue",
    ),
    *("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "RescaleIntercept"),
    *("AcquisitionNumber", "InstanceNumber", "SliceThickness", "PhotometricInterpretation", "RescaleType", "Modality"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "ImageType"),
    *("SeriesDescription", "PatientID", "PatientName", "SpecificCharacterSet", "LossyImageCompression", "PixelData"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
SMALL = [0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 64, 255, 8192, 8193, 32767, 65535]
SYNTAXES = [
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"),
    *("1.2.840.10008.1.2.5", *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 110, 201))),
    *("1.2.840.10008.1.2.8.1", "1.2.3", "", "../../evil"),
]
VRS = ["US", "SS", "UL", "DS", "IS", "LO", "CS", "UI", "OB", "OW", "UN", "FD", "AT", "PN", "SQ"]


def mutate(rng: Rng, path: Path) -> None:
    """Damage the file, or the folder's files, in one to three ways."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        files = _files(path)
        if not files:
            return
        if path.is_dir():
            kinds: list[Mutation] = [_bytes, _bytes, _dicom_header, _dicom_header, _dicom_header, _in_folder]
        elif ".nii" in path.name:
            kinds = [_bytes, _nifti_field, _unpacked_bytes]
        else:
            kinds = [_bytes, _text_header, _text_header]
        any_of(rng, kinds)(rng, path)


def any_of(rng: Rng, choices: list[Any]) -> Any:
    """One of them, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def _files(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    return sorted(p for p in folder.iterdir() if p.is_file())


def _position(rng: Rng, size: int) -> int:
    """Half of all damage is done to the header, where most decisions are taken."""
    return int(rng.integers(min(size, 1200) if rng.random() < 0.5 else size)) if size else 0


def damaged_bytes(rng: Rng, data: bytearray) -> bytes:
    """Bytes flipped, overwritten, cut off, inserted, removed, or spliced in from another place."""
    at, how = _position(rng, len(data)), int(rng.integers(9))
    length = int(rng.integers(1, 64))
    if how == 0:
        for _ in range(int(rng.integers(1, 9))):
            if data:
                data[_position(rng, len(data))] ^= 1 << int(rng.integers(8))
    elif how == 1:
        data[at : at + length] = rng.bytes(length)
    elif how == 2:
        del data[at:]
    elif how == 3:
        data[at:at] = rng.bytes(length)
    elif how == 4:
        del data[at : at + length]
    elif how == 5:
        huge = any_of(rng, HUGE)
        data[at : at + len(huge)] = huge
    elif how == 6:
        data[at : at + length] = bytes([any_of(rng, [0, 0x20, 0x7F, 0x80, 0xFF])]) * length
    else:
        source = _position(rng, len(data))
        data[at : at + (length if how == 7 else 0)] = data[source : source + length]
    return bytes(data)


def _bytes(rng: Rng, path: Path) -> None:
    victim = any_of(rng, _files(path))
    victim.write_bytes(damaged_bytes(rng, bytearray(victim.read_bytes())))


def _in_folder(rng: Rng, folder: Path) -> None:
    files = _files(folder)
    a, b = any_of(rng, files), any_of(rng, files)
    how = int(rng.integers(8))
    if how == 0:
        a.unlink()
    elif how == 1:
        (folder / "copy.dcm").write_bytes(a.read_bytes())
    elif how == 2:
        a.write_bytes(b"")
    elif how == 3:
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
    elif how == 4:
        a.write_bytes(rng.bytes(300))
    elif how == 5:
        (folder / f"loop{rng.integers(10**9)}").symlink_to(folder)
        dead = folder / f"dead{rng.integers(10**9)}.dcm"
        dead.symlink_to(dead.name)
    elif how == 6:
        os.mkfifo(folder / f"pipe{rng.integers(10**9)}.dcm")
    else:
        (folder / "deep").mkdir(exist_ok=True)
        a.rename(folder / "deep" / "esc\x1b[2J\n.dcm")


def _dicom_header(rng: Rng, folder: Path) -> None:
    files = _files(folder)
    victims = files if rng.random() < 0.5 else [any_of(rng, files)]
    change = _header_change(rng)
    for path in victims:
        before = path.read_bytes()
        try:
            ds = pydicom.dcmread(path, force=True)
            change(ds)
            ds.save_as(path)
        except Exception:  # a file that is broken already, or a change that cannot be written
            path.write_bytes(before)


def _header_change(rng: Rng) -> Callable[[Any], None]:
    name = any_of(rng, TAGS)
    tag = pydicom.datadict.tag_for_keyword(name)
    vr = pydicom.datadict.dictionary_VR(tag).split()[0]
    how = int(rng.integers(7))
    if how == 0:
        return lambda ds: ds.pop(tag, None)
    if how == 1:
        return lambda ds: ds.add(DataElement(tag, vr, None))
    if how == 2:
        syntax = any_of(rng, SYNTAXES)

        def set_syntax(ds: Any) -> None:
            ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)

        return set_syntax
    if how == 3:
        nested = Dataset()
        for _ in range(int(rng.integers(1, 40))):
            outer = Dataset()
            outer.ReferencedSeriesSequence = Sequence([nested])
            nested = outer
        return lambda ds: ds.add(DataElement(tag, "SQ", Sequence([copy.deepcopy(nested)])))
    if how == 4:  # bytes under another VR than the dictionary's
        other, data = any_of(rng, VRS[:-1]), rng.bytes(2 * int(rng.integers(0, 9)))
        return lambda ds: ds.add(pydicom.dataelem.RawDataElement(tag, other, len(data), data, 0, False, True))
    number = int(any_of(rng, SMALL))
    if vr in ("US", "SS"):
        return lambda ds: ds.add(DataElement(tag, "US", number))
    if vr in ("DS", "IS"):
        value = [any_of(rng, NUMBERS) for _ in range(int(any_of(rng, [1, 2, 3, 6])))]
        data = "\\".join(value).encode()
    elif how == 5:
        data = "\\".join(any_of(rng, TEXTS) for _ in range(int(rng.integers(1, 4)))).encode(errors="surrogateescape")
    else:
        data = str(number).encode()
    data += b" " * (len(data) % 2)
    return lambda ds: ds.add(pydicom.dataelem.RawDataElement(tag, vr, len(data), data, 0, False, True))


def _nifti_field(rng: Rng, path: Path) -> None:
    kind = any_of(rng, [nib.Nifti1Header, nib.Nifti1Header, nib.Nifti2Header])
    fields = kind.template_dtype.fields
    dtype, at = fields[any_of(rng, list(fields))][:2]
    item = dtype.base
    values: list[Any] = [0, 1, -1, 2, 3, 7, 8, 255, 32767, 10**6]
    if item.kind == "f":
        values += [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30]
    if item.itemsize == 8 and item.kind == "i":
        values += [2**31, 2**62, -(2**62)]
    with np.errstate(all="ignore"):
        value = rng.bytes(item.itemsize) if item.kind == "S" else np.array(any_of(rng, values)).astype(item).tobytes()
    at += item.itemsize * int(rng.integers(max(1, int(np.prod(dtype.shape)))))
    _rewrite(path, lambda data: data[:at] + value + data[at + len(value) :])


def _unpacked_bytes(rng: Rng, path: Path) -> None:
    _rewrite(path, lambda data: damaged_bytes(rng, bytearray(data)))


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's content, under its compression if it has any."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        path.write_bytes(change(data))
        return
    try:
        data = gzip.decompress(data)
    except Exception:  # damaged already
        return
    path.write_bytes(gzip.compress(change(data), mtime=0))


def _text_header(rng: Rng, path: Path) -> None:
    """Change a line of an NRRD or MetaImage header: its numbers, its value, its key, or its being there once."""
    data = path.read_bytes()
    ends = [data.find(b"\n\n") + 1, data.find(b"\n", data.find(b"ElementDataFile")) + 1]
    end = next((e for e in ends if e > 0), min(len(data), 400))
    lines = data[:end].split(b"\n")
    k, how = int(rng.integers(len(lines))), int(rng.integers(6))
    separator = b"=" if b"=" in lines[k] else b":"
    key, _, value = lines[k].partition(separator)
    words = value.split()
    nasty = [
        *NUMBERS,
        "../../evil",
        "/etc/passwd",
        "LIST",
        "ct%03d.raw 1 6 1",
        "LOCAL",
        "",
        "x" * 3000,
        "x" * 380,
        "\x1b[2J",
        "(1,2",
    ]
    nasty += [
        "raw",
        "gzip",
        "bzip2",
        "ascii",
        "hex",
        "double",
        "MET_DOUBLE",
        "MET_UCHAR",
        "True",
        "block",
        "-",
        "key:=" + "x" * 900,
    ]
    word = any_of(rng, nasty).encode()
    if how == 0:
        del lines[k]
    elif how == 1:
        lines.insert(int(rng.integers(len(lines))), lines[k])
    elif how == 2 and words:
        words[int(rng.integers(len(words)))] = word
        lines[k] = key + separator + b" " + b" ".join(words)
    elif how == 3:
        extra = any_of(
            rng, ["CompressedDataSize = ", "HeaderSize = ", "data file: ", "byte skip: ", "line skip: ", "NDims = "]
        )
        extra = any_of(
            rng, [extra, "CompressedData = ", "encoding: ", "sizes: ", "DimSize = ", "ElementNumberOfChannels = "]
        )
        lines.insert(min(1 + int(rng.integers(len(lines))), len(lines) - 1), extra.encode() + word)
    elif how == 4:
        lines[k] = key + separator + b" " + word
    else:
        lines[k] = lines[k][: int(rng.integers(len(lines[k]) + 1))]
    path.write_bytes(b"\n".join(lines) + data[end:])
