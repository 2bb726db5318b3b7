"""Labels that would teach or judge nothing: refused, or said, by training and evaluation as by ``prepare``."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY

from attunet3d import workflow
from attunet3d.datasets.image_label_pairs import find_cases
from attunet3d.datasets.phantom import write_phantoms
from attunet3d.datasets.prepare import prepare
from attunet3d.errors import AttUNet3dError, ConfigError, GeometryError, InputNotFoundError, UnsupportedImageError
from attunet3d.transforms.labels import LabelValues, check_values

SMALL = {**TINY, "spacing": [8.0, 8.0, 8.0], "max_epochs": 1, "val_interval": 1, "state_interval": 0}
SMALL |= {"patch_size": [16, 16, 16], "batch_size": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three CTs c0, c1, c2 with labels, of which a test changes copies."""
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("labels")
    write_phantoms(raw, 3, seed=4, spacing=(8.0, 8.0, 8.0))
    for number in range(3):
        for key, name in (("image", "c{}.nii.gz"), ("label", "c{}_label.nii.gz")):
            shutil.copy(raw / f"{key}sTr" / f"phantom_{number:04d}.nii.gz", folder / name.format(number))
    return folder


class Study:
    """Two cases to train on, one to validate with, and what is done with them."""

    def __init__(self, source: Path, folder: Path, checkpoint: Path) -> None:
        self.folder = folder / "data"
        self.checkpoint = checkpoint
        shutil.copytree(source, self.folder)
        cases = [{"image": f"c{n}.nii.gz", "label": f"c{n}_label.nii.gz"} for n in range(3)]
        self.reported: dict[str, Any] = {}
        self.content: dict[str, Any] = {"training": cases[:2], "validation": cases[2:]}

    def change(self, number: int, change: Callable[[np.ndarray, np.ndarray], Any]) -> Path:
        """A label with values, and an affine, that a function makes of them."""
        path = self.folder / f"c{number}_label.nii.gz"
        image = nib.load(path)
        values, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
        nib.save(nib.Nifti1Image(values, affine), path)
        return path

    def run(self, verb: str, **settings: Any) -> Any:
        (self.folder / "d.json").write_text(json.dumps(self.content))
        data = self.folder, self.folder / "d.json"
        if verb == "train":
            return workflow.train(*data, self.folder.parent / "run", **{**SMALL, **settings})
        options = {**TINY, "spacing": SMALL["spacing"], "precision": "fp32", **settings}
        return workflow.evaluate(*data, self.checkpoint, self.folder.parent / "eval", **options)


