"""The picture: planes through the mask, its outline, the patient's sides where readers expect them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from attunet3d.pictures.qc import qc_picture

ORIENTATIONS = {
    "RAS": np.diag([1.0, 1.0, 3.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 3.0, 1.0]),
    "IAR": np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]]),
}


def volume(orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """A CT in the given axes whose patient's right half is bright, and a mask in the left half."""
    ct = np.full((40, 30, 12), -1000, np.int16)
    mask = np.zeros_like(ct, dtype=np.uint8)
    ct[20:] = 200  # RAS: a higher index is further right
    mask[5:12, 10:20, 4:8] = 1
    if orientation == "LPS":
        return ct[::-1, ::-1], mask[::-1, ::-1]
    if orientation == "IAR":
        return ct.transpose(2, 1, 0)[::-1], mask.transpose(2, 1, 0)[::-1]
    return ct, mask


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_patients_right_is_on_the_left(tmp_path: Path, orientation: str) -> None:
    ct, mask = volume(orientation)
    qc_picture(tmp_path / "qc.png", ct, mask, ORIENTATIONS[orientation], "case")
    picture = imread(tmp_path / "qc.png")[..., :3]
    axial = picture[:, : picture.shape[1] // 3]
    grey = (np.ptp(axial, axis=2) < 0.02) & (axial[..., 0] > 0.5)
    columns = np.flatnonzero(grey.sum(axis=0) > axial.shape[0] // 4)
    assert columns.size
    assert columns.mean() < axial.shape[1] * 0.45, "the bright right half is drawn on the left"
    orange = (axial[..., 0] > 0.8) & (axial[..., 2] < 0.3) & (axial[..., 1] > 0.4)
    assert orange.any(), "the mask has an outline"
    assert np.flatnonzero(orange.any(axis=0)).mean() > axial.shape[1] * 0.5, "and it is drawn on the patient's left"


def test_an_empty_mask_is_drawn_without_an_outline(tmp_path: Path) -> None:
    ct, mask = volume("RAS")
    qc_picture(tmp_path / "qc.png", ct, np.zeros_like(mask), ORIENTATIONS["RAS"], "empty")
    picture = imread(tmp_path / "qc.png")
    assert not ((picture[..., 0] > 0.8) & (picture[..., 2] < 0.3) & (picture[..., 1] > 0.4)).any()


@pytest.mark.parametrize(
    "title",
    [r"case_$x^$ \frac", "$", r"$\undefined{$", "_^{}%&#~", "caf\udce9.nii", "\x1b[2J\n\0", "山田太郎", "x" * 5000, ""],
)
def test_any_name_is_drawn(tmp_path: Path, title: str) -> None:
    """No formula, no glyph that the font lacks, no byte that is no text, and no length stops the picture."""
    ct, mask = volume("RAS")
    qc_picture(tmp_path / "qc.png", ct, mask, ORIENTATIONS["RAS"], title)
    assert imread(tmp_path / "qc.png").shape[:2] == (550, 1485)
