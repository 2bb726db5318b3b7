"""The torch backend: a folded network in the requested precision, or else in float32."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from attunet3d.networks.folding import fold
from attunet3d.runtime.device import volume_format
from attunet3d.runtime.variants import TOLERANCE, Run, Variant, VariantBuilder


def builders(device_type: str, dtype: torch.dtype) -> list[VariantBuilder]:
    """List the variants for a device, best first; on a CPU split before joined, see ``fold``."""
    found = []
    for each in dict.fromkeys((dtype, torch.float32)):
        if device_type == "cpu":
            variants = [Variant("torch", each, split=True), Variant("torch", each, note="joined")]
        else:
            variants = [Variant("torch", each)]
        found += [VariantBuilder(variant, TOLERANCE[each], partial(_build, variant)) for variant in variants]
    return found


def _build(variant: Variant, network: nn.Module, example: Tensor, single_logit: bool) -> Run:
    layout = volume_format(example.device.type)
    folded = fold(network, single_logit, variant.split).to(dtype=variant.dtype, memory_format=layout)
    return lambda x: folded(x.to(variant.dtype).contiguous(memory_format=layout))
