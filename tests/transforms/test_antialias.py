"""Means over the voxels of a finer CT: torch's antialiased interpolation as the reference, noise, turns and means."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.transforms import Grid, model_grid, resample_image, resample_label
from attunet3d.transforms.resample import resample_slabs

FILL = -1024.0


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 20, shape).astype(np.float32))


def along_axes(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, (patient, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        matrix[patient, axis] = sign * step
    return matrix


def test_it_is_torchs_antialiased_interpolation() -> None:
    """24 x 36 voxels to 8 x 16: steps of 3 and 2.25 voxels; torch has it in two dimensions."""
    volume = noise((24, 36, 5))
    source = Grid((24, 36, 5), np.diag([1.0, 1.0, 4.0, 1.0]))
    target = model_grid(source, (3.0, 2.25, 4.0))
    assert target.shape == (8, 16, 5)
    planes = volume.permute(2, 0, 1)[None]
    expected = F.interpolate(planes, size=(8, 16), mode="bilinear", antialias=True, align_corners=False)
    found = resample_image(volume, source, target, fill=FILL, antialias=True)
    torch.testing.assert_close(found, expected[0].permute(1, 2, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_a_grid_that_is_as_fine_is_interpolated_as_ever(turn: float) -> None:
    angle = np.radians(turn)
    matrix = np.diag([1.5, 1.5, 3.0, 1.0])
    matrix[:2, :2] = 1.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    source = Grid((12, 11, 9), matrix)
    target = model_grid(source, 1.4)
    volume = noise(source.shape)
    plain = resample_image(volume, source, target, fill=FILL)
    torch.testing.assert_close(resample_image(volume, source, target, fill=FILL, antialias=True), plain)


@pytest.mark.parametrize(("order", "signs"), [((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_however_the_axes_run(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """The same voxels, stored in another order: the same values in the patient."""
    plain = Grid((20, 24, 28), np.diag([0.7, 0.7, 1.2, 1.0]))
    volume = noise(plain.shape)
    expected = resample_image(volume, plain, model_grid(plain, 3.0), fill=FILL, antialias=True)
    stored = volume.permute(order).flip([axis for axis, sign in enumerate(signs) if sign < 0])
    matrix = along_axes(order, signs, tuple((0.7, 0.7, 1.2)[axis] for axis in order))
    for axis, sign in enumerate(signs):
        if sign < 0:
            matrix[:3, 3] -= matrix[:3, axis] * (stored.shape[axis] - 1)
    source = Grid(tuple(stored.shape), matrix)
    found = resample_image(stored, source, model_grid(source, 3.0), fill=FILL, antialias=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("turn", [0.0, 10.0])
def test_noise_falls_as_the_weights_say_and_means_stay(turn: float) -> None:
    """Independent noise in steps of 4 voxels: the triangle's sum of squares is about 2 / (3 x 4) along each axis."""
    angle = np.radians(turn)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    source = Grid((64, 64, 64), matrix)
    centre = (matrix @ [31.5, 31.5, 31.5, 1.0])[:3]
    target = Grid((10, 10, 10), np.diag([4.0, 4.0, 4.0, 1.0]))
    target.affine[:3, 3] = centre - 18.0
    volume = noise(source.shape) + 50
    found = resample_image(volume, source, target, fill=FILL, antialias=True)
    plain = resample_image(volume, source, target, fill=FILL)
    expected = 20 * (2 / 3 / 4) ** 1.5
    assert float(plain.std()) > 4
    assert float(found.mean()) == pytest.approx(50, abs=0.3)
    if turn == 0:
        assert float(found.std()) == pytest.approx(expected, rel=0.1)
    else:  # interpolated between such means: smoother still
        assert expected / 3 < float(found.std()) < 1.1 * expected


def test_constant_stays_constant_and_outside_is_filled() -> None:
    source = Grid((10, 10, 10), np.diag([1.0, 1.0, 1.0, 1.0]))
    target = Grid((7, 7, 7), np.diag([3.0, 3.0, 3.0, 1.0]))  # to 18 mm, where the source ends at 9.5
    found = resample_image(torch.full((10, 10, 10), 7, dtype=torch.int16), source, target, fill=FILL, antialias=True)
    inside = torch.zeros((7, 7, 7), dtype=torch.bool)
    inside[:4, :4, :4] = True
    assert found[inside].sub(7).abs().max() < 1e-4
    assert bool((found[~inside] == FILL).all())


def test_slabs_make_no_difference() -> None:
    source = Grid((9, 10, 40), np.diag([1.0, -1.0, 0.8, 1.0]))
    target = model_grid(source, 2.9)
    volume = noise((2, *source.shape))
    whole = resample_image(volume, source, target, fill=FILL, antialias=True)
    for slab in (1, 3, 100):
        parts = resample_slabs(volume, source, target, fill=FILL, antialias=True, slab=slab)
        torch.testing.assert_close(torch.cat([values for _, values in parts], dim=-1), whole, rtol=0, atol=1e-4)


def test_labels_keep_what_two_neighbours_would_lose() -> None:
    """Planes of 1 mm, every third one unlabelled: of 6 mm two thirds are the organ, wherever it is sampled."""
    label = torch.zeros((48, 12, 12), dtype=torch.uint8)
    label[12:36] = 1
    label[12:36:3] = 0
    source = Grid((48, 12, 12), np.eye(4))
    target = model_grid(source, 6.0)
    averaged = resample_label(label, source, target, antialias=True)
    assert averaged[:, 1, 1].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
