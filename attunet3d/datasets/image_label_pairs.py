"""Find the CTs and label files in any folder, and pair them by their names."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from attunet3d.datasets.prepare import RawData, pair_up
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import case_name
from attunet3d.io.slabs import IMAGE_SUFFIXES

_LABEL_ENDINGS = ("_label", "_seg", "_mask", "_pancreas")
_NNUNET_CHANNEL = "_0000"

# Patterns of images and labels; the first layout in which both are found is used.
LAYOUTS = (
    (("images/*",), ("labels/*",)),
    (("imagesTr/*",), ("labelsTr/*",)),
    (("*",), tuple(f"*{ending}.*" for ending in _LABEL_ENDINGS)),
    (
        ("*/image", "*/image.*", "*/ct", "*/ct.*", "*/dicom"),
        ("*/label.*", "*/seg.*", "*/mask.*", "*/pancreas.*", "*/segmentations/pancreas.*"),
    ),
)


def find_cases(
    raw: str | Path,
    images: str | None = None,
    labels: str | None = None,
    pancreas_labels: Sequence[int] = (),
) -> RawData:
    """Find pairs of CT and label in ``raw``.

    Args:
        raw: the folder.
        images: folder or pattern of the CTs, such as ``*/ct.nii.gz``, relative to ``raw``; matching folders are DICOM
            series. Without it, and without ``labels``, common layouts are tried (``LAYOUTS``).
        labels: like ``images``, for the labels.
        pancreas_labels: label values of the pancreas, in files with other structures too. By default, the value of the
            pancreas is 1 and other values are refused.

    Raises:
        InputNotFoundError: there is no such folder, or no pair in it.
        ConfigError: only one of images and labels is given.
    """
    raw = Path(raw)
    if not raw.is_dir():
        raise InputNotFoundError(f"{raw}: no such folder")
    if (images is None) != (labels is None):
        raise ConfigError("images and labels go together: give both, or neither", arguments=("images", "labels"))
    layouts = LAYOUTS if images is None or labels is None else (((_pattern(raw, images),), (_pattern(raw, labels),)),)
    for image_patterns, label_patterns in layouts:
        masks = {path: name for path, name in _matching(raw, label_patterns).items() if not path.is_dir()}
        cts = {path: name for path, name in _matching(raw, image_patterns).items() if path not in masks}
        if cts and masks:
            break
    else:
        looked = "; ".join(f"{', '.join(a)} with {', '.join(b)}" for a, b in layouts)
        raise InputNotFoundError(
            f"{raw}: no CTs with labels (looked for {looked}); say where with images and labels",
            arguments=("images", "labels"),
        )
    labels_of = _by_name(masks, _LABEL_ENDINGS)
    # nnU-Net appends the channel to the name of an image; but a case may also be called 0000.
    named = {path: name if name in labels_of else name.removesuffix(_NNUNET_CHANNEL) for path, name in cts.items()}
    cases, refused = pair_up(_by_name(named), labels_of, "say which with images and labels", ("images", "labels"))
    values = sorted(set(pancreas_labels)) or [1]
    metadata = {
        "name": Path(os.path.abspath(raw)).name,
        "description": "CTs with labels of the pancreas",
        "labels": {"0": "background", **{str(value): "pancreas" for value in values}},
        "modality": {"0": "CT"},
        "pancreas_labels": values,
    }
    allowed = None if pancreas_labels else frozenset({0, 1})
    hint = "; say with pancreas_labels which are pancreas"
    return RawData(raw, metadata, cases, allowed, hint, ("pancreas_labels",), refused)


def _pattern(raw: Path, pattern: str) -> str:
    return os.path.join(glob.escape(pattern), "*") if (raw / pattern).is_dir() else pattern


def _matching(raw: Path, patterns: Sequence[str]) -> dict[Path, str]:
    """Return the matching image files and folders, except hidden ones, and the case name of each.

    The name is the part of the path that matches the last wildcard: for ``*/ct.nii.gz`` that of the folder.
    """
    found = {}
    for pattern in patterns:
        for match in sorted(glob.glob(os.path.join(glob.escape(str(raw)), pattern), recursive=True)):
            path = Path(match)
            if path.is_dir() or path.name.lower().endswith(IMAGE_SUFFIXES):
                parts = zip(reversed(path.parts), reversed(Path(pattern).parts), strict=False)
                found[path] = case_name(next((part for part, p in parts if "*" in p.removesuffix(".*")), path))
    return found


def _by_name(named: dict[Path, str], endings: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Group files by case name; ``endings`` are removed from the name."""
    found: dict[str, list[Path]] = {}
    for path, name in named.items():
        for ending in endings:
            name = name.removesuffix(ending)
        found.setdefault(name, []).append(path)
    return found
