"""How much memory a forward pass takes."""

from __future__ import annotations

import math

import torch
from torch import nn

# Features of a window at the finest level, as multiples of one skip and one upsampled set, where they are concatenated;
# with the coarser levels, the convolution's own buffers and what the allocator keeps.
_JOINED_COPIES = 2.5


_COPIES_IN_GATE = 6  # of a skip: it, gated, convolved, put together and combined


_IMAGES_IN_NETWORK = 4  # of float32 of a window, at the largest of the sizes it is looked at: it, its logits, sums


def network_bytes_per_voxel(network: nn.Module, dtype: torch.dtype, split: bool = False) -> int:
    """Memory that a forward pass takes per voxel of the input, bytes; a generous guess for networks of others.

    Args:
        network: what runs.
        dtype: of its features.
        split: whether it is folded for CPUs, where skip and upsampled features are not concatenated.
    """
    channels = getattr(network, "channels", None) or (64, 128)
    size = torch.empty((), dtype=dtype).element_size()
    if split and _finest_is_plain(network):
        # By level, the finest first: features there; in the decoder the finer skips are there too, and what the coarser
        # levels have found. At the finest level the sum, a part of the upsampled features, and half of that part; in
        # float32 the second convolution also copies what it reads. At the others the gate makes copies.
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
    """Whether the finest level of an `AttentionUNet` only upsamples: no gate there, and no convolution for it."""
    decoder = getattr(network, "decoder", None)
    return decoder is not None and decoder[-1].gate is None and decoder[-1].up_conv is None
