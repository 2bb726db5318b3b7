"""What DICOM headers say of a series: what kind of images it holds, whose, and which stacks share its UID."""

import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pydicom.uid import UID

from attunet3d.io.dicom_header import CT_IMAGE_STORAGE, ENHANCED_CT, SliceHeader

SAME_POSITION_MM = 0.01  # slices closer than this are images of the same place: no CT is that thin
SAME_COSINE = 1e-3  # 0.06 degrees: 0.4 mm at the edge of a 400 mm field, less than a voxel
SAME_SPACING = 1e-3  # relative

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
# "CT_SOM5 MIP", "MAX_IP", "PROJECTION IMAGE", "REFORMATTED". DERIVED alone says too little: compression does that too.
_DERIVED = {
    "MINIP": "MinIP",
    "MIN": "MinIP",
    "MIP": "MIP",
    "MAX": "MIP",
    "PROJECTION": "projection",
    "MPR": "MPR",
    "REFORMATTED": "MPR",
    "VRT": "rendering",
    "RENDER": "rendering",
}
_DOSE_PAGE = {"DOSE", "PROT"}  # "DOSE_INFO", "CT_SOM5 PROT" (a page of the scan protocol)

AXIAL_COSINE = 0.8  # 37 degrees: no gantry tilts by more than 30


@dataclass(frozen=True)
class Series:
    """The files of one series, or of one stack where a series holds several.

    `uid` is the SeriesInstanceUID; "1.2.3#2" is the second stack of 1.2.3, and "no-uid-1" is made up for files that
    carry none.
    """

    uid: str
    slices: tuple[SliceHeader, ...]
    damaged: tuple[Path, ...] = field(default=())  # DICOM files beside them whose header cannot be read

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

    @property
    def images(self) -> tuple[SliceHeader, ...]:
        """The slices without the localizers among them; the localizers where there is nothing else."""
        return tuple(s for s in self.slices if not s.is_localizer) or self.slices

    @property
    def patients(self) -> set[str]:
        """As many hashes as there are known patients in it: images without an ID count for none."""
        return {s.patient for s in self.slices if s.patient}

    @property
    def is_ct(self) -> bool:
        """Whether this holds CT images: not a report, a segmentation, a screenshot or another modality."""
        return all(
            s.sop_class in (CT_IMAGE_STORAGE, *ENHANCED_CT, "") and s.modality in ("CT", "") and s.rows > 0
            for s in self.slices
        ) and any(s.sop_class or s.modality for s in self.slices)

    @property
    def is_localizer(self) -> bool:
        return all(s.is_localizer for s in self.slices)

    @property
    def is_volume(self) -> bool:
        """Whether it has more than one image: a single one is a bolus timing or a dose page."""
        return len(self.slices) > 1 or self.slices[0].frames > 1

    @property
    def is_original(self) -> bool:
        """Whether these are the scanner's slices, and not made from them: no MIP, reformat, screenshot or dose page."""
        return self.kind in ("CT", "CT multi-frame")

    @property
    def is_axial(self) -> bool:
        """Whether slices lie across the body; so they are taken to do where the header does not say."""
        return any(s.normal is None or abs(s.normal[2]) >= AXIAL_COSINE for s in self.images)

    @property
    def kind(self) -> str:
        """What this is in plain words: "CT", "CT localizer", "CT derived (MIP)", "MR", "dose report", ..."""
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
        if _DOSE_PAGE & words:
            return "CT dose report"
        if "DERIVED" in words:
            for word, name in _DERIVED.items():
                if word in words:
                    return f"CT derived ({name})"
        return "CT multi-frame" if self.slices[0].sop_class in ENHANCED_CT or self.slices[0].frames > 1 else "CT"

    def __str__(self) -> str:
        first, step = self.images[0], self._slice_step()
        said = [f"{self.files} {'file' if self.files == 1 else 'files'}"]
        if first.rows and first.columns:
            said.append(f"{first.columns} x {first.rows}")
        if step is not None:
            said.append(f"every {step:.4g} mm")
        if self.description:
            said.append(f'"{self.description}"')
        return f"{self.uid} ({', '.join(said)})"

    def _slice_step(self) -> float | None:
        """Between most slices, mm; None where the headers do not say."""
        normal = self.images[0].normal
        positions = [s.position for s in self.images if s.position is not None]
        if normal is None or len(positions) < 2:
            return None
        places = sorted(sum(n * p for n, p in zip(normal, position, strict=True)) for position in positions)
        return statistics.median(b - a for a, b in pairwise(places))


def stacks(slices: Sequence[SliceHeader]) -> list[tuple[SliceHeader, ...]]:
    """The images of one series UID, apart where they are several stacks.

    Stacks differ in size, pixel spacing, orientation, frame of reference or StackID, or are acquisitions of the same
    places.
    Nothing is taken apart where that would leave a single image: it would pass for a stack of its own, and the other
    slices for a complete one. Localizers stay with an only stack and are apart from several.
    """
    images = [s for s in slices if not s.is_localizer]
    parts = [images]
    for same in (_same_size, _same_spacing, _same_orientation, _same_frame, _same_stack):
        parts = [group for part in parts for group in _apart(part, same)]
    parts = [group for part in parts for group in _acquisitions_apart(part)]
    if len(parts) == 1:
        return [tuple(slices)]
    localizers = tuple(s for s in slices if s.is_localizer)
    return [tuple(part) for part in parts] + ([localizers] if localizers else [])


def _apart(slices: list[SliceHeader], same: Callable[[SliceHeader, SliceHeader], bool]) -> list[list[SliceHeader]]:
    groups: list[list[SliceHeader]] = []
    for s in slices:
        for group in groups:
            if same(group[0], s):
                group.append(s)
                break
        else:
            groups.append([s])
    return groups if all(len(group) > 1 for group in groups) else [slices]


def _same_size(a: SliceHeader, b: SliceHeader) -> bool:
    return (a.rows, a.columns) == (b.rows, b.columns)


def _same_spacing(a: SliceHeader, b: SliceHeader) -> bool:
    if a.spacing is None or b.spacing is None:
        return a.spacing is b.spacing
    return all(abs(x - y) <= SAME_SPACING * abs(y) for x, y in zip(a.spacing, b.spacing, strict=True))


def _same_orientation(a: SliceHeader, b: SliceHeader) -> bool:
    if a.orientation is None or b.orientation is None:
        return a.orientation is b.orientation
    return all(abs(x - y) <= SAME_COSINE for x, y in zip(a.orientation, b.orientation, strict=True))


def _same_frame(a: SliceHeader, b: SliceHeader) -> bool:
    return a.frame_of_reference == b.frame_of_reference or not (a.frame_of_reference and b.frame_of_reference)


def _same_stack(a: SliceHeader, b: SliceHeader) -> bool:
    return a.stack == b.stack


def _acquisitions_apart(slices: list[SliceHeader]) -> list[list[SliceHeader]]:
    """A new stack begins with the acquisition that comes back to a place; one scan may be of many acquisitions."""
    by_number: dict[tuple[int, ...], list[SliceHeader]] = {}
    for s in slices:
        if not s.acquisition or s.position is None:
            return [slices]
        by_number.setdefault(s.acquisition, []).append(s)
    groups: list[list[SliceHeader]] = []
    taken: set[tuple[int, ...]] = set()
    for _, group in sorted(by_number.items()):
        places = {tuple(round(p / SAME_POSITION_MM) for p in s.position or ()) for s in group}
        if not groups or places & taken:
            groups.append([])
            taken = set()
        groups[-1] += group
        taken |= places
    return groups if all(len(group) > 1 for group in groups) else [slices]
