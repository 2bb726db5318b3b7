"""Read the header of a DICOM file: a ``SliceHeader`` for its image, or for each of its frames.

DICOM uses LPS+ mm and (row, column).
"""

import hashlib
import math
import re
import secrets
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag, Tag

from attunet3d.io.dicom.guard import dcmread
from attunet3d.io.printable import printable_start

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced, legacy converted enhanced
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR

# Fields that distinguish scans of the same positions, in the order in which they are tried, see stacks.py. "stack" and
# "instance" occur in multi-frame files only.
_MARKS_IN_FILES = (
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "ImageType",
    "SeriesNumber",
    "ConvolutionKernel",
    "SliceThickness",
    "AcquisitionNumber",
    "KVP",
    "TriggerTime",
    "AcquisitionTime",
)
MARKS = ("stack", "instance", *_MARKS_IN_FILES)

# The header scan parses these and skips the rest. Of ID and name of the patient it only keeps keyed hashes, which
# distinguish patients and are useless elsewhere.
HEADER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "Modality",
    "SeriesDescription",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "FrameOfReferenceUID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "LossyImageCompression",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *_MARKS_IN_FILES,
)
# For these VRs the bytes are the text, if they are ASCII without inner padding and character set switches: pydicom's
# conversion would take most of the scan's time.
_TEXT = ("CS", "DS", "IS", "LO", "PN", "SH", "TM", "UI")
_PADDING_INSIDE = re.compile(r"^ | \\|\\ ")
_HASH_KEY = secrets.token_bytes(16)

_MOST = 1e9  # limit for all numbers
MOST_CHARACTERS = 64  # limit for UIDs and all other texts


@dataclass(frozen=True)
class SliceHeader:
    """Fields of the header of a DICOM file, or of a frame in it; None or empty if missing.

    Lengths are in LPS+ mm. Texts are made printable, since messages and records quote them.
    """

    path: Path
    sop_class: str
    sop_instance: str
    series_uid: str
    study_uid: str
    series_number: str
    # Keyed hashes of ID and name, only for comparison: they differ in each run.
    patient: tuple[str, str] = field(repr=False)
    modality: str
    image_type: tuple[str, ...]
    description: str
    rows: int
    columns: int
    spacing: tuple[float, ...] | None  # between rows, between columns
    orientation: tuple[float, ...] | None  # direction of increasing column index, then of increasing row index
    position: tuple[float, ...] | None  # of the first voxel's centre
    frame_of_reference: str
    marks: tuple[float | str | None, ...]  # distinguish scans of the same positions, see `MARKS`
    frames: int  # in the file
    frame: int | None  # its index in a multi-frame file; None in other files, or if frames have no positions
    samples: int
    photometric: str
    lossy: bool
    rescale: tuple[float, float] | None  # slope and intercept, from stored values to HU
    rescale_type: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str):
                object.__setattr__(self, name, printable_start(value, MOST_CHARACTERS))
        object.__setattr__(self, "image_type", tuple(printable_start(v, MOST_CHARACTERS) for v in self.image_type))

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in self.image_type

    @property
    def normal(self) -> tuple[float, float, float] | None:
        """Row direction x column direction, LPS+; a unit vector if the header is valid."""
        if self.orientation is None:
            return None
        a, b, c, d, e, f = self.orientation
        return (b * f - c * e, c * d - a * f, a * e - b * d)


def read_headers(path: Path) -> list[SliceHeader]:
    """Read a header for each frame of a multi-frame file, one for any other DICOM file, and none if it is not DICOM.

    Raises:
        Exception: any type that pydicom raises for a damaged header.
    """
    with path.open("rb") as f:
        start = f.read(132)
        # Some old files lack the preamble and begin with the data set: group 0008 or 0002, little endian.
        bare = start[128:] != b"DICM" and start[:2] in (b"\x08\x00", b"\x02\x00") and start[3:4] == b"\x00"
        if start[128:] != b"DICM" and not bare:
            if not start and path.suffix.lower() == ".dcm":
                raise InvalidDicomError("empty file")
            return []
    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=[_known(name)[0] for name in HEADER_TAGS], force=bare)
    except Exception:
        if bare:  # some other binary file
            return []
        raise
    meta = getattr(ds, "file_meta", None)
    if meta and text_of(meta, "MediaStorageSOPClassUID") == _MEDIA_DIRECTORY:
        return []
    if not (text_of(ds, "SOPClassUID") or _value(ds, "Modality") or _value(ds, "Rows")):
        if bare:
            return []
        raise InvalidDicomError("no image or object in this file")
    return headers_of(ds, path)


