"""Unusual notation in datalists is understood with a warning, or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from attunet3d.datasets.sections import load_cases
from attunet3d.errors import ConfigError

NAMES = [f"{name}{k}.nii.gz" for name in ("i", "l") for k in range(4)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in NAMES:
        (tmp_path / name).touch()
        (tmp_path / "sub" / name).touch()
    return tmp_path


def case(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz", **more}


def load(folder: Path, content: Any, section: str = "training", **options: Any) -> tuple[list[str], list[str]]:
    """The names of the images, and the warnings."""
    path = folder / "d.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    said: list[str] = []
    cases = load_cases(path, folder, section, warn=said.append, **options)
    return [os.path.relpath(found["image"], folder) for found in cases], said


# Understood.


@pytest.mark.parametrize(
    ("folds", "fold", "found"),
    [
        (["0", "1", "0", "1"], 1, "fold '0' is taken as 0 (3 more like it)"),
        ([0, "1", 0, 1], 1, "case 2 under \"training\" (i1.nii.gz): fold '1' is taken as 1"),
        ([0.0, 1.0, 0.0, 1.0], 1.0, "fold 1.0 is taken as 1 (4 more like it)"),
        ([0, " 1 ", 0.0, 1], "1", "the config's fold: fold '1' is taken as 1"),
        ([0, 1, 0, 1], 1, None),
    ],
)
def test_folds_in_unusual_notation(dataset: Path, folds: list[Any], fold: Any, found: str | None) -> None:
    content = {"training": [case(k, fold=fold) for k, fold in enumerate(folds)]}
    names, said = load(dataset, content, "validation", fold=fold)
    assert names == ["i1.nii.gz", "i3.nii.gz"]
    assert load(dataset, content, fold=fold)[0] == ["i0.nii.gz", "i2.nii.gz"]
    assert len(said) == (found is not None)
    assert all("is taken as" in text for text in said)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_what_windows_writes(dataset: Path, encoding: str) -> None:
    content = {"training": [{"image": "sub\\i0.nii.gz", "label": ".\\sub\\l0.nii.gz"}]}
    names, said = load(dataset, json.dumps(content).encode(encoding))
    assert names == ["sub/i0.nii.gz"]
    assert len(said) == 1
    assert "sub\\i0.nii.gz has backslashes, which are taken as slashes (1 more like it)" in said[0]


def test_a_backslash_may_be_a_part_of_a_name(dataset: Path) -> None:
    (dataset / "sub\\i0.nii.gz").touch()
    names, said = load(dataset, {"training": [{"image": "sub\\i0.nii.gz", "label": "l0.nii.gz"}]})
    assert (names, said) == (["sub\\i0.nii.gz"], [])


def test_cases_without_a_fold_and_folds_beside_validation_give_warnings(dataset: Path) -> None:
    training = [case(0, fold=0), case(1, fold=1), case(2)]
    names, said = load(dataset, {"training": training}, fold=0)
    assert names == ["i1.nii.gz", "i2.nii.gz"]
    assert said == [f"{dataset}/d.json: 1 of 3 cases have no fold: always for training"]
    _, said = load(dataset, {"training": training, "validation": [case(3)]})
    assert said == [f'{dataset}/d.json: has "validation", so that its folds are ignored']


def test_repeats_other_keys_and_other_lists_are_allowed(dataset: Path) -> None:
    content = {
        "name": "x", "labels": {"0": "background"}, "numTraining": 3, "folds": 2, "unlabelled": [{"image": "u.nii.gz"}],
        "training": [case(0, id=7, image_id="a", folder="b", meta={"age": 60})] * 3, "testing": ["./i0.nii.gz"],
    }  # fmt: skip
    assert load(dataset, content) == (["i0.nii.gz"] * 3, [])


def test_testing_is_test(dataset: Path) -> None:
    assert load(dataset, {"testing": [case(1)]}, "test") == (["i1.nii.gz"], [])
    with pytest.raises(ConfigError, match='has "test" and "testing"'):
        load(dataset, {"test": [case(0)], "testing": [case(1)]}, "test")


def test_optional_sections(dataset: Path) -> None:
    content = {
        "training": [case(0, fold=0), case(1, fold=1)],
        "test": [case(2), "i3.nii.gz", {"image": "gone"}, case(9)],
    }
    assert load(dataset, content, "test", optional=True)[0] == ["i2.nii.gz"]
    assert load(dataset, content, optional=True, every_fold=True)[0] == ["i0.nii.gz", "i1.nii.gz"]
    assert load(dataset, {"training": [case(0, fold=0)]}, optional=True)[0] == []
    assert load_cases(dataset / "none.json", dataset, "test", optional=True) == []


# Refused.


@pytest.mark.parametrize(
    "fold", [-1, -1.0, "-1", 0.5, True, None, "a", "fold1", "", [0], {"a": 1}, float("nan")], ids=str
)
def test_invalid_folds(dataset: Path, fold: Any) -> None:
    with pytest.raises(ConfigError, match=r'case 2 under "training" \(i1.nii.gz\): fold .*; folds are whole numbers'):
        load(dataset, {"training": [case(0, fold=0), case(1, fold=fold)], "validation": [case(2)]})
    with pytest.raises(ConfigError, match="the config's fold: fold"):
        load(dataset, {"training": [case(0, fold=0)]}, fold=fold)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"fold:": 0}, '"fold:"; is "fold" meant'),
        ({"Fold": 0}, '"Fold"; is "fold" meant'),
        ({" fold ": 0}, '" fold "; is "fold" meant'),
        ({"folds": 0}, '"folds"; is "fold" meant'),
        ({"flod": 0}, '"flod"; is "fold" meant'),
        ({"fod": 0}, '"fod"; is "fold" meant'),
        ({"cv_fold": 0}, '"cv_fold"; is "fold" meant'),
        ({"fold0": True}, '"fold0"; is "fold" meant'),
        ({"meta": {"fold": 0}}, '"meta"; is "fold" meant'),
        ({"Label": "x"}, '"Label"; is "label" meant'),
        ({"labels": "x"}, '"labels"; is "label" meant'),
        ({"negativ": True}, '"negativ"; is "negative" meant'),
        ({"negative": 1}, '"negative" is 1, and can be true or false'),
        ({"image": ["i1.nii.gz"]}, r'lacks the path of its image: "image" is \[\'i1.nii.gz\'\]'),
        ({"image": None}, "lacks the path of its image"),
        ({"label": " "}, "lacks the path of its label"),
        ({"label": "i1.nii.gz"}, "image and label are the same file"),
        ({"label": "link.nii.gz"}, "image and label are the same file"),
    ],
)
def test_misspelt_keys(dataset: Path, more: dict[str, Any], found: str) -> None:
    (dataset / "link.nii.gz").hardlink_to(dataset / "i1.nii.gz")
    with pytest.raises(ConfigError, match=rf'd.json: case 2 under "training".*{found}'):
        load(dataset, {"training": [case(0), case(1) | more]})


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train", 'call it "training"'),
        ("Training", 'call it "training"'),
        ("trainng", 'call it "training"'),
        ("val", 'call it "validation"'),
        ("valid", 'call it "validation"'),
        ("validations", 'call it "validation"'),
        ("tests", 'call it "test"'),
        ("holdout", "call it training, validation or test"),
    ],
)
def test_misspelt_sections(dataset: Path, name: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf'has cases under "{name}", which is no section; {found}'):
        load(dataset, {"training": [case(0, fold=0), case(1, fold=1)], name: [case(2)]})
    with pytest.raises(ConfigError, match="section must be training, validation or test, got"):
        load(dataset, {"training": [case(0)]}, name)


def test_duplicate_keys(dataset: Path) -> None:
    entry = json.dumps(case(0))
    for text in (
        f'{{"training": [{entry}], "training": []}}',
        f'{{"training": [{entry[:-1]}, "label": "l1.nii.gz"}}]}}',
    ):
        with pytest.raises(ConfigError, match=r'has the key "(training|label)" twice'):
            load(dataset, text.encode())


def test_one_fold_leaves_nothing_to_train_on(dataset: Path) -> None:
    with pytest.raises(ConfigError, match='no cases under "training" outside fold 0'):
        load(dataset, {"training": [case(0, fold=0), case(1, fold=0)]})


def test_a_case_without_pancreas_is_for_training_only(dataset: Path) -> None:
    content = {"training": [case(0), case(1, negative=True)], "validation": [case(2, negative=True)]}
    load(dataset, content)
    found = load_cases(dataset / "d.json", dataset, "training")
    assert [entry.get("negative") for entry in found] == [None, True]
    with pytest.raises(
        ConfigError, match=r"i2.nii.gz\): has no pancreas .* none can be evaluated; remove it from validation"
    ):
        load(dataset, content, "validation")


def test_labelled_organs(dataset: Path) -> None:
    """A case lists them; one without the pancreas is used for other organs in training, and not for evaluation."""
    part, whole = case(0, labelled=["liver", "spleen"]), case(2, labelled=["pancreas", "liver"])
    content = {"training": [part, case(1)], "validation": [whole], "test": [part]}
    path = dataset / "d.json"
    path.write_text(json.dumps(content))
    cases = load_cases(path, dataset, "training")
    assert [found.get("labelled") for found in cases] == [["liver", "spleen"], None]
    assert "labelled" not in load_cases(path, dataset, "validation")[0]
    with pytest.raises(ConfigError, match=r"case 1 under \"test\" .*the pancreas is not labelled"):
        load_cases(path, dataset, "test")
    with pytest.raises(ConfigError, match=r"\"labelled\" is 'liver', and should be a list"):
        load(dataset, {"training": [case(0, labelled="liver")]})
