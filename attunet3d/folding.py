"""A network made smaller for inference: what is linear is computed once, into the weights.

The result computes the same function in eval mode, but for rounding.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attunet3d.networks import AttentionUNet


def fold(network: nn.Module, difference: bool = False, split: bool = False) -> nn.Module:
    """A copy of a network without what inference does not need.

    Every BatchNorm that follows a convolution inside an ``nn.Sequential`` becomes part of that convolution. The class
    maps of an `AttentionUNet` with deep supervision, which are fused by a 1x1x1 convolution, become one convolution a
    level whose outputs are added.

    Args:
        network: any module; it stays as it is.
        difference: of an `AttentionUNet` with two classes keep only the difference of the logits: one output channel.
        split: in the decoder of an `AttentionUNet` convolve skip and upsampled features apart and add the results. On
            CPUs this is faster than to concatenate them first, and takes a quarter less memory.
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


class _ConvOfParts(nn.Module):
    """conv(cat(parts)) without the concatenation: a convolution is linear in its input."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, channels: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for index, weight in enumerate(conv.weight.split(channels, dim=1)):
            part = type(conv)(
                weight.shape[1], conv.out_channels, conv.kernel_size, padding=conv.padding, bias=index == 0
            )
            part.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            if part.bias is not None:
                part.bias = conv.bias
            self.convs.append(part)

    def forward(self, parts: list[Tensor]) -> Tensor:
        """[(B, C1, *spatial), (B, C2, *spatial)] -> (B, out, *spatial). Empties the list: parts are freed when used."""
        total: Tensor | None = None
        for conv in self.convs:
            out = conv(parts.pop(0))
            total = out if total is None else total.add_(out)
        if total is None:
            raise ValueError("nothing to convolve")
        return total


def _split_joins(network: AttentionUNet) -> None:
    for level in network.decoder:
        first = level.conv.first
        skip_channels = first.conv.out_channels
        first.conv = _ConvOfParts(first.conv, [skip_channels, first.conv.in_channels - skip_channels])
        level.join = nn.Identity()


def _bias(conv: nn.Module) -> Tensor:
    bias = getattr(conv, "bias", None)
    if isinstance(bias, Tensor):
        return bias.detach().double()
    return torch.zeros(int(conv.out_channels), dtype=torch.float64)  # type: ignore[arg-type]
