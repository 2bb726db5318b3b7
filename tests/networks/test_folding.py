"""The folded network computes what the network does in eval mode, with less to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attunet3d.networks import AttentionUNet
from attunet3d.networks.folding import fold

CONFIGS: dict[str, dict[str, Any]] = {
    "the bundle's kind": {},
    "additive gates": {"gate": "additive"},
    "no gates": {"gate": None},
    "two gates per skip": {"gates_per_skip": 2},
    "two additive gates per skip": {"gate": "additive", "gates_per_skip": 2},
    "gate on the finest skip": {"gate_first_skip": True},
    "one class map": {"deep_supervision": False},
    "learned upsampling": {"upsample": "conv"},
    "AttU_Net's kind": {"gate": "additive", "gate_first_skip": True, "deep_supervision": False, "upsample": "conv"},
    "two dimensions": {"spatial_dims": 2},
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
splits = pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def lively(**config: Any) -> AttentionUNet:
    """A network with neither BatchNorm nor biases as a new one has them, where much that is wrong would not show."""
    torch.manual_seed(0)
    net = AttentionUNet(channels=(4, 6, 8, 10), **config)
    for module in net.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Conv3d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net.eval()


ODD, EVEN = (21, 16, 13), (16, 24, 8)  # levels that are not, or all, half of the one above; the last to one voxel


def image(net: AttentionUNet, size: tuple[int, ...] = ODD) -> Tensor:
    dims = 3 if isinstance(net.pool, nn.MaxPool3d) else 2
    return torch.rand(2, 1, *size[:dims], generator=torch.Generator().manual_seed(1))


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@configs
@pytest.mark.parametrize("classes", [1, 2, 3])
@splits
@pytest.mark.parametrize("size", [ODD, EVEN], ids=["odd", "even"])
@torch.no_grad()
def test_logits_are_the_same(config: dict[str, Any], classes: int, split: bool, size: tuple[int, ...]) -> None:
    net = lively(out_channels=classes, **config)
    x = image(net, size)
    assert relative_error(fold(net, split=split)(x), net(x)) < 1e-4
    # In double precision rounding cannot hide a small mistake.
    net.double()
    assert relative_error(fold(net, split=split)(x.double()), net(x.double())) < 1e-9


@configs
@splits
@torch.no_grad()
def test_single_logit_of_two_classes_is_their_difference(config: dict[str, Any], split: bool) -> None:
    net = lively(out_channels=2, **config).double()
    x = image(net).double()
    logits = net(x)
    assert relative_error(fold(net, single_logit=True, split=split)(x), logits[:, 1:] - logits[:, :1]) < 1e-9


@pytest.mark.parametrize("classes", [1, 3])
@torch.no_grad()
def test_single_logit_leaves_other_numbers_of_classes_unchanged(classes: int) -> None:
    net = lively(out_channels=classes).double()
    x = image(net).double()
    assert relative_error(fold(net, single_logit=True)(x), net(x)) < 1e-9


@configs
@splits
def test_nothing_that_inference_does_not_need_is_left(config: dict[str, Any], split: bool) -> None:
    net = lively(**config)
    folded = fold(net, split=split)
    assert any(isinstance(module, NORMS) for module in net.modules())
    assert not any(isinstance(module, NORMS) for module in folded.modules())
    assert getattr(folded, "final", None) is None
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in net.parameters())


@configs
@splits
def test_the_network_stays_as_it_is(config: dict[str, Any], split: bool) -> None:
    net = lively(**config).train()
    weights, layers = copy.deepcopy(net.state_dict()), str(net)
    folded = fold(net, single_logit=True, split=split)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert str(net) == layers
    for weight in folded.parameters():
        weight.fill_(7.0)  # the copy shares nothing with it
    assert net.state_dict().keys() == weights.keys()
    for key, value in net.state_dict().items():
        assert torch.equal(value, weights[key]), key


@torch.no_grad()
def test_folding_twice_is_folding_once() -> None:
    net = lively(out_channels=2).double()
    x = image(net).double()
    once = fold(net, single_logit=True)(x)
    assert relative_error(fold(fold(net), single_logit=True, split=True)(x), once) < 1e-9


@torch.no_grad()
def test_split_networks_do_not_concatenate_skip_and_upsampled_features(monkeypatch: pytest.MonkeyPatch) -> None:
    net = lively(out_channels=2)
    joined, split, x = fold(net), fold(net, split=True), image(net)
    original, widths = torch.cat, []

    def watched(parts: list[Tensor], dim: int) -> Tensor:
        widths.append([part.shape[dim] for part in parts])
        return original(parts, dim)

    monkeypatch.setattr(torch, "cat", watched)
    joined(x)
    assert [w for w in widths if len(w) > 1] == [[8, 10], [6, 8], [4, 6]]  # of the three levels, coarsest first
    widths.clear()
    split(x)
    assert [w for w in widths if len(w) > 1] == []


@torch.no_grad()
def test_other_networks_are_folded_where_a_batch_norm_follows_a_convolution() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.BatchNorm3d(2),  # nothing before it
        nn.Conv3d(2, 3, 3, bias=False),
        nn.BatchNorm3d(3, affine=False),
        nn.ReLU(),
        nn.BatchNorm3d(3),  # after what is not linear
        nn.Sequential(nn.Conv3d(3, 2, 1), nn.BatchNorm3d(2)),
    ).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    x = torch.rand(1, 2, 6, 5, 4)
    folded = fold(net)
    assert relative_error(folded(x), net(x)) < 1e-5
    assert [isinstance(module, nn.BatchNorm3d) for module in folded] == [True, False, False, False, True, False]
    assert isinstance(folded[5][1], nn.Identity)
