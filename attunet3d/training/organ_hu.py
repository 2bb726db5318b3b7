"""Random HU for every organ: contrast phases, fluids and tissues of other patients, on the same anatomy."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional as F

from attunet3d.errors import ConfigError
from attunet3d.training.augmentation import BRIGHT_HU, PLAIN_HU

# Usual range of the mean HU of each organ: without contrast medium, in the arterial, and in the portal-venous phase.
PHASES = ("native", "arterial", "portal")
ORGAN_HU: dict[str, tuple[tuple[float, float], ...]] = {
    "pancreas": ((-10, 50), (80, 130), (65, 115)),
    "liver": ((20, 65), (50, 90), (80, 130)),
    "spleen": ((40, 55), (90, 160), (100, 145)),
    "right kidney": ((25, 45), (110, 210), (140, 220)),
    "left kidney": ((25, 45), (110, 210), (140, 220)),
    "gallbladder": ((-5, 25), (-5, 25), (-5, 25)),
    "aorta": ((30, 50), (220, 400), (120, 190)),
    "cava": ((30, 50), (40, 140), (90, 180)),
    "portal vein": ((30, 50), (50, 150), (130, 210)),
}
# Hollow organs: wall, fluid and gas are distinguished by HU.
HOLLOW = ("stomach", "duodenum", "bowel")
_GAS_HU = -300.0


class RandOrganHUd(RandomizableTransform, MapTransform):
    """Give every organ the HU of another patient, another contrast phase or none.

    A phase is drawn for the whole image, and for each organ a mean HU of that phase (in some images of any soft tissue,
    as in SynthSeg, Billot et al., Medical Image Analysis 86, 2023). Deviations from the mean of an organ (noise,
    vessels, edges) are scaled by a random factor. Fluid in hollow organs changes, and gas sometimes becomes fluid;
    unlabelled vessels are enhanced as in the phase; fat, muscle and bone change slightly. Smooth noise of a few HU is
    added to all soft tissue.

    Args:
        keys: images in HU.
        label_key: label map of classes, see ``organs``.
        organs: the organ of each class from 1 on, as named in ``ORGAN_HU`` or ``HOLLOW``; others keep their HU.
        prob: share of images that are changed.
        any_hu_prob: share of these whose organs have any HU of soft tissue.
        flat_prob: share of these without texture: homogeneous organs, fat and muscle, as in phantoms.

    Raises:
        ConfigError: ``organs`` is not a list of names.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: Hashable,
        organs: Sequence[str],
        prob: float = 0.8,
        any_hu_prob: float = 0.2,
        flat_prob: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if isinstance(organs, str) or not all(isinstance(name, str) for name in organs):
            raise ConfigError(f"organs must be the names of the classes from 1 on, got {organs!r}")
        self.label_key = label_key
        self.organs = tuple(organs)
        self.any_hu_prob = any_hu_prob
        self.flat_prob = flat_prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            label = d[self.label_key].long()
            for key in self.key_iterator(d):
                d[key] = self._changed(d[key], label)
        return d

    def _changed(self, image: Tensor, label: Tensor) -> Tensor:
        classes = len(self.organs) + 1
        tissue = (image > -150) & (image < BRIGHT_HU)
        counts = torch.bincount(label[tissue], minlength=classes)[:classes].clamp(min=1)
        means = torch.bincount(label[tissue], weights=image[tissue].double(), minlength=classes)[:classes] / counts
        phase = self.R.randint(len(PHASES))
        any_hu = self.R.random_sample() < self.any_hu_prob
        gain = {0: self.R.uniform(0.0, 0.1), 1: self.R.uniform(0.6, 1.8), 2: self.R.uniform(0.6, 1.3)}[phase]

        # In labelled organs new HU = shift + keep * HU; for the rest of the body see _other_tissue.
        keep, shift = np.ones(classes), np.zeros(classes)
        flat = self.R.random_sample() < self.flat_prob
        whole = self.R.uniform(0.0, 0.2) if flat else self.R.uniform(0.2, 1.2)
        hollow = []
        for number, name in enumerate(self.organs, start=1):
            if name in ORGAN_HU:
                low, high = (-20.0, 200.0) if any_hu else ORGAN_HU[name][phase]
                keep[number] = whole * self.R.uniform(0.8, 1.2)
                shift[number] = self.R.uniform(low, high) - keep[number] * float(means[number])
            elif name in HOLLOW:
                hollow.append(number)
                oral_contrast = self.R.uniform(50, 250) if self.R.random_sample() < 0.15 else 0.0
                shift[number] = self.R.normal(0.0, 20.0) + oral_contrast
        out = _other_tissue(_without_texture(image) if flat else image, gain, self.R)
        named = torch.zeros(classes, dtype=torch.bool)
        named[[n for n, name in enumerate(self.organs, start=1) if name in ORGAN_HU or name in HOLLOW]] = True
        linear = torch.from_numpy(shift).to(image)[label] + torch.from_numpy(keep).to(image)[label] * image
        out = torch.where(named[label], linear, out)
        for number in hollow:
            gas = (label == number) & (image < _GAS_HU)
            if self.R.random_sample() < 0.3:
                out[gas] = float(self.R.uniform(0, 60))
            else:
                out[gas] = image[gas]
        return out + self._soft_noise(image)

    def _soft_noise(self, image: Tensor) -> Tensor:
        """Draw smooth noise of a few HU in soft tissue (1, X, Y, Z)."""
        strength = float(self.R.uniform(0.0, 12.0))
        step = float(self.R.uniform(1.5, 6.0))
        points = [max(int(n / step), 2) for n in image.shape[1:]]
        noise = torch.from_numpy(self.R.normal(0.0, strength, (1, 1, *points)).astype(np.float32))
        soft = F.interpolate(noise, size=tuple(image.shape[1:]), mode="trilinear", align_corners=True)[0]
        return soft * ((image > -50) & (image < 250))


def _without_texture(image: Tensor) -> Tensor:
    """Replace soft tissue by fat of -100 HU and muscle of 50 HU, with smooth edges between them."""
    even = -100 + 150 * torch.clamp((image + 50) / 60, 0, 1)
    return torch.where((image > -180) & (image < 140), even, image)


def _other_tissue(image: Tensor, gain: float, random: np.random.RandomState) -> Tensor:
    """Change unlabelled tissue: HU of fat and muscle, and iodine times ``gain``."""
    iodine = torch.clamp(image, PLAIN_HU, BRIGHT_HU) - PLAIN_HU
    fat, muscle = float(random.uniform(-15, 15)), float(random.uniform(-12, 12))
    share = torch.clamp((image + 100) / 150, 0, 1)  # 0 in fat, 1 in muscle
    body = image > -200
    return image + body * (fat + (muscle - fat) * share + (gain - 1) * iodine)
