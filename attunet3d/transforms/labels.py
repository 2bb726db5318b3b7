"""Check label maps: their values, and whether they fit their CT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attunet3d.errors import ConfigError, UnsupportedImageError
from attunet3d.transforms.boxes import bounding_box

if TYPE_CHECKING:
    from pathlib import Path

# Pancreas, with its fat, vessels, cysts and tumours, in any phase; some voxels may be gas or a metal stent.
BODY_HU = (-150, 300)
_MIN_IN_BODY = 0.9
_PLAUSIBLE_ML = (10.0, 300.0)
_MOST_LISTED = 12


@dataclass(frozen=True)
class LabelValues:
    """The meaning of the values of a label map.

    Attributes:
        pancreas: values of the pancreas.
        allowed: values that a file may contain; None for any.
        hint: end of the error message about other values; "{found}" in it is replaced by the values found, except 0.
        lack: end of the error message about a missing pancreas.
        arguments: arguments named in ``hint`` and ``lack``.
    """

    pancreas: tuple[int, ...]
    allowed: frozenset[int] | None
    hint: str = ""
    lack: str = ""
    arguments: tuple[str, ...] = ()

    @staticmethod
    def of(
        pancreas: Sequence[Any],
        organs: Mapping[str, Sequence[int]] | None = None,
        named: Iterable[int] = (),
        hint: str = "",
        lack: str = "",
    ) -> LabelValues:
        """Derive the meaning of all values from those of the pancreas.

        If these are 1, or 1 and 2, and so on, a file may contain no other values than those of ``organs`` and
        ``named``. Otherwise, as with TotalSegmentator's 7, it may contain any organs.

        Args:
            pancreas: label values, or lists of them for several classes.
            organs: label values of other organs, by name.
            named: values of other structures.
            hint, lack: see ``LabelValues``.

        Raises:
            ConfigError: a value of the pancreas is not an integer from 1 to 255.
        """
        chosen = [value for entry in pancreas for value in (entry if isinstance(entry, Sequence) else [entry])]
        if not chosen or not all(type(value) is int and 1 <= value <= 255 for value in chosen):
            raise ConfigError(f"values that count as pancreas must be integers from 1 to 255, got {list(pancreas)}")
        only_pancreas = set(chosen) == set(range(1, len(set(chosen)) + 1))
        others = {value for values in (organs or {}).values() for value in values} | set(named)
        return LabelValues(tuple(chosen), frozenset({0, *chosen, *others}) if only_pancreas else None, hint, lack)


def check_values(path: str | Path, label: np.ndarray, values: LabelValues, may_lack: bool = False) -> list[str]:
    """Check the values of a label map.

    Args:
        path: file of the label map, for messages.
        label: uint8 (X, Y, Z).
        values: the meaning of the values.
        may_lack: return a warning, instead of raising, if no voxel is pancreas.

    Returns:
        Warnings.

    Raises:
        UnsupportedImageError: the label map has an unexpected value, or no pancreas.
    """
    found = values_in(label)
    if values.allowed is not None and not values.allowed.issuperset(found):
        expected = ", ".join(map(str, sorted(values.allowed)))
        hint = values.hint.replace("{found}", ",".join(str(value) for value in found if value))
        message = f"{path}: holds the values {_listed(found)}, not {expected}{hint}"
        raise UnsupportedImageError(message, arguments=values.arguments)
    if set(found).intersection(values.pancreas):
        return []
    wanted = " or ".join(map(str, values.pancreas))
    text = f"{path}: an empty mask: no voxel has the value {wanted}"
    if found != [0]:
        text += f"; it holds {_listed(found)}"
    if not may_lack:
        raise UnsupportedImageError(text + values.lack, arguments=values.arguments)
    return [text]


def values_in(label: np.ndarray) -> list[int]:
    """Return the values of a label map, uint8 (X, Y, Z), in ascending order."""
    # Slice by slice: bincount converts its input to int64.
    counts = sum(np.bincount(label[:, :, k].ravel(order="K"), minlength=256) for k in range(label.shape[2]))
    return [int(value) for value in np.flatnonzero(counts)]


def check_place(path: str | Path, label: np.ndarray, hu: np.ndarray, values: LabelValues, voxel_ml: float) -> list[str]:
    """Check whether the pancreas of a label map is plausible in its CT.

    Args:
        path: file of the label map, for messages.
        label: uint8 (X, Y, Z), not without pancreas.
        hu: HU of the CT (X, Y, Z), on the same voxels.
        values: the meaning of the values.
        voxel_ml: volume of a voxel, mL.

    Returns:
        Warnings.

    Raises:
        UnsupportedImageError: too much of the pancreas is in air, lung or bone.
    """
    mask = np.isin(label, values.pancreas)
    share = share_in_body(hu, mask)
    if share < _MIN_IN_BODY:
        low, high = BODY_HU
        raise UnsupportedImageError(
            f"{path}: {share:.0%} of the mask lies in tissue of {low} to {high} HU, expected at least "
            f"{_MIN_IN_BODY:.0%}; is it the label of this CT?"
        )
    volume_ml = float(np.count_nonzero(mask) * voxel_ml)
    if _PLAUSIBLE_ML[0] <= volume_ml <= _PLAUSIBLE_ML[1]:
        return []
    return [f"pancreas of {volume_ml:.1f} mL; {_PLAUSIBLE_ML[0]:g} to {_PLAUSIBLE_ML[1]:g} mL are plausible"]


def share_in_body(hu: np.ndarray, mask: np.ndarray) -> float:
    """Return the fraction of a mask's voxels with HU of soft tissue or fat, not air, lung or bone; 0 if it is empty."""
    box = bounding_box(mask)
    if box is None:
        return 0.0
    inside = hu[box][mask[box]]
    return float(np.mean((inside >= BODY_HU[0]) & (inside <= BODY_HU[1])))


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:_MOST_LISTED]))
    return f"{shown}, ... ({len(values)} values)" if len(values) > _MOST_LISTED else shown
