"""Learning-rate schedule."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_polynomial(optimizer: Optimizer, warmup_epochs: int, max_epochs: int, power: float = 0.9) -> LambdaLR:
    """Return a schedule with linear warm-up, then nnU-Net's polynomial decay (1 - progress) ** power.

    It is stepped once per epoch. Gates have no normalization inside: too large a first step closes them for good.
    """

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        rest = max(max_epochs - warmup_epochs, 1)
        return max(1 - (epoch - warmup_epochs) / rest, 0.0) ** power

    return LambdaLR(optimizer, factor)
