"""The learning rate over the epochs."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_polynomial(optimizer: Optimizer, warmup_epochs: int, max_epochs: int, power: float = 0.9) -> LambdaLR:
    """Linear rise over ``warmup_epochs``, then (1 - share of the rest) ** power: nnU-Net's decay after a warm-up.

    Stepped once an epoch. Gates have no normalization inside: too large a first step closes them for good.
    """

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        rest = max(max_epochs - warmup_epochs, 1)
        return max(1 - (epoch - warmup_epochs) / rest, 0.0) ** power

    return LambdaLR(optimizer, factor)
