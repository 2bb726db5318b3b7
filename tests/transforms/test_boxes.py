"""Boxes of masks with known answers, of arrays and tensors alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from attunet3d.transforms.boxes import bounding_box

KINDS = {
    "array": lambda mask: mask,
    "array in Fortran order": np.asfortranarray,
    "flipped array": lambda mask: np.ascontiguousarray(mask[::-1])[::-1],
    "array of bool": lambda mask: mask > 0,
    "tensor": torch.from_numpy,
    "tensor of bool": lambda mask: torch.from_numpy(mask) > 0,
    "tensor that is not on the CPU": lambda mask: Elsewhere(mask),
}


class Elsewhere:
    """Stands for a tensor on a GPU: it has what those have, and no ``numpy``."""

    device = torch.device("cuda")

    def __init__(self, mask: np.ndarray) -> None:
        self.tensor = torch.from_numpy(mask)
        self.shape, self.ndim, self.stride = mask.shape, mask.ndim, self.tensor.stride

    def __getitem__(self, box: Any) -> Elsewhere:
        return Elsewhere(self.tensor[box].numpy())

    def amax(self, dim: tuple[int, ...]) -> torch.Tensor:
        return self.tensor.amax(dim=dim)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_box_is_tight_and_takes_a_margin_inside_the_array(kind: Callable[[np.ndarray], Any]) -> None:
    mask = np.zeros((12, 10, 8), np.uint8)
    assert bounding_box(kind(mask)) is None
    mask[2:5, 3:4, 7:8] = 1
    mask[4:6, 0:2, 6:7] = 2
    assert bounding_box(kind(mask)) == (slice(2, 6), slice(0, 4), slice(6, 8))
    assert bounding_box(kind(mask), 3) == (slice(0, 9), slice(0, 7), slice(3, 8))


def test_of_one_voxel_of_two_axes_and_of_nothing() -> None:
    assert bounding_box(np.ones((1, 1, 1), bool), 2) == (slice(0, 1),) * 3
    assert bounding_box(torch.eye(4)[1:3]) == (slice(0, 2), slice(1, 3))
    assert bounding_box(np.ones((3, 0, 3), bool)) is None
