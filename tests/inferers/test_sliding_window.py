"""The inferer beside MONAI's, and its rule for skipping air."""

from itertools import product

import monai.inferers
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from attunet3d.errors import ConfigError
from attunet3d.inferers import SlidingWindowInferer


class Counting(nn.Module):
    """Adds up how many windows were run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.network(x)


class Foreground(nn.Module):
    """Says foreground everywhere."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), self.channels, *x.shape[2:])
        out[:, -1] = 5.0
        return out


def small_network(in_channels: int = 1, classes: int = 2) -> nn.Module:
    """Not linear and with zero padding: what a voxel gets depends on the window it is in."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, classes, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(
    ("shape", "roi", "sw_batch_size"),
    [
        ((1, 1, 32, 32, 32), (16, 16, 16), 4),
        ((1, 1, 29, 37, 23), (16, 16, 16), 3),
        ((2, 1, 21, 16, 33), (16, 16, 16), 5),
        ((1, 1, 9, 30, 11), (16, 16, 16), 1),  # smaller than the window on two axes, by odd numbers
        ((1, 1, 7, 8, 9), (16, 12, 16), 2),
        ((2, 3, 20, 19, 18), (12, 8, 16), 4),
        ((1, 1, 20, 19, 18), (12, -1, 16), 4),  # -1: the whole axis
    ],
)
def test_gives_what_monai_gives(
    shape: tuple[int, ...], roi: tuple[int, ...], sw_batch_size: int, overlap: float
) -> None:
    network = small_network(shape[1], classes=3)
    theirs = monai.inferers.SlidingWindowInferer(roi, sw_batch_size, overlap, mode="gaussian")
    x = image(*shape)
    with torch.no_grad():
        found, expected = SlidingWindowInferer(roi, sw_batch_size, overlap)(x, network), theirs(x, network)
        assert not torch.allclose(network(x), expected, atol=1e-2)  # windows make a difference here
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma_scale", [0.125, 0.3])
def test_window_of_one_number_and_sigma_scale_are_monais(sigma_scale: float) -> None:
    network, x = small_network(), image(1, 1, 20, 25, 18)
    theirs = monai.inferers.SlidingWindowInferer(12, 2, 0.5, mode="gaussian", sigma_scale=sigma_scale)
    with torch.no_grad():
        found = SlidingWindowInferer(12, 2, 0.5, sigma_scale=sigma_scale)(x, network)
        torch.testing.assert_close(found, theirs(x, network), rtol=1e-4, atol=1e-4)


def test_windows_are_weighted_by_a_gaussian_of_the_distance_to_their_centre() -> None:
    """Two windows of 4 along one axis overlap by half; the first says 0, the second 1."""
    calls: list[int] = []

    def network(x: Tensor) -> Tensor:
        calls.append(1)
        return torch.full_like(x, float(len(calls) - 1))

    found = SlidingWindowInferer((4, 4, 4), overlap=0.5)(torch.zeros(1, 1, 6, 4, 4), network)
    near, far = np.exp(-(0.5**2) / (2 * 0.5**2)), np.exp(-(1.5**2) / (2 * 0.5**2))  # sigma = 0.125 * 4 voxels
    expected = [0, 0, far / (near + far), near / (near + far), 1, 1]
    # In the middle of the other two axes, where no weight is below MONAI's least of 1e-3.
    np.testing.assert_allclose(found[0, 0, :, 1, 1].numpy(), expected, rtol=1e-4)


# --- air


def test_only_windows_with_something_above_the_threshold_are_run() -> None:
    x = torch.zeros(1, 1, 32, 32, 32)  # 8 windows of 16 without overlap
    x[0, 0, 3, 20, 7] = 0.01  # in the window (0, 1, 0)
    x[0, 0, 31, 31, 31] = 0.5  # in the window (1, 1, 1)
    network = Counting(Foreground())
    logits = SlidingWindowInferer((16, 16, 16), 4, overlap=0.0, skip_below=0.0)(x, network)
    assert network.batches == [2]
    mask = logits.argmax(dim=1)[0]
    expected = torch.zeros(32, 32, 32, dtype=torch.int64)
    expected[:16, 16:, :16] = 1
    expected[16:, 16:, 16:] = 1
    assert torch.equal(mask, expected)


def test_a_value_at_the_threshold_is_air_and_one_above_is_not() -> None:
    inferer = SlidingWindowInferer((16, 16, 16), skip_below=0.25)
    for value, label in ((0.25, 0), (0.2501, 1)):
        logits = inferer(torch.full((1, 1, 16, 16, 16), value), Foreground())
        assert logits.argmax(dim=1).unique().tolist() == [label]


def test_no_threshold_runs_all() -> None:
    network = Counting(Foreground())
    logits = SlidingWindowInferer((16, 16, 16), 3, overlap=0.0)(torch.zeros(1, 1, 32, 32, 32), network)
    assert network.batches == [3, 3, 2]
    assert logits.argmax(dim=1).min() == 1


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_soft_tissue_gets_what_it_gets_without_skipping(seed: int, overlap: float) -> None:
    """Every window that holds a voxel above the threshold is run, so at that voxel nothing may change."""
    rng = np.random.default_rng(seed)
    x = torch.zeros(1, 1, 40, 33, 27)
    low = rng.integers(0, 20, 3)
    blob = tuple(slice(n, n + 6) for n in low)
    x[(0, 0, *blob)] = torch.from_numpy(rng.uniform(-0.5, 1.0, (6, 6, 6))).float()
    network = Counting(small_network())
    with torch.no_grad():
        skipping = SlidingWindowInferer((12, 12, 12), 4, overlap, skip_below=0.0)(x, network)
        run = sum(network.batches)
        network.batches.clear()
        whole = SlidingWindowInferer((12, 12, 12), 4, overlap)(x, network)
    assert 0 < run < sum(network.batches)
    tissue = (x > 0).expand_as(whole)
    torch.testing.assert_close(skipping[tissue], whole[tissue], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("corner", list(product((0, 1), repeat=3))[::3])
def test_skipped_voxels_are_background_whatever_the_number_of_channels(
    channels: int, corner: tuple[int, int, int]
) -> None:
    x = torch.zeros(1, 1, 32, 32, 32)
    window = tuple(slice(16 * c, 16 * c + 16) for c in corner)
    x[(0, 0, *window)] = 1.0
    logits = SlidingWindowInferer((16, 16, 16), overlap=0.0, skip_below=0.0)(x, Foreground(channels))
    assert logits.shape == (1, channels, 32, 32, 32)
    found = logits[0, 0] > 0 if channels == 1 else logits[0].argmax(dim=0) == channels - 1
    assert torch.equal(found, x[0, 0] > 0)


def test_each_volume_of_a_batch_is_judged_by_itself() -> None:
    x = torch.zeros(2, 1, 16, 16, 32)
    x[1, 0, :, :, 20] = 1.0
    network = Counting(Foreground())
    mask = SlidingWindowInferer((16, 16, 16), 4, overlap=0.0, skip_below=0.0)(x, network).argmax(dim=1)
    assert network.batches == [1]
    assert mask[0].max() == 0
    assert mask[1, :, :, :16].max() == 0
    assert mask[1, :, :, 16:].min() == 1


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("size", [(20, 20, 20), (5, 40, 7)])
def test_nothing_but_air_is_background(size: tuple[int, ...], channels: int) -> None:
    """Whatever the network says; one window is run to learn how many channels it has."""
    network = Counting(Foreground(channels))
    logits = SlidingWindowInferer((16, 16, 16), skip_below=0.0)(torch.zeros(1, 1, *size), network)
    assert network.batches == [1]
    assert logits.shape == (1, channels, *size)
    assert logits.argmax(dim=1).max() == 0


def test_padding_is_not_tissue() -> None:
    """A volume smaller than the window is padded with 0: by itself that must not keep a window of air alive."""
    logits = SlidingWindowInferer((16, 16, 16), skip_below=0.0)(torch.full((1, 1, 8, 8, 8), -0.5), Foreground())
    assert logits.argmax(dim=1).max() == 0


# --- the rest


@pytest.mark.parametrize(("sw_batch_size", "steps"), [(1, 8), (3, 3), (8, 1), (100, 1)])
def test_progress_reaches_its_total(sw_batch_size: int, steps: int) -> None:
    seen: list[tuple[int, int]] = []
    inferer = SlidingWindowInferer((16, 16, 16), sw_batch_size, overlap=0.0)
    inferer.progress = lambda done, total: seen.append((done, total))
    inferer(torch.zeros(1, 1, 32, 32, 32), Foreground())
    assert seen == [(step + 1, steps) for step in range(steps)]


@pytest.mark.parametrize("overlap", [1.0, -0.1, 25.0, float("nan")])
def test_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match=rf"overlap must be in \[0, 1\), got {overlap}"):
        SlidingWindowInferer((16, 16, 16), overlap=overlap)


def test_metatensor_is_as_good_as_a_tensor() -> None:
    x, network = image(1, 1, 20, 17, 16), small_network()
    inferer = SlidingWindowInferer((12, 12, 12), 2, 0.25, skip_below=0.0)
    with torch.no_grad():
        found = inferer(MetaTensor(x, affine=torch.eye(4)), network)
        torch.testing.assert_close(torch.as_tensor(found), inferer(x, network), rtol=0, atol=0)


def test_the_input_is_not_changed_and_the_output_is_float32() -> None:
    x = image(1, 1, 20, 10, 16)
    kept = x.clone()

    def half(windows: Tensor) -> Tensor:
        return torch.cat([windows, -windows], dim=1).to(torch.bfloat16)  # as under autocast

    found = SlidingWindowInferer((12, 12, 12), 2, 0.5, skip_below=0.0)(x, half)
    assert torch.equal(x, kept)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], x[:, 0], rtol=0.01, atol=0.01)


def test_further_arguments_reach_the_network() -> None:
    def shifted(windows: Tensor, by: float, *, times: float) -> Tensor:
        return windows * times + by

    x = image(1, 1, 16, 16, 20)
    found = SlidingWindowInferer((16, 16, 16))(x, shifted, 3.0, times=2.0)
    torch.testing.assert_close(found, 2 * x + 3, rtol=1e-5, atol=1e-5)
