"""Make torchvision importable with a CPU build of torch, for MONAI Label, which imports it.

The wheel on PyPI is built for CUDA: with a CPU build of torch its library does not load, and its Python code fails.
"""

from __future__ import annotations

import importlib
import sys

import torch

# Operators for which torchvision's Python code registers fake kernels, and which its missing library would define.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def make_torchvision_importable() -> None:
    """Declare the missing operators without an implementation; neither this package nor MONAI Label runs them.

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
