"""Phantoms: reproducible, plausible, and the same patient in world mm whatever the grid."""

import json
from pathlib import Path
from typing import Any

import cc3d
import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from attunet3d.datasets.phantom import Phantom, make_phantom, write_phantoms
from attunet3d.datasets.phantom_anatomy import NUMBERS
from attunet3d.errors import ConfigError, OutputError

SMALL = (64, 64, 48)


def pancreas(phantom: Phantom) -> tuple[np.ndarray, float]:
    """Centroid in RAS+ mm and volume in mL."""
    index = np.argwhere(phantom.mask)
    centroid = phantom.affine[:3, :3] @ index.mean(0) + phantom.affine[:3, 3]
    return centroid, len(index) * abs(np.linalg.det(phantom.affine[:3, :3])) / 1000


def test_seed_fixes_everything_and_seeds_differ() -> None:
    first, again, other = make_phantom(3, shape=SMALL), make_phantom(3, shape=SMALL), make_phantom(4, shape=SMALL)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_array_equal(first.affine, again.affine)
    assert first.record == again.record
    assert json.loads(json.dumps(first.record)) == first.record
    assert (first.mask != other.mask).any()
    assert np.linalg.norm(pancreas(first)[0] - pancreas(other)[0]) > 0.5


def test_drawn_grid_covers_the_field_of_view() -> None:
    phantom = make_phantom(11, spacing=(3, 3, 5))
    extent = np.array(phantom.image.shape) * (3, 3, 5)
    assert (extent >= (270, 270, 185)).all()
    assert (extent <= (390, 390, 240)).all()
    np.testing.assert_allclose(np.linalg.norm(phantom.affine[:3, :3], axis=0), (3, 3, 5), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_anatomy_is_plausible(seed: int) -> None:
    phantom = make_phantom(seed, spacing=(3, 3, 3), noise_hu=12)
    image, mask = phantom.image, phantom.mask
    assert (image.dtype, mask.dtype) == (np.int16, np.uint8)
    assert image.shape == mask.shape
    assert set(np.unique(mask)) == {0, 1}
    _, volume_ml = pancreas(phantom)
    assert 40 <= volume_ml <= 130
    assert volume_ml == pytest.approx(phantom.record["pancreas_ml"])
    # Away from its surface the pancreas has the HU that was drawn, less its fatty lobules.
    inner = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    assert inner.any()
    assert -25 <= image[inner > 0].mean() - phantom.record["hu"]["pancreas"] <= 5
    # Air outside, with the noise that was asked for; bone and lung inside.
    corner = image[:6, :6].astype(float)
    assert corner.mean() == pytest.approx(-1000, abs=5)
    assert (image > 350).mean() > 0.002
    assert ((image > -950) & (image < -800)).mean() > 0.01
    # One piece, away from the border of the grid.
    assert cc3d.connected_components(mask, return_N=True)[1] == 1
    assert mask[1:-1, 1:-1, 1:-1].sum() == mask.sum()


def test_noise_has_the_given_deviation() -> None:
    noisy, clean = make_phantom(0, shape=SMALL, noise_hu=20), make_phantom(0, shape=SMALL, noise_hu=0)
    difference = (noisy.image.astype(float) - clean.image)[clean.image > -900]  # -1024 HU is the floor in air
    assert difference.std() == pytest.approx(20, rel=0.03)
    assert difference.mean() == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize(
    ("orientation", "spacing"),
    [("LAS", (2, 2, 2)), ("LPS", (1.5, 1.5, 3)), ("oblique", (1.5, 1.5, 3)), ("oblique", (2.5, 1.8, 2.2))],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_same_patient_on_any_grid(seed: int, orientation: str, spacing: tuple[float, float, float]) -> None:
    reference = make_phantom(seed, spacing=(2, 2, 2), orientation="RAS", noise_hu=0)
    phantom = make_phantom(seed, spacing=spacing, orientation=orientation, noise_hu=0)
    axes = "".join(nib.aff2axcodes(phantom.affine))
    assert axes == {"oblique": "LPS"}.get(orientation, orientation)
    assert (np.count_nonzero(phantom.affine[:3, :3]) > 3) == (orientation == "oblique")
    (expected, expected_ml), (centroid, volume_ml) = pancreas(reference), pancreas(phantom)
    np.testing.assert_allclose(centroid, expected, atol=0.5)
    assert volume_ml == pytest.approx(expected_ml, rel=0.03)


def test_image_and_mask_agree_in_world_on_another_grid() -> None:
    """HU too are at the same world position: the RAS image resampled to the oblique grid matches."""
    reference = make_phantom(5, spacing=(2, 2, 2), orientation="RAS", noise_hu=0)
    phantom = make_phantom(5, spacing=(2.2, 2.2, 2.2), orientation="oblique", noise_hu=0)
    to_reference = np.linalg.inv(reference.affine) @ phantom.affine
    index = np.indices(phantom.image.shape).reshape(3, -1)
    nearest = np.rint(to_reference[:3, :3] @ index + to_reference[:3, 3:]).astype(int)
    valid = ((nearest >= 0) & (nearest < np.array(reference.image.shape)[:, None])).all(0)
    there = tuple(nearest[:, valid])
    mask = phantom.mask.reshape(-1)[valid]
    assert 2 * (mask & reference.mask[there]).sum() / (mask.sum() + reference.mask[there].sum()) > 0.9
    difference = phantom.image.reshape(-1)[valid].astype(float) - reference.image[there]
    assert np.median(np.abs(difference)) < 5


def test_head_is_at_the_right_and_tail_at_the_left_and_higher() -> None:
    for seed in range(4):
        phantom = make_phantom(seed, spacing=(3, 3, 3))
        x, _, z = phantom.affine[:3, :3] @ np.argwhere(phantom.mask).T + phantom.affine[:3, 3:]
        assert z[x < np.quantile(x, 0.1)].mean() > z[x > np.quantile(x, 0.9)].mean() + 15
        assert x.max() > 20
        assert x.min() < -40


def test_written_files_hold_the_phantoms(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = write_phantoms(tmp_path, 3, seed=7, shape=SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    datalist = json.loads(path.read_text())
    assert datalist["labels"] == {"0": "background", "1": "pancreas"}
    assert (datalist["numTraining"], datalist["numValidation"], datalist["numTest"]) == (2, 1, 0)
    training = load_decathlon_datalist(str(path), True, "training")
    validation = load_decathlon_datalist(str(path), True, "validation")
    assert [Path(item["image"]).name for item in training + validation] == [f"phantom_000{i}.nii.gz" for i in range(3)]
    for case, item in enumerate(training + validation):
        case_seed = int(np.random.SeedSequence(7, spawn_key=(case,)).generate_state(1, np.uint64)[0])
        phantom = make_phantom(case_seed, shape=SMALL)
        image, label = nib.load(item["image"]), nib.load(item["label"])
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == label.shape == SMALL
        for file, array in ((image, phantom.image), (label, phantom.mask)):
            np.testing.assert_array_equal(file.affine, phantom.affine)
            np.testing.assert_array_equal(np.asarray(file.dataobj), array)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_more_cases_leave_earlier_files_unchanged(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "two", 2, shape=(32, 32, 24))
    write_phantoms(tmp_path / "three", 3, shape=(32, 32, 24))
    write_phantoms(tmp_path / "two", 2, shape=(32, 32, 24))  # again, over the same files
    files = sorted((tmp_path / "two").rglob("*.nii.gz"))
    assert len(files) == 4
    for file in files:
        assert file.read_bytes() == (tmp_path / "three" / file.relative_to(tmp_path / "two")).read_bytes()
    assert len({file.read_bytes() for file in files}) == 4


@pytest.mark.parametrize(
    ("cases", "fractions", "expected"),
    [(1, (0.2, 0.0), (1, 0, 0)), (2, (0.0, 0.0), (1, 1, 0)), (4, (0.25, 0.25), (2, 1, 1)), (3, (0.9, 0.05), (1, 2, 0))],
)
def test_split(tmp_path: Path, cases: int, fractions: tuple[float, float], expected: tuple[int, int, int]) -> None:
    path = write_phantoms(
        tmp_path, cases, shape=(8, 8, 8), validation_fraction=fractions[0], test_fraction=fractions[1]
    )
    datalist = json.loads(path.read_text())
    assert tuple(len(datalist[key]) for key in ("training", "validation", "test")) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must be .* got -1"),
        ({"shape": (64, 64, 4)}, r"shape must be .* got \(64, 64, 4\)"),
        ({"shape": (64, 64)}, r"shape must be .* got \(64, 64\)"),
        ({"spacing": (1, 1, 0)}, r"spacing must be .* mm, got \(1, 1, 0\)"),
        ({"spacing": (1, 1, float("nan"))}, "spacing must be .* got .*nan"),
        ({"orientation": "XYZ"}, "orientation must be .* got 'XYZ'"),
        ({"noise_hu": -3}, "noise_hu must be .* got -3"),
    ],
)
def test_bad_arguments_of_make_phantom(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_phantom(**{"seed": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, "cases must be .* got 0"),
        ({"seed": -2}, "seed must be .* got -2"),
        ({"validation_fraction": 1.0}, "validation_fraction must be .* got 1.0"),
        ({"test_fraction": 0.9}, "test_fraction must be .* got 0.9"),
        ({"spacing": (1, 1, 99)}, "spacing must be .* got"),
    ],
)
def test_bad_arguments_of_write_phantoms(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_phantoms(tmp_path, **{"cases": 1, **arguments})
    assert not list(tmp_path.iterdir())


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_phantoms(tmp_path / "file", 1, shape=(8, 8, 8))


@pytest.mark.parametrize("seed", [0, 5])
def test_organs_are_anatomically_placed(seed: int) -> None:
    """Checked by centres in mm, and by HU."""
    phantom = make_phantom(seed, spacing=(3.0, 3.0, 3.0), orientation="RAS", noise_hu=0.0)
    centre = {name: np.argwhere(phantom.organs == number).mean(axis=0) for name, number in NUMBERS.items()}
    right, front, up = range(3)
    assert centre["liver"][right] > centre["aorta"][right] > centre["spleen"][right]
    assert centre["right kidney"][right] > centre["vertebra"][right] > centre["left kidney"][right]
    assert centre["cava"][right] > centre["aorta"][right]
    assert (
        centre["pancreas"][front] > centre["aorta"][front] > centre["vertebra"][front] > centre["spinal canal"][front]
    )
    assert centre["heart"][up] > centre["stomach"][up] > centre["small bowel"][up]
    assert np.array_equal(phantom.mask == 1, phantom.organs == NUMBERS["pancreas"])
    for name, low, high in (("liver", 90, 120), ("spleen", 105, 135), ("aorta", 130, 170), ("gallbladder", 5, 45)):
        assert low < np.median(phantom.image[phantom.organs == NUMBERS[name]]) < high


def test_label_maps_of_organs(tmp_path: Path) -> None:
    datalist = json.loads(write_phantoms(tmp_path, 1, organs=True, spacing=(6.0, 6.0, 6.0)).read_text())
    labels = np.asarray(nib.load(tmp_path / datalist["training"][0]["label"]).dataobj)
    assert datalist["pancreas_labels"] == [7]
    assert {int(number): name for number, name in datalist["labels"].items() if number != "0"} == {
        number: name for name, number in NUMBERS.items()
    }
    assert set(np.unique(labels)) <= {0, *NUMBERS.values()}
    assert (labels == 7).any()
