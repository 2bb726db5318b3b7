"""Check label maps where they are read: implausible ones would spoil training or evaluation."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from attunet3d.errors import UnsupportedImageError
from attunet3d.transforms.grid import voxel_ml
from attunet3d.transforms.labels import LabelValues, check_place, check_values
from attunet3d.transforms.monai_transforms import grid_of

logger = logging.getLogger(__name__)

_HINT = (
    '; state in the datalist what is pancreas ("pancreas_labels": [{found}], or fewer), and what other values are '
    '("labels": {"2": "..."})'
)
_HINT_IF_EMPTY = (
    '; correct the label or "pancreas_labels", or, to train on a case without pancreas, add "negative": true to its '
    "entry in the datalist"
)


class CheckLabeld(MapTransform):
    """Check label maps like ``attunet3d prepare``: their values, and whether the pancreas is in soft tissue.

    Suspicious label maps are logged, wrong ones raise. A case must contain pancreas, unless its "negative" is true or
    its "labelled" does not list the pancreas: then it must not.

    Args:
        keys: label maps (1, X, Y, Z) of integers, on the voxels of the image.
        pancreas: label values of the pancreas, or lists of them.
        organs: label values of other organs, by name.
        named: values of other structures.
        image: key of the image (1, X, Y, Z) in HU.
        allow_missing_keys: as in MONAI.

    Raises:
        UnsupportedImageError: a label map does not fit its image.
        ConfigError: ``pancreas`` has other values than 1 to 255.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pancreas: Sequence[Any],
        organs: Mapping[str, Sequence[int]] | None = None,
        named: Sequence[int] = (),
        image: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image = image
        self.values = LabelValues.of(pancreas, organs, named, hint=_HINT, lack=_HINT_IF_EMPTY)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        negative = bool(d.get("negative", False)) or "pancreas" not in d.get("labelled", ["pancreas"])
        for key in self.key_iterator(d):
            path = str(d[key].meta.get("filename_or_obj", key))
            label, hu = (d[name].as_tensor()[0].cpu().numpy() for name in (key, self.image))
            notes = check_values(path, label, self.values, may_lack=negative)
            if negative and not notes:
                raise UnsupportedImageError(
                    f'{path}: has pancreas, though the datalist calls the case "negative", or "labelled" without it'
                )
            if not negative:
                found = check_place(path, label, hu, self.values, voxel_ml(grid_of(d[self.image]).affine))
                notes = [f"{path}: {note}" for note in found]
            for note in notes:
                logger.warning("%s", note)
        return d
