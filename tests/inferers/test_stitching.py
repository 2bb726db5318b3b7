"""Parts of the sliding window: the box of what is not air, the weights, the blending, background around a box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attunet3d.inferers.stitching import body_box, embed, gaussian, stitch


@given(
    size=st.tuples(*[st.integers(1, 9)] * 3),
    batch=st.integers(1, 2),
    channels=st.integers(1, 2),
    places=st.lists(st.tuples(*[st.integers(0, 2**16)] * 5), max_size=4),
)
@settings(max_examples=100)
def test_body_box_is_the_smallest_that_holds_every_voxel_above(
    size: tuple[int, int, int], batch: int, channels: int, places: list[tuple[int, ...]]
) -> None:
    image = torch.full((batch, channels, *size), 0.25)  # at the threshold: not above it
    above = [tuple(n % length for n, length in zip(place, image.shape, strict=True)) for place in places]
    for place in above:
        image[place] = 0.26
    if above:
        voxels = np.array(above)[:, 2:]
        expected = tuple(slice(int(n), int(m) + 1) for n, m in zip(voxels.min(axis=0), voxels.max(axis=0), strict=True))
    else:
        expected = None
    assert body_box(image, 0.25) == expected


def test_windows_are_weighted_by_a_gaussian_of_the_distance_to_their_centre() -> None:
    """Two windows of 4 along one axis overlap by half; the first says 0, the second 1."""
    calls: list[int] = []

    def network(x: Tensor) -> Tensor:
        calls.append(1)
        return torch.full_like(x, float(len(calls) - 1))

    found = stitch(torch.zeros(1, 1, 6, 4, 4), network, (4, 4, 4), [(0, (0, 0, 0)), (0, (2, 0, 0))])
    near, far = np.exp(-(0.5**2) / (2 * 0.5**2)), np.exp(-(1.5**2) / (2 * 0.5**2))  # sigma = 0.125 * 4 voxels
    expected = [0, 0, far / (near + far), near / (near + far), 1, 1]
    # In the middle of the other two axes, where no weight is below the least of 1e-3.
    np.testing.assert_allclose(found[0, 0, :, 1, 1].numpy(), expected, rtol=1e-4)


def test_no_weight_is_so_small_that_a_corner_is_lost_to_rounding() -> None:
    weight = gaussian((96, 32, 16), 0.125)
    assert weight.shape == (96, 32, 16)
    assert weight.min() == np.float32(1e-3)
    # The middle lies between voxels, half a voxel from the nearest: sigma is 12, 4 and 2 voxels.
    middle = np.exp(-0.5 * sum((0.5 / sigma) ** 2 for sigma in (12, 4, 2)))
    assert float(weight.max()) == pytest.approx(middle, rel=1e-6)


@pytest.mark.parametrize(("channels", "background"), [(1, [-1.0]), (2, [1.0, 0.0]), (3, [1.0, 0.0, 0.0])])
def test_around_a_box_all_is_background(channels: int, background: list[float]) -> None:
    box, region = (slice(2, 4), slice(3, 6), slice(5, 6)), (slice(1, 5), slice(3, 7), slice(2, 6))
    logits = torch.rand(2, channels, 2, 3, 1) + 7
    found = embed(logits, box, region)
    assert found.shape == (2, channels, 4, 4, 4)
    inner = (slice(None), slice(None), slice(1, 3), slice(0, 3), slice(3, 4))
    assert torch.equal(found[inner], logits)
    found[inner] = torch.tensor(background).view(1, -1, 1, 1, 1)
    assert torch.equal(found, torch.tensor(background).view(1, -1, 1, 1, 1).expand_as(found))


@pytest.mark.parametrize(("channels", "background"), [(1, [-1.0]), (3, [1.0, 0.0, 0.0])])
def test_voxels_of_the_region_that_no_window_reaches_are_background(channels: int, background: list[float]) -> None:
    """Not undecided: where their logits are resampled with their neighbours', they are one side of a surface."""

    def network(x: Tensor) -> Tensor:
        return torch.full((1, channels, 4, 4, 4), 5.0)

    image = torch.zeros(1, 1, 12, 4, 4)
    region = (slice(2, 12), slice(0, 4), slice(0, 4))
    found = stitch(image, network, (4, 4, 4), [(0, (0, 0, 0)), (0, (6, 0, 0))], region=region)
    # Windows at 0 and 6 of an image cut at 2: 2 voxels, 2 without, 4 voxels, 2 without.
    run, none = [5.0] * channels, background
    expected = torch.tensor([run, run, none, none, run, run, run, run, none, none]).T
    torch.testing.assert_close(found, expected.view(1, channels, 10, 1, 1).expand(1, channels, 10, 4, 4))
