"""The classes that a network is for, without the organs that are learned beside them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class TargetClassesd(MapTransform):
    """Of logits (C, X, Y, Z) the first channels, of a label map (1, X, Y, Z) the first classes; others are background.

    Args:
        keys: items of either kind, told apart by whether their values are whole numbers.
        num_classes: of the target, with the background.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            values = d[key]
            is_logits = torch.is_floating_point(values) and len(values) > 1
            d[key] = values[: self.num_classes] if is_logits else values * (values < self.num_classes)
        return d
