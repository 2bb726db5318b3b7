"""Files refused before memory or time is spent on them: NIfTI headers, gzip bombs, volumes larger than any CT."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import phantom, write_series
from traced import traced

from attunet3d.errors import UnreadableInputError, UnsupportedImageError
from attunet3d.io import read_ct, read_label, read_volume
from attunet3d.io.inspect import inspect_path
from attunet3d.io.nifti import MAX_OFFSET
from attunet3d.io.slabs import MOST_VOXELS, StoredImage, unusual_size

VOX_OFFSET, EXTENSION, DIM = 108, 348, 40


def nifti(path: Path, changes: dict[int, bytes], after: bytes = b"") -> Path:
    data = bytearray(nib.Nifti1Image(phantom(), np.eye(4)).to_bytes())
    for at, value in changes.items():
        data[at : at + len(value)] = value
    whole = bytes(data) + after
    path.write_bytes(gzip.compress(whole, 9) if path.suffix == ".gz" else whole)
    return path


def peak(path: Path, error: type[Exception], match: str) -> int:
    """Bytes that Python allocated until the file was refused."""

    def refused() -> None:
        with pytest.raises(error, match=match):
            read_ct(path)

    return traced(refused)[1]


@pytest.mark.parametrize("offset", [1e8, 3e38])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_voxels_that_begin_far_away(tmp_path: Path, name: str, offset: float) -> None:
    path = nifti(tmp_path / name, {VOX_OFFSET: np.float32(offset).tobytes()})
    assert peak(path, UnreadableInputError, f"voxels begin at byte .* not 0 to {MAX_OFFSET}") < 2**22


@pytest.mark.parametrize("offset", [np.nan, np.inf, -5])
def test_invalid_voxel_offsets(tmp_path: Path, offset: float) -> None:
    path = nifti(tmp_path / "ct.nii", {VOX_OFFSET: np.float32(offset).tobytes()})
    assert peak(path, UnreadableInputError, "copy or export") < 2**22


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize("offset", [0, 1, 200, 348, 351])
@pytest.mark.parametrize("version", [1, 2])
def test_voxels_that_begin_within_the_header(tmp_path: Path, name: str, offset: int, version: int) -> None:
    """By the standard this means 352, or 544 in NIfTI-2; nibabel would read the header as voxels."""
    kind = (nib.Nifti1Image, nib.Nifti2Image)[version - 1]
    data = bytearray(kind(phantom(), np.eye(4)).to_bytes())
    at, value = (VOX_OFFSET, np.float32(offset)) if version == 1 else (168, np.int64(offset))
    data[at : at + value.nbytes] = value.tobytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, phantom())
    said = [f"the NIfTI header says that the voxels begin at byte {offset}; {352 if version == 1 else 544} is meant"]
    assert volume.metadata["warnings"] == (said if offset else [])


@pytest.mark.parametrize("offset", [353, 360, 1000])
def test_voxels_that_begin_anywhere_else(tmp_path: Path, offset: int) -> None:
    path = nifti(tmp_path / "ct.nii", {VOX_OFFSET: np.float32(offset).tobytes()})
    path.write_bytes(path.read_bytes()[:352] + bytes(offset - 352) + phantom().tobytes(order="F"))
    np.testing.assert_array_equal(read_ct(path)[0], phantom())


@pytest.mark.parametrize(("slope", "inter"), [(0, -1024), (np.nan, 5), (np.inf, 0), (-np.inf, 1), (np.nan, np.nan)])
def test_invalid_scales(tmp_path: Path, slope: float, inter: float) -> None:
    """As the standard says for 0, and other readers take NaN."""
    path = nifti(tmp_path / "ct.nii", {112: np.array([slope, inter], "<f4").tobytes()})
    np.testing.assert_array_equal(read_ct(path)[0], phantom())


def test_an_offset_that_is_not_a_number(tmp_path: Path) -> None:
    path = nifti(tmp_path / "ct.nii", {112: np.array([1, np.nan], "<f4").tobytes()})
    with pytest.raises(UnreadableInputError, match="invalid intercept"):
        read_ct(path)


@pytest.mark.parametrize(
    ("spacing", "shape", "said"),
    [
        ((0.3, 0.3, 0.45), (112, 96, 48), "33.6 x 28.8 x 21.6 mm"),  # cm taken for mm
        ((0.07, 0.07, 5), (300, 300, 3), "21 x 21 x 15 mm"),
        ((7, 7, 15), (512, 512, 40), "3584 x 3584 x 600 mm"),
        ((0.7, 0.7, 15), (512, 512, 4), "voxels of 0.7 x 0.7 x 15 mm"),
    ],
)
def test_unusual_sizes_give_a_warning(spacing: tuple[float, ...], shape: tuple[int, int, int], said: str) -> None:
    (text,) = unusual_size(shape, np.diag([*spacing, 1]))
    assert said in text
    assert text.endswith("check that its lengths are in mm")


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((0.7, 0.7, 1), (512, 512, 2000)), ((0.2, 0.2, 0.6), (512, 512, 120)), ((1, 1, 5), (20, 20, 2))],
)
def test_usual_sizes(spacing: tuple[float, ...], shape: tuple[int, int, int]) -> None:
    """From head to foot, a child's detail, a crop."""
    assert unusual_size(shape, np.diag([*spacing, 1])) == []


