"""Variants of a network at inference, from which ``FastNetwork`` chooses.

A backend is a module with a function ``builders(device_type, dtype) -> list[VariantBuilder]``, and an entry in
``_BACKENDS`` of ``fast_network``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attunet3d.runtime.device import dtype_name

Run = Callable[[Tensor], Tensor]
# Limits of the self-test. One rounding is 2^-9 of a value in bf16, 2^-12 in fp16 and TF32, and about forty accumulate;
# the error of a broken variant is as large as the logits.
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Variant:
    """How a network runs; ``str()`` is its name: "torch bfloat16", "torch float32, joined", ...

    Attributes:
        backend: name of the backend, such as "torch" or "openvino".
        dtype: of the features.
        split: whether skip and upsampled features are convolved separately, which takes less memory; see ``fold``.
        note: "joined" if features are concatenated on a CPU, "plain" if nothing is folded; otherwise empty.
    """

    backend: str
    dtype: torch.dtype
    split: bool = False
    note: str = ""

    @property
    def precision(self) -> str:
        """Name of the dtype, and the note if any, as in records."""
        return ", ".join(filter(None, (dtype_name(self.dtype), self.note)))

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class VariantBuilder:
    """A variant to try.

    Attributes:
        variant: the variant that is built.
        tolerance: limit of the self-test: root mean square of the error, relative to that of the logits.
        build: called with a float32 network in eval mode, an example image (1, C, *spatial) on its device and
            ``single_logit`` (see ``FastNetwork``); returns a function from images to logits of any float dtype, which
            may have a method ``release_memory``. If it raises, the next variant is tried.
    """

    variant: Variant
    tolerance: float
    build: Callable[[nn.Module, Tensor, bool], Run]
