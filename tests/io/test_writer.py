"""Masks are placed like the CT, and writes are atomic."""

import json
import os
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import phantom
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import SaveImage

from attunet3d.errors import OutputError
from attunet3d.io import atomic_path, read_label, read_volume, write_mask, write_text_atomic, writer

AFFINE = np.array([[-0.75, 0, 0, 100], [0, 0.5, 0, -50], [0, 0, 2.5, 20], [0, 0, 0, 1]])
MASK = (np.arange(8 * 6 * 4).reshape(8, 6, 4) % 3).astype(np.uint8)


def test_mask_header(tmp_path):
    path = write_mask(tmp_path / "m.nii.gz", MASK, AFFINE)
    assert path == tmp_path / "m.nii.gz"
    assert os.listdir(tmp_path) == ["m.nii.gz"]
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), MASK)


def test_sheared_affine_has_no_qform(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 0.75
    header = nib.load(write_mask(tmp_path / "m.nii", MASK, sheared)).header
    assert (header["sform_code"], header["qform_code"]) == (1, 0)
    np.testing.assert_array_equal(header.get_best_affine(), sheared)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2), (0, 0)])
def test_mask_has_the_geometry_header_of_its_ct(tmp_path, sform, qform):
    """Whichever of sform, qform and pixdim a viewer uses, the mask lies on the CT."""
    turned = AFFINE.copy()
    c, s = np.cos(0.3), np.sin(0.3)
    turned[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]] @ AFFINE[:3, :3]
    ct = nib.Nifti1Image(phantom((8, 6, 4)), turned)
    ct.set_qform(turned, code=qform)
    ct.set_sform(turned, code=sform)
    nib.save(ct, tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    path = write_mask(tmp_path / "m.nii.gz", MASK, volume.affine, metadata=volume.metadata)
    source, written = nib.load(tmp_path / "ct.nii.gz").header, nib.load(path).header
    for field in volume.metadata["nifti_geometry"]:
        count = 4 if field == "pixdim" else None
        np.testing.assert_array_equal(np.atleast_1d(source[field])[:count], np.atleast_1d(written[field])[:count])
    np.testing.assert_array_equal(read_label(path)[1], volume.affine)
    np.testing.assert_array_equal(read_label(path)[0], MASK)


def test_geometry_of_another_grid_is_not_copied(tmp_path):
    nib.save(nib.Nifti1Image(phantom((8, 6, 4)), AFFINE), tmp_path / "ct.nii")
    like = read_volume(tmp_path / "ct.nii").metadata
    coarse = AFFINE @ np.diag([2, 2, 2, 1])
    np.testing.assert_array_equal(nib.load(write_mask(tmp_path / "m.nii", MASK, coarse, metadata=like)).affine, coarse)


@settings(max_examples=40)
@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    angle=st.floats(-0.5, 0.5),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    seed=st.integers(0, 10),
)
def test_round_trip_of_any_orientation(tmp_path_factory, order, signs, spacing, angle, origin, seed):
    """The array exactly, the affine to float32."""
    affine = np.eye(4)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ (np.eye(3)[:, order] * signs * spacing)
    affine[:3, 3] = origin
    mask = np.random.default_rng(seed).integers(0, 3, (5, 4, 3)).astype(np.uint8)
    path = write_mask(tmp_path_factory.mktemp("rt") / "m.nii", mask, affine)
    array, read = read_label(path)
    np.testing.assert_array_equal(array, mask)
    np.testing.assert_array_equal(read, affine.astype(np.float32))


def test_text(tmp_path):
    path = write_text_atomic(tmp_path / "record.json", '{"µ": 1}\n')
    assert path.read_bytes() == '{"µ": 1}\n'.encode()
    assert os.listdir(tmp_path) == ["record.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file_only(tmp_path, error):
    target = tmp_path / "report.png"
    target.write_text("old")

    def write():
        with atomic_path(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".png"
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == ["report.png"]
    assert target.read_text() == "old"


def test_full_disk(tmp_path, monkeypatch):
    """nibabel fails after its first bytes: neither the mask nor the temporary file is left."""

    def save(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nibabel.save", save)
    with pytest.raises(
        OutputError, match=r"m\.nii\.gz: cannot be written \(No space left on device\); free some space"
    ):
        write_mask(tmp_path / "m.nii.gz", MASK, AFFINE)
    assert os.listdir(tmp_path) == []


def _folder_in_the_way(tmp_path):
    (tmp_path / "m.nii.gz").mkdir()
    return tmp_path / "m.nii.gz"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (_folder_in_the_way, "is a folder; give a file name"),
        (lambda p: p / "none" / "m.nii.gz", "does not exist; create it"),
        (lambda p: p / "m.mha", "ends in .nii.gz"),
        (lambda p: p / f"{'m' * 300}.nii.gz", "cannot be written (File name too long)"),
    ],
)
def test_refused(tmp_path, build, words):
    path = build(tmp_path)
    with pytest.raises(OutputError) as caught:
        write_mask(path, MASK, AFFINE)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask", [MASK.astype(np.float32), MASK[0]])
def test_only_3d_uint8_masks(tmp_path, mask):
    with pytest.raises(OutputError, match="expected uint8"):
        write_mask(tmp_path / "m.nii.gz", mask, AFFINE)


def _save_with_monai(folder, **meta):
    image = MetaTensor(torch.from_numpy(MASK)[None], affine=torch.from_numpy(AFFINE), meta={**meta})
    image.meta["filename_or_obj"] = "case7.nii.gz"
    saver = SaveImage(
        output_dir=folder,
        output_postfix="seg",
        output_dtype=np.uint8,
        separate_folder=False,
        print_log=False,
        writer="attunet3d.io.AtomicNibabelWriter",
    )
    saver(image)
    return folder / "case7_seg.nii.gz"


def test_monai_writer(tmp_path):
    image = nib.load(_save_with_monai(tmp_path))
    assert os.listdir(tmp_path) == ["case7_seg.nii.gz"]
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(image.dataobj), MASK)


