"""Datalists: folds partition the cases, the same seed gives the same bytes, and training gets the right cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from monai.data import load_decathlon_datalist

from attunet3d.datasets.datalist import (
    check_classes,
    label_groups,
    named_labels,
    pancreas_labels,
    read_datalist,
    split_cases,
    write_datalist,
)
from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError, InputNotFoundError

CASES = [{"image": f"i{k:02d}.nii.gz", "label": f"l{k:02d}.nii.gz"} for k in range(13)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for case in CASES:
        for name in case.values():
            (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, **content: Any) -> Path:
    path = folder / "datalist.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("folds", "test"), [(2, 0), (5, 0), (13, 0), (4, 3), (2, 11)])
def test_folds_and_test_partition_the_cases(folds: int, test: int) -> None:
    training, held_out = split_cases(CASES, folds, seed=3, test=test)
    assert len(held_out) == test
    whole = [{key: case[key] for key in ("image", "label")} for case in training] + held_out
    assert sorted(whole, key=lambda case: case["image"]) == CASES
    assert [case["image"] for case in training] == sorted(case["image"] for case in training)
    sizes = [sum(case["fold"] == fold for case in training) for fold in range(folds)]
    assert sum(sizes) == 13 - test
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    metadata = {"name": "x", "pancreas_labels": [[1], [2]]}
    written = [
        write_datalist(tmp_path / f"{k}.json", metadata, CASES, folds=3, seed=seed, test=2).read_bytes()
        for k, seed in enumerate((7, 7, 8))
    ]
    assert written[0] == written[1] != written[2]
    content = json.loads(written[0])
    assert (content["seed"], content["folds"], content["numTraining"], content["numTest"]) == (7, 3, 11, 2)
    assert content["pancreas_labels"] == [[1], [2]]
    assert split_cases(CASES, 3, seed=7)[0] != split_cases(CASES, 3, seed=8)[0]


@pytest.mark.parametrize(
    ("folds", "test", "found"),
    [
        (1, 0, "from 2 to 13"),
        (14, 0, "from 2 to 13"),
        (3, 11, "from 2 to 2"),
        (2, 12, "at least 2 must be left"),
        (2, 20, "at least 2 must be left"),
    ],
)
def test_impossible_splits(folds: int, test: int, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        split_cases(CASES, folds, test=test)


def test_a_fold_is_for_validation_and_the_others_for_training(dataset: Path) -> None:
    path = write_datalist(dataset / "datalist.json", {}, CASES, folds=4, seed=1, test=3)
    validated = []
    for fold in range(4):
        training, validation = (load_cases(path, dataset, section, fold) for section in ("training", "validation"))
        assert len(training) + len(validation) == 10
        assert not [case for case in validation if case in training]
        assert all(set(case) == {"image", "label"} for case in training)
        validated += validation
    test = load_cases(path, dataset, "test")
    assert len(test) == 3
    paths = sorted(case["image"] for case in validated + test)
    assert paths == [str(dataset / case["image"]) for case in CASES]
    with pytest.raises(ConfigError, match="no fold 4; there are 0, 1, 2, 3"):
        load_cases(path, dataset, "training", fold=4)


def test_a_case_without_a_fold_is_always_for_training(dataset: Path) -> None:
    path = write(dataset, training=[{**CASES[0], "fold": 0}, {**CASES[1], "fold": 1}, CASES[2]])
    assert [Path(case["image"]).name for case in load_cases(path, dataset, "training", 1)] == [
        "i00.nii.gz",
        "i02.nii.gz",
    ]
    assert len(load_cases(path, dataset, "validation", 1)) == 1


def test_a_validation_section_has_priority_over_folds(dataset: Path) -> None:
    path = write(dataset, training=[{**case, "fold": 0} for case in CASES[:4]], validation=CASES[4:6])
    assert len(load_cases(path, dataset, "training")) == 4
    assert len(load_cases(path, dataset, "validation", fold=9)) == 2


def test_paths_are_joined_as_monai_does(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("labels") / "label.nii.gz"
    elsewhere.touch()
    path = write(dataset, training=CASES, validation=[{"image": "i00.nii.gz", "label": str(elsewhere)}])
    assert load_cases(path, dataset, "validation") == [{"image": str(dataset / "i00.nii.gz"), "label": str(elsewhere)}]
    assert load_cases(path, dataset, "training") == load_decathlon_datalist(str(path), True, "training", str(dataset))


BAD_DATALISTS = (
    ("{", "not JSON"),
    ("[]", "not a datalist"),
    ("\xff", "not JSON"),
    ("[" * 100_000, "not JSON.*nested"),
    ('{"training": ' + "[" * 200 + "]" * 200 + "}", "not JSON.*nested"),
    ('{"labels": {"0": ' + "1" * 5000 + "}}", "not JSON.*digits"),
)


def test_invalid_pancreas_labels(dataset: Path) -> None:
    path = write(dataset, training=CASES, labels={"1" * 5000: "pancreas", "3": "pancreas", "spleen": 10**4000})
    assert pancreas_labels(path) == [3]


def test_invalid_datalists(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no such datalist"):
        read_datalist(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    for text, found in BAD_DATALISTS:
        broken.write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError, match=found):
            read_datalist(broken)


@pytest.mark.parametrize(
    ("content", "section", "found"),
    [
        ({}, "training", 'no cases under "training"'),
        ({"training": CASES}, "validation", 'no cases under "validation"'),
        ({"training": CASES, "test": []}, "test", 'no cases under "test"'),
        ({"training": {"image": "i00.nii.gz"}}, "training", 'no cases under "training"'),
        ({"training": ["i00.nii.gz"]}, "training", "lacks the path of its label: it has image"),
        ({"training": [3]}, "training", 'case 1 under "training" is 3, and should be'),
        ({"training": [{"label": "l00.nii.gz"}]}, "training", "lacks the path of its image: it has label"),
        ({"training": [{"image": "i00.nii.gz"}]}, "training", "lacks the path of its label"),
        ({"training": [{"image": 3, "label": "l00.nii.gz"}]}, "training", "lacks the path of its image"),
    ],
)
def test_invalid_sections(dataset: Path, content: dict[str, Any], section: str, found: str) -> None:
    path = write(dataset, **content)
    with pytest.raises(ConfigError, match=found) as raised:
        load_cases(path, dataset, section)
    assert str(raised.value).startswith(str(path))


def test_missing_files(dataset: Path) -> None:
    path = write(dataset, training=CASES)
    (dataset / "l05.nii.gz").unlink()
    with pytest.raises(InputNotFoundError, match=r"l05\.nii\.gz: named in .*datalist\.json, but does not exist"):
        load_cases(path, dataset, "training")


def test_label_values_of_the_pancreas_come_with_the_datalist(dataset: Path) -> None:
    assert pancreas_labels(write(dataset, training=CASES)) == [1]
    assert pancreas_labels(write(dataset, training=CASES, pancreas_labels=[1, 2])) == [1, 2]
    assert pancreas_labels(write(dataset, training=CASES, pancreas_labels=[[1], [2, 3]])) == [[1], [2, 3]]
    assert pancreas_labels(dataset / "none.json") == [1]
    assert pancreas_labels(write(dataset, labels={"0": "background", "1": "spleen", "11": "Pancreas"})) == [11]
    assert pancreas_labels(write(dataset, labels={"1": "pancreas"}, pancreas_labels=[2])) == [2]
    assert pancreas_labels(write(dataset, labels={"1": "organ", "2": "tumour"})) == [1]
    for wrong in ([], "1", ["1"], [[]], [True], [1.5], [0], [256], [[1], [0]], [1, [2]], [[1], 2], None):
        path = write(dataset, training=CASES, pancreas_labels=wrong)
        with pytest.raises(ConfigError, match="pancreas_labels"):
            pancreas_labels(path)


def test_label_values_that_a_datalist_names(dataset: Path) -> None:
    assert named_labels(write(dataset, labels={"0": "background", "1": "pancreas", "2": "cancer"})) == [0, 1, 2]
    assert named_labels(write(dataset, labels={"background": 0, "pancreas": 1, "bowel": [5, 6]})) == [0, 1, 5, 6]
    assert named_labels(write(dataset, labels=["background", "pancreas"])) == []
    assert named_labels(write(dataset)) == named_labels(dataset / "none.json") == []


def test_a_network_has_a_class_for_each_of_the_labels() -> None:
    check_classes([1, 2], 2)
    check_classes([[1], [2]], 3)
    for labels, classes, right in (([1], 3, 2), ([[1], [2]], 2, 3), ([[1, 2]], 3, 2)):
        with pytest.raises(ConfigError, match=f"num_classes={right}"):
            check_classes(labels, classes)


def test_a_head_of_other_organs_has_a_channel_for_each_class() -> None:
    check_classes([7], 2, {"liver": [5]}, 3)
    check_classes([7], 2, {"liver": [5]}, 0)
    with pytest.raises(ConfigError, match=r"auxiliary_channels is 14: 3 are needed"):
        check_classes([7], 2, {"liver": [5]}, 14)


def test_classes_of_the_pancreas_come_before_those_of_other_organs() -> None:
    organs = {"liver": [5], "bowel": [18, 20]}
    assert label_groups([7], {}) == [7]
    assert label_groups([7], organs) == [[7], [5], [18, 20]]
    assert label_groups([1, 2], organs) == [[1, 2], [5], [18, 20]]
    assert label_groups([[1], [2]], organs) == [[1], [2], [5], [18, 20]]
    for wrong in ({"liver": 5}, {"liver": []}, {"liver": ["5"]}):
        with pytest.raises(ConfigError, match="liver needs a list of label values"):
            label_groups([7], wrong)  # type: ignore[arg-type]
