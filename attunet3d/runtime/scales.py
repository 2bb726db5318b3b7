"""Average the predictions of a network for an image at several test-time scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import ConfigError

# Closer to 0 or 1 the logit of a probability would dominate where windows overlap.
_SURE = 1e-6
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def check_scales(scales: Sequence[float], threshold: float) -> None:
    """Check that ``scales`` are factors from 0.5 to 2, and ``threshold`` is a probability.

    Raises:
        ConfigError: they are not.
    """
    numbers = isinstance(scales, Sequence) and all(isinstance(s, int | float) and 0.5 <= s <= 2 for s in scales)
    if not scales or not numbers:
        raise ConfigError(f"scales must be a list of factors from 0.5 to 2, got {scales}")
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ConfigError(f"threshold must be a probability between 0 and 1, got {threshold}")


def memory_factor(scales: Sequence[float]) -> float:
    """Return the ratio of the voxels of a 3D image at the largest scale to those of the image."""
    return float(max(1.0, *scales)) ** 3


def logits_over_scales(
    network: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], threshold: float, smallest: int = 1
) -> Tensor:
    """Return the logits of the mean probability that a network predicts for an image at several sizes.

    A network trained on few cases may find an organ at one size and miss it at another. The mean of logits, instead of
    probabilities, would follow the most confident prediction, which may be wrong.

    Args:
        network: (B, C, *spatial) -> logits (B, classes, *spatial); one channel is the logit of the foreground.
        image: (B, C, *spatial).
        scales: factors of the image's size; each axis is rounded to whole voxels.
        threshold: probability at which the logit is 0; above it a voxel is foreground. For one channel only.
        smallest: minimum voxels per axis for the network.

    Returns:
        Logits (B, classes, *spatial) on the grid of ``image``.

    Raises:
        ConfigError: a threshold other than 0.5 for several classes.
    """
    size, mode = image.shape[2:], _LINEAR[image.ndim - 2]
    if len(scales) == 1 and scales[0] == 1:
        logits = network(image)
    else:
        mean: Tensor | float = 0.0
        for scale in scales:
            scaled = [max(round(n * scale), smallest) for n in size]
            scaled_logits = network(F.interpolate(image, size=scaled, mode=mode))
            p = torch.sigmoid(scaled_logits) if scaled_logits.shape[1] == 1 else torch.softmax(scaled_logits, dim=1)
            mean = mean + F.interpolate(p, size=size, mode=mode) / len(scales)
        p = torch.as_tensor(mean).clamp(_SURE, 1 - _SURE)
        logits = torch.logit(p) if p.shape[1] == 1 else p.log()
    if threshold == 0.5:
        return logits
    if logits.shape[1] != 1:
        raise ConfigError(f"threshold {threshold}: of several classes the most probable one is taken; leave 0.5")
    return logits - float(torch.logit(torch.tensor(threshold, dtype=torch.float64)))
