"""Resampling to the network's grid and back, and what is done to masks on the way."""

from typing import TYPE_CHECKING

from attunet3d._lazy import lazy_names

_PUBLIC = {
    "CheckLabeld": "checks",
    "ClassMapd": "monai_transforms",
    "FromModelGridd": "monai_transforms",
    "Grid": "resample",
    "LargestComponentd": "monai_transforms",
    "PlaceOnImaged": "monai_transforms",
    "SelectLabelsd": "monai_transforms",
    "ToModelGridd": "monai_transforms",
    "mask_from_logits": "resample",
    "model_grid": "resample",
    "resample_image": "resample",
    "resample_label": "resample",
}

__all__ = [
    "CheckLabeld",
    "ClassMapd",
    "FromModelGridd",
    "Grid",
    "LargestComponentd",
    "PlaceOnImaged",
    "SelectLabelsd",
    "ToModelGridd",
    "mask_from_logits",
    "model_grid",
    "resample_image",
    "resample_label",
]

if TYPE_CHECKING:
    from attunet3d.transforms.checks import CheckLabeld
    from attunet3d.transforms.monai_transforms import (
        ClassMapd,
        FromModelGridd,
        LargestComponentd,
        PlaceOnImaged,
        SelectLabelsd,
        ToModelGridd,
    )
    from attunet3d.transforms.resample import Grid, mask_from_logits, model_grid, resample_image, resample_label

__getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
