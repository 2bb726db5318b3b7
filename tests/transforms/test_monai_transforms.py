"""The transforms around the network: to the model grid and back on volumes of every orientation."""

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose

from attunet3d import transforms
from attunet3d.errors import ConfigError, GeometryError
from attunet3d.transforms import (
    FromModelGridd,
    KeepLargestConnectedComponentd,
    PlaceOnImaged,
    SelectLabelsd,
    ToModelGridd,
)
from attunet3d.transforms.monai_transforms import source_grid
from attunet3d.transforms.resample import AIR_HU

Array = np.ndarray
AFFINES = {
    "RAS": np.array([[0.8, 0, 0, -12.0], [0, 0.8, 0, -15], [0, 0, 3.0, -20], [0, 0, 0, 1]]),
    "LAS": np.array([[-0.8, 0, 0, 12.0], [0, 0.8, 0, -15], [0, 0, 3.0, -20], [0, 0, 0, 1]]),
    "LPS": np.array([[-0.8, 0, 0, 12.0], [0, -0.8, 0, 15], [0, 0, 3.0, -20], [0, 0, 0, 1]]),
    "SAR": np.array([[0, 0, 3.0, -20], [0, 0.8, 0, -15], [0.8, 0, 0, -12], [0, 0, 0, 1]]),
    "oblique": np.array([[0.77, -0.2, 0.1, -10], [0.21, 0.77, 0.3, -18], [-0.05, -0.06, 2.98, -15], [0, 0, 0, 1]]),
}
orientations = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
SHAPE = (33, 40, 14)


def world(affine: Array, shape: tuple[int, ...]) -> Array:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def centre_of(affine: Array, shape: tuple[int, ...]) -> Array:
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def ball(affine: Array, shape: tuple[int, ...], centre: Array, radius: float) -> Array:
    return np.linalg.norm(world(affine, shape) - centre, axis=-1) <= radius


def ct(affine: Array, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.int16) -> MetaTensor:
    """A linear field of HU, so that what any voxel must be is known."""
    values = np.round(world(affine, shape) @ [8.0, -6.0, 4.0])
    return MetaTensor(torch.from_numpy(values)[None].to(dtype), affine=torch.from_numpy(affine))


@orientations
def test_image_goes_to_ras_with_the_spacing_asked_for(affine: Array) -> None:
    image = ct(affine)
    kept = image.clone()
    out = ToModelGridd("image", spacing=(2.0, 2.0, 2.5))({"image": image})["image"]
    assert out.dtype == torch.float32
    assert isinstance(out, MetaTensor)
    assert torch.equal(image.as_tensor(), kept.as_tensor())
    found = out.affine.numpy()
    np.testing.assert_array_equal(found[:3, :3], np.diag([2.0, 2.0, 2.5]))
    np.testing.assert_allclose(centre_of(found, out.shape[1:]), centre_of(affine, SHAPE), atol=1e-9)
    index = np.linalg.solve(affine[:3, :3], (world(found, out.shape[1:]) - affine[:3, 3]).reshape(-1, 3).T).T
    inside = ((index >= 0) & (index <= np.array(SHAPE) - 1)).all(axis=1)
    expected = (world(found, out.shape[1:]) @ [8.0, -6.0, 4.0]).ravel()
    assert inside.mean() > 0.2
    np.testing.assert_allclose(out.numpy().ravel()[inside], expected[inside], atol=0.51)  # HU were rounded
    outside = ((index < -0.5 - 1e-4) | (index > np.array(SHAPE) - 0.5 + 1e-4)).any(axis=1)
    assert (out.numpy().ravel()[outside] == AIR_HU).all()


def test_outside_is_air_for_images_and_background_for_labels() -> None:
    affine = AFFINES["oblique"]
    image = MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.int16), affine=torch.from_numpy(affine))
    label = MetaTensor(torch.ones(1, *SHAPE, dtype=torch.uint8), affine=torch.from_numpy(affine))
    out = ToModelGridd(["image", "label"], 2.0, mode=["linear", "label"])({"image": image, "label": label})
    assert set(out["image"].unique().tolist()) == {AIR_HU, 0.0}
    assert torch.equal(out["image"].as_tensor() == AIR_HU, out["label"].as_tensor() == 0)
    assert out["label"].dtype == torch.uint8


