"""NRRD and MetaImage: voxels are read late, only from files beside the header, and only if the file can hold them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import phantom

from attunet3d.errors import AttUNet3dError, GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io import read_ct, read_label
from attunet3d.io.inspect import inspect_path
from attunet3d.io.itk import open_itk
from attunet3d.io.itk_header import MAX_LINE_BYTES
from attunet3d.io.slabs import to_hu

NAMES = ["ct.nrrd", "ct.nhdr", "ct.mha", "ct.mhd"]


def write(folder: Path, name: str, compress: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(phantom().T)), str(folder / name), compress)
    return folder / name


def replace(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_voxels_are_read_after_the_header(tmp_path: Path, name: str, compress: bool) -> None:
    """A CT that is refused by its header is refused before its voxels are in memory."""
    path = write(tmp_path, name, compress)
    image = open_itk(path)
    assert image.shape == (12, 10, 6)
    np.testing.assert_array_equal(to_hu(image), phantom())
    late = open_itk(path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(UnreadableInputError, match="copy or export"):
        to_hu(late)


ELSEWHERE = [
    "/etc/passwd",
    "../secret.raw",
    "sub/ct.raw",
    "sub\\ct.raw",
    "..",
    "LIST",
    "ct%03d.raw 1 6 1",
    "-",
    "~/x",
    "a:b",
]


@pytest.mark.parametrize("named", ELSEWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_voxels_elsewhere_are_not_read(tmp_path: Path, name: str, named: str) -> None:
    """The data exist, in the right size: without the check they would be read."""
    path = write(tmp_path / "in", name)
    for place in (tmp_path / "secret.raw", tmp_path / "in" / "sub" / "ct.raw"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(phantom().tobytes(order="F"))
    if name == "ct.nrrd":
        replace(path, b"encoding: raw\n", f"encoding: raw\ndata file: {named}\n".encode())
    else:
        old = {"ct.nhdr": b"data file: ct.raw", "ct.mhd": b"ElementDataFile = ct.raw", "ct.mha": b"DataFile = LOCAL"}[
            name
        ]
        replace(path, old, old[: old.rindex(b" ") + 1] + named.encode())
    with pytest.raises(UnsupportedImageError, match=r"only one file in the header's own folder"):
        read_ct(path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ct.nhdr", b"encoding: raw\n", b"encoding: raw\ndatafile: ct.raw\n"),
        ("ct.nhdr", b"data file: ct.raw\n", b""),
        ("ct.mhd", b"NDims", b"ElementDataFile = ct.raw\nNDims"),
        ("ct.mhd", b"NDims", b"Comment = ElementDataFile = ct.raw\nNDims"),
    ],
)
def test_two_data_files_or_none(tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
    path = replace(write(tmp_path, name), old, new)
    with pytest.raises(UnreadableInputError, match=r"names [02] data files, not one"):
        read_ct(path)


def test_comments_may_name_files(tmp_path: Path) -> None:
    path = replace(write(tmp_path, "ct.nhdr"), b"type:", b"# data file: /etc/passwd\ntype:")
    np.testing.assert_array_equal(read_ct(path)[0], phantom())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_header_that_promises_more_than_the_file_can_hold(tmp_path: Path, name: str, compress: bool) -> None:
    """1200 x 1200 x 1200 voxels of 2 bytes in some hundred bytes, which no deflate can hold."""
    path = write(tmp_path, name, compress)
    replace(path, b"12 10 6", b"1200 1200 1200")
    with pytest.raises(UnreadableInputError, match="cannot hold the 3456000000 bytes"):
        open_itk(path)


@pytest.mark.parametrize("claimed", [b"10000000000000", b"-5", b"nan"])
def test_more_compressed_bytes_than_there_are(tmp_path: Path, claimed: bytes) -> None:
    path = write(tmp_path, "ct.mha", compress=True)
    data = path.read_bytes()
    at = data.index(b"CompressedDataSize = ") + 21
    path.write_bytes(data[:at] + claimed + data[data.index(b"\n", at) :])
    with pytest.raises(UnreadableInputError, match="compressed ones"):
        open_itk(path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ct.nhdr", b"endian: little", b"endian: " + b"x" * 3000),
        ("ct.nrrd", b"type: ", b": " + b"x" * 900 + b"\ntype: "),
        ("ct.nrrd", b"type: ", b"x" * 900 + b"\ntype: "),
        ("ct.mha", b"NDims", b"Comment = " + b"x" * 5000 + b"\nNDims"),
    ],
)
def test_lines_that_overflow_parsers(tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
    """The first two crash ITK 5.4's NRRD parser, and with it the process."""
    path = replace(write(tmp_path, name), old, new)
    with pytest.raises(UnreadableInputError, match=f"more than {MAX_LINE_BYTES} bytes"):
        open_itk(path)


