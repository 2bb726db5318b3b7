"""Random patches of a case on the model grid, cropped and spatially augmented in a single resampling."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor, ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import ConfigError
from attunet3d.training.deformation import random_flow
from attunet3d.transforms.resample import AIR_HU

# HU above which a voxel is body: background patches are centred there.
_BODY_HU = -300
_TRIES = 20
# Voxels of the patch between control points of the flow.
_FLOW_STEP = 4


class RandPatchd(Randomizable, MapTransform):
    """Crop random patches of a case, near the organ or anywhere in the body, with random spatial augmentation.

    Rotation, zoom, deformation and flip are combined into one linear resampling of the part of the volume that the
    patch needs.

    Args:
        keys: images (1, X, Y, Z) in HU, and label maps (1, X, Y, Z).
        label_key: the key that is a label map; the organ is where it is not 0.
        patch_size: voxels, three.
        spacing: of the model grid, mm, three; rotations are rotations in mm.
        pos, neg: ratio of patches around a voxel of the organ to patches around any voxel of the body. The voxel of the
            organ lies in the middle half of the patch along each axis, or farther out at the border of the volume.
        num_samples: patches per case; the result is a list of that length.
        rotate: largest angle about each axis, radians.
        scale: largest zoom, as a fraction: 0.2 is 1/1.2 to 1.2 times the size. Each axis may differ by a quarter of it.
        elastic: standard deviation of the displacement, mm, of control points 32 mm apart, interpolated linearly.
        elastic_prob: share of patches with elastic deformation.
        flip_prob: share of patches mirrored left to right, with organs on the other side.
        num_classes: number of target classes, background included; higher classes of the label map are other organs,
            near which no patches are centred. None: all classes are targets.
        flow: pairs of point distance and standard deviation, mm; ``scales`` of ``random_flow``.
        organ_shift, organ_scale: of every organ of the label map, see ``random_flow``.
        flow_prob: share of patches with this deformation.
        cut_prob: share of patches in which the scan ends: air above or below a plane.

    Returns:
        Per item float32 images (1, *patch_size), air outside the volume, and uint8 labels (nearest voxel).

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: Hashable,
        patch_size: Sequence[int],
        spacing: Sequence[float],
        pos: float = 1.0,
        neg: float = 1.0,
        num_samples: int = 1,
        rotate: float = 0.0,
        scale: float = 0.0,
        elastic: float = 0.0,
        elastic_prob: float = 0.0,
        flip_prob: float = 0.0,
        num_classes: int | None = None,
        flow: Sequence[Sequence[float]] = (),
        organ_shift: float = 0.0,
        organ_scale: float = 0.0,
        flow_prob: float = 0.0,
        cut_prob: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise ConfigError(f"patch_size must be three numbers of voxels, got {patch_size}")
        if pos < 0 or neg < 0 or pos + neg == 0:
            raise ConfigError(f"pos and neg must not be negative, nor both 0, got {pos} and {neg}")
        if min(rotate, scale, elastic) < 0:
            raise ConfigError(f"rotate, scale and elastic must not be negative, got {rotate}, {scale} and {elastic}")
        if num_samples < 1:
            raise ConfigError(f"num_samples must be at least 1, got {num_samples}")
        if label_key not in self.keys or len(self.keys) < 2:
            raise ConfigError(f"label_key must be one of the keys, beside an image, got {label_key!r} of {self.keys}")
        self.label_key = label_key
        self.patch_size = tuple(int(n) for n in patch_size)
        self.spacing = np.array(ensure_tuple_rep(spacing, 3), dtype=np.float64)
        if self.spacing.min() <= 0:
            raise ConfigError(f"spacing must be positive, mm, got {spacing}")
        self.pos_share = pos / (pos + neg)
        self.num_samples = num_samples
        self.rotate = rotate
        self.scale = scale
        self.elastic = elastic
        self.elastic_prob = elastic_prob
        self.flip_prob = flip_prob
        self.num_classes = num_classes
        if not all(len(pair) == 2 and pair[0] > 0 and pair[1] >= 0 for pair in flow):
            raise ConfigError(f"flow must be pairs of a distance and a standard deviation, mm, got {flow}")
        if min(organ_shift, organ_scale) < 0:
            raise ConfigError(f"organ_shift and organ_scale must not be negative, got {organ_shift}, {organ_scale}")
        self.flow = [(float(distance), float(deviation)) for distance, deviation in flow]
        self.organ_shift = organ_shift
        self.organ_scale = organ_scale
        self.flow_prob = flow_prob
        self.cut_prob = cut_prob

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        label = data[self.label_key].flatten()
        target = label if self.num_classes is None else (label > 0) & (label < self.num_classes)
        organ = torch.nonzero(target, as_tuple=True)[0].numpy()
        return [self._patch(data, organ) for _ in range(self.num_samples)]

    def _patch(self, data: Mapping[Hashable, Any], organ: np.ndarray) -> dict[Hashable, Any]:
        label = data[self.label_key]
        shape = np.array(label.shape[1:])
        centre = self._centre(data, organ, shape)
        motion = self._motion()
        bend = self._bend()
        flow = self._flow(convert_to_tensor(label, track_meta=False)[0], centre, motion)
        if flow is not None:
            bend = flow if bend is None else flow + _resized(bend, flow.shape[1:])
        cut = self._cut()
        out = dict(data)
        for key in self.key_iterator(out):
            volume = convert_to_tensor(data[key], track_meta=False)[0]
            nearest = key == self.label_key
            patch = _sample(volume, self.patch_size, centre, motion, bend, nearest)
            if cut is not None:
                patch[:, :, cut] = 0 if nearest else AIR_HU
            out[key] = patch[None]
        return out

    def _centre(self, data: Mapping[Hashable, Any], organ: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Draw the centre of the patch, so that the patch lies in the volume if possible."""
        patch = np.array(self.patch_size)
        if self.R.random_sample() < self.pos_share and len(organ):
            voxel = np.array(np.unravel_index(organ[self.R.randint(len(organ))], shape))
            centre = voxel + self.R.uniform(-0.25, 0.25, 3) * patch
        else:
            centre = self._somewhere_in_the_body(data, shape)
        lowest, highest = (patch - 1) / 2, shape - 1 - (patch - 1) / 2
        inside = np.clip(centre, np.minimum(lowest, highest), np.maximum(lowest, highest))
        return np.where(lowest > highest, (shape - 1) / 2, inside)

    def _somewhere_in_the_body(self, data: Mapping[Hashable, Any], shape: np.ndarray) -> np.ndarray:
        image = next(data[key] for key in self.keys if key != self.label_key)
        for _ in range(_TRIES):
            voxel = self.R.randint(0, shape)
            if float(image[0][tuple(voxel)]) > _BODY_HU:
                break
        return voxel

    def _motion(self) -> np.ndarray:
        """Draw a matrix (3, 3) from voxels of the patch to voxels of the volume: rotation, zoom and flip in mm."""
        x, y, z = self.R.uniform(-self.rotate, self.rotate, 3)
        flip = -1.0 if self.R.random_sample() < self.flip_prob else 1.0
        whole = self.R.uniform(-1, 1)
        zoom = (1 + self.scale) ** (whole + 0.25 * self.R.uniform(-1, 1, 3))
        turn = _rotation(0, x) @ _rotation(1, y) @ _rotation(2, z)
        return np.diag(1 / self.spacing) @ turn @ np.diag(zoom * self.spacing * [flip, 1.0, 1.0])

    def _bend(self) -> Tensor | None:
        """Draw the displacement in voxels of control points (3, x, y, z) from edge to edge of the patch, or None."""
        if self.R.random_sample() >= self.elastic_prob or self.elastic == 0:
            return None
        points = np.maximum(np.rint(np.array(self.patch_size) * self.spacing / 32), 2).astype(int) + 1
        moves = self.R.normal(0.0, self.elastic, (3, *points)) / self.spacing[:, None, None, None]
        return torch.from_numpy(moves.astype(np.float32))

    def _flow(self, label: Tensor, centre: np.ndarray, motion: np.ndarray) -> Tensor | None:
        """Draw the displacement in the volume, voxels, of points (3, x, y, z) four patch voxels apart, or None."""
        if self.flow_prob == 0 or self.R.random_sample() >= self.flow_prob:
            return None
        size = np.array(self.patch_size)
        points = np.maximum(-(-size // _FLOW_STEP), 2)
        step = (size - 1) / (points - 1)  # voxels of the patch; the outermost points are on its edges
        organs = None
        if self.organ_shift > 0 or self.organ_scale > 0:
            organs = _sample(label, tuple(points.tolist()), centre, motion * step, None, nearest=True)
        flow = random_flow(
            self.R, points.tolist(), step * self.spacing, self.flow, organs, self.organ_shift, self.organ_scale
        )
        turn = torch.from_numpy((motion / self.spacing).astype(np.float32))
        return torch.einsum("ij,jxyz->ixyz", turn, flow)

    def _cut(self) -> slice | None:
        """Draw the planes of the patch beyond the end of the scan, at most half of it, or None."""
        if self.cut_prob == 0 or self.R.random_sample() >= self.cut_prob:
            return None
        planes = self.patch_size[2]
        lost = 1 + self.R.randint(max(planes // 2, 1))
        return slice(0, lost) if self.R.random_sample() < 0.5 else slice(planes - lost, planes)


def _resized(bend: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(bend[None], size=tuple(shape), mode="trilinear", align_corners=True)[0]


def _sample(
    volume: Tensor,
    size: tuple[int, ...],
    centre: np.ndarray,
    motion: np.ndarray,
    bend: Tensor | None,
    nearest: bool,
) -> Tensor:
    """Sample a patch (*size) of a volume (X, Y, Z): voxel o of the patch is at centre + motion @ (o - middle)."""
    middle = (np.array(size) - 1) / 2
    shift = centre - motion @ middle
    reach = [0.0, 0.0, 0.0] if bend is None else [float(b.abs().max()) for b in bend]
    corners = _corners(shift, motion, size)
    first = np.floor(corners.min(axis=1) - reach).astype(int)
    last = np.ceil(corners.max(axis=1) + reach).astype(int) + 1
    inside = [slice(max(a, 0), min(b, n)) for a, b, n in zip(first, last, volume.shape, strict=True)]
    background = 0.0 if nearest else AIR_HU
    box = volume[inside[0], inside[1], inside[2]].to(torch.float32) - background  # grid_sample pads with 0
    if 1 in box.shape:  # along an axis of one voxel grid_sample does not pad: add a plane
        box = F.pad(box, [pad for n in reversed(box.shape) for pad in (0, int(n == 1))])
    # grid_sample takes positions in reverse order of axes, -1 and 1 at the centres of the outermost voxels.
    n = np.array(box.shape)
    unit = 2 / (n - 1)
    start = np.array([side.start for side in inside])
    axes = [torch.arange(m, dtype=torch.float32) for m in size]
    moves = None
    if bend is not None:
        moves = F.interpolate(bend[None], size=size, mode="trilinear", align_corners=True)[0]
    positions = torch.empty((*size, 3))
    for axis in range(3):
        row = motion[axis] * unit[axis]
        offset = (shift[axis] - start[axis]) * unit[axis] - 1
        position = positions[..., 2 - axis]
        position.copy_((float(row[0]) * axes[0] + float(offset))[:, None, None])
        position += (float(row[1]) * axes[1])[None, :, None]
        position += (float(row[2]) * axes[2])[None, None, :]
        if moves is not None:
            position.add_(moves[axis], alpha=float(unit[axis]))
    mode = "nearest" if nearest else "bilinear"
    patch = F.grid_sample(box[None, None], positions[None], mode=mode, padding_mode="zeros", align_corners=True)[0, 0]
    return patch.to(torch.uint8) if nearest else patch + background


def _corners(shift: np.ndarray, motion: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the positions (3, 8) of the corners of the patch in the volume."""
    ends = [(0, n - 1) for n in size]
    steps = np.array([(x, y, z) for x in ends[0] for y in ends[1] for z in ends[2]], dtype=np.float64)
    return shift[:, None] + motion @ steps.T


def _rotation(axis: int, angle: float) -> np.ndarray:
    a, b = [other for other in range(3) if other != axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn
