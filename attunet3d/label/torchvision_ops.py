"""torchvision beside a torch for CPUs, for MONAI Label, which imports it.

The wheel of PyPI is built for CUDA: its compiled part does not load there, and then its Python part fails.
"""

from __future__ import annotations

import importlib
import sys

import torch

# What torchvision describes in Python while it is imported, although its library that defines it could not be loaded.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def make_torchvision_importable() -> None:
    """Declare, without code, the operators that torchvision misses; nothing here or in MONAI Label's use runs them.

    Raises:
        ImportError: torchvision is not installed, or cannot be imported for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ImportError(f"torchvision cannot be imported: {error}") from error
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for signature in _OPERATORS:
            torch.library.define(f"torchvision::{signature.partition('(')[0]}", signature[signature.index("(") :])
        importlib.import_module("torchvision")
