"""Linear upsampling beside torch's own, in value and gradient, and where the network uses it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.networks import attention_gate
from attunet3d.networks.attention_gate import resample
from attunet3d.networks.upsampling import Upsample, upsample, whole_factor

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = {1: (7,), 2: (5, 4), 3: (4, 3, 5)}


def volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("thin", [False, True], ids=["", "one axis of a single voxel"])
def test_values_and_gradients_are_torchs(dims: int, factor: int, thin: bool) -> None:
    size = (*SIZES[dims][:-1], 1) if thin else SIZES[dims]
    ours = volume(2, 3, *size).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    up: Tensor = Upsample.apply(ours, factor)
    expected = F.interpolate(theirs, scale_factor=factor, mode=MODES[dims], align_corners=False)
    torch.testing.assert_close(up, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(upsample(ours.detach(), factor), up.detach(), rtol=0, atol=0)
    seed = volume(*up.shape, seed=1)
    up.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3])
def test_gradcheck(factor: int) -> None:
    x = volume(1, 2, 3, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Upsample.apply(x, factor), (x,))
    assert torch.autograd.gradgradcheck(lambda x: Upsample.apply(x, factor), (x,))


def test_by_hand() -> None:
    x = torch.tensor([[[0.0, 4.0]]])
    assert upsample(x, 2).tolist() == [[[0.0, 1.0, 3.0, 4.0]]]
    torch.testing.assert_close(upsample(x, 3), torch.tensor([[[0.0, 0.0, 4 / 3, 8 / 3, 4.0, 4.0]]]))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_linear_functions_stay_linear_inside(factor: int) -> None:
    """Voxel o of the fine grid has its centre at (o + 1/2) / factor - 1/2 of the coarse one."""

    def f(coordinates: list[Tensor]) -> Tensor:
        a, b, c = torch.meshgrid(*coordinates, indexing="ij")
        return 1.5 * a - 2 * b + 0.25 * c + 7

    size = (4, 5, 3)
    coarse = f([torch.arange(n, dtype=torch.float64) for n in size])
    fine = f([(torch.arange(factor * n, dtype=torch.float64) + 0.5) / factor - 0.5 for n in size])
    inside = (slice(factor, -factor),) * 3
    torch.testing.assert_close(upsample(coarse[None, None], factor)[0, 0][inside], fine[inside], rtol=0, atol=1e-12)


def test_values_stay_within_those_given() -> None:
    x = volume(1, 1, 3, 3, 3)
    up = upsample(x, 4)
    assert x.min() <= up.min()
    assert up.max() <= x.max()


def test_the_gradient_keeps_its_sum() -> None:
    """The weights of each fine voxel add up to 1, so none of what comes in is lost."""
    x = volume(1, 1, 4, 3, 2).requires_grad_()
    seed = volume(1, 1, 12, 9, 6, seed=2)
    Upsample.apply(x, 3).backward(seed)
    torch.testing.assert_close(x.grad.sum(), seed.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_bf16_and_channels_last(layout: torch.memory_format) -> None:
    x = volume(2, 4, 4, 3, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    up: Tensor = Upsample.apply(x, 2)
    assert up.dtype == torch.bfloat16
    assert up.is_contiguous(memory_format=torch.channels_last_3d)
    expected = F.interpolate(x.detach().float(), scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(up.detach().float(), expected, rtol=2**-6, atol=0.03)  # three roundings of 2^-9
    up.backward(torch.ones_like(up).contiguous(memory_format=layout))
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.is_contiguous(memory_format=torch.channels_last_3d)
    assert bool((x.grad == 8).all()), "8 fine voxels for each, at the edges too"


def test_the_gradient_is_the_same_each_time() -> None:
    def gradient() -> Tensor:
        x = volume(2, 3, 6, 5, 7, dtype=torch.float32).requires_grad_()
        Upsample.apply(x, 2).square().sum().backward()
        return x.grad

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))


@pytest.mark.parametrize(
    ("coarse", "fine", "factor"),
    [
        ((2, 3, 4), (4, 6, 8), 2),
        ((2, 3, 4), (6, 9, 12), 3),
        ((1, 1), (8, 8), 8),
        ((5,), (10,), 2),
        ((2, 3, 4), (2, 3, 4), 0),  # nothing to do
        ((2, 3, 4), (4, 6, 7), 0),  # odd
        ((2, 3, 4), (5, 7, 9), 0),
        ((2, 3, 4), (4, 9, 8), 0),  # another one on each axis
        ((2, 3, 4), (4, 6, 4), 0),
        ((4, 6, 8), (2, 3, 4), 0),  # smaller
    ],
)
def test_whole_factor(coarse: tuple[int, ...], fine: tuple[int, ...], factor: int) -> None:
    assert whole_factor(coarse, fine) == factor
    assert whole_factor(torch.Size(coarse), list(fine)) == factor


@pytest.mark.parametrize(
    ("needs_gradient", "size", "used"),
    [(True, [6, 4, 8], True), (False, [6, 4, 8], False), (True, [5, 4, 8], False), (True, [3, 2, 4], False)],
)
def test_the_network_uses_it_where_gradients_are_wanted(
    needs_gradient: bool, size: list[int], used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(attention_gate, "Upsample", _Spy(calls))
    x = volume(1, 2, 3, 2, 4).requires_grad_(needs_gradient)
    up = resample(x, size, "trilinear")
    expected = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
    torch.testing.assert_close(up, expected, rtol=0, atol=1e-12)
    assert bool(calls) == used
    assert up.requires_grad == needs_gradient


def test_the_network_does_not_use_it_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of weights that could be trained, but are not: in validation."""
    calls: list[int] = []
    monkeypatch.setattr(attention_gate, "Upsample", _Spy(calls))
    convolution = torch.nn.Conv3d(1, 1, 1)
    with torch.no_grad():
        resample(convolution(torch.ones(1, 1, 2, 2, 2)), [4, 4, 4], "trilinear")
    assert not calls
    resample(convolution(torch.ones(1, 1, 2, 2, 2)), [4, 4, 4], "trilinear")
    assert calls == [2]


class _Spy:
    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def apply(self, x: Tensor, factor: int) -> Tensor:
        self.calls.append(factor)
        result: Tensor = Upsample.apply(x, factor)
        return result
