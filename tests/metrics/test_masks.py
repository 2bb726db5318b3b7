"""Metrics that can be worked out by hand, laws they obey, and an implementation without a distance transform."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from attunet3d import score
from attunet3d.errors import ConfigError, GeometryError, OutputError, UnsupportedImageError
from attunet3d.metrics.masks import METRICS, compare_masks, place_on
from attunet3d.metrics.table import summarize, write_metrics_csv

AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])  # a voxel is 10 mm3, 0.01 mL
DISTANCES = ("assd_mm", "hd95_mm")
SHEARED = np.array([[1.0, 0, 0, -7], [0, 2, 1.5, 3], [0, 0, 4, 11], [0, 0, 0, 1]])  # a gantry tilted by 21 degrees


def save(path: Path, voxels: list[tuple[int, int, int]], value: int = 1, affine: np.ndarray = AFFINE) -> Path:
    mask = np.zeros((4, 5, 6), np.uint8)
    for voxel in voxels:
        mask[voxel] = value
    nib.save(nib.Nifti1Image(mask, affine), path)
    return path


def boxes(*ranges: tuple[slice, slice, slice], shape: tuple[int, int, int] = (12, 11, 10)) -> list[np.ndarray]:
    masks = [np.zeros(shape, bool) for _ in ranges]
    for mask, inside in zip(masks, ranges, strict=True):
        mask[inside] = True
    return masks


def blobs(seed: int, shape: tuple[int, int, int] = (9, 8, 7)) -> tuple[np.ndarray, np.ndarray]:
    """Two masks, neither empty, that overlap by chance and touch the border."""
    rng = np.random.default_rng(seed)
    smooth = (gaussian_filter(rng.normal(size=shape), 1.0) for _ in range(2))
    one, other = (field > np.quantile(field, rng.uniform(0.6, 0.95)) for field in smooth)
    return one, other


def test_known_overlap(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0), (1, 0, 0), (2, 0, 0)])
    reference = save(tmp_path / "r.nii.gz", [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 2, 0)])
    values = score(prediction, reference)
    assert tuple(values) == METRICS
    assert values["dice"] == pytest.approx(2 * 2 / (3 + 5))
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 5)
    assert values["prediction_ml"] == pytest.approx(0.03)
    assert values["reference_ml"] == pytest.approx(0.05)
    assert values["difference_ml"] == pytest.approx(-0.02)
    # To the right only (3, 0, 0), (3, 1, 0) and (3, 2, 0) are missed: 1 mm, and 2 and 4 mm down from its edge.
    missed = (1.0, math.hypot(1, 2), math.hypot(1, 4))
    assert values["assd_mm"] == pytest.approx((1 + sum(missed)) / 8)  # and (0, 0, 0) is 1 mm from the reference


def test_labels_choose_the_foreground(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0)])
    organs = save(tmp_path / "r.nii.gz", [(0, 0, 0)], value=7)
    assert score(prediction, organs, reference_label=7)["dice"] == 1.0
    assert score(organs, prediction, prediction_label=7)["dice"] == 1.0
    said: list[str] = []
    assert score(organs, prediction, prediction_label=3, warn=said.append)["dice"] == 0.0
    assert said == [f"{organs}: an empty mask: no voxel has the value 3; it holds 0, 7"]
    for options in ({"reference_label": 3}, {}, {"reference_label": [1, 2]}):
        with pytest.raises(UnsupportedImageError, match=r"r\.nii\.gz: .*; say which count with reference_label"):
            score(prediction, organs, **options)
    for values in ([], [0], [-1], [256], 0, [True]):
        with pytest.raises(ConfigError, match="integers from 1 to 255"):
            score(prediction, organs, reference_label=values)


@pytest.mark.parametrize(
    ("values", "argument"), [((0, 255), r"prediction_label=\[255\]"), ((0, 1, 2), r"prediction_label=\[1,2\]")]
)
def test_values_that_nothing_explains_are_refused(tmp_path: Path, values: tuple[int, ...], argument: str) -> None:
    reference = save(tmp_path / "r.nii.gz", [(0, 0, 0)])
    label = np.resize(np.array(values, np.uint8), np.asarray(nib.load(reference).dataobj).shape)
    nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / "p.nii.gz")
    found = ", ".join(map(str, values))
    with pytest.raises(UnsupportedImageError, match=f"holds the values {found}, not 0, 1; .*{argument}$"):
        score(tmp_path / "p.nii.gz", reference)


def test_one_file_twice_and_headers_that_differ_a_little_are_said(tmp_path: Path) -> None:
    """A tenth of a voxel, of 1 x 2 x 5 mm, and no more."""
    prediction, said = save(tmp_path / "p.nii.gz", [(0, 1, 2)]), []
    (tmp_path / "link.nii.gz").symlink_to(prediction)
    assert score(prediction, tmp_path / "link.nii.gz", warn=said.append)["dice"] == 1.0
    assert said == [f"{prediction}: is both prediction and reference"]
    for shift, taken in ((0.45, True), (0.55, False)):
        affine = AFFINE.copy()
        affine[2, 3] += shift
        path = tmp_path / f"{shift}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(nib.load(prediction).dataobj), affine), path)
        if taken:
            said.clear()
            assert score(prediction, path, warn=said.append)["dice"] == 1.0
            assert said == [f"{prediction} and {path} lie 0.45 mm (0.09 voxels) apart according to their headers: "
                            "treated as aligned"]  # fmt: skip
        else:
            with pytest.raises(GeometryError, match=r"lie 0\.55 mm apart"):
                score(prediction, path)


def test_several_labels_count_together(tmp_path: Path) -> None:
    """As the pancreas (1) and its tumour (2) of the Medical Segmentation Decathlon."""
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1], labels[2, 1, 1], labels[3, 1, 1] = 1, 2, 3
    for name, mask in {"r": labels, "p": (labels == 1) | (labels == 2)}.items():
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), tmp_path / f"{name}.nii.gz")
    files = tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"
    assert score(*files, reference_label=[1, 2])["dice"] == 1.0
    assert score(*files, reference_label=(1,))["precision"] == 0.5
    assert score(*files, reference_label=[1, 2, 3])["recall"] == pytest.approx(2 / 3)
    with pytest.raises(UnsupportedImageError, match=r"values 0, 1, 2, 3, not 0, 1; .*reference_label=\[1,2,3\]$"):
        score(*files)


@pytest.mark.parametrize(
    ("empty", "overlap", "distance"),
    [("both", math.nan, math.nan), ("prediction", 0.0, math.inf), ("reference", 0.0, math.inf)],
)
def test_empty_masks_are_defined(empty: str, overlap: float, distance: float) -> None:
    masks = boxes((slice(2, 4), slice(3, 5), slice(1, 2)), (slice(2, 4), slice(3, 5), slice(1, 2)))
    for mask, name in zip(masks, ("prediction", "reference"), strict=True):
        mask &= empty not in (name, "both")
    values = compare_masks(*masks, AFFINE)
    assert [values[key] for key in ("dice", "precision", "recall", "nsd")] == pytest.approx([overlap] * 4, nan_ok=True)
    assert [values[key] for key in DISTANCES] == pytest.approx([distance] * 2, nan_ok=True)
    expected = {"both": 0.0, "prediction": -0.04, "reference": 0.04}
    assert values["difference_ml"] == pytest.approx(expected[empty])


@pytest.mark.parametrize("step", [(4, 0, 0), (0, 3, 0), (0, 0, 2), (2, 3, 1)])
@pytest.mark.parametrize("affine", [AFFINE, SHEARED])
def test_two_voxels_are_their_distance_apart(step: tuple[int, int, int], affine: np.ndarray) -> None:
    masks = [np.zeros((9, 9, 9), bool) for _ in range(2)]
    masks[0][2, 3, 4] = masks[1][2 + step[0], 3 + step[1], 4 + step[2]] = True
    distance = float(np.linalg.norm(affine[:3, :3] @ step))
    values = compare_masks(*masks, affine)
    assert values["assd_mm"] == pytest.approx(distance)
    assert values["hd95_mm"] == pytest.approx(distance)
    assert values["dice"] == 0.0
    # All of each surface is as far from the other one, or its near half nearer: none of it beyond the distance.
    assert compare_masks(*masks, affine, tolerance_mm=distance)["nsd"] == 1.0


def test_plates_one_above_the_other() -> None:
    """Plates of one slice, two slices of 5 mm apart: each voxel is 10 mm from the other plate, whatever its place."""
    plates = boxes((slice(2, 9), slice(2, 8), slice(2, 3)), (slice(2, 9), slice(2, 8), slice(4, 5)))
    values = compare_masks(*plates, AFFINE, tolerance_mm=4.9)
    assert values["assd_mm"] == pytest.approx(10.0)
    assert values["hd95_mm"] == pytest.approx(10.0)
    # The surfaces' elements that face each other are 5 mm apart, those that face away 10 mm.
    assert values["nsd"] == 0.0
    assert compare_masks(*plates, AFFINE, tolerance_mm=5.0)["nsd"] == pytest.approx(0.5)
    assert compare_masks(*plates, AFFINE, tolerance_mm=10.0)["nsd"] == 1.0


@pytest.mark.parametrize(("axis", "spacing", "shift"), [(0, 1.0, 2), (1, 2.0, 3), (2, 5.0, 1)])
def test_a_shifted_cuboid(axis: int, spacing: float, shift: int) -> None:
    """Surface voxels of a cuboid shifted by a few voxels: only what sticks out at the two ends is off."""
    shape = (24, 24, 24)
    inside = [slice(6, 16)] * 3
    moved = list(inside)
    moved[axis] = slice(6 + shift, 16 + shift)
    masks = boxes(tuple(inside), tuple(moved), shape=shape)  # type: ignore[arg-type]
    values = compare_masks(*masks, AFFINE)
    assert values["dice"] == pytest.approx((10 - shift) / 10)
    # Each end face is `shift` voxels from that of the other cuboid, or nearer over its edge.
    assert 0 < values["assd_mm"] < shift * spacing
    assert values["hd95_mm"] == pytest.approx(shift * spacing)
    assert compare_masks(*masks, AFFINE, tolerance_mm=shift * spacing)["nsd"] == 1.0
    assert compare_masks(*masks, AFFINE, tolerance_mm=shift * spacing * 0.99)["nsd"] < 1.0


def test_a_tolerance_is_met_where_it_is_equalled() -> None:
    """0.7 mm is no float32, nor are 10 of it 7 mm: a distance equal to the tolerance counts all the same."""
    masks = [np.zeros((14, 3, 3), bool) for _ in range(2)]
    masks[0][1, 1, 1] = masks[1][11, 1, 1] = True
    affine = np.diag(np.array([0.7, 1, 1, 1], np.float32)).astype(np.float64) * [1.0000001, 1, 1, 1]
    assert compare_masks(*masks, affine, tolerance_mm=7.0)["nsd"] == 1.0
    assert compare_masks(*masks, affine, tolerance_mm=6.99)["nsd"] == pytest.approx(0.5)


def test_surface_dice_weights_by_area() -> None:
    """One of two cuboids is found: it agrees by its surface in mm2, not by the number of its surface voxels."""
    spacing = (1.0, 2.0, 5.0)
    flat, tall = (6, 7, 2), (2, 2, 9)
    found, missed = boxes((slice(1, 7), slice(1, 8), slice(1, 3)), (slice(20, 22), slice(1, 3), slice(1, 10)),
                          shape=(24, 10, 12))  # fmt: skip

    def area(size: tuple[int, int, int]) -> float:
        """Of a cuboid whose edges are cut half a voxel from where they were, as a surface between voxels has them."""
        total = 8 * math.hypot(2 * 5, 1 * 5, 1 * 2) / 8  # a corner: half of what two edges of half a voxel span
        for axis in range(3):
            j, k = (axis + 1) % 3, (axis + 2) % 3
            total += 4 * (size[axis] - 1) * spacing[axis] * math.hypot(spacing[j], spacing[k]) / 2
            total += 2 * (size[j] - 1) * spacing[j] * (size[k] - 1) * spacing[k]
        return total

    value = compare_masks(found, found | missed, AFFINE)["nsd"]
    assert value == pytest.approx(2 * area(flat) / (2 * area(flat) + area(tall)), rel=1e-6)


def test_nested_cuboids() -> None:
    inner, outer = boxes((slice(3, 7), slice(3, 6), slice(3, 5)), (slice(2, 8), slice(2, 7), slice(2, 6)))
    values = compare_masks(inner, outer, AFFINE)
    assert values["precision"] == 1.0
    assert values["recall"] == pytest.approx(24 / 120)
    assert values["dice"] == pytest.approx(48 / 144)
    swapped = compare_masks(outer, inner, AFFINE)
    assert (swapped["precision"], swapped["recall"]) == (pytest.approx(0.2), 1.0)
    assert values["difference_ml"] == pytest.approx(-0.96) == -swapped["difference_ml"]
    # From the inner one the outside is nearest along x, 1 mm away; from the outer one's corner inwards it is farthest.
    assert values["hd95_mm"] == pytest.approx(math.sqrt(1 + 4 + 25))


@pytest.mark.parametrize(("affine", "voxel_ml"), [(AFFINE, 0.01), (SHEARED, 0.008), (-SHEARED, 0.008)])
def test_volumes_are_those_of_the_voxels_parallelepiped(affine: np.ndarray, voxel_ml: float) -> None:
    one, other = boxes((slice(1, 4), slice(1, 3), slice(2, 3)), (slice(1, 2), slice(1, 2), slice(2, 7)))
    values = compare_masks(one, other, affine)
    assert values["prediction_ml"] == pytest.approx(6 * voxel_ml)
    assert values["reference_ml"] == pytest.approx(5 * voxel_ml)
    assert values["difference_ml"] == pytest.approx(voxel_ml)


def test_a_mask_that_fills_the_volume_has_its_surface_at_the_border() -> None:
    full, hollow = np.ones((5, 5, 5), bool), np.ones((5, 5, 5), bool)
    hollow[1:-1, 1:-1, 1:-1] = False
    values = compare_masks(full, hollow, np.eye(4))
    assert values["assd_mm"] == 0.0, "the outermost voxels are the surface of both"
    assert compare_masks(full, full, np.eye(4))["nsd"] == 1.0


@pytest.mark.parametrize("affine", [AFFINE, SHEARED])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_all_pairs_of_surface_voxels(seed: int, affine: np.ndarray) -> None:
    """The definitions, written out: every distance between two surfaces' voxels, and no transform."""
    masks = blobs(seed)
    neighbours = [step for axis in range(3) for step in np.roll([[1, 0, 0], [-1, 0, 0]], axis, axis=1)]

    def surface(mask: np.ndarray) -> np.ndarray:
        inside = {tuple(voxel) for voxel in np.argwhere(mask)}
        return np.array([v for v in inside if any(tuple(np.add(v, step)) not in inside for step in neighbours)])

    a, b = (surface(mask) @ affine[:3, :3].T for mask in masks)
    between = np.linalg.norm(a[:, None] - b[None], axis=2)
    there, back = between.min(axis=1), between.min(axis=0)
    values = compare_masks(*masks, affine)
    assert values["assd_mm"] == pytest.approx((there.sum() + back.sum()) / (len(a) + len(b)))
    assert values["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, about its own call
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_monai(seed: int) -> None:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    masks = blobs(seed, (14, 12, 9))
    spacing = [0.8, 1.1, 2.7]
    values = compare_masks(*masks, np.diag([*spacing, 1.0]), tolerance_mm=1.3)
    pair = [torch.from_numpy(mask[None, None]) for mask in masks]
    options: dict[str, Any] = {"include_background": True, "spacing": spacing}
    expected = (
        compute_average_surface_distance(*pair, symmetric=True, **options),
        compute_hausdorff_distance(*pair, percentile=95, **options),
        compute_surface_dice(*pair, class_thresholds=[1.3], use_subvoxels=True, **options),
    )
    assert [values[key] for key in (*DISTANCES, "nsd")] == pytest.approx([float(value) for value in expected], rel=1e-5)


SEEDS = st.integers(0, 10_000)
laws = settings(max_examples=25)


@laws
@given(SEEDS)
def test_law_symmetry(seed: int) -> None:
    one, other = blobs(seed)
    there, back = compare_masks(one, other, AFFINE), compare_masks(other, one, AFFINE)
    for key in ("dice", "nsd", *DISTANCES):
        assert there[key] == pytest.approx(back[key])
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])
    assert there["difference_ml"] == pytest.approx(-back["difference_ml"])


