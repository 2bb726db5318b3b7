"""Build networks from a definition, and load them with their weights."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from attunet3d.checkpoint import load_weights
from attunet3d.config.changes import inference_values
from attunet3d.config.plain import ALLOW_CODE_HINT, is_network
from attunet3d.errors import ConfigError
from attunet3d.runtime.fast_network import prepare

logger = logging.getLogger(__name__)


def build_network(definition: Mapping[str, object], allow_code: bool = False) -> nn.Module:
    """Build the network of a config's ``network_def``, with random weights.

    Raises:
        ConfigError: the class is not a network of this package and ``allow_code`` is false, it does not exist, or it
            rejects its arguments.
    """
    if not isinstance(definition, Mapping):
        raise ConfigError(f"network_def: expected a mapping of arguments, got {type(definition).__name__}")
    arguments = dict(definition)
    target = str(arguments.pop("_target_", ""))
    if not allow_code and not is_network(target):  # before any import
        raise ConfigError(
            f"network_def cannot be built: {target[:80]!r} is no network of this package; use "
            f"attunet3d.networks.AttentionUNet. {ALLOW_CODE_HINT}",
            arguments=("allow_code",),
        )
    module, _, name = target.rpartition(".")
    try:
        network = getattr(importlib.import_module(module), name)(**arguments)
    except Exception as error:  # torch rejects sizes that are 0 or too large with many errors
        raise ConfigError(f"network_def cannot be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network_def: {target!r} is not a torch module")
    return network


def load_network(
    checkpoint: str | Path | None = None, device: str | torch.device = "auto", precision: str = "auto"
) -> nn.Module:
    """Load a network in eval mode, for images (B, 1, X, Y, Z) on the model grid.

    Its definition is that in the recipe of the weights, or else that of the bundle.

    Args:
        checkpoint: file of weights; by default those of the bundle.
        device: "auto", "cpu", "cuda", ...; see ``choose_device``.
        precision: "auto", "fp32", "bf16" or "fp16"; see ``choose_precision``.

    Raises:
        CheckpointError: the weights cannot be read or do not fit.
        ConfigError: the device or the precision is not available.
    """
    changes = {} if checkpoint is None else {"checkpoint": Path(checkpoint)}
    values = inference_values((), changes, warn=logger.warning)
    network = build_network(values["network_def"])
    load_weights(network, values["checkpoint"])
    return prepare(network, device, precision).eval()
