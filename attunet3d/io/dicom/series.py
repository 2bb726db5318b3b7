"""Describe a DICOM series by its headers: kind of images, patients, and extent."""

import re
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from pydicom.uid import UID

from attunet3d.io.dicom.header import CT_IMAGE_STORAGE, ENHANCED_CT, SliceHeader
from attunet3d.io.slabs import MIN_SPACING_MM

# By storage class, the number that follows 1.2.840.10008.5.1.4.1.1; the longest match counts.
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KIND_OF_CLASS = {
    "7": "secondary capture",
    "11": "presentation state",
    "66": "raw data",
    "66.1": "registration",
    "66.2": "fiducials",
    "66.3": "registration",
    "66.4": "segmentation",
    "66.5": "segmentation",
    "66.6": "tractography",
    "66.7": "segmentation",
    "88": "structured report",
    "88.59": "key object selection",
    "88.67": "dose report",
    "88.68": "dose report",
    "88.73": "dose report",
    "104": "document",
    "481.2": "RT dose",
    "481.3": "RT structure set",
    "481.5": "RT plan",
}

# Words in the ImageType of derived CT images, as the standard and the scanners' makers write them: "MIP",
# "CT_SOM5 MIP", "MAX_IP", "PROJECTION IMAGE", "REFORMATTED". DERIVED alone may mean lossy compression.
_DERIVED = {
    "SUBTRACTION": "subtraction",
    "PERFUSION": "perfusion map",
    "CBF": "perfusion map",
    "CBV": "perfusion map",
    "MTT": "perfusion map",
    "TTP": "perfusion map",
    "CPR": "curved MPR",
    "CURVED": "curved MPR",
    "MINIP": "MinIP",
    "MIN": "MinIP",
    "MIP": "MIP",
    "MAX": "MIP",
    "PROJECTION": "projection",
    "MPR": "MPR",
    "MULTIPLANAR": "MPR",
    "REFORMATTED": "MPR",
    "VRT": "rendering",
    "VOLREN": "rendering",
    "RENDER": "rendering",
    "RENDERING": "rendering",
    "3D": "rendering",
}
_PAGES = ({"DOSE", "INFO"}, {"DOSE", "REPORT"}, {"PROT"})  # "DOSE_INFO", "CT_SOM5 PROT" (of the scan protocol)
# Kinds with values that are not HU, or positions that are not in the patient.
NO_CT = ("subtraction", "perfusion map", "curved MPR", "rendering")

AXIAL_COSINE = 0.8  # 37 degrees: gantries tilt by at most 30


