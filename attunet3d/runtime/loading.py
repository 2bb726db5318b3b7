"""Networks from a definition or from weights."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.plain import CURE, is_network
from attunet3d.errors import ConfigError
from attunet3d.runtime.fast_network import prepare

logger = logging.getLogger(__name__)


def build_network(definition: Mapping[str, object], allow_code: bool = False) -> nn.Module:
    """The network of a config's ``network_def``, with fresh weights.

    Raises:
        ConfigError: it is none of `NETWORKS`, without ``allow_code``; there is no such class, or it refuses its
            arguments.
    """
    if not isinstance(definition, Mapping):
        raise ConfigError(f"network_def: expected a mapping of arguments, got {type(definition).__name__}")
    arguments = dict(definition)
    target = str(arguments.pop("_target_", ""))
    if not allow_code and not is_network(target):  # before anything is imported
        raise ConfigError(
            f"network_def cannot be built: {target[:80]!r} is no network of this package; use "
            f"attunet3d.networks.AttentionUNet. {CURE}",
            arguments=("allow_code",),
        )
    module, _, name = target.rpartition(".")
    try:
        network = getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:  # torch refuses sizes that are too large, or none, in many ways
        raise ConfigError(f"network_def cannot be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network_def: {target!r} is no torch module")
    return network


def load_network(
    checkpoint: str | Path | None = None, device: str | torch.device = "auto", precision: str = "auto"
) -> nn.Module:
    """The network of weights' recipe, or else the bundle's, in eval mode: for (B, 1, X, Y, Z) images on its model grid.

    Args:
        checkpoint: weights; the bundle's own by default.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "fp32", "bf16" or "fp16".

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
        ConfigError: the device or precision cannot be had.
    """
    changes = {} if checkpoint is None else {"checkpoint": Path(checkpoint)}
    values = inference_values((), changes, say=logger.warning)
    network = build_network(values["network_def"])
    load_weights(network, values["checkpoint"])
    return prepare(network, device, precision).eval()
