"""AMOS22 in its own layout: its CTs, with TotalSegmentator's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from organ_cases import in_numbers_of, save, small_phantom, snapshot

from attunet3d.datasets.amos import ORGANS, find_cases
from attunet3d.datasets.numbering import ORGANS as NUMBERS
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import read_label

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def amos22(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases 1, 4 and 8 are valid; 4 has a voxel of prostate or uterus, as no phantom has."""
    root = tmp_path_factory.mktemp("amos22")
    sections: dict[str, list[object]] = {"training": [], "validation": []}
    for number, section in ((1, "Tr"), (4, "Tr"), (5, "Tr"), (6, "Tr"), (7, "Tr"), (507, "Tr"), (8, "Va"), (578, "Va")):
        phantom = small_phantom(number)
        label = in_numbers_of(ORGANS, phantom.organs)
        if number == 4:
            label[0, 0, 0] = 15
        elif number == 5:
            label[0, 0, 0] = 16
        entry = {key: f"./{key}s{section}/amos_{number:04d}.nii.gz" for key in ("image", "label")}
        sections["training" if section == "Tr" else "validation"].append(entry)
        if number != 6:
            save(label, phantom.affine, root / entry["label"])
        # An MRI is none by its id, and no CT by its values.
        image = (phantom.image + 1024).clip(0) // 8 if number == 7 else phantom.image
        save(image.astype(np.int16), phantom.affine, root / entry["image"])
    sections["training"] += [{"image": "./imagesVa/amos_0001.nii.gz", "label": "./labelsVa/amos_0001.nii.gz"}]
    sections["validation"] += ["./imagesVa/amos_0009.nii.gz", {"image": "./imagesVa/amos_0010.nii.gz"}]
    (root / "imagesTr" / "._amos_0001.nii.gz").write_bytes(b"AppleDouble")
    (root / "imagesTr" / "amos_0400.nii.gz").write_bytes(b"in no list")
    content = {"name": "AMOS", **sections, "test": [{"image": "./imagesTs/amos_0003.nii.gz"}]}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_cts_get_the_numbers_of_totalsegmentator(run_for_lines: Run, amos22: Path, tmp_path: Path) -> None:
    numbers = [NUMBERS[ORGANS[value]] for value in range(1, 16)]
    assert numbers == [1, 2, 3, 4, 15, 5, 6, 52, 63, 7, 8, 9, 19, 21, 22]
    before, output = snapshot(amos22), tmp_path / "amos.json"
    code, stdout, stderr = run_for_lines("prepare", "amos", amos22, "-o", output, "--folds", 3)
    assert (code, stdout) == (1, f"{output}\n")
    assert stderr[-1] == "3 cases accepted, 6 refused, 2 left out, 3 folds of 1"
    for name, found in {
        "left out: amos_0507": "an MRI, as all above amos_0500",
        "left out: amos_0578": "an MRI, as all above amos_0500",
        "refused: amos_0001": "by that name, too",
        "refused: amos_0005": "16, not 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
        "refused: amos_0006": "does not exist",
        "refused: amos_0007": "not a CT in HU",
        "refused: amos_0010": "lacks the path of its image or label",
        "refused: case 2 of dataset.json": "lacks the path of its image or label",
    }.items():
        (line,) = [line for line in stderr if line.startswith(f"{name}: ")]
        assert found in line
    assert snapshot(amos22) == before

    content = json.loads(output.read_text())
    assert content["pancreas_labels"] == [7]
    assert [case["image"] for case in content["training"]] == [
        *(f"imagesTr/amos_{number:04d}.nii.gz" for number in (1, 4)),
        "imagesVa/amos_0008.nii.gz",
    ]
    for number, case in zip((1, 4, 8), content["training"], strict=True):
        truth = small_phantom(number).organs
        expected = np.where(np.isin(truth, [NUMBERS[name] for name in ORGANS.values()]), truth, 0)
        expected[0, 0, 0] = 22 if number == 4 else 0
        np.testing.assert_array_equal(read_label(Path(case["label"]))[0], expected)
        assert ("prostate or uterus" in case["labelled"]) == (number == 4)
        assert {"pancreas", "liver", "duodenum"} <= set(case["labelled"])


def test_a_folder_that_is_another_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="give the folder amos22"):
        find_cases(tmp_path)
    for text, found in (('{"validation": []}', "training"), ('{"training": [{}], "validation": 3}', "validation")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(ConfigError, match=f'no cases under "{found}"'):
            find_cases(tmp_path)
