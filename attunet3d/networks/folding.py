"""Fold a network for inference: merge consecutive linear layers.

The result is the same function in eval mode, up to rounding.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attunet3d.networks.attention_gate import resample
from attunet3d.networks.attention_unet import AttentionUNet
from attunet3d.networks.upsampling import upsample, whole_factor


def fold(network: nn.Module, single_logit: bool = False, split: bool = False) -> nn.Module:
    """Return a copy of a network that is folded for inference.

    Each BatchNorm that follows a convolution in an ``nn.Sequential`` is merged into it. In an ``AttentionUNet`` with
    deep supervision the 1x1x1 convolution that fuses the class maps is merged into the heads, whose outputs are added.

    Args:
        network: any module; it is not changed.
        single_logit: for an ``AttentionUNet`` with two classes, return the difference of the logits in one channel.
        split: in the decoder of an ``AttentionUNet``, convolve skip and upsampled features separately and add the
            results: on CPUs this is faster than concatenating them first, in half the memory.
    """
    folded = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold_batch_norm(module)
    if isinstance(folded, AttentionUNet):
        _fold_heads(folded, single_logit)
        if split:
            _split_joins(folded)
    return folded


def _fold_batch_norm(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for before, name in itertools.pairwise(names):
        conv, norm = sequence._modules[before], sequence._modules[name]
        if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            sequence._modules[before] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[name] = nn.Identity()


def _fold_heads(network: AttentionUNet, single_logit: bool) -> None:
    """Merge ``final`` into the heads: final(cat(up(head_l(f_l)))) = sum_l up(head'_l(f_l)).

    This is exact, since interpolation commutes with 1x1x1 convolutions.
    """
    heads = [head for head in network.heads if isinstance(head, nn.Conv2d | nn.Conv3d)]
    classes = heads[0].out_channels
    finest_last = [(_double(h.weight).flatten(1), _bias(h)) for h in heads]
    if network.final is not None:
        final = _double(network.final.weight).flatten(1)  # (classes, levels * classes), finest first
        parts = final.split(classes, dim=1)[::-1]
        folded = [(part @ w, part @ b) for part, (w, b) in zip(parts, finest_last, strict=True)]
        folded[-1] = (folded[-1][0], folded[-1][1] + _bias(network.final))
        finest_last = folded
        network.final = None
    if single_logit and classes == 2:
        finest_last = [(w[1:] - w[:1], b[1:] - b[:1]) for w, b in finest_last]
    for index, (head, (weight, bias)) in enumerate(zip(heads, finest_last, strict=True)):
        new = type(head)(head.in_channels, len(weight), 1).to(head.weight)
        with torch.no_grad():
            new.weight.copy_(weight.view(new.weight.shape).to(new.weight.dtype))
            if new.bias is not None:
                new.bias.copy_(bias.to(new.bias.dtype))
        network.heads[index] = new.requires_grad_(False)


class _ListOf(nn.Module):
    """Replaces a ``Join``: returns its inputs as a list."""

    def forward(self, skip: Tensor, up: Tensor) -> list[Tensor]:
        return [skip, up]


class _ConvOfParts(nn.Module):
    """Replaces a convolution after a ``Join``: convolves skip and upsampled features separately and adds the results.

    Features are upsampled and convolved a few channels at a time, as many as the skip has.
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
        """Convolve [skip (B, F_l, *spatial), up (B, F_g, *coarse or *spatial)] to (B, out, *spatial); empties it."""
        up, skip = parts.pop(), parts.pop()
        size = skip.shape[2:]
        total: Tensor = self.convs[0](skip)
        del skip  # the only reference: frees its memory
        for conv, part in zip(self.convs[1:], up.split(self.channels, dim=1), strict=True):
            if part.shape[2:] != size:
                factor = whole_factor(part.shape[2:], size)
                part = upsample(part, factor) if factor else resample(part, list(size), self.mode)
            _add_conv_(total, part, conv)
        return total


def _add_conv_(total: Tensor, x: Tensor, conv: nn.Module) -> None:
    """Add conv(x) to total in place, if possible by the fused operator of torch's compiler, without a temporary."""
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


def _double(values: Tensor) -> Tensor:
    """Convert to float64 on the CPU: not every GPU has float64."""
    return values.detach().cpu().double()


def _bias(conv: nn.Module) -> Tensor:
    bias = getattr(conv, "bias", None)
    if isinstance(bias, Tensor):
        return _double(bias)
    return torch.zeros(int(conv.out_channels), dtype=torch.float64)  # type: ignore[arg-type]
