"""One numbering for the organs of all data sets, TotalSegmentator's, so that they can be trained on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attunet3d.transforms.labels import LabelValues

# Names as in "organs" of the preset `patients`, and in "labels" and "labelled" of datalists.
ORGANS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 5,
    "stomach": 6,
    "pancreas": 7,
    "right adrenal gland": 8,
    "left adrenal gland": 9,
    "oesophagus": 15,
    "small bowel": 18,
    "duodenum": 19,
    "colon": 20,
    "urinary bladder": 21,
    "prostate or uterus": 22,  # TotalSegmentator's prostate; AMOS22 has one value for both
    "aorta": 52,
    "inferior vena cava": 63,
    "portal and splenic veins": 64,
}
PANCREAS = ORGANS["pancreas"]


def metadata_of(names: Sequence[str]) -> dict[str, object]:
    """Return "labels", "modality" and "pancreas_labels" of a datalist whose labels have the numbers of ``ORGANS``."""
    numbers = sorted((ORGANS[name], name) for name in set(names))
    return {
        "labels": {"0": "background", **{str(number): name for number, name in numbers}},
        "modality": {"0": "CT"},
        "pancreas_labels": [PANCREAS],
    }


@dataclass(frozen=True)
class Renumbering:
    """New values for a label map.

    Attributes:
        values: meaning of the values in the file.
        numbers: new value of each value; all others become 0.
    """

    values: LabelValues
    numbers: Mapping[int, int]

    @staticmethod
    def by_names(names: Mapping[int, str]) -> Renumbering:
        """Make one for files with exactly these organs, by value; the names are those of ``ORGANS``."""
        pancreas = tuple(value for value, name in names.items() if name == "pancreas")
        numbers = {value: ORGANS[name] for value, name in names.items()}
        return Renumbering(LabelValues(pancreas, frozenset({0, *names})), numbers)

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """Return a label map, uint8 (X, Y, Z), with the new values."""
        table = np.zeros(256, np.uint8)
        table[list(self.numbers)] = list(self.numbers.values())
        return table[label]


def organs_in(values: Sequence[int]) -> list[str]:
    """Return the names of the organs among the values of a label map with the numbers of ``ORGANS``."""
    return [name for name, number in ORGANS.items() if number in values]
