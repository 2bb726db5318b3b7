"""Resampling to the network's grid and back, and what is done to masks on the way."""

from attunet3d.transforms.model_grid import FromModelGridd, LargestComponentd, SelectLabelsd, ToModelGridd
from attunet3d.transforms.resample import Grid, mask_from_logits, model_grid, resample_image, resample_label

__all__ = [
    "FromModelGridd",
    "Grid",
    "LargestComponentd",
    "SelectLabelsd",
    "ToModelGridd",
    "mask_from_logits",
    "model_grid",
    "resample_image",
    "resample_label",
]
