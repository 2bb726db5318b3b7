"""Check that no case for validation or test is also used for training."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from attunet3d.errors import AttUNet3dError, ConfigError

logger = logging.getLogger(__name__)

_FIRST_SLICES = 8


def check_cases(training: Sequence[Mapping[str, Any]], held_out: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Check that no held-out CT is trained on, be it the same file by another path or link, or a copy.

    Training cases may be repeated. A label file of two CTs causes a warning. CTs of the same shape are compared by
    their first slices, and only read as a whole if these are equal.

    Args:
        training: cases {"image": path, "label": path}.
        held_out: cases for validation or test, by section.

    Raises:
        ConfigError: a held-out CT is trained on.
    """
    cases = [*training, *(case for cases in held_out.values() for case in cases)]
    image_of: dict[Hashable, str] = {}
    for image, label in dict.fromkeys((str(case["image"]), str(case["label"])) for case in cases):
        other = image_of.setdefault(_identity(label), image)
        if _identity(other) != _identity(image):
            logger.warning("%s: is the label of two CTs, %s and %s", label, other, image)
    trained = {_identity(case["image"]): str(case["image"]) for case in training}
    for section, section_cases in held_out.items():
        images = [str(case["image"]) for case in section_cases]
        for image in images:
            if _identity(image) in trained:
                raise _leak(image, section, trained[_identity(image)])
        for image, other in _same_voxels(images, list(trained.values())):
            raise _leak(image, section, other)


def voxel_digest(shape: Sequence[int], slabs: Iterable[np.ndarray]) -> bytes:
    """Hash voxels, so that copies match even with another name, compression, affine or data type."""
    digest = hashlib.sha256(repr(tuple(shape)).encode())
    for slab in slabs:
        digest.update(np.rint(slab.astype(np.float32)).tobytes())
    return digest.digest()


def _leak(image: str, section: str, other: str) -> ConfigError:
    twin = "" if image == other else f", as {other}"
    return ConfigError(
        f"{image}: is under {section} and also trained on{twin}, so its metrics would not hold for other patients; "
        "remove it from one of the two (to test whether a network overfits: validate_on_training=True)",
        arguments=("validate_on_training",),
    )


def _identity(path: str) -> Hashable:
    """Return a key that is the same for all paths, symbolic links and hard links to a file or folder."""
    try:
        state = os.stat(path)
    except OSError:  # reported, with a hint, when it is read
        return os.path.abspath(path)
    return state.st_dev, state.st_ino


def _same_voxels(images: Sequence[str], others: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Yield pairs of one of ``images`` and one of ``others`` that are the same CT."""
    found: dict[Hashable, str] = {}
    # From the cheapest to the most expensive, each only for those that the previous one could not distinguish.
    for key in (_shape, _start, _whole):
        one, other = _by(key, images), _by(key, others)
        common = {value for value in one.keys() & other.keys() if value is not None}
        images = [path for value in common for path in one[value]]
        others = [path for value in common for path in other[value]]
        found = {value: other[value][0] for value in common}
    return ((path, other) for value, other in found.items() for path in one[value])


def _by(key: Callable[[str], Hashable], paths: Sequence[str]) -> dict[Hashable, list[str]]:
    grouped: dict[Hashable, list[str]] = {}
    for path in paths:
        try:
            grouped.setdefault(key(path), []).append(path)
        except AttUNet3dError:  # reported when it is read as a whole
            continue
    return grouped


def _shape(path: str) -> Hashable:
    from attunet3d.io.reader import open_ct

    return open_ct(path).shape


def _start(path: str) -> Hashable:
    return _digest(path, _FIRST_SLICES)


def _whole(path: str) -> Hashable:
    return _digest(path, None)


def _digest(path: str, slices: int | None) -> bytes:
    from attunet3d.io.reader import open_ct

    image = open_ct(path)
    return voxel_digest(image.shape, islice(image.slabs, slices))
