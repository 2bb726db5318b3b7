"""The 3D Attention U-Net for CT, and AttU_Net as one of its configurations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attunet3d.networks.attention_gate import (
    CONV,
    LINEAR_MODE,
    AdditiveAttentionGate,
    GatedSkip,
    GridAttentionGate,
    conv_block,
    resample,
)
from attunet3d.networks.limits import MOST_CHANNELS, MOST_LEVELS

GateName = Literal["grid", "additive"]
UpsampleName = Literal["linear", "conv"]


def double_conv(spatial_dims: int, in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Build two 3x3x3 convolution blocks: (B, in, *spatial) -> (B, out, *spatial)."""
    return nn.Sequential(
        OrderedDict(
            first=conv_block(spatial_dims, in_channels, out_channels),
            second=conv_block(spatial_dims, out_channels, out_channels),
            dropout=nn.Dropout(dropout),
        )
    )


class Join(nn.Module):
    """Concatenate a skip and coarser features, which are first upsampled to its size if necessary."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        """skip (B, F_l, *spatial), up (B, F_g, *coarse or *spatial) -> (B, F_l + F_g, *spatial)."""
        if up.shape[2:] != skip.shape[2:]:
            up = resample(up, skip.shape[2:], self.mode)
        return torch.cat([skip, up], dim=1)


class DecoderLevel(nn.Module):
    """One step up: upsample the coarser features, gate the skip, concatenate, convolve."""

    def __init__(
        self,
        spatial_dims: int,
        skip_channels: int,
        coarse_channels: int,
        *,
        gate: GateName | None,
        gates_per_skip: int,
        upsample: UpsampleName,
        dropout: float,
    ) -> None:
        super().__init__()
        up_channels = coarse_channels if upsample == "linear" else skip_channels
        self.mode = LINEAR_MODE[spatial_dims]
        self.gated_by_upsampled = gate == "additive"
        self.up_conv = conv_block(spatial_dims, coarse_channels, skip_channels) if upsample == "conv" else None
        self.gate: nn.Module | None = None
        if gate is not None:
            if gate == "grid":
                gates = [
                    GridAttentionGate(spatial_dims, skip_channels, coarse_channels, skip_channels, dropout)
                    for _ in range(gates_per_skip)
                ]
            else:
                gates = [
                    AdditiveAttentionGate(spatial_dims, skip_channels, up_channels, max(skip_channels // 2, 1), dropout)
                    for _ in range(gates_per_skip)
                ]
            combine = gate == "grid" or gates_per_skip > 1
            self.gate = GatedSkip(
                gates,
                conv_block(spatial_dims, gates_per_skip * skip_channels, skip_channels, 1) if combine else None,
            )
        self.join = Join(self.mode)
        self.conv = double_conv(spatial_dims, skip_channels + up_channels, skip_channels, dropout)

    def forward(self, skip: Tensor, coarse: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the input of ``conv``, which is called elsewhere so that skip and upsampled features are freed first.

        Args:
            skip: encoder features (B, F_l, *spatial).
            coarse: features to upsample (B, F_g, *spatial // 2).
            gating: signal of the ``grid`` gate, on the coarse grid (B, F_g, *spatial // 2).

        Returns:
            gated skip and upsampled features (B, F_l + F_g, *spatial), or F_l + F_l with learned upsampling, and alpha
            (B, gates, *spatial), which is empty without a gate.
        """
        up = coarse
        if self.up_conv is not None:
            # AttU_Net: nearest neighbour, then a learned convolution.
            up = self.up_conv(F.interpolate(coarse, size=skip.shape[2:], mode="nearest"))
        elif self.gated_by_upsampled:
            up = resample(coarse, skip.shape[2:], self.mode)
        alpha = torch.empty(0)
        if self.gate is not None:
            skip, alpha = self.gate(skip, up if self.gated_by_upsampled else gating)
        return self.join(skip, up), alpha