@pytest.mark.parametrize("dimensions", [b"32767", b"99999999999", b"0", b"-1", b"nan"])
def test_dimensions_that_crash_the_parser(tmp_path: Path, dimensions: bytes) -> None:
    """MetaIO of ITK 5.4 writes beyond its arrays for the first."""
    path = replace(write(tmp_path, "ct.mha"), b"NDims = 3", b"NDims = " + dimensions)
    with pytest.raises(UnreadableInputError, match="NDims of the header is not 1 to 9"):
        open_itk(path)


def test_long_comments_and_keys_are_read(tmp_path: Path) -> None:
    long = b"# " + b"c" * 2000 + b"\nnote:=" + b"n" * 2000 + b"\n"
    path = replace(write(tmp_path, "ct.nrrd"), b"type:", long + b"type:")
    np.testing.assert_array_equal(read_ct(path)[0], phantom())


def test_an_origin_beyond_float32(tmp_path: Path) -> None:
    """ITK stores it as float64; as float32 of NIfTI it is infinite."""
    path = replace(write(tmp_path, "ct.mha"), b"Offset = 0 0 0", b"Offset = 0 1e300 0")
    with pytest.raises(GeometryError, match=r"1e\+300 mm from the scanner's origin; correct the origin"):
        read_ct(path)


def test_a_volume_without_voxels(tmp_path: Path) -> None:
    path = replace(write(tmp_path, "ct.mha"), b"12 10 6", b"12 0 6")
    with pytest.raises(AttUNet3dError):
        open_itk(path)


def nrrd(fields: str, before: bytes = b"", spacing: str = "space directions: (1,0,0) (0,1,0) (0,0,2)") -> bytes:
    """The phantom as NRRD with ``fields`` in its header, and bytes ``before`` its voxels."""
    place = f"space: left-posterior-superior\n{spacing}\n" if "directions" in spacing else f"{spacing}\n"
    header = f"NRRD0005\ntype: short\ndimension: 3\nsizes: 12 10 6\n{place}endian: little\nencoding: raw\n{fields}\n\n"
    return header.encode() + before + phantom().tobytes(order="F")


METRES_AND_OTHERS = [
    ('space units: "cm" "cm" "cm"', "cm"),
    ('space units: "mm" "mm" "m"', "m"),
    ('Space Units:  "um"  "um" "um" ', "um"),
    ('space units: "inch" "inch" "inch"', "inch"),
    ('space units: "CM" "" ""', "CM"),
    ('units: "cm" "cm" "cm"', "cm"),
]


@pytest.mark.parametrize(("field", "unit"), METRES_AND_OTHERS)
def test_nrrd_in_other_units_than_mm(tmp_path: Path, field: str, unit: str) -> None:
    spacing = "spacings: 1 1 2" if field.startswith("units") else "space directions: (1,0,0) (0,1,0) (0,0,2)"
    (tmp_path / "ct.nrrd").write_bytes(nrrd(field, spacing=spacing))
    for read in (read_ct, read_label, inspect_path):
        with pytest.raises(GeometryError, match=rf"lengths in {unit}; save the image again with lengths in mm"):
            read(tmp_path / "ct.nrrd")


