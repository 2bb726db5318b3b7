"""Damaged CTs and label maps."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fuzz_inputs import write_inputs
from fuzz_mutations import Rng, mutate
from fuzz_target import Fault

from attunet3d.metrics.masks import score


class Images:
    """CTs in every format, segmented as ``attunet3d segment`` does; every other one with uneven slices allowed."""

    def __init__(self, originals: Path, sessions: tuple[Any, Any]) -> None:
        self._inputs = write_inputs(originals)
        self._sessions = sessions
        self.kinds = [f"images {name}{more}" for more in ("", ", uneven") for name in self._inputs]

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        source = self._source(kind)
        whole = source if source.is_dir() else source.parent
        shutil.copytree(whole, folder / "ct")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mutate(rng, folder / "ct" if source.is_dir() else folder / "ct" / source.name)

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        source = self._source(kind)
        path = folder / "ct" if source.is_dir() else folder / "ct" / source.name
        uneven = kind.endswith(", uneven")
        return segmented(self._sessions[uneven], path, folder / "output", uneven)

    def _source(self, kind: str) -> Path:
        return self._inputs[kind.removeprefix("images ").removesuffix(", uneven")]


class Labels:
    """Label maps, compared with a sound one as ``attunet3d score`` does."""

    kinds = ("labels nifti", "labels nifti gzip", "labels nrrd", "labels mha")

    def __init__(self, originals: Path) -> None:
        import SimpleITK as sitk

        mask = np.zeros((14, 12, 10), np.uint8)
        mask[4:9, 3:8, 2:7] = 1
        self._reference = originals / "reference.nii.gz"
        image = nib.Nifti1Image(mask, np.diag([2.0, 2.0, 3.0, 1.0]))
        self._sound = {}
        for kind, ending in zip(self.kinds, (".nii", ".nii.gz", ".nrrd", ".mha"), strict=True):
            (originals / kind).mkdir(parents=True)
            self._sound[kind] = path = originals / kind / f"label{ending}"
            if "nifti" in kind:
                nib.save(image, path)
            else:
                sitk.WriteImage(sitk.ReadImage(originals / "labels nifti" / "label.nii"), path)
        nib.save(image, self._reference)
        score(self._sound["labels nifti"], self._reference)  # what is imported once does not count

    def damage(self, kind: str, rng: Rng, folder: Path) -> None:
        """See ``Target``."""
        path = shutil.copy(self._sound[kind], folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mutate(rng, Path(path))

    def run(self, kind: str, folder: Path) -> str:
        """See ``Target``."""
        notes: list[str] = []
        found = score(folder / self._sound[kind].name, self._reference, warn=notes.append)
        if not (np.isnan(found["dice"]) or 0 <= found["dice"] <= 1):
            raise Fault(f"Dice {found['dice']}")
        return " ".join(notes)


def segmented(session: Any, path: Path, output: Path, uneven: bool = False) -> str:
    """Segment a CT alone in its output folder; gives the record's warnings.

    Raises what the case is refused with, and ``Fault`` for files that should not be there or are not as they should be.
    """
    from attunet3d.io.reader import open_ct

    (case,) = session.segment_all([path], output, names=["case"])
    left = sorted(p.name for p in output.iterdir()) if output.is_dir() else []
    if case.error is not None:
        if left:
            raise Fault(f"left behind: {left}") from case.error
        raise case.error
    if left != ["case_seg.json", "case_seg.nii.gz"]:
        raise Fault(f"files {left}")
    record = json.loads((output / "case_seg.json").read_text(encoding="utf-8"))
    shape = list(nib.load(output / "case_seg.nii.gz").shape)
    if not shape == record["geometry"]["shape"] == list(open_ct(path, allow_uneven=uneven).shape):
        raise Fault(f"mask of shape {shape}")
    return "".join(record["warnings"])