def test_warnings_of_unusual_sizes_are_in_the_metadata_and_in_inspect(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(phantom((70, 60, 30)), np.diag([0.3, 0.3, 0.5, 1])), tmp_path / "ct.nii")
    (text,) = read_volume(tmp_path / "ct.nii").metadata["warnings"]
    assert "unusual for a CT" in text
    assert inspect_path(tmp_path / "ct.nii")[0].warnings == (text,)


@pytest.mark.parametrize("name", ["ct.hdr", "ct.img", "CT.HDR", "ct.img.gz"])
def test_pairs_of_header_and_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(348))
    with pytest.raises(UnreadableInputError, match=r"one of a pair .*; convert the pair to a single \.nii\.gz file"):
        read_ct(tmp_path / name)


def test_an_extension_of_a_gzip_bomb_is_not_read(tmp_path: Path) -> None:
    """An extension of 40 MiB (under the limit of the offset), in 40 KB of gzip: only skipped, in pieces."""
    extension = b"\1\0\0\0" + np.array([40 * 2**20, 4], "<i4").tobytes()
    changes = {VOX_OFFSET: np.float32(352 + 40 * 2**20).tobytes(), EXTENSION: extension}
    path = nifti(tmp_path / "ct.nii.gz", changes, bytes(40 * 2**20))
    assert peak(path, UnsupportedImageError, "not a CT in HU") < 2**22


def test_what_follows_the_voxels_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MiB of zeros after the voxels, in 40 KB of gzip: only the header, the voxels and one more byte are read."""
    path = nifti(tmp_path / "ct.nii.gz", {}, bytes(40 * 2**20))
    ends: list[int] = []

    class Watched(gzip.GzipFile):
        def close(self) -> None:
            if not self.closed:
                ends.append(self.tell())
            super().close()

    monkeypatch.setattr(gzip, "open", Watched)
    (found, _), size = traced(lambda: read_ct(path))
    np.testing.assert_array_equal(found, phantom())
    assert size < 2**22
    assert ends == [540, 352 + 2 * phantom().size + 1] * 2


def test_absurd_dimensions(tmp_path: Path) -> None:
    path = nifti(tmp_path / "ct.nii", {DIM: np.array([3, 32767, 32767, 32767], "<i2").tobytes()})
    assert peak(path, UnreadableInputError, "truncated, .* bytes where the header promises 70362301923678") < 2**22
    image = nib.Nifti2Image(phantom(), np.eye(4))
    data = bytearray(image.to_bytes())
    data[16:48] = np.array([3, 2**62, 2**62, 2**62], "<i8").tobytes()
    (tmp_path / "two.nii").write_bytes(data)
    assert peak(tmp_path / "two.nii", UnreadableInputError, "truncated") < 2**22


def test_more_voxels_than_any_ct() -> None:
    """The limit itself is allowed; one slice more is not, and its shape is named."""
    StoredImage(Path("ct.nii"), (1024, 1024, 2048), np.eye(4), {}, iter(()))
    with pytest.raises(UnsupportedImageError, match=rf"1024 x 1024 x 2049 voxels, more than any CT \({MOST_VOXELS}\)"):
        StoredImage(Path("ct.nii"), (1024, 1024, 2049), np.eye(4), {}, iter(()))


@pytest.mark.parametrize("read", [read_ct, read_label, inspect_path])
def test_more_voxels_than_any_ct_in_a_file_that_could_hold_them(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    """A sparse file of 16 GiB, which takes no space on the disk."""
    path = nifti(tmp_path / "ct.nii", {DIM: np.array([3, 2048, 2048, 2048], "<i2").tobytes()})
    os.truncate(path, 352 + 2 * 2048**3)
    with pytest.raises(UnsupportedImageError, match="2048 x 2048 x 2048 voxels, more than any CT"):
        read(path)


def test_dicom_with_more_voxels_than_any_ct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attunet3d.io.slabs.MOST_VOXELS", 700)
    write_series(tmp_path, phantom())
    with pytest.raises(UnsupportedImageError, match=r"12 x 10 x 6 voxels, more than any CT \(700\)"):
        read_ct(tmp_path)
    (finding,) = inspect_path(tmp_path)
    assert not finding.usable


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ct.nii.gz")
    with pytest.raises(UnreadableInputError, match="pipe or device"):
        read_ct(tmp_path / "ct.nii.gz")
