"""BTCV in its own layout: labels get TotalSegmentator's numbers, defective cases a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from organ_cases import in_numbers_of, save, small_phantom, snapshot

from attunet3d.datasets.btcv import ORGANS, find_cases
from attunet3d.datasets.numbering import ORGANS as NUMBERS
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import InputNotFoundError
from attunet3d.io import read_ct, read_label

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases 1, 2 and 21 are valid; 2 has no gallbladder."""
    root = tmp_path_factory.mktemp("btcv") / "Abdomen"
    training = root / "RawData" / "Training"
    for number in (1, 2, 21, 22, 23, 24, 25):
        phantom = small_phantom(1 if number == 24 else number)
        label = in_numbers_of(ORGANS, phantom.organs)
        if number == 2:
            label[label == 4] = 0
        elif number == 22:
            label[0, 0, 0] = 14
        elif number == 23:
            label[label == 11] = 0
        if number != 25:
            save(label, phantom.affine, training / "label" / f"label{number:04d}.nii.gz")
        save(phantom.image, phantom.affine, training / "img" / f"img{number:04d}.nii.gz")
    for name in ("img/img0026.nii", "img/img0026.nii.gz", "label/label0026.nii.gz", "label/label0027.nii.gz"):
        (training / name).touch()
    for name in ("img/._img0001.nii.gz", "img/readme.txt", "label/label0001.nii.gz.bak", "img/img01.nii.gz"):
        (training / name).write_bytes(b"extra")
    (root / "RawData" / "Testing" / "img").mkdir(parents=True)
    (root / "RawData" / "Testing" / "img" / "img0061.nii.gz").touch()
    return root


def test_organs_get_the_numbers_of_totalsegmentator(run_for_lines: Run, abdomen: Path, tmp_path: Path) -> None:
    numbers = [NUMBERS[ORGANS[value]] for value in range(1, 14)]
    assert numbers == [1, 2, 3, 4, 15, 5, 6, 52, 63, 64, 7, 8, 9]
    before, output = snapshot(abdomen), tmp_path / "btcv.json"
    code, stdout, stderr = run_for_lines("prepare", "btcv", abdomen, "-o", output, "--folds", 3)
    assert (code, stdout) == (1, f"{output}\n")
    assert stderr[-1] == "3 cases accepted, 6 refused, 1 left out, 3 folds of 1"
    for name, found in {
        "left out: btcv_0061": "has no label, as all of Testing",
        "refused: btcv_0022": "14, not 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13",
        "refused: btcv_0023": "no voxel has the value 11",
        "refused: btcv_0024": "the same voxels as the CT of btcv_0001",
        "refused: btcv_0025": "img0025.nii.gz: has no label",
        "refused: btcv_0026": "img0026.nii.gz; move one away",
        "refused: btcv_0027": "label0027.nii.gz: has no matching CT",
    }.items():
        (line,) = [line for line in stderr if line.startswith(f"{name}: ")]
        assert found in line
    assert snapshot(abdomen) == before

    content = json.loads(output.read_text())
    assert content["pancreas_labels"] == [7]
    assert content["labels"] == {"0": "background"} | {
        str(NUMBERS[name]): name for name in sorted(ORGANS.values(), key=NUMBERS.__getitem__)
    }
    assert [case["image"] for case in content["training"]] == [
        f"RawData/Training/img/img{number:04d}.nii.gz" for number in (1, 2, 21)
    ]
    for number, case in zip((1, 2, 21), content["training"], strict=True):
        assert case["label"] == str(tmp_path / "btcv_labels" / f"btcv_{number:04d}.nii.gz")
        label, affine = read_label(Path(case["label"]))
        np.testing.assert_array_equal(affine, read_ct(abdomen / case["image"])[1])
        truth = small_phantom(number).organs
        expected = np.where(np.isin(truth, [NUMBERS[name] for name in ORGANS.values()]), truth, 0)
        if number == 2:
            expected[expected == 4] = 0
        np.testing.assert_array_equal(label, expected)
        drawn = {name for name in ORGANS.values() if "adrenal" not in name and name != "oesophagus"}  # of phantoms
        assert set(case["labelled"]) == drawn - ({"gallbladder"} if number == 2 else set())
    assert all(case["labelled"] for case in load_cases(output, abdomen, "training"))


@pytest.mark.parametrize("place", ["", "RawData", "RawData/Training"])
def test_the_folder_may_be_any_above_img_and_label(abdomen: Path, place: str) -> None:
    data = find_cases(abdomen / place)
    assert [case.name for case in data.cases] == [f"btcv_{number:04d}" for number in (1, 2, 21, 22, 23, 24)]
    assert [name for name, _ in data.left_out] == ["btcv_0061"]


def test_a_folder_that_is_another_data_set(abdomen: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", abdomen / "RawData" / "Testing"):
        with pytest.raises(InputNotFoundError, match="no folders img and label"):
            find_cases(folder)
    for name in ("img", "label"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputNotFoundError, match=r"no img/img0001\.nii\.gz"):
        find_cases(tmp_path)
