"""Intensity augmentation in HU that MONAI does not have: contrast phases."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from attunet3d.errors import ConfigError

# HU of soft tissue without contrast medium, and HU above which more contrast makes no difference to the network.
PLAIN_HU, BRIGHT_HU = 40.0, 300.0


class RandContrastPhased(RandomizableTransform, MapTransform):
    """Simulate another contrast phase: multiply HU above 40, attributed to iodine, by a random gain.

    HU below 40 do not change, and above 300 (calcium, bone) the change is constant, so the order of HU is preserved. A
    gain of 0 simulates a CT without contrast medium, 1 keeps the phase.

    Args:
        keys: images in HU.
        prob: share of images that are changed.
        gain: lowest and highest gain.

    Raises:
        ConfigError: ``gain`` is not a range of numbers from 0 on.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.3,
        gain: Sequence[float] = (0.4, 1.4),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(gain) != 2 or not 0 <= gain[0] <= gain[1]:
            raise ConfigError(f"gain must be two numbers, the lower first and none negative, got {gain}")
        self.gain = (float(gain[0]), float(gain[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            gain = self.R.uniform(*self.gain)
            for key in self.key_iterator(d):
                iodine = torch.clamp(d[key], PLAIN_HU, BRIGHT_HU) - PLAIN_HU
                d[key] = d[key] + (gain - 1) * iodine
        return d