def test_monai_writer_copies_the_geometry_header(tmp_path):
    ct = nib.Nifti1Image(phantom((8, 6, 4)), AFFINE)
    ct.set_sform(AFFINE, code=4)
    nib.save(ct, tmp_path / "ct.nii")
    source = read_volume(tmp_path / "ct.nii").metadata
    header = nib.load(_save_with_monai(tmp_path, source=json.dumps(source))).header
    assert (header["sform_code"], header["qform_code"]) == (4, 0)


def test_monai_writer_is_atomic(tmp_path, monkeypatch):
    """SaveImage turns every error into a RuntimeError that quotes it; nothing is left behind."""

    def replace(a, b):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(RuntimeError, match=r"OutputError: .*No space left on device"):
        _save_with_monai(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_nifti2_ct_keeps_its_double_precision_affine(tmp_path: Path) -> None:
    """An affine that float32 cannot hold is preserved exactly, as in the CT's header."""
    affine = np.diag([0.7123456789012, 0.7123456789012, 2.5, 1.0])
    ct = np.full((6, 5, 4), 40, np.int16)
    ct[0] = -1000
    nib.save(nib.Nifti2Image(ct, affine), tmp_path / "ct.nii.gz")
    volume = read_volume(tmp_path / "ct.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", np.ones(ct.shape, np.uint8), volume.affine, metadata=volume.metadata)
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").affine, affine)


# --- what killed processes leave


def _left(folder: Path, process: int, host: str | None = None) -> Path:
    """A temporary file as left by a process, on this host or another."""
    real = writer.temporary_name("ct_seg.nii.gz")
    before, _, rest = real.partition(f"-{writer._host()}-{os.getpid()}-")
    path = folder / f"{before}-{host or writer._host()}-{process}-{rest}"
    path.write_bytes(b"half")
    return path


def _days_ago(path: Path, days: float) -> Path:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    return path


def test_a_temporary_file_names_its_process(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "m.nii.gz") as temporary:
        assert re.fullmatch(rf"\.tmp-[0-9a-f]{{8}}-{writer._host()}-{os.getpid()}-m\.nii\.gz", temporary.name)
        temporary.write_bytes(b"")


def test_of_this_machine_the_files_of_dead_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However new; those of living processes, of any user, stay however old."""

    monkeypatch.setattr(writer.psutil, "pid_exists", lambda process: process != 111)
    dead, others, alive = (_left(tmp_path, process) for process in (111, 222, 333))
    _days_ago(others, 99)
    _days_ago(alive, 99)
    (tmp_path / "ct_seg.nii.gz").write_bytes(b"whole")
    writer.remove_left_behind(tmp_path)
    assert not dead.exists()
    assert sorted(tmp_path.iterdir()) == sorted([others, alive, tmp_path / "ct_seg.nii.gz"])


def test_of_other_machines_only_what_is_too_old_to_be_written_still(tmp_path: Path) -> None:
    """A process with that number may be alive there: it cannot be known here."""
    new, old = (_days_ago(_left(tmp_path, 2**22 + 5, "00000000"), days) for days in (6.5, 7.5))
    for name, days in ((".tmp-0123abcd-m.nii.gz", 7.5), (".tmp-0123abce-m.nii.gz", 1), (".tmp-mine", 99)):
        (tmp_path / name).write_bytes(b"")
        _days_ago(tmp_path / name, days)
    writer.remove_left_behind(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([new.name, ".tmp-0123abce-m.nii.gz", ".tmp-mine"])
    assert not old.exists()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited on what is taken for Windows."""
    waited: list[float] = []
    monkeypatch.setattr(writer.sys, "platform", "win32")
    monkeypatch.setattr(writer.time, "sleep", waited.append)
    return waited


def test_on_windows_a_scanner_that_has_the_file_open_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    replace, failures = os.replace, [PermissionError(13, "Access is denied")] * 3

    def busy(old: Path, new: Path) -> None:
        if failures:
            raise failures.pop()
        replace(old, new)

    monkeypatch.setattr("os.replace", busy)
    write_text_atomic(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
    assert len(pauses) == 3


def test_on_windows_no_stream_of_another_file_is_written(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(OutputError, match=r"ct:1_seg\.json: a file name cannot hold a colon on Windows"):
        write_text_atomic(tmp_path / "ct:1_seg.json", "{}")
    assert not list(tmp_path.iterdir())


def test_on_windows_a_program_that_keeps_the_file_open_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def busy(old: Path, new: Path) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr("os.replace", busy)
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(
        OutputError, match=r"a\.txt: cannot be written \(Access is denied\); close the program that has"
    ):
        write_text_atomic(tmp_path / "a.txt", "new")
    assert sum(pauses) < 2
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    writer.remove_left_behind(tmp_path / "none")


def test_processes_are_identified_by_number() -> None:
    assert writer._is_alive(os.getpid())
    assert not writer._is_alive(2**22 + 5)  # beyond the most that Linux gives
    assert writer._is_alive(2**80)  # no number at all: nothing is known of it


def test_renames_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = writer._sync_folder, os.replace
    monkeypatch.setattr(writer, "_sync_folder", lambda folder: (done.append(f"sync {folder.name}"), sync(folder)))
    monkeypatch.setattr("os.replace", lambda old, new: (done.append("place"), replace(old, new)))
    write_text_atomic(tmp_path / "a.txt", "a")
    assert done == ["place", f"sync {tmp_path.name}"]
