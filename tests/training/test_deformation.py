"""Flows: tissue that never folds, and organs that go where their own move says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attunet3d.training.deformation import random_flow


def flow(
    shape: tuple[int, ...] = (12, 12, 12), step: tuple[float, ...] = (12.0, 12.0, 12.0), **options: object
) -> Tensor:
    return random_flow(np.random.RandomState(0), shape, step, **options)  # type: ignore[arg-type]


def determinant(moves: Tensor, step: tuple[float, ...]) -> np.ndarray:
    """Of the Jacobian of x + moves(x): how many times as large a piece of tissue is where it comes from."""
    rows = [np.stack(np.gradient(axis.numpy().astype(float), *step)) for axis in moves]
    jacobian = np.stack(rows).transpose(2, 3, 4, 0, 1) + np.eye(3)
    return np.linalg.det(jacobian)


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> Tensor:
    distance = sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True))
    return torch.from_numpy((distance <= radius**2).astype(np.uint8))


def test_nothing_asked_nothing_moves() -> None:
    assert not flow().any()
    assert not flow(organs=ball((12, 12, 12), (6, 6, 6), 2)).any()


def test_the_same_numbers_give_the_same_flow() -> None:
    options = {"scales": [(48.0, 6.0)], "organs": ball((12, 12, 12), (6, 6, 6), 2), "organ_shift": 5.0}
    assert torch.equal(flow(**options), flow(**options))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), step=st.tuples(*[st.sampled_from([6.0, 12.0, 16.0])] * 3))
def test_nothing_folds(seed: int, step: tuple[float, float, float]) -> None:
    """With the moves of the preset few_cases a piece of tissue keeps its handedness everywhere."""
    shape = (14, 14, 14)
    organs = ball(shape, (4, 4, 4), 2) + 2 * ball(shape, (8, 8, 8), 2)
    scales = [(100.0, 14.0), (48.0, 6.0), (24.0, 2.5)]
    moves = random_flow(np.random.RandomState(seed), shape, step, scales, organs, 8.0, 0.15)
    assert determinant(moves, step).min() > 0


def test_size_of_the_moves() -> None:
    """Points as far apart as the grid is wide: at its corners the velocity is what was drawn, 10 mm of deviation."""
    corners = [
        random_flow(np.random.RandomState(seed), (3, 3, 3), (50.0, 50.0, 50.0), [(100.0, 10.0)])[:, ::2, ::2, ::2]
        for seed in range(60)
    ]
    assert float(torch.stack(corners).std()) == pytest.approx(10, rel=0.15)


def test_an_organ_moves_as_a_whole_and_what_is_far_stays() -> None:
    shape = (24, 16, 16)
    organ = ball(shape, (6, 8, 8), 5)
    moves = flow(shape, (4.0, 4.0, 4.0), organs=organ, organ_shift=3.0)
    inner = moves[:, 5:8, 7:10, 7:10].flatten(1)
    drawn = np.random.RandomState(0).normal(0.0, 3.0, (1, 3))[0]
    np.testing.assert_allclose(inner.mean(dim=1).numpy(), drawn, rtol=0.03)
    assert float(moves[:, 17:].abs().max()) < 1e-3


def test_an_organ_grows_about_its_centre() -> None:
    shape = (21, 21, 21)
    moves = flow(shape, (4.0, 4.0, 4.0), organs=ball(shape, (10, 10, 10), 7), organ_scale=0.2)
    growth = float(np.random.RandomState(0).normal(0.0, 0.2, 1)[0])
    assert float(moves[:, 10, 10, 10].abs().max()) < 0.05
    # A voxel 8 mm beside the centre comes from exp(growth) times as far away.
    assert float(moves[0, 12, 10, 10]) == pytest.approx(8 * (np.exp(growth) - 1), rel=0.03)
    assert float(moves[0, 8, 10, 10]) == pytest.approx(-8 * (np.exp(growth) - 1), rel=0.03)
