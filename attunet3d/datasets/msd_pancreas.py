"""Find the cases of Task07_Pancreas, Medical Segmentation Decathlon (arXiv:1902.09063): labels 1 pancreas, 2 tumour."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attunet3d.datasets.datalist import read_datalist
from attunet3d.datasets.prepare import RawCase, RawData
from attunet3d.errors import ConfigError, InputNotFoundError
from attunet3d.io import case_name
from attunet3d.io.paths import path_as_listed

METADATA = {
    "name": "MSD Task07 Pancreas",
    "description": "Portal-venous CTs of patients with pancreatic masses; Medical Segmentation Decathlon, "
    "arXiv:1902.09063",
    "labels": {"0": "background", "1": "pancreas", "2": "tumour"},
    "modality": {"0": "CT"},
}


def find_cases(raw: str | Path, tumour_class: bool = False) -> RawData:
    """Find the training cases of ``dataset.json``; those without labels (imagesTs) are ignored.

    Args:
        raw: the folder with dataset.json, imagesTr and labelsTr.
        tumour_class: make the tumour a separate class; otherwise it counts as pancreas.

    Raises:
        InputNotFoundError: the folder has no dataset.json.
        ConfigError: it is not JSON, or lists no cases.
    """
    raw = Path(raw)
    path = raw / "dataset.json"
    if not path.is_file():
        raise InputNotFoundError(f"{raw}: no dataset.json here; give the folder Task07_Pancreas")
    listed = read_datalist(path).get("training")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f'{path}: lists no cases under "training"')
    cases, refused = [], []
    for number, entry in enumerate(listed):
        paths = [entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label")]
        image, label = (path_as_listed(raw, value) if isinstance(value, str) else "" for value in paths)
        name = case_name(image) if image else f"case {number} of dataset.json"
        if os.path.basename(image).startswith("._"):
            continue  # macOS writes one beside each file of the archive
        if not image or not label:
            refused.append((name, f"{path}: lacks the path of its image or label"))
        elif outside := [value for value in (image, label) if _leads_outside(value)]:
            refused.append((name, f"{path}: names {outside[0]}, which is not in {raw}"))
        else:
            cases.append(RawCase(name, *(Path(os.path.normpath(raw / value)) for value in (image, label))))
    metadata: dict[str, Any] = {**METADATA, "pancreas_labels": [[1], [2]] if tumour_class else [1, 2]}
    return RawData(raw, metadata, cases, frozenset({0, 1, 2}), refused=refused)


def _leads_outside(path: str) -> bool:
    drive, place = os.path.splitdrive(path)
    return bool(drive) or os.path.isabs(place) or os.path.normpath(place).split(os.sep)[0] == os.pardir
