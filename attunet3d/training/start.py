"""Start of training: initial weights and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from attunet3d.checkpoint import load_weights
from attunet3d.config.recipe import FINE_TUNE_IDS, warn_of_recipe
from attunet3d.errors import ConfigError

_BUNDLED = "bundled"
_OPTIMIZERS: dict[str, type[Optimizer]] = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}


def optimizer_class(name: str) -> type[Optimizer]:
    """Return torch's class of an optimizer: "AdamW" or "Adam".

    Raises:
        ConfigError: the name is neither.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"optimizer_name {name!r} is not known: use {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[name]


def load_initial_weights(
    network: nn.Module, checkpoint: str | Path, bundle_root: str | Path, recipe: Mapping[str, Any]
) -> None:
    """Load the weights to start training from, and log a warning if their recipe differs in how CTs are read.

    Args:
        network: to load them into.
        checkpoint: a file, "bundled" for the weights of the bundle, or "" to load none.
        bundle_root: the bundle's folder.
        recipe: of this training.

    Raises:
        CheckpointError: the file cannot be read, or its weights belong to another network.
    """
    if str(checkpoint) == _BUNDLED:
        checkpoint = Path(bundle_root) / "models" / "model.pt"
    if str(checkpoint):
        load_weights(network, checkpoint)
        warn_of_recipe(checkpoint, recipe, FINE_TUNE_IDS)
