"""The command line as a user meets it: products, one-line errors, exit codes, nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import TINY
from dicom_files import phantom, write_series

from attunet3d import __version__

ONE_SIZE = {**TINY, "scales": [1.0]}
TINY_ARGUMENTS = [argument for name, value in ONE_SIZE.items() for argument in ("--set", f"{name}={value}")]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def segment(run: Run, tiny_checkpoint: Path) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        return run("segment", *arguments, "--checkpoint", tiny_checkpoint, "--precision", "fp32", *TINY_ARGUMENTS)

    return call


def test_several_inputs_one_bad(segment: Run, write_phantom: Callable[..., Path], tmp_path: Path) -> None:
    good, other = write_phantom("RAS"), write_phantom("LPS")
    out = tmp_path / "out"
    code, stdout, stderr = segment(good, tmp_path / "none.nii.gz", other, "-o", out, "--qc")
    assert code == 1
    assert stdout.splitlines() == [str(out / "phantom_RAS_0_seg.nii.gz"), str(out / "phantom_LPS_0_seg.nii.gz")]
    assert stderr.splitlines() == [f"error: {tmp_path}/none.nii.gz: does not exist; check the path"]
    names = sorted(p.name for p in out.iterdir())
    assert names == [f"phantom_{o}_0_seg.{s}" for o in ("LPS", "RAS") for s in ("json", "nii.gz", "png")]


def _truncated(folder: Path) -> Path:
    path = folder / "ct.nii.gz"
    nib.save(nib.Nifti1Image(phantom((40, 40, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def _nifti(name: str, array: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / name)
        return folder / name

    return make


def _rgb(folder: Path) -> Path:
    array = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "rgb.nii.gz")
    return folder / "rgb.nii.gz"


def _vector_mha(folder: Path) -> Path:
    image = sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(image, str(folder / "rgb.mha"))
    return folder / "rgb.mha"


def _two_series(folder: Path) -> Path:
    write_series(folder / "study" / "a", phantom(), uid="1.2.3.1")
    write_series(folder / "study" / "b", phantom(seed=1), uid="1.2.3.2")
    return folder / "study"


def _mr(folder: Path) -> Path:
    write_series(folder / "mr", phantom(), Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    return folder / "mr"


def _cut_dicom(folder: Path) -> Path:
    path = write_series(folder / "cut", phantom())[2]
    path.write_bytes(path.read_bytes()[:-40])
    return folder / "cut"


def _missing_slice(folder: Path) -> Path:
    write_series(folder / "gap", phantom())[3].unlink()
    return folder / "gap"


def _one_dicom_file(folder: Path) -> Path:
    return write_series(folder / "series", phantom())[0]


def _empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _noise(folder: Path) -> Path:
    (folder / "noise.nii.gz").write_bytes(np.random.default_rng(0).bytes(4000))
    return folder / "noise.nii.gz"


def _text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no image")
    return folder / "notes.txt"


BAD_INPUTS = {
    "missing": (lambda folder: folder / "none.nii.gz", "does not exist"),
    "empty folder": (_empty_folder, "no DICOM files"),
    "truncated": (_truncated, "truncated"),
    "random bytes": (_noise, "gzip"),
    "text": (_text, "nii.gz"),
    "4D": (_nifti("4d.nii.gz", np.zeros((8, 8, 8, 3), np.int16)), "4D"),
    "2D": (_nifti("2d.nii.gz", np.zeros((8, 8), np.int16)), "2D"),
    "RGB": (_rgb, "colour"),
    "vector": (_vector_mha, "one real value per voxel"),
    "mask": (_nifti("mask.nii.gz", np.eye(8, dtype=np.uint8)[None].repeat(8, 0)), "HU"),
    "scaled": (_nifti("unit.nii.gz", np.linspace(0, 1, 512, dtype=np.float32).reshape(8, 8, 8)), "HU"),
    "not finite": (_nifti("nan.nii.gz", np.full((8, 8, 8), np.nan, np.float32)), "finite"),
    "two series": (_two_series, "--series"),
    "MR": (_mr, "MR"),
    "cut DICOM": (_cut_dicom, "truncated"),
    "missing slice": (_missing_slice, "slice"),
    "one DICOM file": (_one_dicom_file, "folder"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(segment: Run, tmp_path: Path, name: str) -> None:
    make, found = BAD_INPUTS[name]
    path = make(tmp_path)
    code, stdout, stderr = segment(path, "-o", tmp_path / "out")
    assert code == 1
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith(f"error: {path}")
    assert found in lines[0]
    assert "Error" not in lines[0], "the message names a Python class"
    assert not (tmp_path / "out").exists()


def test_series_chooses_among_several(segment: Run, tmp_path: Path) -> None:
    study = _two_series(tmp_path)
    code, stdout, _ = segment(study, "-o", tmp_path / "out", "--series", "1.2.3.2")
    assert code == 0
    record = json.loads((tmp_path / "out" / "study_seg.json").read_text())
    assert record["source"]["series_uid"] == "1.2.3.2"
    assert stdout.strip().endswith("study_seg.nii.gz")
    assert "DOE" not in json.dumps(record)


def _dicom_of(ct: Path, folder: Path, uid: str, **tags: Any) -> list[Path]:
    """A NIfTI phantom, large enough for the network, as a DICOM series."""
    image = nib.load(ct)
    x, y, z = map(float, nib.affines.voxel_sizes(image.affine))
    return write_series(folder, np.asarray(image.dataobj), uid=uid, step=(0, 0, z), PixelSpacing=[y, x], **tags)


def test_all_series_of_folders_and_files_beside(
    segment: Run, write_phantom: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a study two series; one that lacks a slice, a localizer, two patients and what is not there are told of."""
    monkeypatch.chdir(tmp_path)
    ct, study, two = write_phantom("LPS"), Path("study"), Path("two")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(study / "a", phantom(), uid="1.2.3.1", **scout)
    _dicom_of(ct, study / "b", "1.2.3.2")
    _dicom_of(ct, study / "c", "1.2.3.3")[9].unlink()
    _dicom_of(write_phantom("LPS", 1), study / "d", "1.2.3.4")
    write_series(two / "a", phantom(), uid="1.2.4.1")
    write_series(two / "b", phantom(), uid="1.2.4.2", PatientID="0815")
    out = tmp_path / "out"
    code, stdout, stderr = segment(study, two, ct, "nowhere", "-o", out, "--all-series")
    assert code == 1
    names = ["study_series2_seg", "study_series4_seg", "phantom_LPS_0_seg"]
    assert [Path(line).name for line in stdout.split()] == [f"{name}.nii.gz" for name in names]
    assert {p.name for p in out.iterdir()} == {name + end for name in names for end in (".json", ".nii.gz")}
    lines = stderr.splitlines()
    starts = [
        "left out: study: series 1: CT localizer: 1.2.3.1 (6 files",
        "error: study: series 3: study/c: gap",
        "error: two: 2 CT series of 2 patients; segment each",
        "error: nowhere: does not exist",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    first, second = (json.loads((out / f"{name}.json").read_text()) for name in names[:2])
    assert [r["source"]["series_uid"] for r in (first, second)] == ["1.2.3.2", "1.2.3.4"]
    assert [r["input"] for r in (first, second)] == ["study", "study"]
    assert first["voxels"] != second["voxels"]
    # As each alone, which is chosen by its UID.
    code, _, _ = segment(study, "-o", out / "one", "--series", "1.2.3.4")
    alone = nib.load(out / "one" / "study_seg.nii.gz")
    np.testing.assert_array_equal(alone.dataobj, nib.load(out / "study_series4_seg.nii.gz").dataobj)


def test_a_series_and_a_file_of_one_name_are_refused(
    segment: Run, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    write_series(tmp_path / "a", phantom())
    (tmp_path / "a_series1.nii.gz").symlink_to(write_phantom())
    code, stdout, stderr = segment(tmp_path / "a", tmp_path / "a_series1.nii.gz", "-o", tmp_path / "o", "--all-series")
    assert (code, stdout) == (2, "")
    assert f"{tmp_path}/a: series 1, {tmp_path}/a_series1.nii.gz: all their masks" in stderr


def test_an_only_series_has_its_number_too_and_no_uid_is_kept(
    segment: Run, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    uid = "1.2.840.99.7"
    for patient in ("p1", "p2"):
        _dicom_of(write_phantom("LPS"), tmp_path / patient / uid, uid)
    folders = [tmp_path / patient / uid for patient in ("p1", "p2")]
    code, stdout, stderr = segment(*folders, "-o", tmp_path / "out", "--all-series", "--no-uids")
    assert (code, stderr) == (0, "")
    names = [f"{patient}_{uid}_series1_seg" for patient in ("p1", "p2")]
    assert [Path(line).name for line in stdout.split()] == [f"{name}.nii.gz" for name in names]
    record = json.loads((tmp_path / "out" / f"{names[0]}.json").read_text())
    assert record["input"] == "UID"
    assert record["source"] == {"format": "dicom", "slices": 44, "gantry_tilt_deg": 0.0}
    assert record.pop("output") == f"{names[0]}.nii.gz"  # as the folder is called
    assert uid not in json.dumps(record)


def test_usage_errors_exit_with_2(run: Run, segment: Run, write_phantom: Callable[..., Path], tmp_path: Path) -> None:
    ct = write_phantom()
    (tmp_path / "file").write_text("")
    bad_preset = tmp_path / "bad.yaml"
    bad_preset.write_text("a: [1")
    cases = [
        (segment(ct, "-o", tmp_path / "file"), "not a folder"),
        (segment(ct, ct, "-o", tmp_path / "out"), "different folders"),
        (segment(ct, "-o", tmp_path / "out", "--series", "1.2", "--all-series"), "one of them"),
        (segment(ct, "-o", tmp_path / "out", "--set", "device=cpu"), "option of its own"),
        (segment(ct, "-o", tmp_path / "out", "--set", "max_epochs=3"), "inference config"),
        (segment(ct, "-o", tmp_path / "out", "--set", "sw_batch_size=0"), "at least 1"),
        (segment(ct, "-o", tmp_path / "out", "-c", bad_preset), "the preset cannot be read"),
        (run("segment", ct, "-o", tmp_path / "out", "--checkpoint", tmp_path / "no.pt"), "no such checkpoint"),
        (run("segment", ct, "-o", tmp_path / "out", "-c", "nope"), "no preset"),
        (run("segment", ct, "-o", tmp_path / "out", "--set", "overlap"), "ID=VALUE"),
        (run("segment", ct, "-o", tmp_path / "out", "--set", "nope=1"), "'nope'"),
        (run("segment", ct, "-o", tmp_path / "out", "--device", "gpu"), "device"),
        (run("segment", ct, "-o", tmp_path / "out", "--precision", "int8"), "precision"),
        (run("segment", "-o", tmp_path / "out"), "CT"),
        (run("segment", ct), "--output"),
        (run("train", "--dataset-dir", tmp_path, "--datalist", tmp_path / "d.json", "-o", tmp_path / "r"), "no such"),
    ]
    for (code, stdout, stderr), found in cases:
        assert code == 2, stderr
        assert stdout == ""
        assert found in stderr
        assert "Traceback" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.yaml", "file"]


def test_cts_of_one_name_get_their_folders_name(
    segment: Run, write_phantom: Callable[..., Path], tmp_path: Path
) -> None:
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "ct.nii.gz").symlink_to(write_phantom())
    code, stdout, _ = segment(tmp_path / "p1" / "ct.nii.gz", tmp_path / "p2" / "ct.nii.gz", "-o", tmp_path / "out")
    assert code == 0
    assert [Path(line).name for line in stdout.split()] == ["p1_ct_seg.nii.gz", "p2_ct_seg.nii.gz"]


@pytest.mark.parametrize(("one", "other"), [("CT", "ct"), ("stra\u00dfe", "STRASSE"), ("caf\u00e9", "cafe\u0301")])
def test_cts_whose_masks_some_file_systems_take_for_one(segment: Run, tmp_path: Path, one: str, other: str) -> None:
    """Where their folders' names do not tell them apart either, nothing is read."""
    cts = [tmp_path / f"{one}.nii.gz", tmp_path / f"{other}.nii.gz"]
    code, stdout, stderr = segment(*cts, "-o", tmp_path / "out")
    assert (code, stdout) == (2, "")
    for part in (*map(str, cts), f'{one}_seg"', f'{other}_seg"', "capitals", "different folders"):
        assert part in stderr


def test_evaluation_refuses_before_it_reads(run: Run, bare_checkpoint: Path, tmp_path: Path) -> None:
    run("phantom", tmp_path / "p", "--cases", 2, "--spacing", 8, 8, 8)
    data = ["--dataset-dir", tmp_path / "p", "--datalist", tmp_path / "p" / "datalist.json"]
    # The likeliest mistake: the preset of weights without a recipe was forgotten.
    code, _, stderr = run("evaluate", *data, "--checkpoint", bare_checkpoint, "-o", tmp_path / "e")
    assert code == 2
    assert "preset it was trained with" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    # Nor is a run that exists already started anew.
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "last.pt").write_bytes(b"")
    code, _, stderr = run("train", *data, "-o", tmp_path / "r")
    assert code == 2
    assert stderr.count("\n") == 1
    assert "--resume" in stderr
    assert not (tmp_path / "e").exists()


def test_score_and_phantom(run: Run, tmp_path: Path) -> None:
    code, stdout, _ = run("phantom", tmp_path / "p", "--cases", 2, "--spacing", 6, 6, 6, "--seed", 5)
    assert code == 0
    assert stdout.strip() == str(tmp_path / "p" / "datalist.json")
    label = tmp_path / "p" / "labelsTr" / "phantom_0000.nii.gz"
    code, stdout, _ = run("score", label, label)
    assert code == 0
    values = json.loads(stdout)
    assert values["dice"] == 1.0
    assert values["difference_ml"] == 0.0
    other = tmp_path / "p" / "labelsTr" / "phantom_0001.nii.gz"
    code, _, stderr = run("score", label, other)
    assert code == 2
    assert stderr.count("\n") == 1


def test_help_has_examples_and_does_not_wait_for_torch(run: Run) -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "attunet3d", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for slow in ("torch", "monai", "numpy", "matplotlib"):
        assert slow not in shown.stderr, "of what takes seconds to import nothing is"
    for verb in (
        "segment",
        "inspect",
        "prepare",
        "train",
        "evaluate",
        "score",
        "phantom",
        "benchmark",
        "benchmark-training",
    ):
        assert verb in shown.stdout
        code, stdout, _ = run(verb, "--help")
        assert code == 0
        assert f"Example: attunet3d {verb}" in stdout
    assert run("--version")[1].strip() == __version__
