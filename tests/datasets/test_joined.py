"""Datalists of several data sets as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from organ_cases import in_numbers_of, save, small_phantom, snapshot

from attunet3d.datasets import btcv, msd_pancreas
from attunet3d.datasets.joined import find_cases
from attunet3d.datasets.numbering import ORGANS
from attunet3d.datasets.prepare import prepare
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError, InputNotFoundError, OutputError
from attunet3d.io import read_label
from attunet3d.training.targets import unlabelled_bits

Run = Callable[..., tuple[int, str, list[str]]]

PATIENTS = ROOT / "configs" / "patients.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BTCV's cases 1 and 2, prepared; MSD's 3, 4 with a tumour, and 1 once more; their datalists are in lists/."""
    root = tmp_path_factory.mktemp("data")
    for number in (1, 2):
        phantom = small_phantom(number)
        label = in_numbers_of(btcv.ORGANS, phantom.organs)
        save(phantom.image, phantom.affine, root / "btcv" / "img" / f"img{number:04d}.nii.gz")
        save(label, phantom.affine, root / "btcv" / "label" / f"label{number:04d}.nii.gz")
    for number in (1, 3, 4):
        phantom = small_phantom(number)
        label = phantom.mask.copy()
        label[tuple(np.argwhere(label)[:20].T)] = 2
        save(phantom.image, phantom.affine, root / "msd" / "imagesTr" / f"pancreas_{number:03d}.nii.gz")
        save(label, phantom.affine, root / "msd" / "labelsTr" / f"pancreas_{number:03d}.nii.gz")
    names = [f"pancreas_{number:03d}.nii.gz" for number in (1, 3, 4)]
    listed = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (root / "msd" / "dataset.json").write_text(json.dumps({"training": listed}))
    prepare(btcv.find_cases(root / "btcv"), root / "lists" / "btcv.json", folds=2)
    prepare(msd_pancreas.find_cases(root / "msd"), root / "lists" / "msd.json", folds=2)
    return root


def test_data_sets_with_other_numbers_train_together(run_for_lines: Run, data: Path, tmp_path: Path) -> None:
    before, output = snapshot(data), tmp_path / "all.json"
    lists = data / "lists"
    arguments = ("prepare", "join", lists / "btcv.json", lists / "msd.json", "-o", output, "--folds", 2)
    code, stdout, stderr = run_for_lines(*arguments)
    assert (code, stdout) == (1, f"{output}\n")
    twin = "msd_imagesTr_pancreas_001"
    assert stderr == [
        f"refused: {twin}: {data}/msd/imagesTr/pancreas_001.nii.gz: the same voxels as the CT of btcv_img_img0001",
        "4 cases accepted, 1 refused, 2 folds of 2",
        f"paths are relative to {data}: give it as --dataset-dir",
    ]
    assert snapshot(data) == before

    content = json.loads(output.read_text())
    assert content["pancreas_labels"] == [7]
    images = [f"btcv/img/img{number:04d}.nii.gz" for number in (1, 2)]
    images += [f"msd/imagesTr/pancreas_{number:03d}.nii.gz" for number in (3, 4)]
    assert [case["image"] for case in content["training"]] == images
    assert sorted(case["fold"] for case in content["training"]) == [0, 0, 1, 1]
    # Labels with the right numbers are used as they are; others are written anew.
    assert [case["label"] for case in content["training"]] == [
        *(f"lists/btcv_labels/btcv_{number:04d}.nii.gz" for number in (1, 2)),
        *(str(tmp_path / "all_labels" / f"msd_imagesTr_pancreas_{number:03d}.nii.gz") for number in (3, 4)),
    ]
    for number, case in zip((3, 4), content["training"][2:], strict=True):
        np.testing.assert_array_equal(read_label(Path(case["label"]))[0], small_phantom(number).mask * 7)

    # What training makes of it with the preset.
    organs = yaml.safe_load(PATIENTS.read_text())["organs"]
    classes = ["pancreas", *organs]
    cases = [case for fold in (0, 1) for case in load_cases(output, data, "training", fold)]
    unlabelled = {Path(case["image"]).name: unlabelled_bits(case["labelled"], classes) for case in cases}
    assert unlabelled == {
        "img0001.nii.gz": 0,
        "img0002.nii.gz": 0,
        "pancreas_003.nii.gz": sum(1 << number for number in range(2, len(classes) + 1)),
        "pancreas_004.nii.gz": sum(1 << number for number in range(2, len(classes) + 1)),
    }
    assert len(load_cases(output, data, "validation", 1)) == 2

    written = snapshot(tmp_path)
    run_for_lines(*arguments)
    assert snapshot(tmp_path) == written
    # A joined datalist can be joined again: nothing is left to renumber.
    again = find_cases([output], tmp_path / "again.json")
    done = prepare(again, tmp_path / "again.json", folds=2, test=1)
    assert (done.accepted, done.test, done.refused) == (4, 1, 0)
    assert not (tmp_path / "again_labels").exists()


