"""What a DICOM SEG repeats of its CT's images: patient and study byte for byte, and their places in plain numbers.

Archives hold much that the standard forbids: "ANONYMIZED" for a date, misspelt character sets, UIDs with letters.
highdicom, which builds the SEG, stops at some of it, and pydicom would write some of it otherwise than it was. But an
archive files a SEG with its CT only where both say the same. So highdicom is given stand-ins that say nothing of the
patient, and what the images say is put into what it has built, as the bytes that it is.
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

# A SEG cannot be without these: they tie it to its study, to the patient's space, and to each image.
UIDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# A SEG must have these, if only to say that they are empty, as they are once an image is de-identified.
EMPTY_IF_MISSING = (
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
_PATIENT_GROUPS = (0x0010, 0x0012)  # the second is of clinical trials
_OF_THE_SERIES = ("ClinicalTrialCoordinatingCenterName", "ClinicalTrialSeriesID", "ClinicalTrialSeriesDescription")
_REPEATED = (
    "SpecificCharacterSet",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    # The study, and the patient at that time.
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
# Of the scanner, which highdicom names where it can.
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
_OF_BYTES = {*STR_VR, "OB", "UN"}  # VRs of the same bytes in every transfer syntax
_UNDEFINED_LENGTH = 0xFFFFFFFF


def uid_of(header: pydicom.Dataset, name: str) -> str:
    """A UID as it stands, though it may be none; empty where there is not exactly one."""
    uid = text_of(header, name).strip("\0 ")
    return "" if "\\" in uid else uid


def repeated(header: pydicom.Dataset) -> pydicom.Dataset:
    """What a SEG repeats of an image, as it is stored. Raises UnsupportedImageError for what is damaged."""
    named = {tag_for_keyword(name) for name in _REPEATED}
    series = {tag_for_keyword(name) for name in _OF_THE_SERIES}
    tags = (tag for tag in list(header.keys()) if tag in named or (tag.group in _PATIENT_GROUPS and tag not in series))
    return _as_stored(header, tags, str(header.filename))


def add_to(seg: pydicom.Dataset, found: pydicom.Dataset) -> None:
    """Put into a SEG, which is to be written with explicit VR, what `repeated` has found."""
    correct_ambiguous_vr(seg, is_little_endian=True)
    for tag in list(found.keys()):
        seg[tag] = found.get_item(tag)
    _write_as_stored(seg)


def stand_in(header: pydicom.Dataset, slices: Sequence[SliceHeader], thickness: float) -> pydicom.Dataset:
    """An image for highdicom to refer to: the UIDs of one, its size and its place, and nothing of the patient.

    Args:
        header: of the image.
        slices: what it says of its one image, or of each of its frames that count, see `read_headers`.
        thickness: mm, where the image gives none: it may be empty in a CT, but not in a SEG.
    """
    first = slices[0]
    image = pydicom.Dataset()
    for name in UIDS:
        setattr(image, name, uid_of(header, name))
    for name in EMPTY_IF_MISSING:
        setattr(image, name, "")
    for name in _EQUIPMENT:
        with suppress(Exception):  # what cannot be read of the scanner is not named
            if header.get(name):
                setattr(image, name, header[name].value)
    image.Modality = "CT"
    image.Rows, image.Columns = first.rows, first.columns
    said = header if first.frame is None else _measures_of_frame(header, first.frame)
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = _decimals(first.spacing)
    of_image = (numbers(said, "SliceThickness", 1) or (0.0,))[0]
    measures.SliceThickness = _decimals([of_image if of_image > 0 else thickness])[0]
    between = numbers(said, "SpacingBetweenSlices", 1)
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
    place = pydicom.Dataset()
    place.ImagePositionPatient = _decimals(image.position)
    return place


def _decimals(values: Iterable[float] | None) -> list[DSfloat]:
    """Of at most 16 characters each, as the standard has it."""
    return [DSfloat(value, auto_format=True) for value in values or ()]


def _as_stored(ds: pydicom.Dataset, tags: Iterable[Any], path: str) -> pydicom.Dataset:
    """Elements for a data set with explicit VR, little endian: those of bytes as they are, others anew."""
    found = pydicom.Dataset()
    for tag in tags:
        element = ds.get_item(tag)
        vr = element.VR if element.VR in writers else _usual_vr(tag)
        try:
            if isinstance(element, RawDataElement) and vr in _OF_BYTES and element.length != _UNDEFINED_LENGTH:
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
    """pydicom writes raw elements as they are where it believes that they were read from what is written now."""
    said = ds.get("SpecificCharacterSet")
    ds.set_original_encoding(False, True, default_encoding if said is None else convert_encodings(said))
