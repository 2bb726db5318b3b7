"""Turn an Attention U-Net into a network that returns the attention weights of its gates."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from attunet3d.errors import ConfigError
from attunet3d.networks.attention_gate import resample
from attunet3d.networks.attention_unet import AttentionUNet


class AttentionMaps(nn.Module):
    """A copy of an Attention U-Net that returns its attention weights alpha and computes only what they need.

    Args:
        network: an ``AttentionUNet``.

    Raises:
        ConfigError: the network has no attention gates.

    Attributes:
        names: name of each map, from the finest level (1 in the paper) to the coarsest: "level2", "level3", ..., or
            "level2_gate1", "level2_gate2", ... if a skip has several gates.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = _names(network) if isinstance(network, AttentionUNet) else []
        if not self.names:
            raise ConfigError(
                "the network has no attention gates, so there are no maps; "
                'ask for none, or use weights of a network with gate "grid" or "additive"'
            )
        self.network = _without_logits(network)
        self.min_size = network.min_size

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha in [0, 1] (B, maps, *spatial) for an image (B, C, *spatial), resampled linearly to its size."""
        alphas = self.network.attention_maps(x)[1]
        return torch.cat([resample(alpha, list(x.shape[2:]), self.network.mode) for alpha in alphas], dim=1)


def _names(network: AttentionUNet) -> list[str]:
    names: list[str] = []
    for number, level in enumerate(reversed(network.decoder), start=1):
        gates = len(level.gate.gates) if level.gate is not None else 0
        names += [f"level{number}_gate{n}" for n in range(1, gates + 1)] if gates > 1 else [f"level{number}"] * gates
    return names


def _without_logits(network: nn.Module) -> nn.Module:
    """Copy the network without the parts that no gate needs: the finest features of the decoder, and the logits."""
    network = copy.deepcopy(network)
    finest = network.decoder[-1]
    if finest.gate is None:
        network.decoder[-1] = _Unused()
    finest.conv = nn.Identity()
    network.heads, network.final = nn.ModuleList([nn.Identity()]), None
    return network


class _Unused(nn.Module):
    """Replaces a ``DecoderLevel`` without a gate: returns the coarser features unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Identity()

    def forward(self, skip: Tensor, coarse: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        return coarse, torch.empty(0)