@orientations
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_logits_return_to_the_voxels_they_came_from(affine: Array, channels: int) -> None:
    """A ball in world mm, as logits on the model grid, is the ball on the CT's own grid: shape and affine exactly."""
    to_grid = ToModelGridd("image", spacing=2.0)
    data = to_grid({"image": ct(affine)})
    centre, radius = centre_of(affine, SHAPE) + np.array([1.3, -0.9, 2.2]), 9.0
    distance = np.linalg.norm(world(data["image"].affine.numpy(), data["image"].shape[1:]) - centre, axis=-1)
    logits = torch.full((channels, *distance.shape), -100.0)
    logits[-1] = torch.from_numpy(radius - distance)
    if channels > 1:
        logits[0] = 0.0
    data["pred"] = logits
    out = FromModelGridd("pred")(data)["pred"]
    assert out.shape == (1, *SHAPE)
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out.affine.numpy(), affine)
    truth = ball(affine, SHAPE, centre, radius)
    value = max(channels - 1, 1)
    assert set(out.unique().tolist()) == {0, value}
    found = out[0].numpy() == value
    # Half a voxel astray would cost 0.08; so small a ball loses 0.01 to the curvature of its surface.
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.985
    shift = world(affine, SHAPE)[found].mean(axis=0) - world(affine, SHAPE)[truth].mean(axis=0)
    assert np.linalg.norm(shift) < 0.1


@orientations
def test_way_there_and_back_through_a_loader(affine: Array) -> None:
    """What the evaluator does: collate a batch of one, run, decollate, postprocess."""
    items = [{"image": ct(affine), "name": "a"}]
    loader = DataLoader(
        Dataset(items, Compose([ToModelGridd("image", spacing=2.0)])), batch_size=1, collate_fn=list_data_collate
    )
    (batch,) = list(loader)
    batch["pred"] = torch.cat([-batch["image"], batch["image"]], dim=1)  # foreground where HU > 0
    (item,) = decollate_batch(batch)
    out = FromModelGridd("pred", source="image")(item)["pred"]
    assert out.shape == (1, *SHAPE)
    np.testing.assert_array_equal(out.affine.numpy(), affine)
    hu = world(affine, SHAPE) @ [8.0, -6.0, 4.0]
    # Two model voxels from the border no value was held constant; one HU covers the rounding to int16.
    middle = (slice(4, -4), slice(4, -4), slice(2, -2))
    sure = np.abs(hu[middle]) > 1.5
    np.testing.assert_array_equal(out[0].numpy()[middle][sure], (hu[middle] > 0)[sure])


def test_batch_of_two_keeps_each_its_own_grid() -> None:
    to_grid = ToModelGridd("image", spacing=2.0)
    items = [to_grid({"image": ct(AFFINES[name])}) for name in ("RAS", "LAS")]
    batch = list_data_collate(items)
    batch["pred"] = torch.zeros((2, 1, *batch["image"].shape[2:]))
    for item, name in zip(decollate_batch(batch), ("RAS", "LAS"), strict=True):
        assert source_grid(item["image"]).shape == SHAPE
        out = FromModelGridd("pred")(item)["pred"]
        np.testing.assert_array_equal(out.affine.numpy(), AFFINES[name])
        assert out.sum() == 0


@pytest.mark.parametrize("name", ["LAS", "LPS", "SAR", "oblique"])
def test_label_whose_axes_run_another_way_lands_in_the_same_place(name: str) -> None:
    image = ct(AFFINES["RAS"])
    centre = centre_of(AFFINES["RAS"], SHAPE)
    # The label's own grid, around the same point.
    affine = AFFINES[name].copy()
    shape = {"SAR": (40, 40, 14)}.get(name, (40, 40, 16))
    affine[:3, 3] += centre - centre_of(affine, shape)
    drawn = ball(affine, shape, centre + np.array([3.0, 1.0, -2.0]), 8.0)
    label = MetaTensor(torch.from_numpy(drawn)[None].to(torch.uint8), affine=torch.from_numpy(affine))
    out = ToModelGridd(["image", "label"], 2.0, mode=["linear", "label"])({"image": image, "label": label})
    assert out["label"].shape == out["image"].shape
    np.testing.assert_array_equal(out["label"].affine.numpy(), out["image"].affine.numpy())
    found = world(out["label"].affine.numpy(), out["label"].shape[1:])[out["label"][0].numpy() == 1]
    np.testing.assert_allclose(found.mean(axis=0), world(affine, shape)[drawn].mean(axis=0), atol=0.2)
    assert len(found) * 8 == pytest.approx(drawn.sum() * abs(np.linalg.det(affine[:3, :3])), rel=0.04)


