"""The network: shapes, arguments, attention maps, gradients, dropout, keys and parameter counts."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attunet3d.networks import AttentionUNet
from attunet3d.networks.folding import fold

NARROW = (4, 8, 16, 32, 64)
ATT_U_NET = {"gate": "additive", "gate_first_skip": True, "deep_supervision": False, "upsample": "conv"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "multi": {"gates_per_skip": 2},
    "no_gate": {"gate": None},
    "first_skip": {"gate_first_skip": True},
    "no_supervision": {"deep_supervision": False},
    "conv_up": {"upsample": "conv"},
    "additive_linear": {"gate": "additive"},
    "additive_multi": {"gate": "additive", "gates_per_skip": 3, "upsample": "conv"},
    "att_u_net": ATT_U_NET,
    "2d": {"spatial_dims": 2},
    "att_u_net_2d": {**ATT_U_NET, "spatial_dims": 2},
}
variants = pytest.mark.parametrize("kwargs", VARIANTS.values(), ids=VARIANTS.keys())


def network(**kwargs: Any) -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(**{"channels": NARROW, **kwargs})


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- shapes


@pytest.mark.parametrize(
    ("kwargs", "shape", "expected"),
    [
        ({}, (1, 1, 16, 16, 16), (1, 2, 16, 16, 16)),
        ({}, (1, 1, 17, 19, 23), (1, 2, 17, 19, 23)),
        ({}, (1, 1, 40, 40, 40), (1, 2, 40, 40, 40)),
        ({}, (1, 1, 33, 16, 50), (1, 2, 33, 16, 50)),
        ({}, (2, 1, 48, 32, 16), (2, 2, 48, 32, 16)),
        ({"in_channels": 3, "out_channels": 5}, (2, 3, 16, 18, 20), (2, 5, 16, 18, 20)),
        ({"out_channels": 1}, (1, 1, 16, 31, 16), (1, 1, 16, 31, 16)),
        ({"gates_per_skip": 2}, (1, 1, 17, 19, 23), (1, 2, 17, 19, 23)),
        ({"gate": None}, (1, 1, 17, 19, 23), (1, 2, 17, 19, 23)),
        ({"gate_first_skip": True, "deep_supervision": False}, (1, 1, 19, 16, 21), (1, 2, 19, 16, 21)),
        (ATT_U_NET, (1, 1, 17, 19, 23), (1, 2, 17, 19, 23)),
        ({"gate": "additive", "upsample": "linear"}, (1, 1, 31, 16, 17), (1, 2, 31, 16, 17)),
        ({"channels": (4, 8)}, (1, 1, 2, 3, 5), (1, 2, 2, 3, 5)),
        ({"channels": (2, 3, 5, 7, 11, 13)}, (1, 1, 32, 33, 35), (1, 2, 32, 33, 35)),
        ({"spatial_dims": 2}, (3, 1, 37, 64), (3, 2, 37, 64)),
        ({**ATT_U_NET, "spatial_dims": 2, "in_channels": 3, "out_channels": 1}, (1, 3, 45, 29), (1, 1, 45, 29)),
    ],
)
def test_output_has_the_size_of_the_input(
    kwargs: dict[str, Any], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    with torch.no_grad():
        out = network(**kwargs).eval()(image(*shape))
    assert out.shape == expected
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "size", "least"),
    [
        ({}, (16, 15, 16), 16),
        ({}, (64, 64, 8), 16),
        ({"spatial_dims": 2}, (100, 1), 16),
        ({"channels": (4, 8, 16)}, (3, 9, 9), 4),
    ],
)
def test_too_small_an_image_is_refused_by_size(kwargs: dict[str, Any], size: tuple[int, ...], least: int) -> None:
    with pytest.raises(ValueError, match=rf"at least {least} voxels, got \[{', '.join(map(str, size))}\]"):
        network(**kwargs)(image(1, 1, *size))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"in_channels": 0}, "got 0 and 2"),
        ({"out_channels": -1}, "got 1 and -1"),
        ({"channels": (16,)}, r"channels .* got \(16,\)"),
        ({"channels": ()}, r"channels .* got \(\)"),
        ({"channels": (16, 0, 64)}, r"channels .* got \(16, 0, 64\)"),
        ({"gate": "attention"}, "gate must .* got 'attention'"),
        ({"gates_per_skip": 0}, "gates_per_skip must be at least 1, got 0"),
        ({"upsample": "nearest"}, "upsample must .* got 'nearest'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout .* got -0.1"),
        ({"channels": (16, 10**9)}, "at most 2048 channels"),
        ({"channels": [4] * 40}, "at most 2048 channels, and 10 levels and gates per skip"),
        ({"gates_per_skip": 10**9}, "at most 2048 channels, and 10 levels and gates per skip"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**kwargs)


# --- attention maps


@pytest.mark.parametrize(
    ("kwargs", "levels"),
    [
        ({}, (1, 2, 3)),
        ({"gates_per_skip": 2}, (1, 2, 3)),
        ({"gate_first_skip": True}, (0, 1, 2, 3)),
        (ATT_U_NET, (0, 1, 2, 3)),
        ({"gate": "additive", "gates_per_skip": 3}, (1, 2, 3)),
        ({"gate": None}, ()),
    ],
)
def test_attention_maps_are_finest_first(kwargs: dict[str, Any], levels: tuple[int, ...]) -> None:
    net = network(**kwargs).eval()
    x = image(2, 1, 19, 35, 16)
    with torch.no_grad():
        logits, alphas = net.attention_maps(x)
        torch.testing.assert_close(net(x), logits, rtol=0, atol=0)
    gates = kwargs.get("gates_per_skip", 1)
    assert [tuple(alpha.shape) for alpha in alphas] == [
        (2, gates, 19 // 2**level, 35 // 2**level, 16 // 2**level) for level in levels
    ]
    for alpha in alphas:
        assert 0.0 <= alpha.min() < alpha.max() <= 1.0


def test_attention_maps_belong_to_their_own_level() -> None:
    """psi's bias alone sets alpha: a different one per level must come back in the order finest first."""
    net = network().eval()
    for step, level in enumerate(net.decoder[:3]):  # coarsest first
        psi = level.gate.gates[0].psi
        nn.init.zeros_(psi.weight)
        nn.init.constant_(psi.bias, float(step))
    with torch.no_grad():
        _, alphas = net.attention_maps(image(1, 1, 16, 16, 16))
    for alpha, bias in zip(alphas, (2.0, 1.0, 0.0), strict=True):
        torch.testing.assert_close(alpha, torch.full_like(alpha, torch.tensor(bias).sigmoid().item()))


