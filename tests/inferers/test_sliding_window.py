"""The inferer beside MONAI's, and on MONAI's interface."""

import monai.inferers
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from toy_networks import noise, small_network

from attunet3d.inferers import SlidingWindowInferer
from attunet3d.runtime.fast_network import prepare

SHAPES = [
    ((1, 1, 32, 32, 32), (16, 16, 16), 4),
    ((1, 1, 29, 37, 23), (16, 16, 16), 3),
    ((2, 1, 21, 16, 33), (16, 16, 16), 5),
    ((1, 1, 9, 30, 11), (16, 16, 16), 1),  # smaller than the window on two axes, by odd numbers
    ((1, 1, 7, 8, 9), (16, 12, 16), 2),
    ((2, 3, 20, 19, 18), (12, 8, 16), 4),
    ((1, 1, 20, 19, 18), (12, -1, 16), 4),  # -1: the whole axis
    ((3, 1, 17, 17, 17), (16, 16, 16), 2),  # one voxel more than the window
    ((1, 2, 13, 40, 10), (5, 9, 10), 7),  # windows of odd sizes
]
KINDS = [  # classes, single_logit
    pytest.param(1, True, id="one channel"),
    pytest.param(2, True, id="single logit of two classes"),
    pytest.param(2, False, id="both of two classes"),
    pytest.param(3, True, id="three classes"),
]


@pytest.mark.parametrize(("classes", "single_logit"), KINDS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
@pytest.mark.parametrize(("shape", "roi", "sw_batch_size"), SHAPES)
def test_gives_what_monai_gives(
    shape: tuple[int, ...], roi: tuple[int, ...], sw_batch_size: int, overlap: float, classes: int, single_logit: bool
) -> None:
    network = small_network(shape[1], classes)
    ours = SlidingWindowInferer(roi, sw_batch_size, overlap, single_logit=single_logit)
    theirs = monai.inferers.SlidingWindowInferer(roi, sw_batch_size, overlap, mode="gaussian")
    x = noise(*shape)
    with torch.no_grad():
        found, expected = ours(x, network), theirs(x, network)
        assert not torch.allclose(network(x), expected, atol=1e-2)  # windows make a difference here
    if single_logit and classes == 2:
        expected = expected[:, 1:] - expected[:, :1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma_scale", [0.125, 0.3])
def test_window_of_one_number_and_sigma_scale_are_monais(sigma_scale: float) -> None:
    network, x = small_network(), noise(1, 1, 20, 25, 18)
    ours = SlidingWindowInferer(12, 2, 0.5, sigma_scale=sigma_scale, single_logit=False)
    theirs = monai.inferers.SlidingWindowInferer(12, 2, 0.5, mode="gaussian", sigma_scale=sigma_scale)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, network), theirs(x, network), rtol=1e-4, atol=1e-4)


def test_it_is_an_inferer_for_monais_engines() -> None:
    assert isinstance(SlidingWindowInferer(16), monai.inferers.Inferer)


def test_metatensor_is_as_good_as_a_tensor() -> None:
    """And the network sees plain windows: MONAI's bookkeeping, at each layer of it, takes time for nothing."""
    x, network = noise(1, 1, 20, 17, 16), small_network()
    inferer = SlidingWindowInferer((12, 12, 12), 2, 0.25, skip_below=0.0)
    seen: list[type] = []

    def watched(windows: Tensor) -> Tensor:
        seen.append(type(windows))
        result: Tensor = network(windows)
        return result

    with torch.no_grad():
        found = inferer(MetaTensor(x, affine=torch.eye(4)), watched)
        torch.testing.assert_close(torch.as_tensor(found), inferer(x, network), rtol=0, atol=0)
    assert set(seen) == {Tensor}


def test_the_input_is_not_changed_and_the_output_is_float32() -> None:
    x = noise(1, 1, 20, 10, 16)
    kept = x.clone()

    def half(windows: Tensor) -> Tensor:
        return torch.cat([-windows, windows], dim=1).to(torch.bfloat16)  # as under autocast

    found = SlidingWindowInferer((12, 12, 12), 2, 0.5, skip_below=0.0)(x, half)
    assert torch.equal(x, kept)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 2 * x, rtol=0.01, atol=0.01)


def test_further_arguments_reach_the_network() -> None:
    def shifted(windows: Tensor, by: float, *, times: float) -> Tensor:
        return windows * times + by

    x = noise(1, 1, 16, 16, 20)
    found = SlidingWindowInferer((16, 16, 16))(x, shifted, 3.0, times=2.0)
    torch.testing.assert_close(found, 2 * x + 3, rtol=1e-5, atol=1e-5)


def test_a_bare_network_runs_as_if_it_had_been_prepared() -> None:
    """MONAI Label hands over network_def; the voxels must be those of the bundle's ``network``."""
    network, x = small_network(), noise(1, 1, 20, 25, 18)
    network.eval()
    inferer = SlidingWindowInferer(16, overlap=0.5, precision="bf16", backend="torch")
    with torch.no_grad():
        found = inferer(x, network)
        expected = inferer(x, prepare(network, "cpu", "bf16", backend="torch", single_logit=True).eval())
        assert torch.equal(found, expected)
        assert not torch.equal(found, SlidingWindowInferer(16, overlap=0.5)(x, network))  # as it is, in float32
        # Weights that are loaded later count, as does another network.
        for parameter in network.parameters():
            parameter.mul_(-1.0)
        assert not torch.equal(inferer(x, network), found)
        assert torch.equal(inferer(x, small_network().eval()), found)


def test_dropout_at_inference_stays() -> None:
    network = torch.nn.Sequential(torch.nn.Dropout3d(0.5), torch.nn.Conv3d(1, 1, 1))
    inferer, x = SlidingWindowInferer(16, precision="fp32"), noise(1, 1, 16, 16, 16)
    with torch.no_grad():
        passes = torch.cat([inferer(x, network.train()) for _ in range(20)])
        assert passes.std(dim=0).max() > 0
        assert torch.equal(inferer(x, network.eval()), inferer(x, network))
