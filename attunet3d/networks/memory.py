"""Estimate the memory of a forward pass."""

from __future__ import annotations

import math

import torch
from torch import nn

# If skip and upsampled features are concatenated: multiples of both at the finest level, including the coarser levels,
# the buffers of convolutions and what the allocator keeps.
_JOINED_COPIES = 2.5
_COPIES_IN_GATE = 6  # of a skip: itself, gated, convolved, concatenated and combined
_IMAGES_IN_NETWORK = 4  # float32, at the largest of the scales: the window, its logits, sums


def network_bytes_per_voxel(network: nn.Module, dtype: torch.dtype, split: bool = False) -> int:
    """Return the estimated memory of a forward pass, bytes per input voxel; an upper limit for third-party networks.

    Args:
        network: the network.
        dtype: of its features.
        split: whether skip and upsampled features are convolved separately, see ``fold``.
    """
    channels = getattr(network, "channels", None) or (64, 128)
    size = torch.empty((), dtype=dtype).element_size()
    if split and _finest_is_plain(network):
        # Features by level, finest first. While the decoder is at a level, the finer skips and the features of the
        # coarser level are in memory too: at the finest level with the sum, a part of the upsampled features and half
        # of that part (in float32 the second convolution also copies its input), at others with the gate's copies.
        features = [c / 8**level for level, c in enumerate(channels)]
        at_once = [
            sum(features) + (copies - 1) * of_level
            for copies, of_level in zip([2.5] + [_COPIES_IN_GATE] * (len(features) - 1), features, strict=True)
        ]
        most = max(*at_once, 3 * features[0] if dtype == torch.float32 else 0)
    else:
        most = _JOINED_COPIES * (channels[0] + channels[1])
    return math.ceil(most * size) + 4 * _IMAGES_IN_NETWORK


def _finest_is_plain(network: nn.Module) -> bool:
    """Return whether the finest decoder level of an ``AttentionUNet`` has neither a gate nor a learned upsampling."""
    decoder = getattr(network, "decoder", None)
    return decoder is not None and decoder[-1].gate is None and decoder[-1].up_conv is None
