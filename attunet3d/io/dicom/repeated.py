"""Copy patient, study and geometry of the CT's images to a DICOM SEG: patient and study byte for byte.

Archives hold values that the standard forbids: "ANONYMIZED" for a date, misspelt character sets, UIDs with letters.
highdicom, which builds the SEG, rejects some of them, and pydicom would write some differently. But archives only file
a SEG with its CT if these fields are the same. So the SEG is built from stand-ins for the images, without patient data,
and then the fields of the images are copied into it as raw bytes.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import pydicom
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filewriter import correct_ambiguous_vr, writers
from pydicom.valuerep import STR_VR, DSfloat

from attunet3d.errors import UnsupportedImageError
from attunet3d.io.dicom.header import SliceHeader, numbers, text_of

# Required in a SEG: they tie it to its study, to the frame of reference, and to each image.
UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# A SEG must have these, though they may be empty, as in de-identified images.
_EMPTY_IF_MISSING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_PATIENT_GROUPS = (0x0010, 0x0012)  # the second: clinical trials
_OF_THE_SERIES = ("ClinicalTrialCoordinatingCenterName", "ClinicalTrialSeriesID", "ClinicalTrialSeriesDescription")
_REPEATED = (
    "SpecificCharacterSet",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    # The study, and the patient at the time.
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence",
    "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "RequestingService",
    "RequestingServiceCodeSequence",
    "ReferencedStudySequence",
    "ReferencedPatientSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "IssuerOfServiceEpisodeIDSequence",
    "ReasonForVisit",
    "ReasonForVisitCodeSequence",
    "PatientState",
)
# The scanner, which highdicom copies.
_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "InstitutionAddress",
    "StationName",
    "AcquisitionDateTime",
)
_BYTE_VRS = {*STR_VR, "OB", "UN"}  # VRs with the same bytes in every transfer syntax
_UNDEFINED_LENGTH = 0xFFFFFFFF


def uid_of(header: pydicom.Dataset, name: str) -> str:
    """Return a UID as stored, even if invalid; empty unless there is exactly one."""
    uid = text_of(header, name).strip("\0 ")
    return "" if "\\" in uid else uid


def repeated(header: pydicom.Dataset) -> pydicom.Dataset:
    """Return the elements of an image that a SEG repeats, as stored.

    Raises:
        UnsupportedImageError: one of them is damaged.
    """
    named = {tag_for_keyword(name) for name in _REPEATED}
    series = {tag_for_keyword(name) for name in _OF_THE_SERIES}
    tags = (tag for tag in list(header.keys()) if tag in named or (tag.group in _PATIENT_GROUPS and tag not in series))
    return _as_stored(header, tags, str(header.filename))


def add_to(seg: pydicom.Dataset, found: pydicom.Dataset) -> None:
    """Copy the elements from ``repeated`` into a SEG that will be written with explicit VR."""
    correct_ambiguous_vr(seg, is_little_endian=True)
    for tag in list(found.keys()):
        seg[tag] = found.get_item(tag)
    _write_as_stored(seg)


def stand_in(header: pydicom.Dataset, slices: Sequence[SliceHeader], thickness: float) -> pydicom.Dataset:
    """Return an image for highdicom to refer to, with the UIDs, size and geometry of ``header``, but no patient data.

    Args:
        header: header of the image.
        slices: the image, or those of its frames that are used, see ``read_headers``.
        thickness: slice thickness in mm if the image has none, as a SEG must have one.
    """
    first = slices[0]
    image = pydicom.Dataset()
    for name in UIDS:
        setattr(image, name, uid_of(header, name))
    for name in _EMPTY_IF_MISSING:
        setattr(image, name, "")
    for name in _EQUIPMENT:
        with suppress(Exception):  # unreadable elements are left out
            if header.get(name):
                setattr(image, name, header[name].value)
    image.Modality = "CT"
    image.Rows, image.Columns = first.rows, first.columns
    measured = header if first.frame is None else _measures_of_frame(header, first.frame)
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = _decimals(first.spacing)
    of_image = (numbers(measured, "SliceThickness", 1) or (0.0,))[0]
    measures.SliceThickness = _decimals([of_image if of_image > 0 else thickness])[0]
    between = numbers(measured, "SpacingBetweenSlices", 1)
    if between:
        measures.SpacingBetweenSlices = _decimals(between)[0]
    orientation.ImageOrientationPatient = _decimals(first.orientation)
    if first.frame is None:
        image.update(measures)
        image.update(orientation)
        image.update(_position(first))
        return image
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.NumberOfFrames = len(slices)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    for frame in slices:
        group = pydicom.Dataset()
        group.PlanePositionSequence = [_position(frame)]
        image.PerFrameFunctionalGroupsSequence.append(group)
    return image


def _measures_of_frame(header: pydicom.Dataset, number: int) -> pydicom.Dataset:
    groups = (header.PerFrameFunctionalGroupsSequence[number], *header.get("SharedFunctionalGroupsSequence", ()))
    found = [group.PixelMeasuresSequence for group in groups if group.get("PixelMeasuresSequence")]
    return found[0][0] if found else pydicom.Dataset()


def _position(image: SliceHeader) -> pydicom.Dataset:
    position = pydicom.Dataset()
    position.ImagePositionPatient = _decimals(image.position)
    return position


def _decimals(values: Iterable[float] | None) -> list[DSfloat]:
    """Convert to decimal strings of at most 16 characters, as the standard requires."""
    return [DSfloat(value, auto_format=True) for value in values or ()]


def _as_stored(ds: pydicom.Dataset, tags: Iterable[Any], path: str) -> pydicom.Dataset:
    """Return elements for a data set with explicit VR, little endian: bytes and texts unchanged, others re-encoded."""
    found = pydicom.Dataset()
    for tag in tags:
        element = ds.get_item(tag)
        vr = element.VR if element.VR in writers else _usual_vr(tag)
        try:
            if isinstance(element, RawDataElement) and vr in _BYTE_VRS and element.length != _UNDEFINED_LENGTH:
                found[tag] = element._replace(VR=vr, value=element.value or b"")
            elif ds[tag].VR == "SQ":
                found[tag] = DataElement(
                    tag, "SQ", [_as_stored(item, list(item.keys()), path) for item in ds[tag].value]
                )
            else:
                found[tag] = ds[tag]
        except UnsupportedImageError:
            raise
        except Exception as error:  # parsers raise anything
            raise UnsupportedImageError(
                f"{path}: {keyword_for_tag(tag)} {tag} is damaged, and a DICOM SEG must repeat it; "
                'export the series again, or write NIfTI (output_format="nifti")',
                arguments=("output_format",),
            ) from error
    _write_as_stored(found)
    return found


def _usual_vr(tag: Any) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _write_as_stored(ds: pydicom.Dataset) -> None:
    """Make pydicom write raw elements unchanged, as it does if their original encoding is the one to write."""
    character_set = ds.get("SpecificCharacterSet")
    ds.set_original_encoding(
        False, True, default_encoding if character_set is None else convert_encodings(character_set)
    )
