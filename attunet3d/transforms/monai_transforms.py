"""MONAI transforms between the grid of a CT and the model grid, and of label and class maps."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep

from attunet3d.errors import ConfigError, GeometryError
from attunet3d.transforms.components import keep_largest_component
from attunet3d.transforms.grid import Grid, model_grid
from attunet3d.transforms.placing import little_apart, place_on
from attunet3d.transforms.resample import AIR_HU, class_map, mask_from_logits, resample_image, resample_label

logger = logging.getLogger(__name__)

_SOURCE_SHAPE, _SOURCE_AFFINE = "source_shape", "source_affine"


def grid_of(image: MetaTensor) -> Grid:
    """Return the grid of a channel-first image (C, X, Y, Z).

    Raises:
        GeometryError: the image is not a channel-first volume, or has no affine.
    """
    if not isinstance(image, MetaTensor):
        raise GeometryError(f"expected a MetaTensor with an affine, got {type(image).__name__}: use LoadImaged")
    if image.ndim != 4:
        raise GeometryError(f"expected a channel-first volume (C, X, Y, Z), got shape {tuple(image.shape)}")
    return Grid(tuple(image.shape[1:]), np.asarray(image.affine.cpu(), dtype=np.float64))


def source_grid(image: MetaTensor) -> Grid:
    """Return the grid of an image before ``ToModelGridd``.

    Raises:
        GeometryError: ``ToModelGridd`` has not been applied to the image.
    """
    if not isinstance(image, MetaTensor) or _SOURCE_SHAPE not in image.meta:
        raise GeometryError("the image has no source grid: ToModelGridd must come before FromModelGridd")
    shape = torch.as_tensor(image.meta[_SOURCE_SHAPE]).reshape(-1).tolist()
    affine = np.asarray(torch.as_tensor(image.meta[_SOURCE_AFFINE]).cpu(), dtype=np.float64).reshape(4, 4)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


class ToModelGridd(MapTransform):
    """Resample images and labels onto one RAS+ grid along the axes of the patient.

    The grid is derived from the first key; other keys are resampled by their own affine, so that a label may have
    another orientation than its image.

    Args:
        keys: items of shape (1, X, Y, Z) with an affine.
        spacing: mm, one number or three.
        mode: per key "linear" for images (float32, air outside) or "label" for label maps (uint8, 0 outside).
        antialias: average where the model grid is coarser than the CT, see ``resample_slabs``.
        allow_missing_keys: as in MONAI.

    Raises:
        ConfigError: the mode is unknown.
        GeometryError: an item is not a channel-first volume.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: float | Sequence[float],
        mode: str | Sequence[str] = "linear",
        antialias: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.antialias = antialias
        x, y, z = (float(s) for s in ensure_tuple_rep(spacing, 3))
        self.spacing = (x, y, z)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        for name in self.mode:
            if name not in ("linear", "label"):
                raise ConfigError(f'mode must be "linear" or "label", got {name!r}')

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        target: Grid | None = None
        for key, mode in self.key_iterator(d, self.mode):
            image = d[key]
            source = grid_of(image)
            if target is None:
                target = model_grid(source, self.spacing)
            volume = image.as_tensor()
            if mode == "linear":
                values = resample_image(volume, source, target, fill=AIR_HU, antialias=self.antialias)
            else:
                values = resample_label(volume[0], source, target, antialias=self.antialias)[None]
            meta = _meta_without_affine(image)
            meta[_SOURCE_SHAPE] = torch.tensor(source.shape)
            meta[_SOURCE_AFFINE] = torch.as_tensor(source.affine)
            d[key] = MetaTensor(values, affine=torch.as_tensor(target.affine), meta=meta)
        return d


class FromModelGridd(MapTransform):
    """Resample logits from the model grid to the grid of the CT, slab by slab, and convert them to a class map.

    Args:
        keys: logits (C, X, Y, Z) on the model grid; they become uint8 (1, X, Y, Z) with the CT's shape and affine.
        source: key of the image after ``ToModelGridd``.
        allow_missing_keys: as in MONAI.

    Raises:
        GeometryError: ``ToModelGridd`` has not been applied to the image, or the logits are of another size.
    """

    def __init__(self, keys: KeysCollection, source: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source = source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.source]
        target = source_grid(image)
        model = grid_of(image)
        for key in self.key_iterator(d):
            logits = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            if tuple(logits.shape[1:]) != model.shape:
                raise GeometryError(
                    f"{key} has {tuple(logits.shape[1:])} voxels, {self.source} {model.shape}: they must share a grid"
                )
            mask = mask_from_logits(logits, model, target)
            d[key] = MetaTensor(mask[None], affine=torch.as_tensor(target.affine), meta=_meta_without_affine(image))
        return d