@pytest.mark.parametrize(
    "field", ['space units: "mm" "mm" "mm"', 'space units: "MM" "millimeter" ""', 'space units: "" "" ""', 'key:="cm"']
)
def test_nrrd_in_mm_or_in_no_unit(tmp_path: Path, field: str) -> None:
    (tmp_path / "ct.nrrd").write_bytes(nrrd(field))
    array, affine = read_ct(tmp_path / "ct.nrrd")
    np.testing.assert_array_equal(array, phantom())
    assert np.diag(affine).tolist() == [-1, -1, 2, 1]


@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd"])
def test_metaimage_units(tmp_path: Path, name: str) -> None:
    path = replace(write(tmp_path, name), b"NDims", b"DistanceUnits = mm\nNDims")
    np.testing.assert_array_equal(read_ct(path)[0], phantom())
    for unit in (b"cm", b"um", b"m"):
        path = replace(write(tmp_path, name), b"NDims", b"DistanceUnits = " + unit + b"\nNDims")
        with pytest.raises(GeometryError, match=f"lengths in {unit.decode()}; save"):
            read_ct(path)


@pytest.mark.parametrize(
    ("field", "before"),
    [
        ("byte skip: 10", b"x" * 10),
        ("byte skip: -1", b"x" * 7),
        ("byteskip: 3", b"abc"),
        ("line skip: 2", b"one\ntwo\n"),
        ("line skip: 1\nbyte skip: 2", b"one\nab"),
    ],
)
def test_nrrd_voxels_after_other_data(tmp_path: Path, field: str, before: bytes) -> None:
    (tmp_path / "ct.nrrd").write_bytes(nrrd(field, before))
    np.testing.assert_array_equal(read_ct(tmp_path / "ct.nrrd")[0], phantom())


@pytest.mark.parametrize("field", ["byte skip: -2", "byte skip: x", "line skip: -1", "byteskip: 1e3"])
def test_nrrd_invalid_skips(tmp_path: Path, field: str) -> None:
    """ITK takes any negative number for -1, which means the end of the file."""
    (tmp_path / "ct.nrrd").write_bytes(nrrd(field, b"x" * 9))
    with pytest.raises(UnreadableInputError, match="where no voxels can begin"):
        read_ct(tmp_path / "ct.nrrd")


def test_nrrd_skip_beyond_the_end(tmp_path: Path) -> None:
    (tmp_path / "ct.nrrd").write_bytes(nrrd("byte skip: 5000"))
    with pytest.raises(UnreadableInputError, match="truncated"):
        read_ct(tmp_path / "ct.nrrd")


def metaimage(folder: Path, name: str, size: str, before: bytes) -> Path:
    path = replace(write(folder, name), b"ElementType", f"HeaderSize = {size}\nElementType".encode())
    data = path.with_suffix(".raw") if name.endswith("mhd") else path
    voxels = phantom().tobytes(order="F")
    data.write_bytes(data.read_bytes().replace(voxels, before + voxels))
    return path


@pytest.mark.parametrize(("name", "size"), [("ct.mhd", "16"), ("ct.mhd", "-1"), ("ct.mha", "-1"), ("ct.mhd", "016")])
def test_metaimage_header_size(tmp_path: Path, name: str, size: str) -> None:
    np.testing.assert_array_equal(read_ct(metaimage(tmp_path, name, size, b"x" * 16))[0], phantom())


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("ct.mhd", "-5", "HeaderSize of the header is -5"),
        ("ct.mhd", "x", "HeaderSize of the header is x"),
        ("ct.mha", "16", "HeaderSize of the header is 16"),  # within the text: it would be read as voxels
        ("ct.mhd", "17", "truncated"),
        ("ct.mhd", "99999", "truncated"),
    ],
)
def test_metaimage_invalid_header_sizes(tmp_path: Path, name: str, size: str, match: str) -> None:
    with pytest.raises(UnreadableInputError, match=match):
        read_ct(metaimage(tmp_path, name, size, b"x" * 16))


@pytest.mark.parametrize("spacing", [b"1e300 1 1", b"1e-300 1 1"])
def test_absurd_spacing(tmp_path: Path, spacing: bytes) -> None:
    path = replace(write(tmp_path, "ct.mha"), b"ElementSpacing = 1 1 1", b"ElementSpacing = " + spacing)
    with pytest.raises(GeometryError, match="correct the spacing"):
        read_ct(path)