def headers_of(ds: pydicom.Dataset, path: Path) -> list[SliceHeader]:
    """Return the headers like ``read_headers``, for a data set that has already been read."""
    sop_class = text_of(ds, "SOPClassUID")
    header = SliceHeader(
        path=path,
        sop_class=sop_class,
        sop_instance=text_of(ds, "SOPInstanceUID"),
        series_uid=text_of(ds, "SeriesInstanceUID"),
        study_uid=text_of(ds, "StudyInstanceUID"),
        series_number=str(_number(ds, "SeriesNumber")),
        patient=_hashes_of_patient(ds),
        modality=text_of(ds, "Modality"),
        image_type=_image_type(ds, "ImageType"),
        description=" ".join(text_of(ds, "SeriesDescription").split()),
        rows=int(_value(ds, "Rows") or 0),
        columns=int(_value(ds, "Columns") or 0),
        spacing=numbers(ds, "PixelSpacing", 2),
        orientation=numbers(ds, "ImageOrientationPatient", 6),
        position=numbers(ds, "ImagePositionPatient", 3),
        frame_of_reference=text_of(ds, "FrameOfReferenceUID"),
        marks=tuple(_mark(ds, name) for name in MARKS),
        frames=int(ds.get("NumberOfFrames") or 1),
        frame=None,
        samples=int(_value(ds, "SamplesPerPixel") or 1),
        photometric=text_of(ds, "PhotometricInterpretation"),
        lossy=text_of(ds, "LossyImageCompression") == "01",
        rescale=_rescale(ds),
        rescale_type=text_of(ds, "RescaleType"),
    )
    frames = _value(ds, "PerFrameFunctionalGroupsSequence")
    if not frames or not (header.modality == "CT" or sop_class in ENHANCED_CT):
        return [header]
    if len(frames) != header.frames:
        raise InvalidDicomError("as many functional groups as frames are needed")
    shared = (_value(ds, "SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    return [_frame_header(header, number, frame, shared) for number, frame in enumerate(frames)]


def _frame_header(file: SliceHeader, number: int, frame: pydicom.Dataset, shared: pydicom.Dataset) -> SliceHeader:
    """Return the header of a frame, from its functional groups, the shared ones, or else the header of the file."""

    def group(name: str) -> pydicom.Dataset:
        found = frame.get(name) or shared.get(name)
        return found[0] if found else pydicom.Dataset()

    content, values = group("FrameContentSequence"), group("PixelValueTransformationSequence")
    kind = _image_type(group("CTImageFrameTypeSequence"), "FrameType")
    own_marks = {
        "stack": text_of(content, "StackID") or None,
        "instance": file.sop_instance,
        "TemporalPositionIdentifier": _number(content, "TemporalPositionIndex"),
        "NominalPercentageOfCardiacPhase": _mark(
            group("CardiacSynchronizationSequence"), "NominalPercentageOfCardiacPhase"
        ),
        "ImageType": "\\".join(kind) or None,
        "ConvolutionKernel": _mark(group("CTReconstructionSequence"), "ConvolutionKernel"),
        "SliceThickness": _mark(group("PixelMeasuresSequence"), "SliceThickness"),
        "AcquisitionNumber": _number(content, "FrameAcquisitionNumber"),
    }
    of_file = dict(zip(MARKS, file.marks, strict=True))
    of_frame = {name: mark for name, mark in own_marks.items() if mark is not None}
    return replace(
        file,
        frame=number,
        image_type=kind or file.image_type,
        spacing=numbers(group("PixelMeasuresSequence"), "PixelSpacing", 2),
        orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        position=numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        marks=tuple((of_file | of_frame).values()),
        rescale=_rescale(values) or file.rescale,
        rescale_type=text_of(values, "RescaleType") or file.rescale_type,
    )


def text_of(ds: pydicom.Dataset, name: str) -> str:
    """Return the text of an element as stored in the file; empty for numbers and for sequences.

    ``str`` of bytes and lists would escape unprintable characters, at which ``SliceHeader`` cuts the text off.
    """
    texts = [v.decode("latin-1") if isinstance(v, bytes) else v for v in _values(ds, name)]
    return "\\".join(text for text in texts if isinstance(text, str))


def _hashes_of_patient(ds: pydicom.Dataset) -> tuple[str, str]:
    """Return hashes of patient ID and name, each empty if missing.

    Devices separate the parts of a name differently, and some add the name in another script (after "=").
    """
    name = re.sub(r"[\W_]+", " ", str(_value(ds, "PatientName") or "").partition("=")[0].casefold())
    patient_id = "\\".join(map(str, _values(ds, "PatientID")))
    return _hash(" ".join(patient_id.split())), _hash(name.strip())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="backslashreplace"), key=_HASH_KEY).hexdigest() if text else ""