@laws
@given(SEEDS, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.booleans())
def test_law_storage_does_not_matter(seed: int, order: list[int], flip: tuple[bool, ...], sheared: bool) -> None:
    """Axes stored in another order or direction, with the affine that says so: the same patient, the same values."""
    one, other = blobs(seed)
    affine = SHEARED if sheared else AFFINE
    turn = np.eye(4)
    for axis, (size, flipped) in enumerate(zip(one.shape, flip, strict=True)):
        if flipped:
            turn[axis, axis], turn[axis, 3] = -1, size - 1
    slices = tuple(slice(None, None, -1 if flipped else 1) for flipped in flip)
    stored = [mask[slices].transpose(order) for mask in (one, other)]
    values = compare_masks(*stored, (affine @ turn)[:, [*order, 3]], tolerance_mm=3.3)
    assert values == pytest.approx(compare_masks(one, other, affine, tolerance_mm=3.3))


@laws
@given(SEEDS, st.lists(st.integers(0, 6), min_size=6, max_size=6))
def test_law_what_is_around_does_not_matter(seed: int, margins: list[int]) -> None:
    masks = blobs(seed)
    padded = [np.pad(mask, np.reshape(margins, (3, 2))) for mask in masks]
    assert compare_masks(*padded, AFFINE) == compare_masks(*masks, AFFINE)