def test_closed_gates_pass_nothing_of_the_skip() -> None:
    net = network(gate="additive", gate_first_skip=True).eval()
    seen: list[Tensor] = []
    net.decoder[-1].conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for level in net.decoder:
            level.gate.gates[0].psi.norm.bias.fill_(-1e4)
        _, alphas = net.attention_maps(image(1, 1, 16, 16, 16))
    assert all(alpha.max() == 0 for alpha in alphas)
    assert (seen[0][:, : NARROW[0]] == 0).all()  # the gated skip
    assert (seen[0][:, NARROW[0] :] != 0).any()  # the upsampled features


# --- gradients


def before_norm(net: nn.Module) -> set[str]:
    """Biases that a BatchNorm takes away again in train mode: their gradient is exactly zero in theory."""
    biases = {f"{name}.conv.bias" for name, module in net.named_modules() if hasattr(module, "norm")}
    # Nothing but the 1x1x1 convolution of `combine` stands between this one and the next BatchNorm.
    return biases | {name for name, _ in net.named_parameters() if name.endswith("w_out.norm.bias")}


@variants
def test_gradients_reach_every_parameter(kwargs: dict[str, Any]) -> None:
    net = network(**kwargs).double()
    x = image(1, 1, *[32] * kwargs.get("spatial_dims", 3)).double()
    net.train()(x).square().sum().backward()
    cancelled = before_norm(net)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        if name not in cancelled:
            assert parameter.grad.abs().max() > 1e-9, name

    # The biases count where BatchNorm uses its running statistics.
    net.zero_grad(set_to_none=True)
    net.eval()(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# --- dropout


@variants
def test_dropout_is_random_in_train_mode_only(kwargs: dict[str, Any]) -> None:
    plain, dropping = network(**kwargs), network(**kwargs, dropout=0.3)
    dropping.load_state_dict(plain.state_dict())
    x = image(1, 1, *[32] * kwargs.get("spatial_dims", 3))
    with torch.no_grad():
        assert not torch.equal(dropping.train()(x), dropping(x))
        dropping.load_state_dict(plain.state_dict())  # train mode moved the running statistics
        torch.testing.assert_close(dropping.eval()(x), plain.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("kwargs", [{"gates_per_skip": 2}, ATT_U_NET])
def test_dropout_reaches_every_gate(kwargs: dict[str, Any]) -> None:
    net = network(**kwargs, dropout=0.5).train()
    dropped: list[bool] = []
    gates = [gate for level in net.decoder if level.gate is not None for gate in level.gate.gates]
    for gate in gates:
        grid = kwargs.get("gate") != "additive"
        # So large a bias leaves no zero after the relu: those that psi sees were dropped.
        nn.init.constant_(gate.w_g.bias if grid else gate.w_g.norm.bias, 1e4)
        psi = gate.psi if grid else gate.psi.conv
        psi.register_forward_pre_hook(lambda _, args: dropped.append(bool((args[0] == 0).any())))
    with torch.no_grad():
        net(image(1, 1, 32, 32, 32))
    assert dropped == [True] * len(gates)
    assert len(gates) == {"grid": 6, "additive": 4}[str(kwargs.get("gate", "grid"))]


# --- state dict


def block(name: str, *, bias: bool = True) -> set[str]:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.conv.weight", *([f"{name}.conv.bias"] if bias else []), *(f"{name}.norm.{leaf}" for leaf in norm)}


def expected_keys(gate: str | None, gated: int, supervised: bool, conv_up: bool) -> set[str]:
    """The public format for five levels with one gate per skip; gates sit on the first ``gated`` decoder steps."""
    keys: set[str] = set()
    for level in range(5):
        keys |= block(f"encoder.{level}.first") | block(f"encoder.{level}.second")
    for step in range(4):
        keys |= block(f"decoder.{step}.conv.first") | block(f"decoder.{step}.conv.second")
        if conv_up:
            keys |= block(f"decoder.{step}.up_conv")
        if step < gated:
            name = f"decoder.{step}.gate.gates.0"
            if gate == "grid":
                keys |= {
                    f"{name}.{leaf}" for leaf in ("w_x.weight", "w_g.weight", "w_g.bias", "psi.weight", "psi.bias")
                }
                keys |= block(f"{name}.w_out") | block(f"decoder.{step}.gate.combine")
            else:
                keys |= block(f"{name}.w_x") | block(f"{name}.w_g") | block(f"{name}.psi")
    if gate == "grid":
        keys |= block("gating")
    names = [f"heads.{index}" for index in range(4 if supervised else 1)] + (["final"] if supervised else [])
    return keys | {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, expected_keys("grid", 3, True, False)),
        ({"gate": None}, expected_keys(None, 0, True, False)),
        (ATT_U_NET, expected_keys("additive", 4, False, True)),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_state_dict_is_the_public_format_whatever_the_run_time_options(
    kwargs: dict[str, Any], expected: set[str]
) -> None:
    net = network(**kwargs)
    assert set(net.state_dict()) == expected
    assert set(network(**kwargs, dropout=0.5).state_dict()) == expected
    assert set(net.eval().state_dict()) == expected
    with torch.no_grad():
        net(image(1, 1, 16, 16, 16))
    assert set(net.state_dict()) == expected
    assert set(net.to(memory_format=torch.channels_last_3d).state_dict()) == expected
    assert set(torch.jit.script(net).state_dict()) == expected


def test_channels_last_changes_nothing() -> None:
    net = network().eval()
    x = image(1, 1, 17, 20, 16)
    with torch.no_grad():
        expected = net(x)
        found = net.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- parameter counts, from the layer tables


def conv(before: int, after: int, voxels: int, bias: bool = True) -> int:
    return before * after * voxels + (after if bias else 0)


def double(before: int, after: int, voxels: int) -> int:
    return conv(before, after, voxels) + conv(after, after, voxels) + 2 * 2 * after


def count_ct(gates: int, classes: int = 2) -> int:
    widths = (16, 32, 64, 128, 256)
    total = sum(double(before, after, 27) for before, after in zip((1, *widths), widths, strict=False))
    for skip, coarse in pairwise(widths):
        total += double(skip + coarse, skip, 27) + conv(skip, classes, 1)
    total += conv(4 * classes, classes, 1)
    if gates:
        total += conv(256, 256, 1) + 2 * 256
        for skip, coarse in pairwise(widths[1:]):
            gate = conv(skip, skip, 8, bias=False) + conv(coarse, skip, 1) + conv(skip, 1, 1)
            gate += conv(skip, skip, 1) + 2 * skip
            total += gates * gate + conv(gates * skip, skip, 1) + 2 * skip
    return total


def count_att_u_net(image_channels: int, classes: int) -> int:
    widths = (64, 128, 256, 512, 1024)
    total = sum(double(before, after, 9) for before, after in zip((image_channels, *widths), widths, strict=False))
    for skip, coarse in pairwise(widths):
        total += conv(coarse, skip, 9) + 2 * skip
        total += 2 * (conv(skip, skip // 2, 1) + 2 * (skip // 2)) + conv(skip // 2, 1, 1) + 2
        total += double(2 * skip, skip, 9)
    return total + conv(widths[0], classes, 1)


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kwargs", "gates", "millions"),
    [({"gate": None}, 0, 5.8875), ({}, 1, 6.2136), ({"gates_per_skip": 2}, 2, 6.4728)],
)
def test_parameters_of_the_published_3d_network(kwargs: dict[str, Any], gates: int, millions: float) -> None:
    with torch.device("meta"):
        found = parameters(AttentionUNet(**kwargs))
    assert found == count_ct(gates)
    assert round(found / 1e6, 4) == millions


def test_parameters_of_att_u_net() -> None:
    assert count_att_u_net(3, 1) == 34_878_573
    with torch.device("meta"):
        assert parameters(AttentionUNet.att_u_net()) == 34_878_573
        assert parameters(AttentionUNet.att_u_net(2, 1, 4)) == count_att_u_net(1, 4)
        assert AttentionUNet.att_u_net(3, 1, 2).encoder[0].first.conv.weight.shape == (64, 1, 3, 3, 3)


def test_initialization_is_kaiming_normal() -> None:
    torch.manual_seed(0)
    net = AttentionUNet(channels=(16, 32, 64, 128))
    weight = net.encoder[3].second.conv.weight  # 128 x 128 x 27: enough to judge its deviation to 1 %
    assert weight.std().item() == pytest.approx((2 / (128 * 27)) ** 0.5, rel=0.01)
    norms = torch.cat([m.weight for m in net.modules() if isinstance(m, nn.BatchNorm3d)])
    assert norms.mean().item() == pytest.approx(1.0, abs=0.005)
    assert norms.std().item() == pytest.approx(0.02, rel=0.15)
    assert all((m.bias == 0).all() for m in net.modules() if isinstance(m, nn.BatchNorm3d))


def test_input_mean_and_deviation_are_those_of_the_image() -> None:
    """The network sees (x - mean) / std, with the same weights; scripted, and folded, too."""
    torch.manual_seed(0)
    plain = AttentionUNet(channels=(2, 4, 4)).eval()
    scaled = AttentionUNet(channels=(2, 4, 4), input_mean=0.25, input_std=0.5).eval()
    scaled.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = plain((x - 0.25) / 0.5)
        torch.testing.assert_close(scaled(x), wanted)
        torch.testing.assert_close(fold(scaled)(x), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain(x), wanted)
    with pytest.raises(ValueError, match="input_std"):
        AttentionUNet(input_std=0.0)


def test_auxiliary_classes_are_there_in_training_only() -> None:
    torch.manual_seed(0)
    net = AttentionUNet(channels=(4, 4, 8), auxiliary_channels=6)
    image = torch.rand(2, 1, 13, 12, 11)
    both = net(image)
    assert both.shape == (2, 8, 13, 12, 11)
    both[:, 2:].square().mean().backward()
    assert all(head.weight.grad is not None and head.weight.grad.any() for head in net.auxiliary)
    assert not net.heads[0].weight.grad.any(), "the target's head has no part in the other organs"
    assert net.eval()(image).shape == (2, 2, 13, 12, 11)
    assert net(image)[0, 0, 0, 0, 0] == torch.jit.script(net)(image)[0, 0, 0, 0, 0]