def test_label_goes_back_to_its_own_source_grid() -> None:
    label = MetaTensor(torch.ones(1, *SHAPE, dtype=torch.uint8), affine=torch.from_numpy(AFFINES["LPS"]))
    data = {"image": ct(AFFINES["RAS"]), "label": label}
    out = ToModelGridd(["image", "label"], 2.0, mode=["linear", "label"])(data)
    np.testing.assert_array_equal(source_grid(out["label"]).affine, AFFINES["LPS"])
    np.testing.assert_array_equal(source_grid(out["image"]).affine, AFFINES["RAS"])


def test_missing_keys() -> None:
    image = ct(AFFINES["RAS"])
    out = ToModelGridd(["image", "label"], 4.0, mode=["linear", "label"], allow_missing_keys=True)({"image": image})
    assert set(out) == {"image"}
    with pytest.raises(KeyError, match="label"):
        ToModelGridd(["image", "label"], 4.0, mode=["linear", "label"])({"image": image})


def test_wrong_arguments_and_inputs_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match=r"mode must be .* got 'nearest'"):
        ToModelGridd("image", 2.0, mode="nearest")
    with pytest.raises(ConfigError, match="spacing must be "):
        ToModelGridd("image", 0.0)({"image": ct(AFFINES["RAS"])})
    to_grid = ToModelGridd("image", 2.0)
    with pytest.raises(GeometryError, match=r"channel-first .* got shape \(33, 40, 14\)"):
        to_grid({"image": ct(AFFINES["RAS"])[0]})
    with pytest.raises(GeometryError, match="MetaTensor with an affine, got Tensor"):
        to_grid({"image": torch.zeros(1, 4, 4, 4)})
    for image in (ct(AFFINES["RAS"]), torch.zeros(1, 4, 4, 4)):
        with pytest.raises(GeometryError, match="no source grid"):
            FromModelGridd("pred")({"image": image, "pred": torch.zeros(1, 4, 4, 4)})
    data = to_grid({"image": ct(AFFINES["RAS"])})
    with pytest.raises(GeometryError, match=r"pred has \(4, 4, 4\) voxels, image \(14, 16, 21\)"):
        FromModelGridd("pred")({**data, "pred": torch.zeros(1, 4, 4, 4)})


# --- labels and components


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_select_labels_makes_a_binary_map(dtype: torch.dtype) -> None:
    affine = torch.from_numpy(AFFINES["LPS"])
    label = MetaTensor(torch.tensor([0, 1, 2, 3, 10]).view(1, 5, 1, 1).to(dtype), affine=affine, meta={"from": "here"})
    out = SelectLabelsd("label", values=[1, 10])({"label": label})["label"]
    assert out.flatten().tolist() == [0, 1, 0, 0, 1]
    assert out.dtype == torch.uint8
    assert torch.equal(out.affine, affine)
    assert out.meta["from"] == "here"
    assert label.flatten().tolist() == [0, 1, 2, 3, 10]


def test_labels_can_make_several_classes() -> None:
    label = MetaTensor(torch.tensor([0, 1, 2, 3, 10], dtype=torch.uint8).view(1, 5, 1, 1), affine=torch.eye(4))
    out = SelectLabelsd("label", values=[[10], [1, 3]])({"label": label})["label"]
    assert out.flatten().tolist() == [0, 2, 0, 2, 1]
    for wrong in ([], [[]], [1, [2]], [1, 1], [[1], [1, 2]]):
        with pytest.raises(ConfigError, match="label values"):
            SelectLabelsd("label", values=wrong)


@pytest.mark.parametrize("stored", ["LAS", "LPS", "SAR", "oblique"])
def test_a_label_is_turned_to_its_images_axes(stored: str) -> None:
    """The image is RAS. The label has the same voxels, its axes permuted and flipped as in the name."""
    shape = (4, 5, 6)
    values = np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8)
    affine = AFFINES["oblique" if stored == "oblique" else "RAS"]
    image = MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine))
    turn = {
        "LAS": (slice(None, None, -1), slice(None), slice(None)),
        "LPS": (slice(None, None, -1),) * 2 + (slice(None),),
    }
    flips = turn.get(stored, (slice(None),) * 3)
    flipped, moved = values[flips], affine.copy()
    for axis, flip in enumerate(flips):
        if flip.step == -1:
            moved[:3, 3] += moved[:3, axis] * (shape[axis] - 1)
            moved[:3, axis] *= -1
    if stored == "SAR":
        flipped, moved = flipped.transpose(2, 1, 0), moved[:, [2, 1, 0, 3]]
    label = MetaTensor(torch.from_numpy(flipped.copy())[None], affine=torch.from_numpy(moved))
    out = PlaceOnImaged("label")({"image": image, "label": label})["label"]
    np.testing.assert_array_equal(out[0].numpy(), values)
    np.testing.assert_allclose(out.affine.numpy(), affine)