@laws
@given(SEEDS, st.floats(0.1, 10))
def test_law_scale(seed: int, factor: float) -> None:
    masks = blobs(seed)
    values = compare_masks(*masks, AFFINE, tolerance_mm=3.3)
    scaled = compare_masks(*masks, AFFINE * [[factor], [factor], [factor], [1]], tolerance_mm=3.3 * factor)
    for key in DISTANCES:
        assert scaled[key] == pytest.approx(factor * values[key])
    assert scaled["nsd"] == pytest.approx(values["nsd"])
    assert scaled["prediction_ml"] == pytest.approx(factor**3 * values["prediction_ml"])


def test_refuses_what_cannot_be_compared() -> None:
    one, other = np.ones((2, 3, 4), bool), np.ones((2, 3, 5), bool)
    with pytest.raises(GeometryError, match=r"\(2, 3, 4\) and \(2, 3, 5\)"):
        compare_masks(one, other, AFFINE)
    with pytest.raises(GeometryError, match="X, Y, Z"):
        compare_masks(one[0], one[0], AFFINE)
    for tolerance_mm in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="tolerance"):
            compare_masks(one, one, AFFINE, tolerance_mm=tolerance_mm)


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


@pytest.mark.parametrize("degrees", [0.0, 45.0])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_place_on_undoes_any_storage(order: tuple[int, int, int], degrees: float) -> None:
    """At 45 degrees no axis runs rather left-right than front-back: only the two grids side by side tell."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine = np.array([[cos, -sin, 0, 4], [sin, cos, 0, -2], [0, 0, 1, 9], [0, 0, 0, 1]]) @ AFFINE
    label = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    last_first = np.array([[1, 0, 0, 0], [0, -1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]])  # the second axis backwards
    stored, stored_affine = label[:, ::-1].transpose(order), (affine @ last_first)[:, [*order, 3]]
    noise = np.random.default_rng(0).normal(scale=1e-5, size=(3, 4))
    placed = place_on(stored, stored_affine + np.vstack([noise, np.zeros(4)]), label.shape, affine, "a and b")
    np.testing.assert_array_equal(placed, label)


def test_other_places_are_refused(tmp_path: Path) -> None:
    prediction = save(tmp_path / "p.nii.gz", [(0, 0, 0)])
    shifted = AFFINE.copy()
    shifted[0, 3] = 1.5
    with pytest.raises(GeometryError, match=r"1\.50 mm apart"):
        score(prediction, save(tmp_path / "s.nii.gz", [(0, 0, 0)], affine=shifted))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 7), np.uint8), AFFINE), tmp_path / "n.nii.gz")
    with pytest.raises(GeometryError, match="4 x 5 x 7"):
        score(prediction, tmp_path / "n.nii.gz")


def row(case: str, dice: float, assd_mm: float = 1.0) -> dict[str, Any]:
    return {"case": case, **dict.fromkeys(METRICS, 0.5), "dice": dice, "assd_mm": assd_mm}


def test_summary() -> None:
    summary = summarize([row("b", 0.4, 1.0), row("a", 0.8, 2.0), row("c", 0.9, 6.0)])
    expected = {"n": 3, "mean": 0.7, "sd": math.sqrt(0.07), "median": 0.8, "min": 0.4, "max": 0.9}
    assert summary["dice"] == pytest.approx(expected | {"infinite": 0, "undefined": 0})
    assert summary["assd_mm"]["mean"] == 3.0
    assert summary["assd_mm"]["sd"] == pytest.approx(math.sqrt(7))
    assert list(summary) == [*METRICS, "worst"]
    assert summary["worst"] == ["b", "a", "c"]


def test_summary_of_infinite_distances_is_valid_json() -> None:
    rows = [row("a", 0.0, math.inf), row("b", 0.5, 2.0), row("c", 0.5, 4.0)]
    found = summarize(rows)["assd_mm"]
    values = {"n": 3, "mean": 3.0, "sd": pytest.approx(math.sqrt(2)), "median": 4.0, "min": 2.0, "max": None}
    assert found == values | {"infinite": 1, "undefined": 0}
    found = summarize([rows[0], rows[0], rows[1]])["assd_mm"]
    assert (found["median"], found["mean"], found["sd"], found["infinite"]) == (None, 2.0, None, 2)
    found = summarize(rows[:1])["assd_mm"]
    assert (found["mean"], found["min"], found["infinite"]) == (None, None, 1)
    for several in ([], rows[:1], rows):
        json.dumps(summarize(several), allow_nan=False)
    assert summarize([])["dice"]["n"] == 0


def test_what_is_not_defined_is_in_no_mean() -> None:
    rows = [row("a", math.nan, math.nan), row("b", 0.5, 2.0), row("c", 0.7, math.inf)]
    summary = summarize(rows)
    values = {"n": 3, "mean": 0.6, "sd": math.sqrt(0.02), "median": 0.6, "min": 0.5, "max": 0.7}
    assert summary["dice"] == pytest.approx(values | {"infinite": 0, "undefined": 1})
    assert (summary["assd_mm"]["infinite"], summary["assd_mm"]["max"]) == (1, None)
    assert summary["worst"] == ["b", "c"]
    alone = summarize(rows[:1])["dice"]
    assert (alone["n"], alone["mean"], alone["median"], alone["undefined"]) == (1, None, None, 1)
    json.dumps(summary, allow_nan=False)


def test_summary_names_the_worst_five_ties_by_name() -> None:
    rows = [row(name, dice) for name, dice in zip("gfedcba", (0.5, 0.5, 0.9, 0.1, 0.5, 0.5, 0.6), strict=True)]
    assert summarize(rows)["worst"] == ["d", "b", "c", "f", "g"]


def test_csv_is_read_back(tmp_path: Path) -> None:
    rows = [row("p1/ct", 1 / 3, math.inf), row('a, "b"', 0.25)]
    path = write_metrics_csv(tmp_path / "new" / "metrics.csv", rows)
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]
    with path.open(newline="", encoding="utf-8") as f:
        header, *lines = csv.reader(f)
    assert header == ["case", *METRICS]
    assert [line[0] for line in lines] == ["p1/ct", 'a, "b"']
    assert lines[0][1] == "0.333333"
    assert lines[0][header.index("assd_mm")] == "inf"
    assert float(lines[0][header.index("assd_mm")]) == math.inf


def test_csv_has_no_formulas_and_keeps_negative_numbers(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "plain"]
    rows = [row(name, 0.5) | {"difference_ml": -1.5} for name in names]
    with write_metrics_csv(tmp_path / "m.csv", rows).open(newline="", encoding="utf-8") as f:
        lines = list(csv.DictReader(f))
    assert [line["case"] for line in lines] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "plain"]
    assert {line["difference_ml"] for line in lines} == {"-1.500000"}


def test_csv_without_cases_or_room(tmp_path: Path) -> None:
    assert write_metrics_csv(tmp_path / "m.csv", []).read_text() == ",".join(["case", *METRICS]) + "\n"
    with pytest.raises(OutputError, match="is a folder"):
        write_metrics_csv(tmp_path, [row("a", 0.5)])


def test_importing_metrics_is_light() -> None:
    code = "import sys, attunet3d.metrics, attunet3d.metrics.folders; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
