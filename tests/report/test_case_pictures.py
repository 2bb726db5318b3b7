"""Pictures of a case: which planes, what is drawn on them, where."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attunet3d.errors import GeometryError, InputNotFoundError
from attunet3d.report.case_pictures import CasePictures, Picture, case_pictures

AFFINE = np.diag([4.0, 4.0, 10.0, 1.0])  # 240 x 240 x 240 mm
SHAPE = (60, 60, 24)
LEFT, RIGHT = (slice(10, 18), slice(26, 34), slice(10, 14)), (slice(42, 50), slice(26, 34), slice(10, 14))


def save(path: Path, box: tuple[slice, ...] | None, value: int = 1, axes: str = "RAS") -> str:
    """A label map with a box of ``value``; its axes may run another way."""
    label = np.zeros(SHAPE, np.uint8)
    if box is not None:
        label[box] = value
    image = nib.Nifti1Image(label, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), path)
    return str(path)


@pytest.fixture
def ct(tmp_path: Path) -> str:
    """Soft tissue, and air in a corner."""
    hu = np.full(SHAPE, 40, np.int16)
    hu[:2, :2] = -1000
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "ct.nii.gz")
    return str(tmp_path / "ct.nii.gz")


def pixels(picture: Picture) -> np.ndarray:
    kind, data = picture.uri.split(",")
    assert kind == "data:image/webp;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert image.size == (picture.width, picture.height)
    return np.asarray(image).astype(int)


def orange(picture: Picture) -> np.ndarray:
    rgb = pixels(picture)
    return rgb[..., 0] - rgb[..., 2] > 80


def blue(picture: Picture) -> np.ndarray:
    rgb = pixels(picture)
    return rgb[..., 2] - rgb[..., 0] > 60


def draw(ct: str, prediction: str, reference: str, **more: object) -> CasePictures:
    return case_pictures(ct, prediction, reference, (1,), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
def test_both_outlines_lie_where_the_masks_do_whatever_their_axes(tmp_path: Path, ct: str, axes: str) -> None:
    prediction = save(tmp_path / "p.nii.gz", (slice(10, 50), slice(26, 34), slice(10, 14)), axes=axes)
    reference = save(tmp_path / "r.nii.gz", LEFT, axes=axes[::-1])
    (row,) = draw(ct, prediction, reference).outlines
    assert [picture.view for picture in row.pictures] == ["axial", "coronal", "sagittal"]
    axial = row.pictures[0]
    # Shown: the masks' 160 mm from right to left and 30 mm (here 7.5 voxels) on each side, right on the left.
    assert axial.slice == "slice 11 of 24"
    columns = np.flatnonzero(orange(axial).any(axis=0)) / axial.width
    assert (columns.min(), columns.max()) == pytest.approx((30 / 220, 190 / 220), abs=0.03)
    columns = np.flatnonzero(blue(axial).any(axis=0)) / axial.width
    assert (columns.min(), columns.max()) == pytest.approx((158 / 220, 190 / 220), abs=0.03)


def test_planes_of_a_case_have_one_scale(tmp_path: Path, ct: str) -> None:
    mask = save(tmp_path / "m.nii.gz", (slice(10, 50), slice(26, 34), slice(10, 14)))
    axial, coronal, sagittal = draw(ct, mask, mask).outlines[0].pictures
    assert axial.width == coronal.width
    assert coronal.height == sagittal.height
    assert axial.height == sagittal.width
    assert axial.width > axial.height


def test_masks_that_are_apart_are_both_shown(tmp_path: Path, ct: str) -> None:
    high = (*RIGHT[:2], slice(18, 22))
    case = draw(ct, save(tmp_path / "p.nii.gz", high), save(tmp_path / "r.nii.gz", LEFT))
    assert [row.title for row in case.outlines] == ["through the reference", "through the prediction"]
    of_reference, of_prediction = (row.pictures[0] for row in case.outlines)
    assert (of_reference.slice, of_prediction.slice) == ("slice 11 of 24", "slice 19 of 24")
    assert blue(of_reference).any()
    assert not orange(of_reference).any()
    assert orange(of_prediction).any()
    assert not blue(of_prediction).any()


def test_an_empty_mask_has_no_outline(tmp_path: Path, ct: str) -> None:
    empty, full = save(tmp_path / "e.nii.gz", None), save(tmp_path / "f.nii.gz", LEFT)
    (row,) = draw(ct, empty, full).outlines
    assert blue(row.pictures[0]).any()
    assert not orange(row.pictures[0]).any()
    (row,) = draw(ct, empty, empty).outlines
    assert [picture.slice for picture in row.pictures] == ["slice 13 of 24", "slice 31 of 60", "slice 31 of 60"]
    assert not any((orange(picture) | blue(picture)).any() for picture in row.pictures)


def test_only_labels_of_the_pancreas_count(tmp_path: Path, ct: str) -> None:
    reference = save(tmp_path / "r.nii.gz", LEFT, value=7)
    empty = save(tmp_path / "e.nii.gz", None)
    assert not blue(draw(ct, empty, reference).outlines[0].pictures[0]).any()
    assert blue(case_pictures(ct, empty, reference, (3, 7)).outlines[0].pictures[0]).any()


def test_attention_is_drawn_over_the_same_planes(tmp_path: Path, ct: str) -> None:
    mask = save(tmp_path / "m.nii.gz", LEFT)
    heat = np.zeros(SHAPE, np.float32)
    heat[10:18, 26:34, 10:14] = 1
    asked = []

    def attention(image: str) -> dict[str, np.ndarray]:
        asked.append(image)
        return {"level 2": heat, "level 3": np.zeros_like(heat), "bytes": (heat * 255).astype(np.uint8)}

    case = draw(ct, mask, mask, attention=attention)
    assert asked == [ct]
    level2, level3, as_bytes = case.attention
    assert [row.title for row in case.attention] == ["level 2", "level 3", "bytes"]
    assert [p.slice for p in level2.pictures] == [p.slice for p in case.outlines[0].pictures]
    high, low = (pixels(row.pictures[0])[:, :, 0] for row in (level2, level3))
    middle = tuple(n // 2 for n in high.shape)
    assert high[middle] > low[middle] + 80, "bright where attention is high"
    assert abs(high[20, 20] - low[20, 20]) < 10, "and only there"
    assert as_bytes.pictures[0].uri == level2.pictures[0].uri


def test_a_map_on_another_grid_is_refused(tmp_path: Path, ct: str) -> None:
    mask = save(tmp_path / "m.nii.gz", LEFT)
    with pytest.raises(GeometryError, match=r"level 4 has the shape \(2, 2, 2\), the CT \(60, 60, 24\)"):
        draw(ct, mask, mask, attention=lambda _: {"level 4": np.zeros((2, 2, 2))})


def test_masks_of_another_ct_are_refused(tmp_path: Path, ct: str) -> None:
    mask = save(tmp_path / "m.nii.gz", LEFT)
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), AFFINE), tmp_path / "other.nii.gz")
    with pytest.raises(GeometryError, match="different voxels"):
        draw(ct, mask, str(tmp_path / "other.nii.gz"))
    with pytest.raises(InputNotFoundError):
        draw(str(tmp_path / "gone.nii.gz"), mask, mask)
