"""Scores that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attunet3d import score
from attunet3d.errors import GeometryError

AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])  # a voxel is 10 mm3, 0.01 mL


def save(path: Path, voxels: list[tuple[int, int, int]], value: int = 1, affine: np.ndarray = AFFINE) -> Path:
    mask = np.zeros((4, 5, 6), np.uint8)
    for voxel in voxels:
        mask[voxel] = value
    nib.save(nib.Nifti1Image(mask, affine), path)
    return path


def test_known_overlap(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0), (1, 0, 0), (2, 0, 0)])
    reference = save(tmp_path / "r.nii.gz", [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 2, 0)])
    values = score(prediction, reference)
    assert values["dice"] == pytest.approx(2 * 2 / (3 + 5))
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 5)
    assert values["prediction_ml"] == pytest.approx(0.03)
    assert values["reference_ml"] == pytest.approx(0.05)
    assert values["difference_ml"] == pytest.approx(-0.02)


def test_labels_choose_the_foreground(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0)])
    organs = save(tmp_path / "r.nii.gz", [(0, 0, 0)], value=7)
    assert score(prediction, organs, reference_label=7)["dice"] == 1.0
    assert score(prediction, organs, reference_label=3)["dice"] == 0.0
    assert score(organs, prediction, prediction_label=7)["dice"] == 1.0


def test_empty_masks_are_defined(tmp_path: Path) -> None:
    empty, full = save(tmp_path / "e.nii.gz", []), save(tmp_path / "f.nii.gz", [(1, 1, 1)])
    assert math.isnan(score(empty, empty)["dice"])
    values = score(empty, full)
    assert values["dice"] == 0.0
    assert values["recall"] == 0.0
    assert math.isnan(values["precision"])


def test_the_same_patient_with_other_axes(tmp_path: Path) -> None:
    """Flipped and permuted storage of one mask scores 1: comparison is in the patient, not in the array."""
    prediction = save(tmp_path / "p.nii.gz", [(0, 1, 2), (1, 1, 2), (3, 4, 5)])
    image = nib.load(prediction)
    flipped = np.asarray(image.dataobj)[::-1].transpose(2, 0, 1)
    affine = AFFINE.copy()
    affine[:, 0] *= -1
    affine[0, 3] = 3.0
    nib.save(nib.Nifti1Image(np.ascontiguousarray(flipped), affine[:, [2, 0, 1, 3]]), tmp_path / "t.nii.gz")
    assert score(prediction, tmp_path / "t.nii.gz")["dice"] == 1.0


def test_other_places_are_refused(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0)])
    shifted = AFFINE.copy()
    shifted[0, 3] = 1.5
    with pytest.raises(GeometryError, match=r"1\.50 mm apart"):
        score(prediction, save(tmp_path / "s.nii.gz", [(0, 0, 0)], affine=shifted))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 7), np.uint8), AFFINE), tmp_path / "n.nii.gz")
    with pytest.raises(GeometryError, match="4 x 5 x 7"):
        score(prediction, tmp_path / "n.nii.gz")
