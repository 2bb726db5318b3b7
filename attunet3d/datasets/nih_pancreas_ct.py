"""NIH Pancreas-CT (The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2016.tNB1kqBU): DICOM, and labels as NIfTI.

The rows of the labels are in the reverse order of those of the DICOM images, and their headers do not match the DICOM
geometry. So a label is aligned with its CT by array index, in the orientation in which its surface follows edges of the
CT, and rewritten.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from attunet3d.datasets.prepare import RawData, labels_folder, pair_up, place_by_header
from attunet3d.errors import GeometryError, InputNotFoundError
from attunet3d.transforms.boxes import bounding_box

if TYPE_CHECKING:
    from attunet3d.io import Volume

METADATA = {
    "name": "NIH Pancreas-CT",
    "description": "Portal-venous abdominal CTs; The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2016.tNB1kqBU",
    "labels": {"0": "background", "1": "pancreas"},
    "modality": {"0": "CT"},
    "pancreas_labels": [1],
}
# According to the archive, which has withdrawn their images, but not their labels.
_SAME_SCAN = "the same scan as case 2, cropped slightly differently"
_LEFT_OUT = {"PANCREAS_0025": _SAME_SCAN, "PANCREAS_0070": _SAME_SCAN}

_CASE_FOLDER = re.compile(r"PANCREAS_(\d{4})")
_LABEL_FILE = re.compile(r"label(\d{4})\.nii(\.gz)?")

# Axes of a label's array that may be reversed: y is documented, and slices may be in either order. x is the same in
# both.
_FLIPS = {"y reversed": (1,), "as stored": (), "y and z reversed": (1, 2), "z reversed": (2,)}
# `edge_agreement` was 0.69 to 0.95 for masks of two CTs and eight phantoms in the right orientation, and -0.35 to 0.28
# in others.
MIN_AGREEMENT = 0.3
MIN_LEAD = 0.15
_EDGE_STEP = 2  # voxels
_EDGE_HU = (-150, 250)  # clipped, so that air and bone have no more weight than fat and vessels


def find_cases(raw: str | Path, output: str | Path, labels: str | Path | None = None) -> RawData:
    """Find the cases in ``raw``: DICOM folders ``PANCREAS_0001``, and label files ``label0001.nii.gz``.

    Args:
        raw: the data set.
        output: the datalist to write; labels that were corrected for it earlier are ignored.
        labels: folder of the labels, if not in ``raw``.

    Raises:
        InputNotFoundError: no such folder, or no such file, is found.
    """
    raw = Path(raw)
    corrected = os.path.abspath(labels_folder(output))
    cts = _by_case(raw, _CASE_FOLDER, corrected)
    files = _by_case(Path(labels) if labels is not None else raw, _LABEL_FILE, corrected)
    for found, what, where in ((cts, "folder PANCREAS_0001", raw), (files, "file label0001.nii.gz", labels or raw)):
        if not found:
            raise InputNotFoundError(f"{where}: no {what} or the like, at any depth; is this NIH Pancreas-CT?")
    left_out = [(name, reason) for name, reason in _LEFT_OUT.items() if cts.pop(name, []) + files.pop(name, [])]
    cases, refused = pair_up(cts, files, "move one away")
    return RawData(raw, METADATA, cases, frozenset({0, 1}), refused=refused, left_out=left_out, place=place_label)


def _by_case(root: Path, pattern: re.Pattern[str], skip: str) -> dict[str, list[Path]]:
    """Find folders and files at any depth by the pattern of their name, grouped by case; ``skip`` is not searched."""
    found: dict[str, list[Path]] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if os.path.abspath(os.path.join(folder, name)) != skip)
        for name in (*folders, *sorted(names)):
            if match := pattern.fullmatch(name):
                found.setdefault(f"PANCREAS_{match[1]}", []).append(Path(folder, name))
    return found


def place_label(ct: Volume, label: np.ndarray, affine: np.ndarray, file_name: str) -> tuple[np.ndarray, bool]:
    """Align a label with its CT: by its header, or by index in the orientation that fits the CT clearly better.

    Raises:
        GeometryError: the shapes differ, or no orientation is clearly best.
    """
    placed = True
    try:
        label, _ = place_by_header(ct, label, affine, file_name)
    except GeometryError:
        if label.shape != ct.array.shape:
            raise
        placed = False
    flipped = {name: np.flip(label, axes) for name, axes in _FLIPS.items()}
    agreement = {name: edge_agreement(ct.array, flipped[name] != 0) for name in _FLIPS}
    best, second, *_ = sorted(agreement, key=agreement.__getitem__, reverse=True)
    # The header may have been copied from the CT to a reversed array.
    if placed and agreement["as stored"] > agreement[best] - MIN_LEAD:
        return label, True
    if agreement[best] < max(MIN_AGREEMENT, agreement[second] + MIN_LEAD):
        found = ", ".join(f"{name} {value:.2f}" for name, value in agreement.items())
        raise GeometryError(
            f"{file_name}: in no orientation does the mask's edge clearly follow the CT ({found}; at least "
            f"{MIN_AGREEMENT} is needed, and {MIN_LEAD} more than the others); is it the label of this CT?"
        )
    return flipped[best], False


def edge_agreement(hu: np.ndarray, mask: np.ndarray) -> float:
    """Measure, from -1 to 1, how consistently a CT is brighter inside a mask's surface; 0 without an edge there.

    The enhanced pancreas is surrounded by fat. The measure is the sum of the steps in HU across the surface, along each
    axis, divided by the sum of their absolute values.
    """
    box = bounding_box(mask, _EDGE_STEP)
    if box is None:
        return 0.0
    clipped, inside = np.clip(hu[box], *_EDGE_HU).astype(np.int32), mask[box].astype(np.int32)
    net = total = 0
    for axis in range(3):
        a, b = ([slice(None)] * 3 for _ in range(2))
        a[axis], b[axis] = slice(_EDGE_STEP, None), slice(None, -_EDGE_STEP)
        # Steps into the mask are positive; pairs on one side of the surface count 0.
        up = (clipped[tuple(a)] - clipped[tuple(b)]) * (inside[tuple(a)] - inside[tuple(b)])
        net, total = net + int(up.sum()), total + int(np.abs(up).sum())
    return net / total if total else 0.0
