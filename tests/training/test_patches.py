"""Where each voxel of a patch comes from: ramps tell it, as linear resampling leaves them what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch import Tensor

from attunet3d.errors import ConfigError
from attunet3d.training import RandPatchd
from attunet3d.transforms.resample import AIR_HU

AXES = ("x", "y", "z")
ISOTROPIC = (1.0, 1.0, 1.0)


def transform(size: Any, spacing: Any = ISOTROPIC, seed: int = 0, keys: Any = "image", **options: Any) -> RandPatchd:
    keys = [keys] if isinstance(keys, str) else list(keys)
    return RandPatchd([*keys, "label"], "label", size, spacing, **options).set_random_state(seed=seed)


def numbered(*shape: int) -> Tensor:
    """A volume (1, X, Y, Z) whose values are all different and above air."""
    return torch.arange(float(np.prod(shape))).reshape(1, *shape)


def ramps(shape: tuple[int, ...], spacing: Any) -> dict[str, Tensor]:
    """Volumes whose values are their voxels' coordinates, mm; the label is the voxel in the middle."""
    grid = np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[(0, *(n // 2 for n in shape))] = 1
    return {**{axis: torch.from_numpy(g.astype(np.float32))[None] for axis, g in zip(AXES, grid, strict=True)}} | {
        "label": label
    }


def sources(patch: dict[str, Tensor]) -> np.ndarray:
    """Of a patch of ramps: from where in the volume each voxel is, mm (voxels, 3)."""
    return np.stack([patch[axis][0].numpy().astype(np.float64).ravel() for axis in AXES], axis=1)


def steps(size: tuple[int, ...], spacing: Any) -> np.ndarray:
    """Where each voxel of a patch is from its middle, mm (voxels, 3)."""
    offsets = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    return np.stack([g.ravel() for g in np.meshgrid(*offsets, indexing="ij")], axis=1)


def motion(patch: dict[str, Tensor], spacing: Any) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (3, 3) that fits best between steps of the patch and of the volume, in mm, and what it leaves over."""
    size = tuple(patch["x"].shape[1:])
    found, out = sources(patch), steps(size, spacing)
    matrix, *_ = np.linalg.lstsq(out, found - found.mean(axis=0), rcond=None)
    return matrix.T, found - found.mean(axis=0) - out @ matrix


class Chosen(np.random.RandomState):
    """Draws nothing: a turn about the third axis by all that is allowed, and the middle of every other range."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        if high == pytest.approx(np.pi / 2):
            return np.array([0.0, 0.0, high])
        middle = (low + high) / 2
        return middle if size is None else np.full(size, middle)


# Without augmentation.


@pytest.mark.parametrize("seed", range(5))
def test_a_patch_is_a_crop(seed: int) -> None:
    image = numbered(12, 13, 14)
    label = (image % 7 == 0).to(torch.uint8)
    (patch,) = transform((5, 7, 3), seed=seed, pos=0)({"image": image, "label": label})
    first = np.unravel_index(round(float(patch["image"][0, 0, 0, 0])), image.shape[1:])
    box = (slice(None), *(slice(a, a + n) for a, n in zip(first, (5, 7, 3), strict=True)))
    torch.testing.assert_close(patch["image"], image[box], rtol=0, atol=0.01)
    assert torch.equal(patch["label"], label[box])


def test_a_patch_of_the_whole_volume() -> None:
    image = numbered(6, 5, 4)
    label = (image > 50).to(torch.uint8)
    (patch,) = transform((6, 5, 4))({"image": image, "label": label})
    torch.testing.assert_close(patch["image"], image, rtol=0, atol=0.01)
    assert torch.equal(patch["label"], label)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 8, 8), (16, 16, 16)), ((8, 5, 12), (12, 9, 12)), ((8, 6, 1), (8, 6, 5)), ((1, 1, 1), (3, 3, 3))],
)
def test_beyond_a_small_volume_are_air_and_background(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    image, label = numbered(*shape), torch.ones(1, *shape, dtype=torch.uint8)
    (patch,) = transform(size)({"image": image, "label": label})
    margins = [((n - m) // 2,) * 2 for n, m in zip(size, shape, strict=True)]
    expected = np.pad(image[0].numpy(), margins, constant_values=AIR_HU)
    np.testing.assert_allclose(patch["image"][0].numpy(), expected, rtol=0, atol=0.01)
    np.testing.assert_array_equal(patch["label"][0].numpy(), np.pad(label[0].numpy(), margins))


def test_patches_stay_inside_a_volume_that_is_large_enough() -> None:
    image = torch.zeros(1, 10, 9, 8)
    label = torch.zeros(1, 10, 9, 8, dtype=torch.uint8)
    label[0, 0, 0, 0] = label[0, -1, -1, -1] = 1
    patches = transform((6, 6, 6), num_samples=40)({"image": image, "label": label})
    assert all(float(patch["image"].min()) > -0.01 for patch in patches)


# Which patches.


@pytest.mark.parametrize(("pos", "neg"), [(2, 1), (1, 1), (1, 0)])
def test_the_share_around_the_organ(pos: float, neg: float) -> None:
    """A patch of background holds the organ by chance in 1 of 70 cases: there are so many of its size."""
    image = torch.zeros(1, 60, 20, 20)
    label = torch.zeros(1, 60, 20, 20, dtype=torch.uint8)
    label[0, 30:32, 10, 10] = 1
    patches = transform((5, 5, 5), pos=pos, neg=neg, num_samples=1500)({"image": image, "label": label})
    share = float(np.mean([bool(patch["label"].any()) for patch in patches]))
    expected = pos / (pos + neg)
    assert share == pytest.approx(expected, abs=0.06 if neg else 0)


def test_the_organ_may_be_anywhere_in_the_middle_half() -> None:
    image = torch.zeros(1, 60, 60, 60)
    label = torch.zeros(1, 60, 60, 60, dtype=torch.uint8)
    label[0, 30, 30, 30] = 1
    patches = transform((21, 21, 21), neg=0, num_samples=300)({"image": image, "label": label})
    places = np.array([np.argwhere(patch["label"][0].numpy())[0] for patch in patches]) - 10
    assert np.abs(places).max() <= 6  # a quarter of the patch, and rounding
    assert np.all(places.min(axis=0) <= -4)
    assert np.all(places.max(axis=0) >= 4)


@pytest.mark.parametrize("neg", [0.0, 1.0])
def test_without_an_organ_patches_are_of_the_body(neg: float) -> None:
    image = torch.full((1, 40, 30, 30), -1000.0)
    image[:, 6:22, 6:24, 6:24] = 40
    label = torch.zeros(1, 40, 30, 30, dtype=torch.uint8)
    patches = transform((5, 5, 5), neg=neg, num_samples=200)({"image": image, "label": label})
    centres = [float(patch["image"][0, 2, 2, 2]) for patch in patches]
    # 1 voxel in 7 is body; 20 tries fail in 1 of 20 patches.
    assert np.mean(np.array(centres) > -300) > 0.85
    assert not any(patch["label"].any() for patch in patches)


def test_a_volume_of_air_has_patches_too() -> None:
    image, label = torch.full((1, 9, 9, 9), -1000.0), torch.zeros(1, 9, 9, 9, dtype=torch.uint8)
    (patch,) = transform((5, 5, 5))({"image": image, "label": label})
    torch.testing.assert_close(patch["image"], torch.full((1, 5, 5, 5), -1000.0), rtol=0, atol=0.01)


# How they are moved.


def test_a_quarter_turn_by_hand() -> None:
    """About the third axis: what lay along the second lies along the first, the other way round."""
    image = numbered(7, 7, 7)
    label = (image % 5 == 0).to(torch.uint8)
    turned = transform((7, 7, 7), rotate=np.pi / 2)
    turned.R = Chosen()
    (patch,) = turned({"image": image, "label": label})
    for key, volume in (("image", image), ("label", label)):
        expected = torch.stack([torch.stack([volume[0, 6 - j, i] for j in range(7)]) for i in range(7)])
        torch.testing.assert_close(patch[key][0], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("spacing", [ISOTROPIC, (1.0, 1.5, 3.0)])
@pytest.mark.parametrize("seed", range(4))
def test_a_motion_turns_and_zooms_in_mm(spacing: Any, seed: int) -> None:
    shape, size = (60, 50, 44), (15, 13, 11)
    move = transform(size, spacing, seed, AXES, rotate=0.5, scale=0.2, neg=0)
    (patch,) = move(ramps(shape, spacing))
    matrix, rest = motion(patch, spacing)
    assert np.abs(rest).max() < 1e-3, "what is linear in mm stays linear"
    # Zoomed along the patch's axes, then turned: columns at right angles, as long as the zoom.
    zoom = np.linalg.norm(matrix, axis=0)
    np.testing.assert_allclose(matrix.T @ matrix, np.diag(zoom**2), atol=1e-4)
    assert np.all((zoom > 1.2**-1.25) & (zoom < 1.2**1.25))
    assert zoom.max() / zoom.min() < 1.2**0.5 + 1e-6
    turn = matrix / zoom
    assert np.linalg.det(turn) == pytest.approx(1, abs=1e-4)
    angles = Rotation.from_matrix(turn).as_euler("XYZ")
    assert np.all(np.abs(angles) < 0.5)
    assert np.abs(angles).max() > 0.05


def test_turns_and_zooms_of_many_patches() -> None:
    spacing, size = (2.0, 2.0, 2.0), (9, 9, 9)
    patches = transform(size, spacing, 0, AXES, rotate=0.3, scale=0.25, neg=0, num_samples=150)(
        ramps((40, 40, 40), spacing)
    )
    matrices = np.array([motion(patch, spacing)[0] for patch in patches])
    zooms = np.linalg.norm(matrices, axis=1)
    angles = Rotation.from_matrix(matrices / zooms[:, None]).as_euler("XYZ")
    # Uniform in -0.3 .. 0.3: mean 0, deviation 0.3 / sqrt(3); the zoom is as often below 1 as above.
    np.testing.assert_allclose(angles.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(angles.std(axis=0), 0.3 / np.sqrt(3), rtol=0.2)
    assert np.abs(angles).max() < 0.3
    assert np.mean(zooms > 1) == pytest.approx(0.5, abs=0.13)
    assert zooms.max() > 1.15
    assert zooms.min() < 1 / 1.15


def ellipsoid(shape: tuple[int, ...], spacing: Any, axes: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """A smooth image that is above 0 HU inside an ellipsoid in the middle, half axes in mm, and its label."""
    scaled = steps(shape, spacing) / np.array(axes)
    image = 300 * (1 - np.linalg.norm(scaled, axis=1)).reshape(1, *shape)
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy((image > 0).astype(np.uint8))


@pytest.mark.parametrize("seed", range(3))
def test_a_body_is_turned_as_a_body_on_anisotropic_voxels(seed: int) -> None:
    """Its volume, and its second moments along its own axes, stay what they are: a^2 / 5, mm^2."""
    spacing, axes = (1.0, 1.5, 3.0), (24.0, 18.0, 13.0)
    image, label = ellipsoid((64, 48, 32), spacing, axes)
    turned = transform((64, 48, 32), spacing, seed, rotate=0.7)
    (patch,) = turned({"image": image, "label": label})
    assert not torch.equal(patch["label"], label)
    for inside in (patch["label"][0].numpy() > 0, patch["image"][0].numpy() > 0):
        place = np.argwhere(inside) * np.array(spacing)
        volume = inside.sum() * np.prod(spacing)
        assert volume == pytest.approx(4 / 3 * np.pi * np.prod(axes), rel=0.02)
        moments = np.linalg.eigvalsh(np.cov(place.T))[::-1]
        np.testing.assert_allclose(moments, np.square(axes) / 5, rtol=0.04)


@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_move_together(seed: int) -> None:
    spacing = (2.0, 2.0, 2.0)
    image, label = ellipsoid((48, 48, 40), spacing, (34.0, 26.0, 28.0))
    options = {"rotate": 0.4, "scale": 0.2, "elastic": 4.0, "elastic_prob": 1.0, "flip_prob": 0.5}
    (patch,) = transform((48, 48, 40), spacing, seed, **options)({"image": image, "label": label})
    found, expected = patch["image"] > 0, patch["label"] > 0
    dice = 2 * float((found & expected).sum()) / float(found.sum() + expected.sum())
    assert dice > 0.97
    moved = 2 * float((found & (label > 0)).sum()) / float(found.sum() + label.sum())
    assert moved < 0.97, "and they did move"


def test_bends_are_as_large_as_they_are_said_to_be() -> None:
    """The middle of 65 mm is one of the points 32 mm apart; a patch as large as the volume has no other middle."""
    spacing, size = (2.0, 4.0, 2.6), (33, 17, 25)
    bent = transform(size, spacing, 0, AXES, elastic=3.0, elastic_prob=1.0, num_samples=200)
    middle = np.array([sources(patch)[np.prod(size) // 2] for patch in bent(ramps(size, spacing))])
    np.testing.assert_allclose(middle.std(axis=0), 3, rtol=0.2)
    np.testing.assert_allclose(middle.mean(axis=0), (32, 32, 31.2), rtol=0, atol=0.9)


def test_bends_are_linear_between_the_points() -> None:
    """64 mm have points at both ends and in the middle: each half is a line."""
    spacing, size, shape = ISOTROPIC, (65, 5, 5), (130, 60, 60)
    (patch,) = transform(size, spacing, 1, AXES, neg=0, elastic=2.0, elastic_prob=1.0)(ramps(shape, spacing))
    for axis in AXES:
        line = patch[axis][0, :, 0, 0].numpy().astype(np.float64)
        bend = np.abs(np.diff(line, n=2))
        assert bend[31] > 1e-3
        assert np.delete(bend, 31).max() < 1e-3


@pytest.mark.parametrize(("option", "share"), [("elastic_prob", 0.3), ("flip_prob", 0.7), ("elastic_prob", 0.0)])
def test_shares_of_what_happens(option: str, share: float) -> None:
    image, label = numbered(5, 5, 5), torch.ones(1, 5, 5, 5, dtype=torch.uint8)
    patches = transform((5, 5, 5), elastic=3.0, num_samples=800, **{option: share})({"image": image, "label": label})
    changed = [not torch.allclose(patch["image"], image, atol=0.01, rtol=0) for patch in patches]
    assert np.mean(changed) == pytest.approx(share, abs=0.07 if share else 0)


def test_a_mirrored_patch() -> None:
    image = numbered(6, 5, 4)
    label = (image % 3 == 0).to(torch.uint8)
    (patch,) = transform((6, 5, 4), flip_prob=1.0)({"image": image, "label": label})
    torch.testing.assert_close(patch["image"], image.flip(1), rtol=0, atol=0.01)
    assert torch.equal(patch["label"], label.flip(1))


# As a transform.


ALL = {"rotate": 0.3, "scale": 0.2, "elastic": 3.0, "elastic_prob": 0.5, "flip_prob": 0.5}


@pytest.mark.parametrize("kind", [torch.float32, torch.int16, "meta"])
def test_types_and_shapes(kind: Any) -> None:
    image = numbered(9, 10, 11)
    image = MetaTensor(image) if kind == "meta" else image.to(kind)
    label = torch.zeros(1, 9, 10, 11, dtype=torch.uint8)
    label[0, 3:5, 4, 4] = 2
    before = (image.clone(), label.clone())
    patches = transform((8, 7, 6), num_samples=3, **ALL)({"image": image, "label": label, "name": "one"})
    assert len(patches) == 3
    for patch in patches:
        assert patch["image"].shape == patch["label"].shape == (1, 8, 7, 6)
        assert (patch["image"].dtype, patch["label"].dtype) == (torch.float32, torch.uint8)
        assert type(patch["image"]) is Tensor, "an affine would no longer be the patch's"
        assert set(patch["label"].unique().tolist()) <= {0, 2}
        assert patch["name"] == "one"
    assert not torch.equal(patches[0]["image"], patches[1]["image"])
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_seeds() -> None:
    image = numbered(12, 12, 12)
    label = (image > 1000).to(torch.uint8)

    def draw(seed: int) -> Tensor:
        patches = transform((6, 6, 6), seed=seed, num_samples=2, **ALL)({"image": image, "label": label})
        return torch.cat([patch["image"] for patch in patches])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"size": (8, 8)}, "patch_size"),
        ({"size": (8, 8, 0)}, "patch_size"),
        ({"pos": -1}, "pos and neg"),
        ({"pos": 0, "neg": 0}, "pos and neg"),
        ({"scale": -0.1}, "scale"),
        ({"num_samples": 0}, "num_samples"),
        ({"elastic": -1.0}, "elastic"),
        ({"rotate": -0.1}, "rotate"),
        ({"spacing": (1.0, 1.0, 0.0)}, "spacing"),
        ({"keys": ()}, "label_key"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        transform(**{"size": (8, 8, 8), **options})


def test_a_label_key_that_is_not_among_the_keys() -> None:
    with pytest.raises(ConfigError, match="label_key"):
        RandPatchd(["image"], "label", (8, 8, 8), ISOTROPIC)


def blob(shape: tuple[int, ...] = (30, 28, 26)) -> dict[str, Tensor]:
    """A ball of 100 HU in fat, and its label."""
    distance = sum((g - n / 2) ** 2 for g, n in zip(np.indices(shape), shape, strict=True))
    label = torch.from_numpy((distance < 64).astype(np.uint8))[None]
    return {"image": 200 * label.float() - 100, "label": label}


def test_an_organ_flows_with_its_image() -> None:
    options = {"flow": [[40, 6], [16, 2]], "organ_shift": 4.0, "organ_scale": 0.2, "flow_prob": 1.0, "rotate": 0.3}
    moved = 0
    for seed in range(8):
        (patch,) = transform((26, 26, 26), (2.0, 2.0, 2.0), seed, neg=0, **options)(blob())
        (still,) = transform((26, 26, 26), (2.0, 2.0, 2.0), seed, neg=0, rotate=0.3)(blob())
        found, label = patch["image"] > 0, patch["label"] == 1
        assert 2 * float((found & label).sum()) / float(found.sum() + label.sum()) > 0.95
        moved += not torch.equal(still["label"], patch["label"])
    assert moved == 8


def test_a_flow_of_no_strength_changes_nothing() -> None:
    (flowed,) = transform((20, 20, 20), flow=[[40, 0]], flow_prob=1.0, neg=0)(blob())
    (plain,) = transform((20, 20, 20), neg=0)(blob())
    torch.testing.assert_close(flowed["image"], plain["image"], atol=1e-3, rtol=0)


def test_a_scan_ends_within_the_patch() -> None:
    ends = set()
    for seed in range(30):
        (patch,) = transform((20, 20, 20), seed=seed, cut_prob=1.0, neg=0)(blob())
        lost = (patch["image"][0] == AIR_HU).all(dim=0).all(dim=0)
        count = int(lost.sum())
        assert 1 <= count <= 10
        assert bool(lost[:count].all()) or bool(lost[-count:].all())
        assert not patch["label"][0][:, :, lost].any()
        ends.add(bool(lost[0]))
    assert ends == {True, False}


def test_patches_lie_around_the_target_and_not_around_other_organs() -> None:
    data = blob()
    data["label"] = torch.zeros_like(data["label"])
    data["label"][0, 2, 2, 2], data["label"][0, -3:, -3:, -3:] = 1, 2
    cut = transform((8, 8, 8), neg=0, num_classes=2, num_samples=20)
    assert all(bool((patch["label"] == 1).any()) for patch in cut(data))


@pytest.mark.parametrize("options", [{"flow": [[40]]}, {"flow": [[0, 3]]}, {"organ_shift": -1.0}])
def test_flows_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"flow must be pairs|must not be negative"):
        transform((8, 8, 8), **options)
