"""The classes that a network is for, and those that nobody drew in a case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from attunet3d.errors import ConfigError

MOST_CLASSES = 30  # bits of an int32, without the sign and background's


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
            d[key] = values[: self.num_classes] if is_logits else values * ((values > 0) & (values < self.num_classes))
        return d


class UnlabelledClassesd(MapTransform):
    """Of cases in which not every organ was drawn: background becomes "background, or one of those".

    Such a voxel's label is minus the sum of 2^c over the classes c that were not drawn, so that a loss can leave them
    out, see `DiceCELoss`. What was drawn keeps its class: no organ lies in another one. Cases that name nothing are
    labelled in full, and keep their label as it is.

    Args:
        keys: label maps (1, X, Y, Z) of class numbers; they become int32.
        classes: names of the classes from 1 on; several may have one name.
        labelled: key of a case's list of the names that were drawn.

    Raises:
        ConfigError: there are more classes than bits; in use, a case names something that is no class.
    """

    def __init__(
        self,
        keys: KeysCollection,
        classes: Sequence[str],
        labelled: Hashable = "labelled",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(classes) > MOST_CLASSES:
            raise ConfigError(f"organs: {len(classes)} classes; partial labels are for {MOST_CLASSES} at most")
        self.classes = list(classes)
        self.labelled = labelled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        names = d.pop(self.labelled, None)
        unlabelled = 0 if names is None else unlabelled_bits(names, self.classes)
        for key in self.key_iterator(d):
            label = d[key].to(torch.int32)
            d[key] = torch.where(label == 0, -unlabelled, label)
        return d


def unlabelled_bits(labelled: Sequence[str], classes: Sequence[str]) -> int:
    """Bit c for each class c, from 1 on, that is not among ``labelled``. Raises ConfigError for names of no class."""
    unknown = sorted(set(labelled) - set(classes))
    if unknown:
        raise ConfigError(f'"labelled" names {", ".join(unknown)}; the classes are {", ".join(dict.fromkeys(classes))}')
    return sum(1 << number for number, name in enumerate(classes, start=1) if name not in labelled)
