"""CTs for label maps that have none (examples/label_maps.py): the organs are where the label map says."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from scipy.ndimage import binary_erosion

sys.path.insert(0, str(ROOT / "examples"))
import label_maps

from attunet3d.io import read_ct, read_label

FAT_HU = -100
CORNERS = [(6, 6, 4), (20, 6, 4), (6, 20, 4), (20, 20, 4), (6, 6, 14), (20, 20, 14)]
SPACING = np.diag([2.0, 2.0, 3.0, 1.0])


def organs(size: int = 6) -> np.ndarray:
    """Six cubes, 1 to 6."""
    label = np.zeros((36, 36, 24), np.uint8)
    for value, (x, y, z) in enumerate(CORNERS, start=1):
        label[x : x + size, y : y + size, z : z + size] = value
    return label


@pytest.fixture
def donors(tmp_path: Path) -> Path:
    label = organs()
    ct = np.where(label > 0, 20 * label.astype(np.int16), FAT_HU).astype(np.int16)
    nib.save(nib.Nifti1Image(ct, SPACING), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(label, SPACING), tmp_path / "label.nii.gz")
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": [{"image": "ct.nii.gz", "label": "label.nii.gz"}]}))
    return datalist


def test_the_match_of_a_scaled_and_shifted_patient_is_exact() -> None:
    here = label_maps.centroids(organs(), SPACING)
    there = {value: point * [0.9, 1.1, 1.25] + [40, -7, 3] for value, point in here.items()}
    error, affine = label_maps.match(here, there) or (np.inf, np.eye(4))
    assert error < 1e-9
    np.testing.assert_allclose(affine, [[0.9, 0, 0, 40], [0, 1.1, 0, -7], [0, 0, 1.25, 3], [0, 0, 0, 1]], atol=1e-9)
    assert label_maps.match(here, {value: there[value] for value in (1, 2, 3, 4)}) is None


def test_every_organ_has_the_tissue_of_the_donor(
    donors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a patient elsewhere in space, whose organs are smaller, so that parts of the donor's are exposed."""
    monkeypatch.setattr(label_maps, "NOISE_HU", 0.0)
    affine = SPACING.copy()
    affine[:3, 3] = [100, 50, -30]
    label = organs(4)
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "new.nii.gz")
    arguments = [str(tmp_path / "out"), "--donors", str(donors), "--labels", str(tmp_path / "new.nii.gz")]
    monkeypatch.setattr(sys, "argv", ["label_maps.py", *arguments])
    label_maps.main()
    assert "from ct.nii.gz, organs 0 mm apart" in capsys.readouterr().out
    ct, _ = read_ct(tmp_path / "out" / "new_ct.nii.gz")
    written, written_affine = read_label(tmp_path / "out" / "new_label.nii.gz")
    np.testing.assert_allclose(written_affine[:3, :3], affine[:3, :3])
    for value in range(1, 7):
        assert (written == value).sum() == 4**3
        inside = binary_erosion(written == value)
        np.testing.assert_array_equal(ct[inside], 20 * value)
    outside = binary_erosion(written == 0, iterations=3)
    assert (ct[outside] == FAT_HU).mean() > 0.99
