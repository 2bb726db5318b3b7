"""BTCV (MICCAI 2015, Multi-Atlas Labeling Beyond the Cranial Vault; Synapse syn3193805): NIfTI, thirteen organs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from attunet3d.datasets.numbering import Renumbering, metadata_of
from attunet3d.datasets.prepare import RawData, pair_up
from attunet3d.errors import InputNotFoundError

ORGANS = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "oesophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "portal and splenic veins",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}
METADATA = {
    "name": "BTCV",
    "description": "Portal-venous abdominal CTs with thirteen organs; MICCAI 2015 Multi-Atlas Labeling Beyond the "
    "Cranial Vault, Synapse syn3193805",
    **metadata_of(list(ORGANS.values())),
}
# Where img and label are in what Synapse unpacks to.
PLACES = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")


def find_cases(raw: str | Path) -> RawData:
    """Find the cases in ``img`` and ``label``; those of the folder Testing beside them have no labels.

    Args:
        raw: the folder with img and label, or one above it: Training, RawData or Abdomen.

    Raises:
        InputNotFoundError: there are no such folders, or nothing in them.
    """
    training = next((path for path in (Path(raw, place) for place in PLACES) if _is_complete(path)), None)
    if training is None:
        raise InputNotFoundError(f"{raw}: no folders img and label here or in RawData/Training; is this BTCV?")
    images, labels = _by_case(training / "img", "img"), _by_case(training / "label", "label")
    if not images or not labels:
        raise InputNotFoundError(f"{training}: no img/img0001.nii.gz and label/label0001.nii.gz or the like")
    cases, refused = pair_up(images, labels, "move one away")
    renumber = Renumbering.by_names(ORGANS)
    testing = _by_case(training.parent / "Testing" / "img", "img")
    return RawData(
        Path(raw),
        METADATA,
        [replace(case, renumber=renumber) for case in cases],
        None,
        refused=refused,
        left_out=[(name, f"{paths[0]}: has no label, as all of Testing") for name, paths in sorted(testing.items())],
    )


def _is_complete(folder: Path) -> bool:
    return (folder / "img").is_dir() and (folder / "label").is_dir()


def _by_case(folder: Path, start: str) -> dict[str, list[Path]]:
    """Return the files in a folder, if it exists, that are called img0001.nii.gz or label0001.nii.gz, by case."""
    pattern = re.compile(rf"{start}(\d{{4}})\.nii(\.gz)?", re.IGNORECASE)
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if match := pattern.fullmatch(path.name):
            found.setdefault(f"btcv_{match[1]}", []).append(path)
    return found
