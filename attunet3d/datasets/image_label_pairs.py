"""Any folder of CTs and label files that belong together by their names."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from attunet3d.datasets.prepare import RawData, pair_up
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import case_name
from attunet3d.io.slabs import IMAGE_SUFFIXES

LABEL_ENDINGS = ("_label", "_seg", "_mask", "_pancreas")
NNUNET_CHANNEL = "_0000"

# Images and labels, in the order in which they are looked for; the first layout that has both is taken.
LAYOUTS = (
    (("images/*",), ("labels/*",)),
    (("imagesTr/*",), ("labelsTr/*",)),
    (("*",), tuple(f"*{ending}.*" for ending in LABEL_ENDINGS)),
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
    """Pairs of CT and label below ``raw``.

    Args:
        raw: the folder.
        images: folder, or pattern such as ``*/ct.nii.gz``, of the CTs, relative to ``raw``; folders are DICOM series.
            Without it, and without ``labels``, the common layouts are tried (``LAYOUTS``).
        labels: the same for the labels.
        pancreas_labels: values that count as pancreas, whatever else a label holds; without them 1 does, and nothing
            else may be in a label.

    Raises:
        InputNotFoundError: there is no such folder, or nothing in it.
        ConfigError: of images and labels, only one is given.
    """
    raw = Path(raw)
    if not raw.is_dir():
        raise InputNotFoundError(f"{raw}: no such folder")
    if (images is None) != (labels is None):
        raise ConfigError("--images and --labels go together: give both, or neither")
    layouts = LAYOUTS if images is None or labels is None else (((_pattern(raw, images),), (_pattern(raw, labels),)),)
    for image_patterns, label_patterns in layouts:
        masks = {path: name for path, name in _matching(raw, label_patterns).items() if not path.is_dir()}
        cts = {path: name for path, name in _matching(raw, image_patterns).items() if path not in masks}
        if cts and masks:
            break
    else:
        looked = "; ".join(f"{', '.join(a)} with {', '.join(b)}" for a, b in layouts)
        raise InputNotFoundError(f"{raw}: no CTs with labels (looked for {looked}); say where with --images, --labels")
    labels_of = _by_name(masks, LABEL_ENDINGS)
    # nnU-Net names the channel of an image; but a case may as well have the number 0000.
    named = {path: name if name in labels_of else name.removesuffix(NNUNET_CHANNEL) for path, name in cts.items()}
    cases, refused = pair_up(_by_name(named), labels_of, "say which with --images and --labels")
    values = sorted(set(pancreas_labels)) or [1]
    metadata = {
        "name": Path(os.path.abspath(raw)).name,
        "description": "CTs with labels of the pancreas",
        "labels": {"0": "background", **{str(value): "pancreas" for value in values}},
        "modality": {"0": "CT"},
        "pancreas_labels": values,
    }
    allowed = None if pancreas_labels else frozenset({0, 1})
    return RawData(raw, metadata, cases, allowed, "; say which are pancreas with --pancreas-label", refused)


def _pattern(raw: Path, pattern: str) -> str:
    return os.path.join(glob.escape(pattern), "*") if (raw / pattern).is_dir() else pattern


def _matching(raw: Path, patterns: Sequence[str]) -> dict[Path, str]:
    """Image files and folders, without hidden ones, and the name of each: what the last wildcard stands for.

    So the cases of ``*/ct.nii.gz`` are called as their folders.
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
    """The files of each case; ``endings`` do not belong to its name."""
    found: dict[str, list[Path]] = {}
    for path, name in named.items():
        for ending in endings:
            name = name.removesuffix(ending)
        found.setdefault(name, []).append(path)
    return found
