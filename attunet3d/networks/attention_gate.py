"""Attention gates: a learned weight in [0, 1] for every voxel of a skip connection.

    q = psi^T( relu( W_x^T x + W_g^T g + b_g ) ) + b_psi,    alpha = sigmoid(q),    output = alpha * x

Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", arXiv 1804.03999, section 2.
x: skip features, F_l channels. g: gating signal, F_g channels. F_int: intermediate channels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attunet3d.networks.upsampling import Upsample, whole_factor

CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def conv_block(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Build a size-preserving convolution, BatchNorm and ReLU: (B, in, *spatial) -> (B, out, *spatial)."""
    conv = CONV[spatial_dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(
        OrderedDict(conv=conv, norm=NORM[spatial_dims](out_channels), relu=nn.ReLU(inplace=True)),
    )


def resample(x: Tensor, size: list[int], mode: str) -> Tensor:
    """Resample (B, C, *spatial) linearly to ``size``, aligned at voxel edges, not centres (``align_corners=False``)."""
    if not torch.jit.is_scripting() and x.requires_grad and not torch.jit.is_tracing():
        factor = whole_factor(x.shape[2:], size)
        if factor:
            upsampled: Tensor = Upsample.apply(x, factor)
            return upsampled
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


class GridAttentionGate(nn.Module):
    """The gate of the paper: alpha is computed on the coarse grid of g and resampled linearly to the grid of x.

    ``w_x`` halves the size of x (kernel 2, stride 2); the output of ``w_g`` is resampled to that size if it differs.
    The gated features pass through ``w_out``, a 1x1x1 convolution with BatchNorm, as in the authors' published 3D code.

    Args:
        spatial_dims: 2 or 3.
        x_channels: F_l, channels of the skip features.
        g_channels: F_g, channels of the gating signal.
        inter_channels: F_int.
        dropout: probability of dropping an intermediate feature in train mode.
    """

    def __init__(
        self, spatial_dims: int, x_channels: int, g_channels: int, inter_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        conv = CONV[spatial_dims]
        self.mode = LINEAR_MODE[spatial_dims]
        self.w_x = conv(x_channels, inter_channels, 2, stride=2, bias=False)
        self.w_g = conv(g_channels, inter_channels, 1)
        self.psi = conv(inter_channels, 1, 1)
        self.w_out = nn.Sequential(
            OrderedDict(conv=conv(x_channels, x_channels, 1), norm=NORM[spatial_dims](x_channels))
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated x and alpha (B, 1, *spatial) for x (B, F_l, *spatial) and g (B, F_g, *coarse)."""
        wx = self.w_x(x)  # (B, F_int, *spatial // 2)
        wg = self.w_g(g)  # (B, F_int, *coarse)
        if wg.shape[2:] != wx.shape[2:]:
            wg = resample(wg, wx.shape[2:], self.mode)
        alpha = torch.sigmoid(self.psi(self.dropout(F.relu(wx + wg))))  # (B, 1, *spatial // 2)
        alpha = resample(alpha, x.shape[2:], self.mode)  # (B, 1, *spatial)
        return self.w_out(alpha * x), alpha


class AdditiveAttentionGate(nn.Module):
    """The gate of AttU_Net, a widely used PyTorch network: g is already upsampled to the size of x.

    Arguments: as for ``GridAttentionGate``. ``w_x``, ``w_g`` and ``psi`` are 1x1x1 convolutions with BatchNorm.
    """

    def __init__(
        self, spatial_dims: int, x_channels: int, g_channels: int, inter_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()

        def project(in_channels: int, out_channels: int) -> nn.Sequential:
            conv = CONV[spatial_dims](in_channels, out_channels, 1)
            return nn.Sequential(OrderedDict(conv=conv, norm=NORM[spatial_dims](out_channels)))

        self.w_x = project(x_channels, inter_channels)
        self.w_g = project(g_channels, inter_channels)
        self.psi = project(inter_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated x and alpha (B, 1, *spatial) for x (B, F_l, *spatial) and g (B, F_g, *spatial)."""
        alpha = torch.sigmoid(self.psi(self.dropout(F.relu(self.w_x(x) + self.w_g(g)))))
        return alpha * x, alpha


class GatedSkip(nn.Module):
    """The gates of one skip connection, and the 1x1x1 block that combines their outputs.

    With ``combine`` (in the published 3D network) the gated features are concatenated and reduced to F_l channels.
    Without it (in AttU_Net) there is one gate, whose output is returned unchanged.
    """

    def __init__(self, gates: list[nn.Module], combine: nn.Module | None) -> None:
        super().__init__()
        self.gates = nn.ModuleList(gates)
        self.combine = combine

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return gated x and alpha (B, gates, *spatial) for x (B, F_l, *spatial) and g."""
        gated: list[Tensor] = []
        alphas: list[Tensor] = []
        for gate in self.gates:
            y, alpha = gate(x, g)
            gated.append(y)
            alphas.append(alpha)
        y = torch.cat(gated, dim=1)
        if self.combine is not None:
            y = self.combine(y)
        return y, torch.cat(alphas, dim=1)