@pytest.fixture
def study(phantoms: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    study = Study(phantoms, tmp_path, tiny_checkpoint)

    def report(folder: Path, results: Any, **more: Any) -> None:  # a page with pictures takes seconds
        study.reported = {"metrics": [result.metrics for result in results], **more}

    monkeypatch.setattr("attunet3d.report.monai_handlers.write_report", report)
    return study


def as_255(label: np.ndarray, affine: np.ndarray) -> Any:
    return label * np.uint8(255), affine


def with_another(label: np.ndarray, affine: np.ndarray) -> Any:
    label[:2, :2, :2] = 2
    return label, affine


def empty(label: np.ndarray, affine: np.ndarray) -> Any:
    return label * 0, affine


def negative(label: np.ndarray, affine: np.ndarray) -> Any:
    return -label.astype(np.int16), affine


def halves(label: np.ndarray, affine: np.ndarray) -> Any:
    return label.astype(np.float32) / 2, affine


def not_a_number(label: np.ndarray, affine: np.ndarray) -> Any:
    return np.where(label == 1, np.nan, 0).astype(np.float32), affine


def elsewhere(label: np.ndarray, affine: np.ndarray) -> Any:
    affine[:3, 3] += 0.15 * affine[:3, 1]
    return label, affine


def cropped(label: np.ndarray, affine: np.ndarray) -> Any:
    return label[:, :, 1:], affine


def in_air(label: np.ndarray, affine: np.ndarray) -> Any:
    label[:] = 0
    label[:4, :4, :4] = 1
    return label, affine


BAD = {
    as_255: (UnsupportedImageError, r'holds the values 0, 255, not 0, 1; .*"pancreas_labels": \[255\]'),
    with_another: (UnsupportedImageError, r'holds the values 0, 1, 2, not 0, 1; .*"labels"'),
    empty: (UnsupportedImageError, 'an empty mask: no voxel has the value 1; .*"negative": true'),
    negative: (UnsupportedImageError, "-1 to 0 in slice"),
    halves: (UnsupportedImageError, "value 0.5 in slice"),
    not_a_number: (UnsupportedImageError, "NaN"),
    elsewhere: (GeometryError, "lie 1.20 mm apart"),
    cropped: (GeometryError, "have different voxels"),
    in_air: (UnsupportedImageError, "of the mask lies in tissue of -150 to 300 HU"),
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_labels_are_refused_by_every_verb(study: Study, damage: Any) -> None:
    """In training that of a case to train on; in evaluation that of the one that judges."""
    kind, found = BAD[damage]
    path = study.change(1, damage)
    with pytest.raises(kind, match=rf"{path}.*{found}"):
        study.run("train")
    assert not list((study.folder.parent / "run").glob("*.pt"))
    path = study.change(2, damage)
    with pytest.raises(kind, match=rf"{path}.*{found}"):
        study.run("evaluate")
    said: list[str] = []
    with pytest.raises((InputNotFoundError, ConfigError)):  # two of three cases are refused
        prepare(find_cases(study.folder), study.folder / "p.json", folds=2, report=lambda kind, text: said.append(text))
    assert [text.split(":")[0] for text in said] == ["c1", "c2"]
    assert all(found.partition(";")[0] in text for text in said)


def test_what_a_loaders_process_refuses_is_said_in_the_same_words(study: Study) -> None:
    """As on a GPU, beside which other processes read."""
    path = study.change(2, as_255)
    with pytest.raises(UnsupportedImageError) as raised:
        study.run("evaluate", num_workers=1)
    assert str(raised.value).startswith(f"{path}: holds the values 0, 255, not 0, 1; ")
    assert "\n" not in str(raised.value)


def test_the_label_of_a_case_that_validates_is_checked_before_training(study: Study) -> None:
    path = study.change(2, empty)
    with pytest.raises(UnsupportedImageError, match=rf"{path}: an empty mask"):
        study.run("train")


def rounded(label: np.ndarray, affine: np.ndarray) -> Any:
    return np.where(label == 1, 0.99999997, -3e-8), affine


def a_little_off(label: np.ndarray, affine: np.ndarray) -> Any:
    affine[:3, 3] += 0.09 * affine[:3, 1]
    return label, affine


def test_labels_that_are_good_but_for_rounding(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    """Taken, with the very voxels; what is off is said."""
    study.run("evaluate")
    expected = study.reported["metrics"]
    for change, said in ((rounded, []), (a_little_off, ["0.72 mm (0.09 voxels) apart"])):
        caplog.clear()
        study.change(2, change)
        study.run("evaluate")
        assert study.reported["metrics"] == expected
        warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        ours = [text for text in warned if "c2_label" in text]
        assert all(any(part in text for text in ours) for part in said)
        assert bool(ours) is bool(said)
    study.change(1, a_little_off)
    study.run("train")


def test_what_the_datalist_explains_is_taken(study: Study) -> None:
    def organs(label: np.ndarray, affine: np.ndarray) -> Any:
        return np.where(label == 1, 7, np.arange(label.shape[0])[:, None, None] % 118 + 8).astype(np.uint8), affine

    for number in range(3):
        study.change(number, organs)
    study.content["pancreas_labels"] = [7]
    study.run("train")
    study.run("evaluate")
    study.change(2, lambda label, affine: (np.where(label == 7, 0, label), affine))
    with pytest.raises(UnsupportedImageError, match=r"no voxel has the value 7; it holds 0, 8, .* values\); correct"):
        study.run("evaluate")


def test_a_named_structure_is_no_mistake(study: Study) -> None:
    study.change(2, with_another)
    study.content["labels"] = {"0": "background", "1": "pancreas", "2": "liver"}
    study.run("evaluate")
    del study.content["labels"]
    study.run("evaluate", organs={"liver": [2]})


def test_the_value_that_the_datalist_calls_pancreas_is_it(study: Study) -> None:
    """As BTCV's 11, where 1 is the spleen."""
    study.change(2, lambda label, affine: (with_another(label * np.uint8(11), affine)[0], affine))
    study.content["labels"] = {"0": "background", "1": "spleen", "2": "kidney", "11": "Pancreas"}
    study.run("evaluate")
    assert study.reported["pancreas_labels"] == [11]


def test_a_case_without_pancreas_is_trained_on_if_it_is_said_to_be_one(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    path = study.change(1, empty)
    study.content["training"][1]["negative"] = True
    study.run("train")
    assert f"{path}: an empty mask: no voxel has the value 1" in caplog.messages
    study.content["training"][0]["negative"] = True
    with pytest.raises(UnsupportedImageError, match=r'c0_label.nii.gz: has pancreas, though .* "negative"'):
        study.run("train")


def test_cases_that_judge_are_not_trained_on(study: Study) -> None:
    shutil.copy(study.folder / "c1.nii.gz", study.folder / "twin.nii.gz")
    study.content["validation"][0]["image"] = "twin.nii.gz"
    for verb in ("train", "evaluate"):
        with pytest.raises(ConfigError, match=r"twin.nii.gz: is under validation and also trained on, as .*c1.nii.gz"):
            study.run(verb)
    study.content["validation"] = study.content["training"]
    study.content["test"] = study.content["training"][:1]
    with pytest.raises(ConfigError, match=r"c0.nii.gz: is under test"):
        study.run("evaluate", section="test")
    study.run("train", validate_on_training=True)
    study.run("evaluate", validate_on_training=True)
    study.run("evaluate", section="training")


def test_a_case_for_test_is_in_no_fold(study: Study) -> None:
    first, second = study.content["training"]
    study.content = {"training": [first | {"fold": 1}, second | {"fold": 2}], "test": [first]}
    with pytest.raises(ConfigError, match="is under test and also trained on"):
        study.run("evaluate", section="test", fold=1)
    with pytest.raises(ConfigError, match="is under test and also trained on"):
        study.run("train", fold=2)


# What values mean.


@pytest.mark.parametrize(
    ("pancreas", "named", "allowed"),
    [
        ([1], (), {0, 1}),
        ([1, 2], (), {0, 1, 2}),
        ([[1], [2]], (), {0, 1, 2}),
        ([1], (5,), {0, 1, 5}),
        ([7], (), None),
        ([2], (), None),
        ([255], (), None),
        ([[1], [11]], (3,), None),
    ],
)
def test_values_that_may_be_there(pancreas: list[Any], named: tuple[int, ...], allowed: set[int] | None) -> None:
    values = LabelValues.of(pancreas, {}, named)
    assert values.allowed == allowed
    label = np.zeros((3, 3, 3), np.uint8)
    label[0, 0, 0] = values.pancreas[0]
    assert check_values("x", label, values) == []
    label[1, 1, 1] = 77
    if allowed is None:
        assert check_values("x", label, values) == []
    else:
        with pytest.raises(UnsupportedImageError, match="x: holds the values"):
            check_values("x", label, values)


@pytest.mark.parametrize("wrong", [[], [0], [1.0], ["1"], [True], [256], [-1], [[1], [0]], [[]]], ids=str)
def test_values_that_cannot_be_pancreas(wrong: list[Any]) -> None:
    with pytest.raises(AttUNet3dError, match="integers from 1 to 255"):
        LabelValues.of(wrong)
