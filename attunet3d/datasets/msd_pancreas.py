"""Find the cases of Task07_Pancreas, Medical Segmentation Decathlon (arXiv:1902.09063): labels 1 pancreas, 2 tumour."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    cases, refused = listed_cases(raw, "Task07_Pancreas", ("training",))
    metadata: dict[str, Any] = {**METADATA, "pancreas_labels": [[1], [2]] if tumour_class else [1, 2]}
    return RawData(raw, metadata, cases, frozenset({0, 1, 2}), refused=refused)


def listed_cases(raw: Path, folder: str, sections: Sequence[str]) -> tuple[list[RawCase], list[tuple[str, str]]]:
    """Return the cases of sections of ``dataset.json``, and names and reasons of those that cannot be used.

    Args:
        raw: the folder with dataset.json.
        folder: the usual name of that folder, for messages.
        sections: the first must have cases.

    Raises:
        InputNotFoundError: there is no dataset.json.
        ConfigError: it is not JSON, or lists no cases.
    """
    path = raw / "dataset.json"
    if not path.is_file():
        raise InputNotFoundError(f"{raw}: no dataset.json here; give the folder {folder}")
    content = read_datalist(path)
    cases, refused = [], []
    for section in sections:
        listed = content.get(section, [])
        if not isinstance(listed, list) or (not listed and section == sections[0]):
            raise ConfigError(f'{path}: lists no cases under "{section}"')
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
                ct, mask = (Path(os.path.normpath(raw / value)) for value in (image, label))
                cases.append(RawCase(name, ct, mask))
    return cases, refused


def _leads_outside(path: str) -> bool:
    drive, place = os.path.splitdrive(path)
    return bool(drive) or os.path.isabs(place) or os.path.normpath(place).split(os.sep)[0] == os.pardir
