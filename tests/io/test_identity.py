"""The fingerprint of an input changes with the input, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import phantom, write_series

from attunet3d.io.cases import segmentable_series
from attunet3d.io.identity import input_files, input_sha256, own_files
from attunet3d.io.output_formats import FORMATS, OutputFormat


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def test_a_file_is_identified_by_path_size_and_time(tmp_path: Path) -> None:
    ct = tmp_path / "ct.nii.gz"
    ct.write_bytes(b"1234")
    known = [input_sha256(ct)]
    assert input_sha256(str(ct)) == known[0]
    touch(ct)
    known.append(input_sha256(ct))
    stamp = ct.stat().st_mtime_ns
    ct.write_bytes(b"12345")
    os.utime(ct, ns=(0, stamp))
    known.append(input_sha256(ct))
    os.utime(ct.rename(tmp_path / "b.nii.gz"), ns=(0, stamp))
    known += [input_sha256(tmp_path / "b.nii.gz"), input_sha256(ct), input_sha256(ct, "1.2.3.4")]
    assert len(set(known)) == 6
    assert all(len(one) == 64 for one in known)


def test_a_link_counts_as_its_target(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"1234")
    link = tmp_path / "ct"
    link.symlink_to("a")
    assert input_sha256(link) != input_sha256(tmp_path / "b")
    before = input_sha256(link)
    link.unlink()
    link.symlink_to("b")
    assert input_sha256(link) != before


@pytest.mark.parametrize("name", ["ct.mhd", "ct.nhdr"])
def test_the_data_of_a_detached_header(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(tmp_path / name))
    (data,) = (path for path in tmp_path.iterdir() if path.name != name)
    before = input_sha256(tmp_path / name)
    touch(data)
    assert input_sha256(tmp_path / name) != before
    data.unlink()
    assert list(input_files(tmp_path / name)) == [str(tmp_path / name)]


def test_a_folder_is_identified_by_its_files_without_results(tmp_path: Path) -> None:
    write_series(tmp_path / "ct" / "x", phantom())
    known = input_sha256(tmp_path, files=input_files(tmp_path, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    for name in ("out/anything.dcm", "ct_seg.json", "ct_seg.dcm", "ct_seg.png", ".tmp-0123abcd-ct_seg.dcm", "ct/loop"):
        if name == "ct/loop":
            (tmp_path / name).symlink_to("..")
        else:
            (tmp_path / name).touch()
    assert input_sha256(tmp_path, files=input_files(tmp_path, tmp_path / "out")) == known
    (tmp_path / "ct" / "x" / "one_more.dcm").touch()
    assert input_sha256(tmp_path, files=input_files(tmp_path, tmp_path / "out")) != known


def test_a_series_is_identified_by_its_hashed_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "x", phantom(), uid="1.2.3.1")
    write_series(tmp_path / "y", phantom(), uid="1.2.3.2")
    one, other = segmentable_series(tmp_path)
    assert input_sha256(one) == input_sha256(tmp_path, "1.2.3.1")
    assert len({input_sha256(one), input_sha256(other), input_sha256(tmp_path)}) == 3


def test_undecodable_names_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"ct-\xff.dcm")).touch()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    assert len(input_files(tmp_path)) == 1
    assert len({input_sha256(tmp_path), input_sha256(tmp_path / "no"), input_sha256(tmp_path / "round")}) == 3


def test_results_are_recognized_by_their_records(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"a_seg.json", "a_seg.nii.gz", "a_seg.png", "a_attention_level2.nii.gz", ".tmp-0123abcd-b_seg.nii.gz"}
    ours |= {"a_seg.dcm", "a_attention_level3_gate2.nii.gz"}
    theirs = {"b_seg.nii.gz", "a.nii.gz", "results.csv", "a_attention.nii.gz", "c_seg.dcm"}
    assert own_files(ours | theirs) == ours
    monkeypatch.setitem(FORMATS, "new", OutputFormat("new", "_new.dcm", lambda source: lambda path, mask: None))
    assert own_files({"a_seg.json", "a_new.dcm", "b_new.dcm"}) == {"a_seg.json", "a_new.dcm"}
    run = {".run.lock", "results.csv", "run.json", "summary.json", "d_failed.json"}
    assert own_files(run | {"e.nii.gz"}) == run