class AttentionUNet(nn.Module):
    """Attention U-Net (Oktay et al., arXiv 1804.03999), layer by layer the authors' published 3D network for CT.

    The defaults are that network with one gate per skip: 6.2136 M parameters. Any spatial size of at least
    ``2 ** (len(channels) - 1)`` voxels per axis works (16 for five levels), odd sizes included. The module can be
    scripted, traced and exported to ONNX.

    The keys of ``state_dict`` are a stable format; they do not depend on ``dropout``, ``input_mean`` or ``input_std``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        channels: features per level, finest first; each level halves the size.
        gate: "grid" is the paper's gate (alpha on the coarse grid, resampled trilinearly); "additive" is AttU_Net's
            (after upsampling); None: plain skips.
        gates_per_skip: gates per skip connection, 1 (single) or more (multi, the paper's multi-dimensional attention).
        gate_first_skip: also gate the finest skip; the paper does not.
        deep_supervision: fuse a class map from every decoder level into the output (one output tensor).
        upsample: "linear" (tri- or bilinear) or "conv" (nearest neighbour and a 3x3x3 block, as in AttU_Net).
        dropout: probability in [0, 1) of dropping a feature in train mode, after each level and inside the gates.
        input_mean, input_std: subtracted from the image, and divided by: with those of the data, input is N(0, 1).
        auxiliary_channels: classes of an auxiliary task, predicted from the features of every decoder level; in train
            mode their logits follow those of ``out_channels``. Weights load with and without them.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        *,
        gate: GateName | None = "grid",
        gates_per_skip: int = 1,
        gate_first_skip: bool = False,
        deep_supervision: bool = True,
        upsample: UpsampleName = "linear",
        dropout: float = 0.0,
        input_mean: float = 0.0,
        input_std: float = 1.0,
        auxiliary_channels: int = 0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels must hold at least 2 positive numbers, got {tuple(channels)}")
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"in_channels and out_channels must be at least 1, got {in_channels} and {out_channels}")
        if gate not in (*get_args(GateName), None):
            raise ValueError(f"gate must be one of {get_args(GateName)} or None, got {gate!r}")
        if gates_per_skip < 1:
            raise ValueError(f"gates_per_skip must be at least 1, got {gates_per_skip}")
        if upsample not in ("linear", "conv"):
            raise ValueError(f'upsample must be "linear" or "conv", got {upsample!r}')
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if not input_std > 0.0:
            raise ValueError(f"input_std must be above 0, got {input_std}")
        if auxiliary_channels < 0:
            raise ValueError(f"auxiliary_channels must not be negative, got {auxiliary_channels}")
        most = max(*channels, in_channels, out_channels, auxiliary_channels)
        if most > MOST_CHANNELS or max(len(channels), gates_per_skip) > MOST_LEVELS:
            raise ValueError(
                f"a network has at most {MOST_CHANNELS} channels, and {MOST_LEVELS} levels and gates per skip, got "
                f"channels {tuple(channels)[: MOST_LEVELS + 1]}, gates_per_skip {gates_per_skip}"
            )

        self.arguments = {
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "gate": gate,
            "gates_per_skip": gates_per_skip,
            "gate_first_skip": gate_first_skip,
            "deep_supervision": deep_supervision,
            "upsample": upsample,
            "dropout": dropout,
            "input_mean": input_mean,
            "input_std": input_std,
            "auxiliary_channels": auxiliary_channels,
        }
        self.channels = tuple(channels)
        self.input_mean = float(input_mean)
        self.input_std = float(input_std)
        self.min_size = 2 ** (len(channels) - 1)
        self.mode = LINEAR_MODE[spatial_dims]
        self.pool = nn.MaxPool3d(2) if spatial_dims == 3 else nn.MaxPool2d(2)

        # Finest to coarsest; the last one is the bottleneck.
        self.encoder = nn.ModuleList(
            double_conv(spatial_dims, before, width, dropout)
            for before, width in zip((in_channels, *channels[:-1]), channels, strict=True)
        )
        # Signal of the coarsest gate; the signal of finer gates is the features of the coarser decoder level.
        self.gating = conv_block(spatial_dims, channels[-1], channels[-1], 1) if gate == "grid" else None
        # Coarsest to finest, in the order of execution, like the heads.
        levels = range(len(channels) - 2, -1, -1)
        self.decoder = nn.ModuleList(
            DecoderLevel(
                spatial_dims,
                channels[level],
                channels[level + 1],
                gate=gate if level > 0 or gate_first_skip else None,
                gates_per_skip=gates_per_skip,
                upsample=upsample,
                dropout=dropout,
            )
            for level in levels
        )
        conv = CONV[spatial_dims]
        supervised = list(levels) if deep_supervision else [0]
        self.heads = nn.ModuleList(conv(channels[level], out_channels, 1) for level in supervised)
        self.final = conv(len(supervised) * out_channels, out_channels, 1) if deep_supervision else None
        self.auxiliary = nn.ModuleList(
            conv(channels[level], auxiliary_channels, 1) for level in levels if auxiliary_channels
        )
        self._initialize()

    @classmethod
    def att_u_net(cls, spatial_dims: int = 2, in_channels: int = 3, out_channels: int = 1) -> AttentionUNet:
        """Build AttU_Net, the widely used PyTorch network: additive gates on all four skips, learned upsampling."""
        return cls(
            spatial_dims,
            in_channels,
            out_channels,
            channels=(64, 128, 256, 512, 1024),
            gate="additive",
            gate_first_skip=True,
            deep_supervision=False,
            upsample="conv",
        )

    def _initialize(self) -> None:
        """Initialize as published: Kaiming normal (fan in) convolutions, BatchNorm weights N(1, 0.02), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_channels, *spatial) -> logits (B, out_channels, *spatial); in train mode also auxiliary.

        Raises:
            ValueError: an axis has fewer than ``min_size`` voxels.
        """
        return self._decode(x)[0]

    def attention_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and alpha (B, gates, *spatial of its level) of each gated level, finest first."""
        logits, alphas = self._decode(x)
        return logits, [alpha for alpha in reversed(alphas) if alpha.numel()]

    def _decode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not torch.jit.is_tracing() and min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f"each spatial axis needs at least {self.min_size} voxels, got {list(x.shape[2:])}: pad it"
            )
        full_size = x.shape[2:]
        if self.input_mean != 0.0 or self.input_std != 1.0:
            x = (x - self.input_mean) / self.input_std
        skips: list[Tensor] = []  # finest first: (B, channels[l], *spatial // 2**l)
        for level, block in enumerate(self.encoder):
            if level > 0:
                x = self.pool(x)
            x = block(x)
            skips.append(x)
        skips.pop()  # the bottleneck is no skip
        gating = self.gating(x) if self.gating is not None else x  # (B, channels[-1], *spatial // 2**(L-1))

        features: list[Tensor] = []  # coarsest first: (B, channels[l], *spatial // 2**l)
        alphas: list[Tensor] = []
        for level in self.decoder:
            joined, alpha = level(skips.pop(), x, gating)
            x = level.conv(joined)  # (B, channels[l], *spatial // 2**l)
            gating = x
            features.append(x)
            alphas.append(alpha)

        # Coarsest first, each (B, out_channels, *spatial).
        first = len(features) - len(self.heads)
        maps: list[Tensor] = []
        for step, head in enumerate(self.heads):
            y = head(features[first + step])
            if first + step < len(features) - 1:
                y = resample(y, full_size, self.mode)
            maps.append(y)
        if self.final is not None:
            # The published network concatenates finest first.
            y = self.final(torch.cat(maps[::-1], dim=1))
        else:
            y = maps[0]
            for other in maps[1:]:  # folded for inference: the heads include the fusion
                y = y + other
        if self.training and len(self.auxiliary):
            y = torch.cat((y, self._auxiliary_logits(features)), dim=1)
        return y, alphas

    def _auxiliary_logits(self, features: list[Tensor]) -> Tensor:
        """Sum the auxiliary logits (B, auxiliary_channels, *spatial) of all levels, given coarsest first."""
        total = torch.empty(0)
        for level, head in enumerate(self.auxiliary):
            own = head(features[level])
            total = own if level == 0 else own + resample(total, own.shape[2:], self.mode)
        return total
