"""MSD Task07 in its own layout, with a case for each possible defect."""

from __future__ import annotations

import json
import ntpath
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from attunet3d.datasets import msd_pancreas
from attunet3d.datasets.msd_pancreas import find_cases
from attunet3d.datasets.phantom import make_phantom
from attunet3d.errors import ConfigError, InputNotFoundError

Run = Callable[..., tuple[int, str, list[str]]]

GOOD = [f"pancreas_{k:03d}" for k in (1, 4, 5, 6, 8)]
BAD = {
    "pancreas_010": "an empty mask",
    "pancreas_012": "holds the values 0, 1, 3, not 0, 1, 2",
    "pancreas_013": "the same voxels as the CT of pancreas_004",
    "pancreas_015": "mm apart in the patient",
    "pancreas_016": "of the mask lies in tissue of -150 to 300 HU",
    "pancreas_018": "imagesTr/pancreas_018.nii.gz: does not exist",
    "pancreas_019": "not a CT in HU",
    "pancreas_020": "not a CT in HU",
    "pancreas_021": "truncated",
    "secret": "../secret.nii.gz, which is not in",
    "passwd": "/etc/passwd, which is not in",
    "case 0 of dataset.json": "lacks the path",
}


@pytest.fixture
def run(run_for_lines: Run) -> Run:
    return run_for_lines


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture(scope="module")
def task07(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("Task07_Pancreas")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
        (root / folder / "._pancreas_001.nii.gz").write_bytes(b"AppleDouble")
    (root / "._dataset.json").write_bytes(b"AppleDouble")
    for number in (1, 4, 5, 6, 8, 10, 12, 13, 15, 16, 18, 19, 20, 21):
        phantom = make_phantom(4 if number == 13 else number, shape=(60, 56, 44), orientation="RAS")
        image, label, affine, label_affine = phantom.image, phantom.mask.copy(), phantom.affine, phantom.affine.copy()
        inside = np.argwhere(label)
        label[tuple(inside[: len(inside) // 5].T)] = 2
        if number == 10:
            label[:] = 0
        elif number == 12:
            label[label == 2] = 3
        elif number == 13:  # the same CT in another type, with a label of its own
            image, label = image.astype(np.int32), (label > 0).astype(np.uint8)
        elif number == 15:
            label_affine[0, 3] += 3
        elif number == 16:
            label[:] = 0
            label[1:5, 1:5, 5:20] = 1
        elif number == 19:
            image = label
        elif number == 20:
            image = (image.clip(-1000, 1000) + 1024).astype(np.int16)
        save(label, label_affine, root / "labelsTr" / f"pancreas_{number:03d}.nii.gz")
        path = root / "imagesTr" / f"pancreas_{number:03d}.nii.gz"
        if number != 18:
            save(image, affine, path)
        if number == 21:
            path.write_bytes(path.read_bytes()[:-3000])
    save(np.eye(8), np.eye(4), root.parent / "secret.nii.gz")
    names = sorted([*GOOD, *(name for name in BAD if name.startswith("pancreas")), "._pancreas_001"])
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    training += [{"image": path, "label": path} for path in ("../secret.nii.gz", "/etc/passwd")]
    training += [{"image": "./imagesTr/pancreas_001.nii.gz", "label": "./labelsTr/pancreas_001.nii.gz"}]
    training += [{"label": "./labelsTr/pancreas_001.nii.gz"}]
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    content = {"name": "Pancreas", "labels": labels, "numTraining": 281, "training": training[::-1]}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_valid_cases_are_listed_and_others_reported(run: Run, task07: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in task07.rglob("*") if path.is_file()}
    output = tmp_path / "new" / "task07.json"
    arguments = ("prepare", "msd-pancreas", task07, "-o", output, "--folds", 2, "--seed", 3)
    code, stdout, stderr = run(*arguments)
    assert code == 1
    assert stdout == f"{output}\n"
    assert stderr[-1] == "5 cases accepted, 13 refused, 2 folds of 2 to 3"
    refused = stderr[:-1]
    assert len(refused) == len(BAD) + 1
    for name, found in BAD.items():
        (line,) = [line for line in refused if line.startswith(f"refused: {name}: ")]
        assert found in line
    # The case that is listed twice is in once.
    assert any("pancreas_001.nii.gz: the same file as the CT of pancreas_001" in line for line in refused)

    content = json.loads(output.read_text())
    assert [case["image"] for case in content["training"]] == [f"imagesTr/{name}.nii.gz" for name in GOOD]
    assert [case["label"] for case in content["training"]] == [f"labelsTr/{name}.nii.gz" for name in GOOD]
    assert sorted(case["fold"] for case in content["training"]) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])
    assert content["labels"] == {"0": "background", "1": "pancreas", "2": "tumour"}
    assert content["pancreas_labels"] == [1, 2]
    assert (content["seed"], content["folds"], content["numTraining"], content["test"]) == (3, 2, 5, [])

    written = output.read_bytes()
    run(*arguments)
    assert output.read_bytes() == written
    assert {path: path.read_bytes() for path in task07.rglob("*") if path.is_file()} == before
    assert [path.name for path in output.parent.iterdir()] == ["task07.json"]


def test_a_list_that_was_written_on_windows(task07: Path) -> None:
    """Backslashes are slashes, also in paths that lead out of the folder."""
    listed = [{"image": rf"imagesTr\{name}.nii.gz", "label": rf".\labelsTr\{name}.nii.gz"} for name in GOOD[:2]] + [
        {"image": r"imagesTr\..\..\secret.nii.gz", "label": rf"labelsTr\{GOOD[2]}.nii.gz"}
    ]
    (task07.parent / "other").mkdir(exist_ok=True)
    raw = task07.parent / "other"
    for folder in ("imagesTr", "labelsTr"):
        if not (raw / folder).exists():
            (raw / folder).symlink_to(task07 / folder)
    (raw / "dataset.json").write_text(json.dumps({"training": listed}))
    found = find_cases(raw)
    assert [(case.name, case.image, case.label) for case in found.cases] == [
        (name, raw / "imagesTr" / f"{name}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz") for name in GOOD[:2]
    ]
    assert [name for name, _ in found.refused] == ["secret"]


@pytest.mark.parametrize(
    "path", [r"D:\data\a.nii.gz", "D:a.nii.gz", r"\\server\share\a.nii.gz", r"..\a.nii.gz", "/a.nii.gz"]
)
def test_what_leads_outside_on_windows(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(msd_pancreas, "os", SimpleNamespace(path=ntpath, sep="\\", pardir=".."))
    assert msd_pancreas._leads_outside(path)
    assert not msd_pancreas._leads_outside(r"imagesTr\a.nii.gz")


def test_tumour_as_a_class_and_cases_for_test(run: Run, task07: Path, tmp_path: Path) -> None:
    output = tmp_path / "task07.json"
    arguments = ("prepare", "msd-pancreas", task07, "-o", output, "--tumour", "class", "--folds", 3, "--test", 2)
    code, _, stderr = run(*arguments)
    assert code == 1
    assert stderr[-1] == "5 cases accepted, 13 refused, 3 folds of 1, 2 for test"
    content = json.loads(output.read_text())
    assert content["pancreas_labels"] == [[1], [2]]
    assert len(content["test"]) == 2
    listed = [case["image"] for case in content["training"] + content["test"]]
    assert sorted(listed) == [f"imagesTr/{name}.nii.gz" for name in GOOD]


def test_more_folds_than_valid_cases(run: Run, task07: Path, tmp_path: Path) -> None:
    code, stdout, stderr = run("prepare", "msd-pancreas", task07, "-o", tmp_path / "task07.json", "--folds", 6)
    assert (code, stdout) == (2, "")
    assert stderr[-1] == "error: 6 folds of 5 cases: give from 2 to 5"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_another_data_set(run: Run, tmp_path: Path) -> None:
    code, stdout, stderr = run("prepare", "msd-pancreas", tmp_path, "-o", tmp_path / "task07.json")
    assert (code, stdout) == (2, "")
    assert stderr == [f"error: {tmp_path}: no dataset.json here; give the folder Task07_Pancreas"]
    with pytest.raises(InputNotFoundError):
        find_cases(tmp_path / "none")
    (tmp_path / "dataset.json").write_text('{"training": []}')
    with pytest.raises(ConfigError, match='no cases under "training"'):
        find_cases(tmp_path)
