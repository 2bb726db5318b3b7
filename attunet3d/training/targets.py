"""Target classes, and classes that are not annotated in a case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from attunet3d.datasets.numbering import ORGANS
from attunet3d.errors import ConfigError

MOST_CLASSES = 30  # bits of an int32 without the sign and the bit of background


class TargetClassesd(MapTransform):
    """Keep the first channels of logits (C, X, Y, Z) and the first classes of label maps (1, X, Y, Z); others become 0.

    Args:
        keys: logits and label maps, distinguished by their dtype and number of channels.
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
    """Mark background as unknown in partially annotated cases: it may be an organ that is not annotated.

    For ``DiceCELoss``, the label of such a voxel is minus the sum of 2^c over the classes c that are not annotated.
    Annotated voxels keep their class. Cases without a list are fully annotated and are not changed.

    Args:
        keys: label maps (1, X, Y, Z) of class numbers; they become int32.
        classes: names of the classes from 1 on; several may have the same name.
        labelled: key of the list of annotated names of a case.

    Raises:
        ConfigError: there are more classes than bits; or, when called, a case names an unknown class.
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
    """Return bit c for each class c, from 1 on, that is not in ``labelled``. Raises ConfigError for unknown names.

    If all classes are organs of ``ORGANS``, the others in it are known too: a case may have more than is trained.
    """
    known = {*classes, *(ORGANS if ORGANS.keys() >= set(classes) else ())}
    unknown = sorted(set(labelled) - known)
    if unknown:
        raise ConfigError(f'"labelled" names {", ".join(unknown)}; the classes are {", ".join(dict.fromkeys(classes))}')
    return sum(1 << number for number, name in enumerate(classes, start=1) if name not in labelled)
