"""What a label map may hold, and whether it can be the label of its CT: the checks of `prepare`, for every verb."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attunet3d.errors import ConfigError, UnsupportedImageError
from attunet3d.transforms.boxes import bounding_box

if TYPE_CHECKING:
    from pathlib import Path

# Pancreas, with its fat, vessels, cysts and tumours, in any phase; a few voxels of a mask may be gas or a metal stent.
BODY_HU = (-150, 300)
MIN_IN_BODY = 0.9
PLAUSIBLE_ML = (10.0, 300.0)
_MOST_LISTED = 12


@dataclass(frozen=True)
class LabelValues:
    """What the values of a label map mean.

    `pancreas` are those that count as pancreas; `allowed` is what may be in a file, None for anything. `cure` ends the
    message about another value ("{found}" in it stands for those that are not 0), `lack` that about a missing pancreas.
    """

    pancreas: tuple[int, ...]
    allowed: frozenset[int] | None
    cure: str = ""
    lack: str = ""

    @staticmethod
    def of(
        pancreas: Sequence[Any],
        organs: Mapping[str, Sequence[int]] | None = None,
        named: Iterable[int] = (),
        **cures: str,
    ) -> LabelValues:
        """The values of a label map whose pancreas is ``pancreas``: label values, or lists of them for several classes.

        Where those are 1, or 1 and 2, and so on, a file has nothing besides but what ``organs`` (label values by name)
        or ``named`` explain. Other values, as the 7 of TotalSegmentator, are one among those of other organs, which
        are not asked for.

        Raises:
            ConfigError: a value is no label value.
        """
        chosen = [value for entry in pancreas for value in (entry if isinstance(entry, Sequence) else [entry])]
        if not chosen or not all(type(value) is int and 1 <= value <= 255 for value in chosen):
            raise ConfigError(f"values that count as pancreas must be integers from 1 to 255, got {list(pancreas)}")
        alone = set(chosen) == set(range(1, len(set(chosen)) + 1))
        others = {value for values in (organs or {}).values() for value in values} | set(named)
        return LabelValues(tuple(chosen), frozenset({0, *chosen, *others}) if alone else None, **cures)


def check_values(path: str | Path, label: np.ndarray, values: LabelValues, may_lack: bool = False) -> list[str]:
    """Whether a label map (X, Y, Z) of integers holds what it should; what to say of it, if it does.

    Args:
        path: its file, for messages.
        label: uint8 (X, Y, Z).
        values: what its values mean.
        may_lack: it may be without any voxel of the pancreas, which is then said.

    Raises:
        UnsupportedImageError: a value that nothing explains, or no voxel of the pancreas.
    """
    found = values_in(label)
    if values.allowed is not None and not values.allowed.issuperset(found):
        expected = ", ".join(map(str, sorted(values.allowed)))
        cure = values.cure.replace("{found}", ",".join(str(value) for value in found if value))
        raise UnsupportedImageError(f"{path}: holds the values {_listed(found)}, not {expected}{cure}")
    if set(found).intersection(values.pancreas):
        return []
    wanted = " or ".join(map(str, values.pancreas))
    text = f"{path}: an empty mask: no voxel has the value {wanted}"
    if found != [0]:
        text += f"; it holds {_listed(found)}"
    if not may_lack:
        raise UnsupportedImageError(text + values.lack)
    return [text]


def values_in(label: np.ndarray) -> list[int]:
    """The values of a label map, uint8 (X, Y, Z), in order."""
    # Slice by slice: bincount widens what it counts to int64.
    counts = sum(np.bincount(label[:, :, k].ravel(order="K"), minlength=256) for k in range(label.shape[2]))
    return [int(value) for value in np.flatnonzero(counts)]


def check_place(path: str | Path, label: np.ndarray, hu: np.ndarray, values: LabelValues, voxel_ml: float) -> list[str]:
    """Whether a pancreas lies where one can lie; what to say of it, if it does.

    Args:
        path: the label's file, for messages.
        label: uint8 (X, Y, Z), with a voxel of the pancreas.
        hu: the CT, on the same voxels.
        values: what the label's values mean.
        voxel_ml: the volume of a voxel, mL.

    Raises:
        UnsupportedImageError: too much of it lies in air, lung or bone.
    """
    mask = np.isin(label, values.pancreas)
    share = share_in_body(hu, mask)
    if share < MIN_IN_BODY:
        low, high = BODY_HU
        raise UnsupportedImageError(
            f"{path}: {share:.0%} of the mask lies in tissue of {low} to {high} HU, expected at least "
            f"{MIN_IN_BODY:.0%}; is it the label of this CT?"
        )
    volume_ml = float(np.count_nonzero(mask) * voxel_ml)
    if PLAUSIBLE_ML[0] <= volume_ml <= PLAUSIBLE_ML[1]:
        return []
    return [f"pancreas of {volume_ml:.1f} mL; {PLAUSIBLE_ML[0]:g} to {PLAUSIBLE_ML[1]:g} mL are plausible"]


def share_in_body(hu: np.ndarray, mask: np.ndarray) -> float:
    """Share of a mask's voxels, from 0 to 1, with HU of the pancreas and its surroundings: not air, lung or bone.

    0 for an empty mask.
    """
    box = bounding_box(mask)
    if box is None:
        return 0.0
    inside = hu[box][mask[box]]
    return float(np.mean((inside >= BODY_HU[0]) & (inside <= BODY_HU[1])))


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:_MOST_LISTED]))
    return f"{shown}, ... ({len(values)} values)" if len(values) > _MOST_LISTED else shown
