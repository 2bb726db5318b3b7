"""The attention gates' weights as maps: what the network let through, level by level, on a CT's own grid."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attunet3d.checkpoint import file_sha256, load_weights
from attunet3d.errors import CheckpointError, ConfigError
from attunet3d.networks import AttentionUNet
from attunet3d.networks.attention_gate import resample
from attunet3d.runtime import FastNetwork, build_network
from attunet3d.transforms.resample import Grid, bytes_from_shares

MEANING = (
    "weights of the attention gates (0: a voxel's features are stopped, 1: they pass), averaged over overlapping "
    "windows; 0 where no window was run"
)


class AttentionMaps(nn.Module):
    """A copy of an Attention U-Net that gives its gates' weights alpha, and computes nothing but what those need.

    Args:
        network: an `AttentionUNet`, with its weights.

    Raises:
        ConfigError: the network has no attention gates.

    Attributes:
        names: one for each map, finest level first, counted from 1 as in the paper: "level2", "level3", ..., and
            "level2_gate1", "level2_gate2", ... where a skip has several gates.
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
        """Image (B, C, *spatial) -> alpha in [0, 1] (B, maps, *spatial), resampled linearly to the image's size."""
        alphas = self.network.attention_maps(x)[1]
        return torch.cat([resample(alpha, list(x.shape[2:]), self.network.mode) for alpha in alphas], dim=1)


def _names(network: AttentionUNet) -> list[str]:
    names: list[str] = []
    for number, level in enumerate(reversed(network.decoder), start=1):
        gates = len(level.gate.gates) if level.gate is not None else 0
        names += [f"level{number}_gate{n}" for n in range(1, gates + 1)] if gates > 1 else [f"level{number}"] * gates
    return names


def _without_logits(network: nn.Module) -> nn.Module:
    """A copy without what no gate needs: the finest features of the decoder, the largest of all, and the logits."""
    network = copy.deepcopy(network)
    finest = network.decoder[-1]
    if finest.gate is None:
        network.decoder[-1] = _Unused()
    finest.conv = nn.Identity()
    network.heads, network.final = nn.ModuleList([nn.Identity()]), None
    return network


class _Unused(nn.Module):
    """In place of a `DecoderLevel` without a gate: pass the coarser features on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Identity()

    def forward(self, skip: Tensor, coarse: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        return coarse, torch.empty(0)


def load_attention_maps(
    definition: dict[str, object],
    checkpoint: Path,
    sha256: str,
    device: torch.device,
    dtype: torch.dtype,
    allow_code: bool = False,
) -> FastNetwork:
    """`AttentionMaps` ready for inference in torch; ``.network`` is the module itself.

    Args:
        definition: a config's ``network_def``.
        checkpoint: its weights.
        sha256: of the checkpoint, as it has to be.
        device: where it runs.
        dtype: of the arithmetic; where its self-test fails there, it runs in float32.
        allow_code: see `build_network`.

    Raises:
        ConfigError: the network has no attention gates, or as `build_network`.
        CheckpointError: the checkpoint is gone or is another one than before.
    """
    with torch.inference_mode(False):  # the caller's would make weights whose changes cannot be seen
        network = build_network(definition, allow_code)
        if not checkpoint.is_file() or file_sha256(checkpoint) != sha256:
            raise CheckpointError(f"{checkpoint}: is not what it was when this session began; start a new one")
        load_weights(network, checkpoint)
        maps = FastNetwork(AttentionMaps(network), device, dtype, "torch").eval()
    with torch.inference_mode():  # the fast form is made and tested now
        maps(torch.zeros((1, 1, *[2 * maps.network.min_size] * 3), device=device))
    return maps


class MapsOnCT(Mapping[str, np.ndarray]):
    """Attention maps on a CT's own grid, by name: uint8 (X, Y, Z), 255 is a weight of 1.

    They are kept on the model grid; each is brought to the CT's whenever it is asked for, so that only those in use
    take memory at the CT's size.

    Args:
        names: see `AttentionMaps`.
        maps: (maps, X, Y, Z) in [0, 1] on the grid ``source``.
        source: the model grid, or a box of it; outside it weights are 0.
        target: the CT's grid.
    """

    def __init__(self, names: Sequence[str], maps: Tensor, source: Grid, target: Grid) -> None:
        self._maps = dict(zip(names, maps, strict=True))
        self._source = source
        self._target = target

    def __getitem__(self, name: str) -> np.ndarray:
        return bytes_from_shares(self._maps[name], self._source, self._target).numpy()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)
