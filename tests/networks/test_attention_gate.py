"""The gates against a NumPy gate written from the equation alone, and against sums done by hand."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from attunet3d.networks import AdditiveAttentionGate, GatedSkip, GridAttentionGate

Array = np.ndarray
X_CHANNELS, G_CHANNELS, INTER = 3, 5, 4


# The equation, in NumPy. Features are (channels, *spatial), a projection is a (out, in) matrix.


def project(matrix: Array, features: Array) -> Array:
    return np.einsum("oi,i...->o...", matrix, features)


def per_channel(values: Array, features: Array) -> Array:
    return values.reshape(-1, *[1] * (features.ndim - 1))


def normalize(features: Array, weight: Array, bias: Array, mean: Array, var: Array) -> Array:
    scale = weight / np.sqrt(var + 1e-5)
    return (features - per_channel(mean, features)) * per_channel(scale, features) + per_channel(bias, features)


def strided(kernel: Array, features: Array) -> Array:
    """Kernel (out, in, 2, 2[, 2]), stride 2, no padding: an odd last voxel is not used."""
    half = [n // 2 for n in features.shape[1:]]
    total = np.zeros((kernel.shape[0], *half))
    for corner in product((0, 1), repeat=len(half)):
        picked = features[(slice(None), *(slice(c, c + 2 * n, 2) for c, n in zip(corner, half, strict=True)))]
        total += project(kernel[(slice(None), slice(None), *corner)], picked)
    return total


def linear(features: Array, size: tuple[int, ...]) -> Array:
    """Linear resampling with the edges of the voxel grids aligned, one axis after another."""
    for axis, count in enumerate(size, start=1):
        length = features.shape[axis]
        position = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        lower = np.floor(position).astype(int)
        upper = np.minimum(lower + 1, length - 1)
        share = (position - lower).reshape(-1, *[1] * (features.ndim - 1 - axis))
        features = np.take(features, lower, axis) * (1 - share) + np.take(features, upper, axis) * share
    return features


def attention(wx: Array, wg: Array, psi: Array) -> Array:
    return project(psi, np.maximum(wx + wg, 0))


def sigmoid(q: Array) -> Array:
    return 1 / (1 + np.exp(-q))


def randomize(module: nn.Module, seed: int) -> dict[str, Array]:
    """Random parameters and running statistics, in float64; the same as NumPy arrays by name."""
    rng = np.random.default_rng(seed)
    module.double().eval()
    arrays = {}
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        values = rng.uniform(0.5, 2.0, tensor.shape) if name.endswith("var") else rng.normal(size=tensor.shape)
        tensor.copy_(torch.from_numpy(values))
        arrays[name] = values
    return arrays


def matrix(arrays: dict[str, Array], name: str) -> Array:
    kernel = arrays[f"{name}.weight"]
    assert set(kernel.shape[2:]) == {1}
    return kernel.reshape(kernel.shape[:2])


def conv_and_norm(arrays: dict[str, Array], name: str, features: Array) -> Array:
    out = project(matrix(arrays, f"{name}.conv"), features)
    out = out + per_channel(arrays[f"{name}.conv.bias"], out)
    norm = (arrays[f"{name}.norm.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var"))
    return normalize(out, *norm)


def features_of(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def run(gate: nn.Module, x: Array, g: Array) -> tuple[Array, Array]:
    with torch.no_grad():
        out, alpha = gate(torch.from_numpy(x)[None], torch.from_numpy(g)[None])
    return out[0].numpy(), alpha[0].numpy()


@pytest.mark.parametrize(
    ("x_size", "g_size"),
    [
        ((8, 6, 4), (4, 3, 2)),
        ((9, 7, 5), (4, 3, 2)),  # odd: the strided convolution leaves the last plane out
        ((9, 8, 11), (2, 3, 5)),  # g's grid is not that of W_x x
        ((6, 8, 5), (6, 7, 1)),
        ((8, 6), (4, 3)),
        ((11, 7), (5, 3)),
        ((7, 10), (3, 2)),
    ],
)
def test_grid_gate_is_the_equation(x_size: tuple[int, ...], g_size: tuple[int, ...]) -> None:
    gate = GridAttentionGate(len(x_size), X_CHANNELS, G_CHANNELS, INTER)
    p = randomize(gate, 1)
    x, g = features_of(2, (X_CHANNELS, *x_size), (G_CHANNELS, *g_size))

    wx = strided(p["w_x.weight"], x)
    wg = project(matrix(p, "w_g"), g)
    wg = linear(wg + per_channel(p["w_g.bias"], wg), wx.shape[1:])
    alpha = linear(sigmoid(attention(wx, wg, matrix(p, "psi")) + p["psi.bias"]), x_size)
    expected = conv_and_norm(p, "w_out", alpha * x)

    out, found = run(gate, x, g)
    np.testing.assert_allclose(found, alpha, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-11)
    assert np.ptp(found) > 0.1  # the example really gates


@pytest.mark.parametrize("size", [(5, 4, 3), (7, 7, 2), (6, 5)])
def test_additive_gate_is_the_equation(size: tuple[int, ...]) -> None:
    gate = AdditiveAttentionGate(len(size), X_CHANNELS, G_CHANNELS, INTER)
    p = randomize(gate, 3)
    x, g = features_of(4, (X_CHANNELS, *size), (G_CHANNELS, *size))

    summed = np.maximum(conv_and_norm(p, "w_x", x) + conv_and_norm(p, "w_g", g), 0)
    alpha = sigmoid(conv_and_norm(p, "psi", summed))

    out, found = run(gate, x, g)
    np.testing.assert_allclose(found, alpha, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out, alpha * x, rtol=0, atol=1e-12)
    assert np.ptp(found) > 0.05


def set_all(gate: nn.Module, **values: float) -> None:
    """Set parameters to constants; normalizations become the identity."""
    with torch.no_grad():
        for name, parameter in gate.named_parameters():
            parameter.fill_(values.get(name.replace(".", "_"), 0.0))
    for module in gate.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12  # nothing beside a variance of 1; torch 2.10 takes no 0
            nn.init.ones_(module.weight)
    gate.double().eval()


def test_additive_gate_by_hand() -> None:
    gate = AdditiveAttentionGate(2, 1, 1, 1)
    set_all(gate, w_x_conv_weight=1.0, w_g_conv_weight=1.0, psi_conv_weight=math.log(3) / 2)
    x = np.array([[[1.0, -1.0], [0.0, 2.0]]])
    g = np.array([[[1.0, 1.0], [-2.0, -4.0]]])
    # x + g = [[2, 0], [-2, -2]]; relu; q = [[ln 3, 0], [0, 0]]
    out, alpha = run(gate, x, g)
    np.testing.assert_allclose(alpha, [[[0.75, 0.5], [0.5, 0.5]]], atol=1e-15)
    np.testing.assert_allclose(out, [[[0.75, -0.5], [0.0, 1.0]]], atol=1e-15)


@pytest.mark.parametrize(
    ("g", "alpha"),
    [
        (1.0, 0.75),  # W_x x = 1, W_g g + b_g = 2 - 1 = 1, q = 2 * ln(3) / 2
        (0.0, 0.5),  # 1 - 1 = 0
        (-3.0, 0.5),  # 1 - 7 < 0: nothing passes the relu
    ],
)
def test_grid_gate_by_hand(g: float, alpha: float) -> None:
    gate = GridAttentionGate(2, 1, 1, 1)
    set_all(gate, w_x_weight=0.1, w_g_weight=2.0, w_g_bias=-1.0, psi_weight=math.log(3) / 2, w_out_conv_weight=1.0)
    x = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    out, found = run(gate, x, np.full((1, 1, 1), g))
    np.testing.assert_allclose(found, np.full((1, 2, 2), alpha), atol=1e-15)
    np.testing.assert_allclose(out, alpha * x, atol=1e-15)


def test_grid_gate_resamples_alpha_not_its_logit() -> None:
    gate = GridAttentionGate(2, 1, 1, 1)
    set_all(gate, w_g_weight=1.0, psi_weight=math.log(3), psi_bias=-math.log(3), w_out_conv_weight=1.0)
    # On the coarse grid q = [-ln 3, ln 3], alpha = [1/4, 3/4]; on x's, a quarter of the way between the voxels.
    out, alpha = run(gate, np.ones((1, 2, 4)), np.array([[[0.0, 2.0]]]))
    expected = [[[0.25, 0.375, 0.625, 0.75]] * 2]
    np.testing.assert_allclose(alpha, expected, atol=1e-15)
    np.testing.assert_allclose(out, expected, atol=1e-15)


def test_gated_skip_keeps_the_order_of_its_gates() -> None:
    first, second = AdditiveAttentionGate(2, 1, 1, 1), AdditiveAttentionGate(2, 1, 1, 1)
    set_all(first, psi_conv_bias=math.log(3))  # alpha 3/4 everywhere
    set_all(second, psi_conv_bias=-math.log(3))  # alpha 1/4
    combine = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        combine.weight.copy_(torch.tensor([10.0, 1.0]).view(1, 2, 1, 1))
    x = np.array([[[4.0, 8.0]]])
    out, alpha = run(GatedSkip([first, second], combine.double()), x, x)
    np.testing.assert_allclose(alpha, [[[0.75, 0.75]], [[0.25, 0.25]]], atol=1e-15)
    np.testing.assert_allclose(out, [[[31.0, 62.0]]], atol=1e-13)
    out, alpha = run(GatedSkip([first], None), x, x)
    np.testing.assert_allclose(out, [[[3.0, 6.0]]], atol=1e-15)
    assert alpha.shape == (1, 1, 2)


@pytest.mark.parametrize("form", [GridAttentionGate, AdditiveAttentionGate])
def test_dropout_drops_intermediate_features_in_train_mode_only(form: type[nn.Module]) -> None:
    torch.manual_seed(0)
    gate = form(2, 1, 1, 8, dropout=0.5)
    with torch.no_grad():  # every intermediate feature is 1 before dropout
        for name, parameter in gate.named_parameters():
            parameter.fill_(1.0 if name in ("w_g.bias", "w_g.norm.bias") else 0.0)
    seen: list[torch.Tensor] = []
    psi = gate.psi if isinstance(gate, GridAttentionGate) else gate.psi.conv
    psi.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.zeros(1, 1, 8, 8)
    gate.train()(x, x)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    gate.eval()(x, x)
    assert set(seen[1].unique().tolist()) == {1.0}