@dataclass(frozen=True)
class Series:
    """The files of a series, or of a stack if a series holds several.

    Attributes:
        uid: SeriesInstanceUID, the first if a scan has several (see ``merge_scattered``). "1.2.3#2" is the second stack
            of 1.2.3, and "no-uid-1" the first series without UID.
        slices: headers of the images.
        damaged: DICOM files in the same folders whose header cannot be read.
        strays: images alone in their series, located where the next slice of this one would be.
        not_dicom: files in the same folders that are named like DICOM, but are not.
    """

    uid: str
    slices: tuple[SliceHeader, ...]
    damaged: tuple[Path, ...] = ()
    strays: tuple[SliceHeader, ...] = ()
    not_dicom: tuple[Path, ...] = ()

    @property
    def uids(self) -> set[str]:
        """The SeriesInstanceUIDs of the slices."""
        return {s.series_uid for s in self.slices} - {""}

    @property
    def description(self) -> str:
        return self.slices[0].description

    @property
    def modality(self) -> str:
        return self.slices[0].modality

    @property
    def folder(self) -> Path:
        return self.slices[0].path.parent

    @property
    def files(self) -> int:
        return len({s.path for s in self.slices})

    @cached_property
    def images(self) -> tuple[SliceHeader, ...]:
        """The slices without localizers; all slices if there are only localizers."""
        return tuple(s for s in self.slices if not s.is_localizer) or self.slices

    @cached_property
    def patients(self) -> int:
        """Number of patients, see ``patients_of``."""
        return patients_of(self.slices)

    @cached_property
    def is_ct(self) -> bool:
        """Whether these are CT images, not a report, segmentation, screenshot or another modality."""
        return all(
            s.sop_class in (CT_IMAGE_STORAGE, *ENHANCED_CT, "") and s.modality in ("CT", "") and s.rows > 0
            for s in self.slices
        ) and any(s.sop_class or s.modality for s in self.slices)

    @property
    def is_localizer(self) -> bool:
        return all(s.is_localizer for s in self.slices)

    @property
    def is_volume(self) -> bool:
        """Whether there are images at more than one position, unlike in bolus timing and dose pages."""
        if len(self.images) < 2:
            return self.images[0].frames > 1
        return not self.heights or self.extent >= MIN_SPACING_MM

    @property
    def extent(self) -> float:
        """Distance in mm from the first image to the last; 0 if unknown."""
        heights = self.heights
        return heights[-1] - heights[0] if heights else 0.0

    @property
    def is_original(self) -> bool:
        """Whether these are the scanner's slices, not derived: no MIP, reformat, screenshot or dose page."""
        return self.kind in ("CT", "CT multi-frame")

    @property
    def is_axial(self) -> bool:
        """Whether slices are axial, or of unknown orientation."""
        return any(s.normal is None or abs(s.normal[2]) >= AXIAL_COSINE for s in self.images)

    @cached_property
    def kind(self) -> str:
        """Kind of images: "CT", "CT localizer", "CT derived (MIP)", "MR", "dose report", ..."""
        modality = self.modality or "unknown modality"
        number = self.slices[0].sop_class.removeprefix(_STORAGE)
        for end in (number, number.rpartition(".")[0]):
            if end in _KIND_OF_CLASS:
                kind = _KIND_OF_CLASS[end]
                return f"{modality} {kind}" if kind == "secondary capture" else kind
        if self.is_localizer:
            return f"{modality} localizer"
        if self.is_ct:
            return self._kind_of_ct()
        if modality == "CT":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the UID may be malformed
                return f"CT objects of class {UID(self.slices[0].sop_class).name or 'unknown'}"
        return modality

    def _kind_of_ct(self) -> str:
        words = set.intersection(*(set(re.split("[^A-Z0-9]+", " ".join(s.image_type))) for s in self.images))
        if "SCREEN" in words:  # "SCREEN SAVE"
            return "CT secondary capture"
        if any(page <= words for page in _PAGES):
            return "CT dose report"
        if "DERIVED" in words:
            for word, name in _DERIVED.items():
                if word in words:
                    return f"CT derived ({name})"
        return "CT multi-frame" if self.slices[0].sop_class in ENHANCED_CT or self.slices[0].frames > 1 else "CT"

    def __str__(self) -> str:
        first, step = self.images[0], self._slice_step()
        parts = [f"{self.files} {'file' if self.files == 1 else 'files'}"]
        if first.rows and first.columns:
            parts.append(f"{first.columns} x {first.rows}")
        if step is not None:
            parts.append(f"every {step:.4g} mm")
        if self.description:
            parts.append(f'"{self.description}"')
        return f"{self.uid} ({', '.join(parts)})"

    @cached_property
    def heights(self) -> list[float]:
        """Positions of the images along the most common normal, ascending, mm; empty if unknown."""
        orientation = Counter(s.orientation for s in self.images).most_common(1)[0][0]
        normal = next(s.normal for s in self.images if s.orientation == orientation)
        if normal is None or any(s.position is None for s in self.images):
            return []
        return sorted(sum(n * p for n, p in zip(normal, s.position or (), strict=True)) for s in self.images)

    @cached_property
    def z_range(self) -> tuple[float, float] | None:
        """Lowest and highest point of the images along the patient's z axis, mm; None if unknown."""
        found: list[float] = []
        for s in self.images:
            if s.position is None or s.orientation is None or s.spacing is None:
                return None
            across = s.orientation[2] * s.spacing[1] * (s.columns - 1)
            down = s.orientation[5] * s.spacing[0] * (s.rows - 1)
            found += [s.position[2] + a + b for a in (0.0, across) for b in (0.0, down)]
        return min(found), max(found)

    def _slice_step(self) -> float | None:
        """Return the median slice spacing, mm; None if unknown."""
        steps = [b - a for a, b in pairwise(self.heights)]
        return statistics.median(steps) if steps else None


def patients_of(slices: Iterable[SliceHeader]) -> int:
    """Return the number of patients: different IDs or different names, whichever are more; missing ones are ignored."""
    ids, names = zip(*(s.patient for s in slices), strict=True)
    return max(len({*ids} - {""}), len({*names} - {""}))
