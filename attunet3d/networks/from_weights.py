"""Find the ``AttentionUNet`` that weights belong to, by the names and shapes in their state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from attunet3d.networks.attention_unet import AttentionUNet, GateName
from attunet3d.networks.limits import MOST_LEVELS

# Arguments that leave no trace in a state dict.
UNSEEN = ("dropout", "input_mean", "input_std")


def arguments_of(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of the ``AttentionUNet`` that a state dict fits, without ``UNSEEN``; None if none."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    for gate in (None, *get_args(GateName)):
        try:
            with torch.device("meta"):  # no memory, however large the network
                network = AttentionUNet(**_guess(shapes), gate=gate)
        except (KeyError, IndexError, ValueError, RuntimeError):
            return None
        if {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes:
            return {key: value for key, value in network.arguments.items() if key not in UNSEEN}
    return None


def _guess(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read all arguments but the gate from a state dict; whether it fits them is not checked."""
    channels = [
        shapes[key][0] for level in range(MOST_LEVELS) if (key := f"encoder.{level}.first.conv.weight") in shapes
    ]
    first = shapes["encoder.0.first.conv.weight"]
    finest = len(channels) - 2  # of the decoder's levels, which are counted from the coarsest
    gates = {match[1] for key in shapes if (match := re.match(r"decoder\.\d+\.gate\.gates\.(\d+)\.", key))}
    auxiliary = shapes.get("auxiliary.0.weight", (0,))
    return {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": shapes["heads.0.weight"][0],
        "channels": channels,
        "gates_per_skip": max(len(gates), 1),
        "gate_first_skip": any(key.startswith(f"decoder.{finest}.gate.") for key in shapes),
        "deep_supervision": "final.weight" in shapes,
        "upsample": "conv" if any(key.startswith("decoder.0.up_conv.") for key in shapes) else "linear",
        "auxiliary_channels": auxiliary[0],
    }
