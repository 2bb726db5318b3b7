"""Phantoms whose label maps have another data set's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from attunet3d.datasets.numbering import ORGANS
from attunet3d.datasets.phantom import Phantom, make_phantom


def small_phantom(seed: int) -> Phantom:
    return make_phantom(seed, shape=(60, 56, 44), orientation="LPS")


def in_numbers_of(organs: Mapping[int, str], label: np.ndarray) -> np.ndarray:
    """Label map with the numbers of ``ORGANS`` -> the same organs by a data set's own numbers, without all others."""
    own = np.zeros_like(label)
    for value, name in organs.items():
        own[label == ORGANS[name]] = value
    return own


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
