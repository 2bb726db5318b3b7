"""Published weights, against the published networks written down again as plain functions of a state dict.

Nothing of the package's network is used to compute what is expected: the layer tables and key names are.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import CheckpointError
from attunet3d.networks import AttentionUNet, load_reference_weights

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
NARROW = (4, 8, 16, 32, 64)
ATT_U_NET: dict[str, Any] = {
    "gate": "additive",
    "gate_first_skip": True,
    "deep_supervision": False,
    "upsample": "conv",
}


# --- what the published state dicts hold


def conv_shapes(name: str, before: int, after: int, kernel: tuple[int, ...], bias: bool = True) -> Shapes:
    return {f"{name}.weight": (after, before, *kernel)} | ({f"{name}.bias": (after,)} if bias else {})


def norm_shapes(name: str, width: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (width,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def ct_shapes(gates: int, widths: tuple[int, ...] = NARROW, classes: int = 2) -> Shapes:
    one, two, three = (1,) * 3, (2,) * 3, (3,) * 3
    shapes: Shapes = {}

    def double(name: str, before: int, after: int) -> None:
        for block, width in (("conv1", before), ("conv2", after)):
            shapes.update(conv_shapes(f"{name}.{block}.0", width, after, three))
            shapes.update(norm_shapes(f"{name}.{block}.1", after))

    names = ("conv1", "conv2", "conv3", "conv4", "center")
    for name, before, after in zip(names, (1, *widths), widths, strict=False):
        double(name, before, after)
    if gates:
        shapes |= conv_shapes("gating.conv1.0", widths[4], widths[4], one) | norm_shapes("gating.conv1.1", widths[4])
        for level in (2, 3, 4):
            skip, coarse, name = widths[level - 1], widths[level], f"attentionblock{level}"
            for gate in (f"{name}.gate_block_{index + 1}" for index in range(gates)):
                shapes |= conv_shapes(f"{gate}.theta", skip, skip, two, bias=False)
                shapes |= conv_shapes(f"{gate}.phi", coarse, skip, one) | conv_shapes(f"{gate}.psi", skip, 1, one)
                shapes |= conv_shapes(f"{gate}.W.0", skip, skip, one) | norm_shapes(f"{gate}.W.1", skip)
            shapes |= conv_shapes(f"{name}.combine_gates.0", gates * skip, skip, one)
            shapes |= norm_shapes(f"{name}.combine_gates.1", skip)
    for level in (4, 3, 2, 1):
        double(f"up_concat{level}.conv", widths[level - 1] + widths[level], widths[level - 1])
        shapes |= conv_shapes("dsv1" if level == 1 else f"dsv{level}.dsv.0", widths[level - 1], classes, one)
    return shapes | conv_shapes("final", 4 * classes, classes, one)


def att_u_net_shapes(dims: int, widths: tuple[int, ...], image_channels: int, classes: int) -> Shapes:
    one, three = (1,) * dims, (3,) * dims
    shapes: Shapes = {}

    def double(name: str, before: int, after: int) -> None:
        for index, width in ((0, before), (3, after)):
            shapes.update(conv_shapes(f"{name}.conv.{index}", width, after, three))
            shapes.update(norm_shapes(f"{name}.conv.{index + 1}", after))

    for level, (before, after) in enumerate(zip((image_channels, *widths), widths, strict=False), start=1):
        double(f"Conv{level}", before, after)
    for level in (5, 4, 3, 2):
        skip, coarse = widths[level - 2], widths[level - 1]
        shapes |= conv_shapes(f"Up{level}.up.1", coarse, skip, three) | norm_shapes(f"Up{level}.up.2", skip)
        for name, before, after in (("W_g", skip, skip // 2), ("W_x", skip, skip // 2), ("psi", skip // 2, 1)):
            shapes |= conv_shapes(f"Att{level}.{name}.0", before, after, one)
            shapes |= norm_shapes(f"Att{level}.{name}.1", after)
        double(f"Up_conv{level}", 2 * skip, skip)
    return shapes | conv_shapes("Conv_1x1", widths[0], classes, one)


def random_state(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float64) -> State:
    """Weights that keep the features near one in size, so that no layer hides behind another."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=dtype)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 1:
            state[name] = noise * (2 / math.prod(shape[1:])) ** 0.5
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=generator, dtype=dtype)
        elif name.endswith("weight"):
            state[name] = 1 + 0.2 * noise
        else:
            state[name] = 0.2 * noise
    return state


# --- the published networks as functions


def conv(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    convolve = F.conv3d if x.ndim == 5 else F.conv2d
    return convolve(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=stride, padding=padding)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    leaves = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"{name}.{leaf}"] for leaf in leaves), training=False, eps=1e-5)


def conv_norm(state: State, name: str, x: Tensor, first: int = 0, padding: int = 0) -> Tensor:
    """The layers ``first`` and ``first + 1`` of a Sequential."""
    return norm(state, f"{name}.{first + 1}", conv(state, f"{name}.{first}", x, padding=padding))