def test_the_preset_has_these_numbers() -> None:
    preset = yaml.safe_load(PATIENTS.read_text())
    assert preset["pancreas_labels"] == [ORGANS["pancreas"]]
    assert preset["organs"] == {name: [ORGANS[name]] for name in preset["organs"]}


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def one(data: Path, tmp_path: Path) -> dict[str, str]:
    """An entry for a CT with an organ map of 5 liver, 7 pancreas and others, beside the datalist."""
    phantom = small_phantom(5)
    save(phantom.image, phantom.affine, tmp_path / "ct.nii.gz")
    save(phantom.organs, phantom.affine, tmp_path / "organs.nii.gz")
    return {"image": "ct.nii.gz", "label": "organs.nii.gz"}


@pytest.mark.parametrize(
    ("labels", "labelled", "expected"),
    [
        ({}, None, {"pancreas"}),
        ({"5": "Liver", "1": "other", "2": "Leber"}, None, {"pancreas", "liver"}),
        ({"5": "liver", "0": "spleen", "300": "aorta", "1": "pancreas"}, None, {"pancreas", "liver"}),
        ({"liver": 5, "spleen": 1}, ["pancreas", "spleen", "aorta"], {"pancreas", "spleen"}),
        ({"5": "liver", "8": "right adrenal gland"}, None, {"pancreas", "liver"}),  # no voxel: it may not be drawn
    ],
)
def test_only_what_is_known_to_be_drawn_has_a_say(
    one: dict[str, str], tmp_path: Path, labels: Any, labelled: Any, expected: set[str]
) -> None:
    entry = one if labelled is None else {**one, "labelled": labelled}
    datalist = write(tmp_path / "a.json", pancreas_labels=[7], labels=labels, training=[entry])
    (case,) = find_cases([datalist], tmp_path / "all.json").cases
    assert case.renumber is not None
    new = case.renumber(read_label(tmp_path / "organs.nii.gz")[0])
    if labelled is None:
        assert case.labelled is None
        assert set(np.unique(new)) == {0, *(ORGANS[name] for name in expected)}
    else:
        assert set(case.labelled or ()) == expected


def test_datalists_that_cannot_be_joined(one: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "all.json"
    for content, found in (
        ({"training": [one], "test": [one]}, 'cases under "test"'),
        ({"training": [one], "testing": [one]}, 'cases under "testing"'),
        ({"training": [one], "validation": [one]}, 'cases under "validation"'),
        ({"training": [one], "pancreas_labels": [[1], [2]]}, "2 classes of pancreas"),
        ({"training": [one], "dataset_dir": 3}, '"dataset_dir" is 3'),
        ({"training": []}, 'no cases under "training"'),
    ):
        with pytest.raises(ConfigError, match=found):
            find_cases([write(tmp_path / "a.json", **content)], output)
    with pytest.raises(InputNotFoundError, match="no such datalist"):
        find_cases([tmp_path / "none.json"], output)
    with pytest.raises(InputNotFoundError, match="does not exist"):
        find_cases([write(tmp_path / "a.json", training=[one], dataset_dir="elsewhere")], output)
    with pytest.raises(OutputError, match="is one of the datalists"):
        find_cases([write(tmp_path / "a.json", training=[one])], tmp_path / "." / "a.json")


def test_cases_of_one_name_and_cases_that_are_refused(one: dict[str, str], data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in one.values():
        shutil.copy(tmp_path / name, other)
    without = [{**one, "negative": True}, {**one, "labelled": ["liver"]}]
    lists = [
        write(tmp_path / "a.json", pancreas_labels=[1], training=[one, *without]),
        write(other / "A.json", pancreas_labels=[7], training=[one]),
    ]
    found = find_cases(lists, tmp_path / "all.json")
    assert [case.name for case in found.cases] == ["a_ct", "A_ct_4"]
    assert [name for name, _ in found.refused] == ["a_ct_2", "a_ct_3"]
    assert all("ct.nii.gz: without pancreas" in text for _, text in found.refused)
    assert found.root == tmp_path
    said: list[str] = []
    lists.append(data / "lists" / "btcv.json")
    joined = find_cases(lists, tmp_path / "all.json")
    prepare(joined, tmp_path / "all.json", folds=3, report=lambda _, text: said.append(text))
    (line,) = [text for text in said if text.startswith("a_ct: ")]
    assert "not 0, 1; name them under" in line
