"""``prepare pairs``, and what all data sets share: layouts, warnings, and what is written and when."""

from __future__ import annotations

import importlib
import json
import ntpath
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_series

from attunet3d.datasets.image_label_pairs import find_cases
from attunet3d.datasets.phantom import Phantom, make_phantom, write_phantoms
from attunet3d.datasets.prepare import prepare
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError, InputNotFoundError, OutputError
from attunet3d.transforms.labels import share_in_body

Run = Callable[..., tuple[int, str, list[str]]]

preparing = importlib.import_module("attunet3d.datasets.prepare")  # the package has a function of that name


@pytest.fixture
def run(run_for_lines: Run) -> Run:
    return run_for_lines


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed, shape=(60, 56, 44), orientation="LPS") for seed in (1, 2, 3)]


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def save_dicom(phantom: Phantom, folder: Path) -> None:
    spacing = [float(mm) for mm in np.abs(np.diag(phantom.affine)[:3])]
    x, y, z = (float(mm) for mm in phantom.affine[:3, 3])
    tag = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]
    write_series(folder, phantom.image, origin=(-x, -y, z), step=(0, 0, spacing[2]), PixelSpacing=tag)


LAYOUTS = {
    "folders": ("images/a{}.nii.gz", "labels/a{}.nii.gz"),
    "folders, endings": ("images/a{}.nii.gz", "labels/a{}_seg.nii.gz"),
    "MSD without json": ("imagesTr/a_000{}.nii.gz", "labelsTr/a_000{}.nii.gz"),
    "nnU-Net": ("imagesTr/a_{}_0000.nii.gz", "labelsTr/a_{}.nii.gz"),
    "flat": ("a{}.nii.gz", "a{}_mask.nii.gz"),
    "flat, several endings": ("a{}.nii", "a{}_label.nii.gz"),
    "a folder each": ("a{}/ct.nii.gz", "a{}/pancreas.nii.gz"),
    "TotalSegmentator": ("a{}/ct.nii.gz", "a{}/segmentations/pancreas.nii.gz"),
    "a folder each, DICOM": ("a{}/dicom", "a{}/label.nii.gz"),
    "DICOM beside labels": ("images/a{}", "labels/a{}.nii.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(phantoms: list[Phantom], tmp_path: Path, layout: str) -> None:
    image, label = LAYOUTS[layout]
    raw = tmp_path / "raw"
    for number, phantom in enumerate(phantoms):
        if image.endswith((".nii", ".nii.gz")):
            save(phantom.image, phantom.affine, raw / image.format(number))
        else:
            save_dicom(phantom, raw / image.format(number))
        save(phantom.mask, phantom.affine, raw / label.format(number))
    (raw / "readme.txt").write_text("not an image")
    (raw / label.format(0)).with_name("._a0_label.nii.gz").write_bytes(b"AppleDouble")
    output = tmp_path / "pairs.json"
    said: list[tuple[str, str]] = []
    done = prepare(find_cases(raw), output, folds=3, report=lambda *words: said.append(words))
    assert not said
    assert (done.accepted, done.refused) == (3, 0)
    cases = json.loads(output.read_text())["training"]
    expected = [(image.format(number), label.format(number)) for number in range(3)]
    assert [(case["image"], case["label"]) for case in cases] == expected
    assert sorted(case["fold"] for case in cases) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir() if path != raw] == ["pairs.json"]


def test_phantoms_through_the_command_line(run: Run, tmp_path: Path) -> None:
    raw = tmp_path / "phantoms"
    write_phantoms(raw, 4, seed=1, shape=(60, 56, 44))
    output = tmp_path / "datalist.json"
    arguments = ("prepare", "pairs", raw, "-o", output, "--folds", 3, "--seed", 2, "--test", 1)
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (0, f"{output}\n")
    assert stderr == ["4 cases accepted, 0 refused, 3 folds of 1, 1 for test"]
    content = json.loads(output.read_text())
    assert list(content) == [
        *("name", "description", "labels", "modality", "pancreas_labels", "dataset_dir", "seed", "folds"),
        *("numTraining", "numTest", "training", "test"),
    ]
    assert content["name"] == content["dataset_dir"] == "phantoms"
    assert content["pancreas_labels"] == [1]
    # What training reads of it.
    training, validation, test = (load_cases(output, raw, section, 2) for section in ("training", "validation", "test"))
    assert [len(part) for part in (training, validation, test)] == [2, 1, 1]
    assert len({case["image"] for case in training + validation + test}) == 4
    written = output.read_bytes()
    run(*arguments)
    assert output.read_bytes() == written
    run(*arguments[:-3], 5, *arguments[-2:])
    assert output.read_bytes() != written


def test_labels_with_other_organs_need_pancreas_labels(run: Run, phantoms: list[Phantom], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, phantom in enumerate(phantoms):
        organs = phantom.mask * np.uint8(7)
        organs[25:30, 25:30, 20:25] = 3
        save(phantom.image, phantom.affine, raw / f"c{number}" / "scan.nii.gz")
        save(organs, phantom.affine, raw / f"c{number}" / "organs.nii.gz")
    (raw / "c2" / "organs.nii.gz").unlink()
    output = tmp_path / "organs.json"
    code, _, stderr = run("prepare", "pairs", raw, "-o", output)
    assert code == 2
    assert "say where with images and labels (--images, --labels)" in stderr[-1]

    patterns = ("--images", "*/scan.nii.gz", "--labels", "*/organs.nii.gz")
    code, _, stderr = run("prepare", "pairs", raw, "-o", output, *patterns, "--folds", 2)
    assert code == 2
    assert "holds the values 0, 3, 7, not 0, 1; say with pancreas_labels which are pancreas" in stderr[1]
    assert stderr[1].endswith(" (--pancreas-label)")
    assert stderr[-1] == f"error: {raw}: none of the 3 cases can be used; nothing was written"
    assert not output.exists()

    code, stdout, stderr = run("prepare", "pairs", raw, "-o", output, *patterns, "--folds", 2, "--pancreas-label", 7)
    assert (code, stdout) == (1, f"{output}\n")
    assert stderr == [
        f"refused: c2: {raw}/c2/scan.nii.gz: has no label",
        "2 cases accepted, 1 refused, 2 folds of 1",
    ]
    content = json.loads(output.read_text())
    assert content["labels"] == {"0": "background", "3": "other", "7": "pancreas"}
    assert content["pancreas_labels"] == [7]


def test_incomplete_and_ambiguous_pairs(phantoms: list[Phantom], tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such folder"):
        find_cases(tmp_path / "none")
    with pytest.raises(ConfigError, match="give both"):
        find_cases(tmp_path, images="images")
    for name in ("a.nii.gz", "b.nii.gz", "b.mha", "d.nii.gz", "d_0000.nii.gz"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    for name in ("labels/b.nii.gz", "labels/c.nii.gz", "labels/d.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = find_cases(tmp_path, images="images", labels="labels")
    assert not data.cases
    found = dict(data.refused)
    assert found["a"].endswith("images/a.nii.gz: has no label")
    assert "b.mha and" in found["b"]
    assert "images/d.nii.gz and" in found["d"]
    assert found["c"].endswith("labels/c.nii.gz: has no matching CT")


def test_warnings_do_not_refuse(phantoms: list[Phantom], tmp_path: Path) -> None:
    for number, phantom in enumerate(phantoms[:2]):
        # Voxels of a quarter of the size in each direction: a 64th of the volume.
        affine = phantom.affine @ np.diag([0.25, 0.25, 0.25, 1]) if number else phantom.affine
        save(phantom.image, affine, tmp_path / f"a{number}.nii.gz")
        save(phantom.mask, affine, tmp_path / f"a{number}_label.nii.gz")
    said: list[tuple[str, str]] = []
    done = prepare(find_cases(tmp_path), tmp_path / "out.json", folds=2, report=lambda *words: said.append(words))
    assert (done.accepted, done.refused) == (2, 0)
    ((kind, text),) = said
    assert kind == "warning"
    volume_ml = phantoms[1].record["pancreas_ml"] / 64
    assert text == f"a1: pancreas of {volume_ml:.1f} mL; 10 to 300 mL are plausible"


def test_invalid_outputs_and_folds_are_refused_before_any_case(phantoms: list[Phantom], tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, phantom in enumerate(phantoms):
        save(phantom.image, phantom.affine, raw / f"a{number}.nii.gz")
        save(phantom.mask, phantom.affine, raw / f"a{number}_label.nii.gz")
    started: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        started.append(name)

    with pytest.raises(OutputError, match="give a file name"):
        prepare(find_cases(raw), raw, progress=progress)
    with pytest.raises(ConfigError, match="4 folds of 3 cases"):
        prepare(find_cases(raw), tmp_path / "out.json", folds=4, progress=progress)
    assert not started
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot make the output folder"):
        prepare(find_cases(raw), tmp_path / "file" / "out.json", folds=3, progress=progress)
    assert started == ["a0", "a1", "a2"]


def test_share_in_body_counts_the_masks_voxels() -> None:
    hu = np.full((6, 6, 6), -1000, np.int16)
    hu[1:3, 1:3, 1:3] = 40
    mask = np.zeros(hu.shape, bool)
    mask[1:3, 1:3, 1:3] = True
    assert share_in_body(hu, mask) == 1.0
    mask[1:3, 1:3, 3] = True  # four of twelve in air
    assert share_in_body(hu, mask) == pytest.approx(8 / 12)
    hu[1, 1, 1] = 301
    assert share_in_body(hu, mask) == pytest.approx(7 / 12)


def test_paths_of_a_datalist_have_slashes_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "Path", PureWindowsPath)
    monkeypatch.setattr(preparing, "os", SimpleNamespace(path=ntpath))
    root = PureWindowsPath("C:\\data")
    written = [
        preparing._in_datalist(PureWindowsPath(path), root)  # type: ignore[arg-type]
        for path in (r"C:\data\cts\a.nii.gz", r"D:\labels\a.nii.gz")
    ]
    assert written == ["cts/a.nii.gz", "D:/labels/a.nii.gz"]
    assert preparing._from(PureWindowsPath(r"C:\data\lists"), root) == ".."  # type: ignore[arg-type]
    assert preparing._from(PureWindowsPath(r"D:\lists"), root) == "C:/data"  # type: ignore[arg-type]
