"""Attention maps: the weights of the attention gates at each level, resampled to the grid of the CT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attunet3d.checkpoint import file_sha256, load_weights
from attunet3d.errors import CheckpointError
from attunet3d.networks.attention_maps import AttentionMaps
from attunet3d.runtime.fast_network import FastNetwork
from attunet3d.runtime.loading import build_network
from attunet3d.transforms.grid import Grid
from attunet3d.transforms.resample import bytes_from_shares

MEANING = (
    "weights of the attention gates (0: a voxel's features are stopped, 1: they pass), averaged over overlapping "
    "windows; 0 where no window was run"
)


def load_attention_maps(
    definition: dict[str, object],
    checkpoint: Path,
    sha256: str,
    device: torch.device,
    dtype: torch.dtype,
    allow_code: bool = False,
) -> FastNetwork:
    """Load the network that computes attention maps, ready for inference with torch.

    Args:
        definition: a config's ``network_def``.
        checkpoint: its weights.
        sha256: expected SHA-256 of the checkpoint.
        device: where it runs.
        dtype: of the arithmetic; if its self-test fails on the device, float32 is used.
        allow_code: see ``build_network``.

    Returns:
        The network; its attribute ``network`` is the ``AttentionMaps`` module.

    Raises:
        ConfigError: the network has no attention gates, or as ``build_network``.
        CheckpointError: the checkpoint is missing or has changed.
    """
    with torch.inference_mode(False):  # inference tensors have no version, by which FastNetwork notices new weights
        network = build_network(definition, allow_code)
        if not checkpoint.is_file() or file_sha256(checkpoint) != sha256:
            raise CheckpointError(f"{checkpoint}: has changed since this session began; start a new session")
        load_weights(network, checkpoint)
        maps = FastNetwork(AttentionMaps(network), device, dtype, "torch").eval()
    with torch.inference_mode():  # build and test the variant now
        maps(torch.zeros((1, 1, *[2 * maps.network.min_size] * 3), device=device))
    return maps


class MapsOnCT(Mapping[str, np.ndarray]):
    """Attention maps on a CT's own grid, by name: uint8 (X, Y, Z), 255 is a weight of 1.

    They are stored on the model grid and resampled at each access, so that only maps in use take memory at the size of
    the CT.

    Args:
        names: of the maps, see ``AttentionMaps``.
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