def _mark(ds: pydicom.Dataset, name: str) -> float | str | None:
    if name not in _MARKS_IN_FILES:  # occur in frames only
        return None
    if name in ("ConvolutionKernel", "ImageType"):
        return text_of(ds, name) or None
    number = _number(ds, name)
    return None if number is None else round(number, 3)


def _number(ds: pydicom.Dataset, name: str) -> float | None:
    found = numbers(ds, name, 1)
    return found[0] if found else None


def _rescale(ds: pydicom.Dataset) -> tuple[float, float] | None:
    """Return slope and intercept; None if both are missing, NaN for one that is missing or invalid."""
    if not any(name in ds for name in ("RescaleSlope", "RescaleIntercept")):
        return None
    slope, intercept = (numbers(ds, name, 1) or (math.nan,) for name in ("RescaleSlope", "RescaleIntercept"))
    return slope[0], intercept[0]


def _image_type(ds: pydicom.Dataset, name: str) -> tuple[str, ...]:
    text = text_of(ds, name)
    return tuple(text.upper().split("\\")) if text else ()


@cache
def _known(name: str) -> tuple[BaseTag, str]:
    """Return tag and VR of an element; cached, since pydicom would look them up at each of fifty uses in a file."""
    tag = Tag(name)
    return tag, dictionary_VR(tag)


def _value(ds: pydicom.Dataset, name: str) -> Any:
    """Return the value of an element, None if missing; several texts may come as one, separated by backslashes."""
    tag, usual = _known(name)
    if tag not in ds:
        return None
    element: Any = ds.get_item(tag)
    if isinstance(element, RawDataElement):
        raw = element.value or b""
        if (element.VR or usual) == usual == "US" and len(raw) == 2:
            return int.from_bytes(raw, "little" if element.is_little_endian else "big")
        if (element.VR or usual) == usual in _TEXT:
            text = raw.decode("latin-1").rstrip("\0 ")
            if text.isascii() and text.isprintable() and not _PADDING_INSIDE.search(text):
                return text
    return ds[tag].value


def _values(ds: pydicom.Dataset, name: str) -> list[Any]:
    value = _value(ds, name)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else list(value)


def numbers(ds: pydicom.Dataset, name: str, count: int) -> tuple[float, ...] | None:
    """Return the ``count`` numbers of an element; None if missing, invalid, or larger than ``_MOST``.

    Numbers stored as text under another VR, such as ST or UN, are read too.
    """
    try:
        found = tuple(float(v) for v in _parts(ds, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count and all(abs(v) <= _MOST for v in found) else None


def _parts(ds: pydicom.Dataset, name: str) -> list[Any]:
    try:
        values = _values(ds, name)
    except Exception:  # pydicom's parsers raise anything if VR and value do not match
        values = [ds.get_item(_known(name)[0]).value]
    texts = [v.decode("latin-1") if isinstance(v, bytes) else v for v in values]
    return [part for v in texts for part in (v.strip("\0 ").split("\\") if isinstance(v, str) else [v])]
