"""OpenVINO computes what torch does, at any size, and sends nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attunet3d.networks import AttentionUNet
from attunet3d.runtime.openvino import OpenVINONetwork, is_installed

# Not importorskip: whoever imports OpenVINO itself sends its usage statistics.
pytestmark = pytest.mark.skipif(not is_installed(), reason="OpenVINO is not installed")

SIZES = [(16, 24, 8), (17, 23, 11)]  # one after the other: each is compiled anew
# float32 sums in another order, over some 600 terms a layer in a dozen layers; measured 1e-6.
FP32_TOLERANCE = 1e-5
# bf16 rounds to 8 bits (4e-3) after each layer; measured 0.01, and as much for torch's own bf16.
BF16_TOLERANCE = 0.05


def small(**kwargs: Any) -> AttentionUNet:
    """A network whose BatchNorm statistics are not those of a new one, so that folding them matters."""
    torch.manual_seed(0)
    net = AttentionUNet(channels=(4, 8, 16), **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def openvino(net: nn.Module, dtype: torch.dtype = torch.float32, channels: int = 1) -> OpenVINONetwork:
    return OpenVINONetwork(net, torch.zeros(1, channels, 8, 8, 8), dtype)


def assert_same(logits: Tensor, expected: Tensor, tolerance: float) -> None:
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gate": None},
        {"gate": "additive", "gate_first_skip": True, "upsample": "conv", "deep_supervision": False},
        {"gates_per_skip": 2, "out_channels": 1, "in_channels": 2},
    ],
    ids=["grid", "no gate", "additive", "two gates"],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)], ids=["fp32", "bf16"]
)
@torch.no_grad()
def test_logits_are_those_of_torch(config: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    net = small(**config)
    channels = config.get("in_channels", 1)
    fast = openvino(net, dtype, channels)
    for size in SIZES:
        x = torch.rand(1, channels, *size)
        assert_same(fast(x), net(x), tolerance)


@torch.no_grad()
def test_batches_and_memory_formats() -> None:
    net = small(in_channels=2)
    fast = openvino(net, channels=2)
    x = torch.rand(2, 2, 18, 17, 16)
    expected = net(x)
    first = fast(x)
    assert_same(fast(x.contiguous(memory_format=torch.channels_last_3d)), expected, FP32_TOLERANCE)
    fast.release_memory()
    assert_same(fast(x.flip(0)), expected.flip(0), FP32_TOLERANCE)
    assert_same(first, expected, FP32_TOLERANCE)  # later runs have not overwritten it


@torch.no_grad()
def test_weights_are_copied() -> None:
    net = small()
    fast = openvino(net)
    x, other = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 17, 16, 16)
    expected = net(x), net(other)
    assert_same(fast(x), expected[0], FP32_TOLERANCE)
    for weight in net.parameters():
        weight.fill_(1.0)
    assert_same(fast(x), expected[0], FP32_TOLERANCE)
    assert_same(fast(other), expected[1], FP32_TOLERANCE)


def test_what_cannot_be_run_is_refused() -> None:
    net = small()
    with pytest.raises(ValueError, match="float16"):
        openvino(net, torch.float16)
    fast = openvino(net)
    with pytest.raises(ValueError, match="float64"):
        fast(torch.rand(1, 1, 16, 16, 16).double())
    with pytest.raises(RuntimeError):
        fast(torch.rand(1, 1, 2, 16, 16))
    assert fast(torch.rand(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
    with pytest.raises(ValueError, match="eval"):
        openvino(net.train())


def test_nothing_is_imported_early_or_sent(tmp_path: Path) -> None:
    """OpenVINO's usage statistics go out on import, unless the home says no or the program runs in CI."""
    program = """
import sys, torch
def refuse(event, args):
    if event.startswith("socket."):
        print("uses the network:", event, args)
        raise OSError
sys.addaudithook(refuse)
from attunet3d.runtime.openvino import OpenVINONetwork, is_installed
assert is_installed() and "openvino" not in sys.modules and "monai" not in sys.modules
OpenVINONetwork(torch.nn.Conv3d(1, 1, 1).eval(), torch.rand(1, 1, 4, 4, 4), torch.float32)(torch.rand(1, 1, 4, 4, 4))
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