class PlaceOnImaged(MapTransform):
    """Permute and flip the axes of label maps (1, X, Y, Z) to those of their image, without resampling.

    Headers that differ by less than a tenth of a voxel are treated as equal, with a warning.

    Args:
        keys: label maps with an affine.
        image: key of the image (1, X, Y, Z), on its own grid.
        allow_missing_keys: as in MONAI.

    Raises:
        GeometryError: a label map does not have the same voxels in the patient as the image.
    """

    def __init__(self, keys: KeysCollection, image: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image = image

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        target = grid_of(d[self.image])
        for key in self.key_iterator(d):
            label = d[key]
            names = " and ".join(str(item.meta.get("filename_or_obj", "")) for item in (d[self.image], label))
            values, affine = label.as_tensor()[0].cpu().numpy(), grid_of(label).affine
            placed = place_on(values, affine, target.shape, target.affine, names)
            if apart := little_apart(values.shape, affine, target.affine, names):
                logger.warning("%s", apart)
            values = torch.from_numpy(placed.copy(order="K"))[None]
            d[key] = MetaTensor(values, affine=torch.as_tensor(target.affine), meta=_meta_without_affine(label))
        return d


class SelectLabelsd(MapTransform):
    """Map label values to classes (uint8, same grid): ``[1, 2]`` is one class, ``[[1], [2]]`` are two.

    Classes are numbered from 1 in the order of the list; all other values become 0, the background.

    Args:
        keys: label maps (1, X, Y, Z) of integers.
        values: label values of one class, or lists of those of several classes.
        allow_missing_keys: as in MONAI.

    Raises:
        ConfigError: ``values`` is empty, mixes values and lists, or has a value twice.
    """

    def __init__(
        self, keys: KeysCollection, values: Sequence[int] | Sequence[Sequence[int]], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        lists = [isinstance(value, Sequence) for value in values]
        classes = [list(value) for value in values] if all(lists) else [list(values)]  # type: ignore[arg-type]
        chosen = [value for members in classes for value in members] if all(lists) or not any(lists) else []
        if not chosen or len(set(chosen)) < len(chosen) or 0 in chosen:
            raise ConfigError(
                f"label values must be a list, or lists, of different numbers, and 0 is background: got {list(values)}"
            )
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label = d[key]
            values = label.as_tensor()
            chosen = torch.zeros_like(values, dtype=torch.uint8)
            for number, members in enumerate(self.classes, start=1):
                chosen[torch.isin(values, torch.tensor(members, device=values.device))] = number
            d[key] = MetaTensor(chosen, affine=label.affine, meta=_meta_without_affine(label))
        return d


class KeepLargestConnectedComponentd(MapTransform):
    """Keep the largest connected component (26 neighbours) of each class map (1, X, Y, Z); an empty one stays empty.

    Args:
        keys: class maps.
        share: fraction of the voxels of the largest component from which others are kept too; 1 for only the largest.
        allow_missing_keys: as in MONAI.
    """

    def __init__(self, keys: KeysCollection, share: float = 1.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.share = share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            mask = d[key]
            keep_largest_component((mask.as_tensor() if isinstance(mask, MetaTensor) else mask)[0], self.share)
        return d


LargestComponentd = KeepLargestConnectedComponentd  # its name in bundles up to 0.7.0


class ClassMapd(MapTransform):
    """Convert logits (C, X, Y, Z) to a class map, uint8 (1, X, Y, Z), on the same grid.

    The class with the largest logit wins; C = 1 is the logit of the foreground.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = class_map(d[key])[None]
        return d


def _meta_without_affine(image: MetaTensor) -> dict[str, Any]:
    """Copy the metadata without the affine, for an image on another grid."""
    return {key: value for key, value in image.meta.items() if key != "affine"}