def test_a_label_of_another_ct_is_refused() -> None:
    image = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4), meta={"filename_or_obj": "a.nii.gz"})
    label = MetaTensor(torch.zeros(1, 4, 5, 7), affine=torch.eye(4), meta={"filename_or_obj": "b.nii.gz"})
    with pytest.raises(GeometryError, match=r"a\.nii\.gz and b\.nii\.gz"):
        PlaceOnImaged("label")({"image": image, "label": label})


def mask_of(*boxes: tuple[Any, ...], shape: tuple[int, ...] = (12, 10, 8)) -> MetaTensor:
    mask = torch.zeros(1, *shape, dtype=torch.uint8)
    for value, *box in boxes:
        mask[(0, *(slice(low, high) for low, high in box))] = value
    return MetaTensor(mask, affine=torch.from_numpy(AFFINES["LPS"]))


def keep_largest(mask: Any) -> Any:
    return KeepLargestConnectedComponentd("pred")({"pred": mask})["pred"]


def test_largest_component_stays_and_smaller_ones_go() -> None:
    large, small = (1, (0, 4), (0, 4), (0, 4)), (1, (6, 9), (6, 9), (5, 8))
    out = keep_largest(mask_of(small, large))
    assert torch.equal(out.as_tensor(), mask_of(large).as_tensor())
    assert isinstance(out, MetaTensor)
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out.affine.numpy(), AFFINES["LPS"])


def test_voxels_that_touch_by_a_corner_are_connected() -> None:
    chain = [(1, (n, n + 1), (n, n + 1), (n, n + 1)) for n in range(6)]
    out = keep_largest(mask_of(*chain, (1, (10, 12), (0, 1), (5, 7))))
    assert torch.equal(out.as_tensor(), mask_of(*chain).as_tensor())


def test_classes_that_touch_are_one_component_and_keep_their_values() -> None:
    both = [(1, (0, 3), (0, 3), (0, 3)), (2, (3, 5), (0, 3), (0, 3))]
    out = keep_largest(mask_of(*both, (2, (8, 11), (5, 9), (4, 7))))
    assert torch.equal(out.as_tensor(), mask_of(*both).as_tensor())


@pytest.mark.parametrize("plain", [True, False])
def test_an_empty_and_a_full_map_stay_as_they_are(plain: bool) -> None:
    for mask in (mask_of(), mask_of((1, (0, 12), (0, 10), (0, 8)))):
        given = mask.as_tensor().clone() if plain else mask.clone()
        assert torch.equal(torch.as_tensor(keep_largest(given)), mask.as_tensor())


def test_bundles_up_to_0_7_0_find_the_transform_by_its_old_name() -> None:
    assert transforms.LargestComponentd is KeepLargestConnectedComponentd


def test_components_of_a_share_of_the_largest_stay() -> None:
    """Of 64, 27 and 8 voxels: a share of 0.3 asks for 19.2, of 0.1 for 6.4."""
    large, middle, small = (1, (0, 4), (0, 4), (0, 4)), (1, (6, 9), (6, 9), (5, 8)), (1, (10, 12), (0, 2), (0, 2))

    def kept(share: float) -> torch.Tensor:
        out = KeepLargestConnectedComponentd("pred", share)({"pred": mask_of(large, middle, small)})["pred"]
        return torch.as_tensor(out.as_tensor())

    assert torch.equal(kept(1.0), mask_of(large).as_tensor())
    assert torch.equal(kept(0.3), mask_of(large, middle).as_tensor())
    assert torch.equal(kept(0.1), mask_of(large, middle, small).as_tensor())
    assert not KeepLargestConnectedComponentd("pred", 0.3)({"pred": mask_of()})["pred"].any()
    for wrong in (0, 1.1, -1, "1"):
        with pytest.raises(ConfigError, match="keep_components must be a share"):
            KeepLargestConnectedComponentd("pred", wrong)({"pred": mask_of(large)})  # type: ignore[arg-type]