def grow(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


def published_ct(state: State, x: Tensor) -> Tensor:
    def double(name: str, y: Tensor) -> Tensor:
        for block in ("conv1", "conv2"):
            y = F.relu(conv_norm(state, f"{name}.{block}", y, padding=1))
        return y

    def gate_block(name: str, skip: Tensor, gating: Tensor) -> Tensor:
        theta = conv(state, f"{name}.theta", skip, stride=2)
        phi = conv(state, f"{name}.phi", gating)
        assert theta.shape == phi.shape
        alpha = torch.sigmoid(conv(state, f"{name}.psi", F.relu(theta + phi)))
        return conv_norm(state, f"{name}.W", grow(alpha, 2) * skip)

    def attention(level: int, skip: Tensor, gating: Tensor) -> Tensor:
        name = f"attentionblock{level}"
        if f"{name}.combine_gates.0.weight" not in state:
            return skip
        blocks = [f"{name}.gate_block_{n}" for n in (1, 2) if f"{name}.gate_block_{n}.theta.weight" in state]
        gated = torch.cat([gate_block(block, skip, gating) for block in blocks], dim=1)
        return F.relu(conv_norm(state, f"{name}.combine_gates", gated))

    def up_concat(level: int, skip: Tensor, coarse: Tensor) -> Tensor:
        return double(f"up_concat{level}.conv", torch.cat([skip, grow(coarse, 2)], dim=1))

    conv1 = double("conv1", x)
    conv2 = double("conv2", F.max_pool3d(conv1, 2))
    conv3 = double("conv3", F.max_pool3d(conv2, 2))
    conv4 = double("conv4", F.max_pool3d(conv3, 2))
    center = double("center", F.max_pool3d(conv4, 2))
    gating = F.relu(conv_norm(state, "gating.conv1", center)) if "gating.conv1.0.weight" in state else center
    up4 = up_concat(4, attention(4, conv4, gating), center)
    up3 = up_concat(3, attention(3, conv3, up4), up4)
    up2 = up_concat(2, attention(2, conv2, up3), up3)
    up1 = up_concat(1, conv1, up2)
    maps = [
        conv(state, "dsv1", up1),
        grow(conv(state, "dsv2.dsv.0", up2), 2),
        grow(conv(state, "dsv3.dsv.0", up3), 4),
        grow(conv(state, "dsv4.dsv.0", up4), 8),
    ]
    return conv(state, "final", torch.cat(maps, dim=1))


def published_att_u_net(state: State, x: Tensor) -> Tensor:
    def double(name: str, y: Tensor) -> Tensor:
        for first in (0, 3):
            y = F.relu(conv_norm(state, f"{name}.conv", y, first, padding=1))
        return y

    pool: Callable[..., Tensor] = F.max_pool3d if x.ndim == 5 else F.max_pool2d
    skips = [double("Conv1", x)]
    for level in (2, 3, 4, 5):
        skips.append(double(f"Conv{level}", pool(skips[-1], 2)))
    d = skips.pop()
    for level in (5, 4, 3, 2):
        d = F.interpolate(d, scale_factor=2, mode="nearest")
        d = F.relu(conv_norm(state, f"Up{level}.up", d, first=1, padding=1))
        skip, name = skips.pop(), f"Att{level}"
        summed = F.relu(conv_norm(state, f"{name}.W_g", d) + conv_norm(state, f"{name}.W_x", skip))
        alpha = torch.sigmoid(conv_norm(state, f"{name}.psi", summed))
        d = double(f"Up_conv{level}", torch.cat([alpha * skip, d], dim=1))
    return conv(state, "Conv_1x1", d)


# --- ours beside them


def ct_network(gates: int, **kwargs: Any) -> AttentionUNet:
    options: dict[str, Any] = {"gate": "grid", "gates_per_skip": gates} if gates else {"gate": None}
    return AttentionUNet(**{"channels": NARROW, **options, **kwargs})


def image(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def assert_same(net: AttentionUNet, expected: Tensor, x: Tensor, tolerance: float) -> None:
    with torch.no_grad():
        found = net.eval()(x)
    scale = expected.std().item()
    assert 0.05 < scale < 50, "the example must be neither dead nor out of range"
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("gates", [0, 1, 2])
@pytest.mark.parametrize("size", [(32, 16, 48), (32, 32, 32)])
def test_ct_network_gives_what_the_published_one_gives(gates: int, size: tuple[int, ...]) -> None:
    state = random_state(ct_shapes(gates))
    net = ct_network(gates).double()
    load_reference_weights(net, state)
    x = image(1, 1, *size)
    assert_same(net, published_ct(state, x), x, 1e-11)


@pytest.mark.parametrize("gates", [0, 1, 2])
def test_ct_network_of_full_width_in_float32(gates: int) -> None:
    state = random_state(ct_shapes(gates, (16, 32, 64, 128, 256), classes=3), dtype=torch.float32)
    net = ct_network(gates, channels=(16, 32, 64, 128, 256), out_channels=3)
    load_reference_weights(net, state)
    x = image(2, 1, 16, 16, 16, dtype=torch.float32)
    assert_same(net, published_ct(state, x), x, 1e-5)


@pytest.mark.parametrize(("dims", "size"), [(2, (48, 32)), (3, (16, 32, 16))])
def test_narrow_att_u_net_gives_what_the_published_one_gives(dims: int, size: tuple[int, ...]) -> None:
    state = random_state(att_u_net_shapes(dims, NARROW, 2, 3))
    net = AttentionUNet(dims, 2, 3, NARROW, **ATT_U_NET).double()
    load_reference_weights(net, state)
    x = image(2, 2, *size)
    assert_same(net, published_att_u_net(state, x), x, 1e-11)


def test_att_u_net_of_full_width_in_float32() -> None:
    state = random_state(att_u_net_shapes(2, (64, 128, 256, 512, 1024), 3, 1), dtype=torch.float32)
    assert sum(value.numel() for name, value in state.items() if re.search(r"(weight|bias)$", name)) == 34_878_573
    with torch.device("meta"):
        net = AttentionUNet.att_u_net()
    net = net.to_empty(device="cpu")
    load_reference_weights(net, state)
    x = image(1, 3, 32, 16, dtype=torch.float32)
    assert_same(net, published_att_u_net(state, x), x, 1e-5)


def test_the_two_gates_of_a_skip_are_not_interchanged() -> None:
    """Swapping them in the state dict must change the output, or the comparison above would prove less."""
    state = random_state(ct_shapes(2))
    swapped = {
        re.sub(r"gate_block_(\d)", lambda found: f"gate_block_{3 - int(found[1])}", name): value
        for name, value in state.items()
    }
    net = ct_network(2).double().eval()
    x = image(1, 1, 16, 16, 16)
    with torch.no_grad():
        load_reference_weights(net, swapped)
        assert (net(x) - published_ct(state, x)).abs().max() > 1e-3


# --- loading


@pytest.mark.parametrize("strip", [True, False])
def test_prefix_and_missing_counters_are_accepted(strip: bool) -> None:
    state = random_state(ct_shapes(1))
    given = {f"module.{name}": value for name, value in state.items()}
    if strip:
        given = {name: value for name, value in given.items() if not name.endswith("num_batches_tracked")}
    net, plain = ct_network(1).double(), ct_network(1).double()
    load_reference_weights(net, given)
    load_reference_weights(plain, state)
    for (name, found), expected in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        if not (strip and name.endswith("num_batches_tracked")):
            assert torch.equal(found, expected), name


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def with_value(name: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("attentionblock3.gate_block_1.theta.weight"), "lacks attentionblock3.gate_block_1.theta.weight"),
        (without("up_concat1.conv.conv2.1.running_var"), "lacks up_concat1.conv.conv2.1.running_var"),
        (without("final.bias"), "lacks final.bias"),
        (with_value("attentionblock1.psi", torch.zeros(1)), "has the unexpected key attentionblock1.psi"),
        (
            with_value("dsv2.dsv.0.weight", torch.zeros(2, 9, 1, 1, 1)),
            r"dsv2.dsv.0.weight is \(2, 9, 1, 1, 1\), not \(2, 8, 1, 1, 1\)",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_key(change: Callable[[State], State], message: str) -> None:
    net = ct_network(1).double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_reference_weights(net, change(random_state(ct_shapes(1))))
    assert "(1 keys differ" in str(caught.value)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("net", "shapes", "message"),
    [
        (ct_network(1), ct_shapes(2), "attentionblock4"),
        (ct_network(2), ct_shapes(1), "gate_block_2"),
        (ct_network(0), ct_shapes(1), "(gating|attentionblock)"),
        (ct_network(1), ct_shapes(1, classes=3), "dsv"),
        (ct_network(1), att_u_net_shapes(3, NARROW, 1, 2), "lacks"),
        (ct_network(1, gate="additive"), ct_shapes(1), "lacks"),
        (AttentionUNet(3, 1, 2, NARROW, **ATT_U_NET), ct_shapes(1), "lacks"),
        (AttentionUNet(2, 1, 2, NARROW, **ATT_U_NET), att_u_net_shapes(3, NARROW, 1, 2), "Conv1.conv.0.weight"),
    ],
)
def test_weights_of_another_architecture_are_refused(net: AttentionUNet, shapes: Shapes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_reference_weights(net, random_state(shapes))


@pytest.mark.parametrize("state", [{}, {"encoder.0.weight": torch.zeros(1)}])
def test_an_unknown_format_is_refused(state: State) -> None:
    with pytest.raises(CheckpointError, match=r"neither the published 3D CT network's .* nor AttU_Net's") as caught:
        load_reference_weights(ct_network(1), state)
    assert all(key in str(caught.value) for key in state)
