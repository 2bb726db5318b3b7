"""A network made smaller for inference: what is linear is computed once, into the weights.

The result computes the same function in eval mode, but for rounding.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attunet3d.networks import AttentionUNet
from attunet3d.networks.attention_gate import resample


def fold(network: nn.Module, difference: bool = False, split: bool = False) -> nn.Module:
    """A copy of a network without what inference does not need.

    Every BatchNorm that follows a convolution inside an ``nn.Sequential`` becomes part of that convolution. The class
    maps of an `AttentionUNet` with deep supervision, which are fused by a 1x1x1 convolution, become one convolution a
    level whose outputs are added.

    Args:
        network: any module; it stays as it is.
        difference: of an `AttentionUNet` with two classes keep only the difference of the logits: one output channel.
        split: in the decoder of an `AttentionUNet` convolve skip and upsampled features apart and add the results: on
            CPUs faster than to concatenate them first, in half the memory.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batch_norm(module)
    if isinstance(folded, AttentionUNet):
        _fold_heads(folded, difference)
        if split:
            _split_joins(folded)
    return folded


def _fold_batch_norm(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for before, name in itertools.pairwise(names):
        conv, norm = sequence._modules[before], sequence._modules[name]
        if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            sequence._modules[before] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[name] = nn.Identity()


def _fold_heads(network: AttentionUNet, difference: bool) -> None:
    """final(cat(up(head_l(f_l)))) = sum_l up(head'_l(f_l)): interpolation commutes with 1x1x1 convolutions."""
    heads = [head for head in network.heads if isinstance(head, nn.Conv2d | nn.Conv3d)]
    classes = heads[0].out_channels
    finest_last = [(h.weight.detach().double().flatten(1), _bias(h)) for h in heads]
    if network.final is not None:
        final = network.final.weight.detach().double().flatten(1)  # (classes, levels * classes), finest first
        parts = final.split(classes, dim=1)[::-1]
        folded = [(part @ w, part @ b) for part, (w, b) in zip(parts, finest_last, strict=True)]
        folded[-1] = (folded[-1][0], folded[-1][1] + _bias(network.final))
        finest_last = folded
        network.final = None
    if difference and classes == 2:
        finest_last = [(w[1:] - w[:1], b[1:] - b[:1]) for w, b in finest_last]
    for index, (head, (weight, bias)) in enumerate(zip(heads, finest_last, strict=True)):
        new = type(head)(head.in_channels, len(weight), 1).to(head.weight)
        with torch.no_grad():
            new.weight.copy_(weight.view_as(new.weight))
            if new.bias is not None:
                new.bias.copy_(bias)
        network.heads[index] = new.requires_grad_(False)


class _ListOf(nn.Module):
    """In place of a `Join`: pass its inputs on."""

    def forward(self, skip: Tensor, up: Tensor) -> list[Tensor]:
        return [skip, up]


class _ConvOfParts(nn.Module):
    """conv(Join(skip, up)) without the joined features: a convolution is linear in its input channels.

    The upsampled features are made and used a few channels at a time, as many as the skip has.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, skip_channels: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.channels = skip_channels
        self.convs = nn.ModuleList()
        for index, weight in enumerate(conv.weight.split(skip_channels, dim=1)):
            inputs, outputs = weight.shape[1], conv.out_channels
            part = type(conv)(inputs, outputs, conv.kernel_size, padding=conv.padding, bias=index == 0)
            part.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            if part.bias is not None:
                part.bias = conv.bias
            self.convs.append(part)

    def forward(self, parts: list[Tensor]) -> Tensor:
        """[skip (B, F_l, *spatial), up (B, F_g, *coarse or *spatial)] -> (B, out, *spatial); empties the list."""
        up, skip = parts.pop(), parts.pop()
        size = skip.shape[2:]
        total: Tensor = self.convs[0](skip)
        del skip  # the only reference: its memory is free for what comes
        for conv, part in zip(self.convs[1:], up.split(self.channels, dim=1), strict=True):
            _add_conv_(total, part if part.shape[2:] == size else _upsample(part, size, self.mode), conv)
        return total


def _upsample(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Linear upsampling, (B, C, *coarse) -> (B, C, *size). To twice the size axis by axis: three times as fast."""
    if any(n != 2 * m for n, m in zip(size, x.shape[2:], strict=True)):
        return resample(x, list(size), mode)
    x = x.movedim(1, -1)  # (B, *coarse, C), as channels-last volumes lie in memory
    for axis in range(x.ndim - 2, 0, -1):  # the outermost axis last: it has the most to do, and in the longest runs
        x = _double(x, axis)
    return x.movedim(-1, 1)


def _double(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to twice the size along one axis: new voxels lie at a quarter and three of the old steps."""
    n = x.shape[axis]
    out = x.new_empty([2 * m if dim == axis else m for dim, m in enumerate(x.shape)])
    before, after = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
    lines = (slice(None),) * axis
    torch.lerp(before, after, 0.25, out=out[lines + (slice(1, -1, 2),)])
    torch.lerp(before, after, 0.75, out=out[lines + (slice(2, None, 2),)])
    for new, old in ((0, 0), (2 * n - 1, n - 1)):  # beyond the outermost centres values are held
        out.select(axis, new).copy_(x.select(axis, old))
    return out


def _add_conv_(total: Tensor, x: Tensor, conv: nn.Module) -> None:
    """total += conv(x). Where torch has it, by the fused operator that its compiler uses: nothing to store and add."""
    fused = getattr(torch.ops.mkldnn, "_convolution_pointwise_", None)
    if fused is None or x.ndim != 5 or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        total.add_(conv(x))
        return
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    fused.binary(total, x, conv.weight, None, *geometry, "add", 1.0, None, [], None)


def _split_joins(network: AttentionUNet) -> None:
    for level in network.decoder:
        first = level.conv.first
        first.conv = _ConvOfParts(first.conv, first.conv.out_channels, level.mode)
        level.join = _ListOf()


def _bias(conv: nn.Module) -> Tensor:
    bias = getattr(conv, "bias", None)
    if isinstance(bias, Tensor):
        return bias.detach().double()
    return torch.zeros(int(conv.out_channels), dtype=torch.float64)  # type: ignore[arg-type]
