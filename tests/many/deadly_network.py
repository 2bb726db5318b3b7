"""A network that kills its process on one CT: what no exception handler can catch."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn


class DeadlyNetwork(nn.Module):
    """Two classes by a threshold; an image that is bright all over is its last."""

    min_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.5, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) -> logits (B, 2, X, Y, Z)."""
        if float(x.median()) > 0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.conv(x)
