"""Networks whose logits are known, for the tests of the sliding window."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recording(nn.Module):
    """Keeps the windows that a network was run on: one tensor (b, C, *roi) for each forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.windows: list[Tensor] = []

    @property
    def batches(self) -> list[int]:
        """Windows in each forward pass."""
        return [len(windows) for windows in self.windows]

    def forward(self, x: Tensor) -> Tensor:
        self.windows.append(x.clone())
        return self.network(x)


class Foreground(nn.Module):
    """Says the last class everywhere, by 5; of one channel, foreground."""

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


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_foreground(logits: Tensor) -> Tensor:
    """Logits (B, C, *spatial) -> where they say anything but background (B, *spatial), as ``class_map`` reads them."""
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1) > 0
