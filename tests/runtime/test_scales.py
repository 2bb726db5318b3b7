"""One network at several sizes: means by hand, positions kept, thresholds where the logit is 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import ConfigError
from attunet3d.runtime.scales import check_scales, logits_over_scales, memory_factor

SCALES = (0.8, 1.0, 1.25)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_one_scale_is_the_network_alone() -> None:
    image = torch.randn(1, 1, 9, 8, 7)
    assert torch.equal(logits_over_scales(lambda x: 2 * x, image, [1.0], 0.5), 2 * image)


def test_the_network_sees_each_size() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    out = logits_over_scales(network, torch.zeros(1, 1, 20, 40, 12), SCALES, 0.5, smallest=11)
    assert seen == [(16, 32, 11), (20, 40, 12), (25, 50, 15)]
    assert out.shape == (1, 1, 20, 40, 12)


def test_probabilities_are_averaged() -> None:
    """0.2, 0.6 and 0.7 by size: 0.5 in the mean."""
    found = {8: logit(0.2), 10: logit(0.6), 12: logit(0.7)}
    out = logits_over_scales(lambda x: x * 0 + found[x.shape[2]], torch.zeros(1, 1, 10, 10, 10), (0.8, 1.0, 1.2), 0.5)
    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-5, rtol=0)


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("scales", [(1.0,), SCALES])
def test_the_logit_is_0_at_the_threshold(threshold: float, scales: tuple[float, ...]) -> None:
    image = torch.full((1, 1, 8, 8, 8), logit(threshold))
    out = logits_over_scales(lambda x: x, image, scales, threshold)
    torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-5, rtol=0)


def test_what_is_found_stays_where_it_is() -> None:
    """A ball, found at each size by its brightness: its centre of mass moves by less than a tenth of a voxel."""
    axes = [torch.arange(n, dtype=torch.float32) for n in (24, 30, 27)]
    distance = sum((g - c) ** 2 for g, c in zip(torch.meshgrid(*axes, indexing="ij"), (9.3, 17.6, 12.1), strict=True))
    image = torch.as_tensor(5 - distance.sqrt())[None, None]
    out = logits_over_scales(lambda x: x, image, SCALES, 0.5)

    def centre(volume: Tensor) -> Tensor:
        return torch.nonzero(volume[0, 0] > 0).double().mean(dim=0)

    torch.testing.assert_close(centre(out), centre(image), atol=0.1, rtol=0)
    overlap = 2 * ((out > 0) & (image > 0)).sum() / ((out > 0).sum() + (image > 0).sum())
    assert float(overlap) > 0.95


def test_of_several_classes_the_most_probable_one() -> None:
    """Class 1 is certain at two sizes, class 2 at one; the logits' own mean would be that of the surest, class 2."""
    one, two = torch.tensor([0.0, 5.0, 0.0]), torch.tensor([0.0, 0.0, 50.0])

    def network(x: Tensor) -> Tensor:
        return (two if x.shape[2] == 8 else one)[None, :, None, None, None].expand(1, 3, *x.shape[2:])

    out = logits_over_scales(network, torch.zeros(1, 1, 10, 10, 10), SCALES, 0.5)
    assert bool((out.argmax(dim=1) == 1).all())
    expected = (2 * F.softmax(one, dim=0) + F.softmax(two, dim=0)) / 3
    torch.testing.assert_close(out.exp()[0, :, 5, 5, 5], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"threshold 0\.2: of several classes"):
        logits_over_scales(network, torch.zeros(1, 1, 10, 10, 10), SCALES, 0.2)


def test_certainty_is_bounded() -> None:
    out = logits_over_scales(lambda x: x, torch.full((1, 1, 8, 8, 8), 90.0), SCALES, 0.5)
    assert 13 < float(out.max()) < 14.5


@pytest.mark.parametrize("scales", [[], [0.0], [0.4, 1.0], [1.0, 3.0], ["1"], 1.0, None])
def test_scales_that_cannot_be(scales: object) -> None:
    with pytest.raises(ConfigError, match="scales must be"):
        check_scales(scales, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [0, 1, -0.2, 2, "0.5", None])
def test_thresholds_that_cannot_be(threshold: object) -> None:
    with pytest.raises(ConfigError, match="threshold must be"):
        check_scales([1.0], threshold)  # type: ignore[arg-type]


def test_memory_grows_with_the_largest_scale() -> None:
    assert memory_factor([1.0]) == memory_factor([0.5, 0.8]) == 1
    assert memory_factor(SCALES) == pytest.approx(1.953, abs=1e-3)
