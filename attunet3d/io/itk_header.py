"""Check what ITK does not check in the header of a MetaImage or NRRD file: its data file and its unit of length.

Headers can name any file on the machine, and lists and patterns of files. Only a file in the header's folder is read.
"""

import re
from pathlib import Path

from attunet3d.errors import GeometryError, UnreadableInputError, UnsupportedImageError
from attunet3d.io.printable import printable_start
from attunet3d.io.slabs import DEFLATE_MAX_RATIO

MAX_HEADER_BYTES = 2**20  # usual headers have about 1 KB

# The field anywhere in the header, as ITK might find it whatever the line breaks, and at the start of a line: a header
# is refused unless both match exactly once.
_FIELDS = {
    "metaimage": (re.compile(rb"ElementDataFile", re.I), re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:](.*)$", re.M)),
    "nrrd": (re.compile(rb"data[ \t]?file[ \t]*:(?!=)", re.I), re.compile(rb"^data ?file:(.*)$", re.I | re.M)),
}
# ITK's parsers have buffers of fixed size that they do not always check. Comments and custom keys (":=") may be long.
MAX_LINE_BYTES = 400
_LONG = re.compile(rb"^(?!#|[^:\n]*:=)[^\n]{%d}" % MAX_LINE_BYTES, re.M)
_END = {"metaimage": re.compile(rb"ElementDataFile[^\n]*\n?"), "nrrd": re.compile(rb"\n\r?\n")}
_DIMENSIONS = re.compile(rb"NDims[ \t]*[=:]([^\n]*)")  # MetaIO does not check it against the length of its arrays
_TEXT = re.compile(rb"^[ \t]*(?:BinaryData[ \t]*[=:][ \t]*False|encoding:[ \t]*(?:te?xt|ascii|hex))", re.I | re.M)
_COMPRESSED = re.compile(rb"^[ \t]*(?:CompressedData[ \t]*[=:][ \t]*True|encoding:[ \t]*(?:gz|bz))", re.I | re.M)
_COMPRESSED_BYTES = re.compile(rb"CompressedDataSize[ \t]*[=:][ \t]*(\S*)")
# ITK takes any unit for mm, and any negative skip for "the voxels are at the end".
_UNITS = re.compile(rb"^[ \t]*(?:DistanceUnits[ \t]*[=:]|(?:space )?units:)(.*)$", re.I | re.M)
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres"}
_UNKNOWN_UNITS = {"", "?", "???", "unknown", "none"}
_SKIPS = re.compile(rb"^[ \t]*(HeaderSize(?=[ \t]*[=:])|(?:line|byte) ?skip(?=:))[ \t]*[=:](.*)$", re.I | re.M)
_TEXT_MAX_RATIO = 8  # at least one character of text for a value of at most eight bytes


def data_file(path: Path, kind: str) -> Path:
    """Return the file with the voxels of a "metaimage" or "nrrd": ``path`` itself, or another in its folder.

    Raises:
        UnreadableInputError: the header is malformed, or names no data file, or one that does not exist.
        UnsupportedImageError: the header names a file elsewhere, or several.
    """
    start = _start(path)
    end = _END[kind].search(start)
    if _LONG.search(start, 0, end.end() if end else len(start)):
        raise UnreadableInputError(
            f"{path}: cannot be read, a line of the header has more than {MAX_LINE_BYTES} bytes; "
            "copy or export the file again"
        )
    if not all(re.fullmatch(rb"[1-9]", n.strip()) for n in _DIMENSIONS.findall(start)):
        raise UnreadableInputError(
            f"{path}: cannot be read, NDims of the header is not 1 to 9; copy or export the file again"
        )
    anywhere, line = _FIELDS[kind]
    mentions = [m for m in anywhere.finditer(start) if not _is_comment(start, m.start())]
    if not mentions and kind == "nrrd" and path.suffix.lower() != ".nhdr":
        return path
    values = [value.strip() for value in line.findall(start)]
    if len(values) != 1 or len(mentions) != 1:
        raise UnreadableInputError(
            f"{path}: cannot be read, the header names {len(mentions)} data files, not one; "
            "copy or export the file again"
        )
    name = values[0].decode("utf-8", "replace")
    if kind == "metaimage" and name.upper() == "LOCAL":
        return path
    if not re.fullmatch(r"[\w.()+,=@~-][\w .()+,=@~-]*", name) or name in (".", "..", "-") or name.startswith("LIST"):
        raise UnsupportedImageError(
            f"{path}: the header names {name[:80]!r} as its data; only one file in the header's own folder is read: "
            "convert the image to a single file"
        )
    data = path.parent / name
    if not data.is_file():
        raise UnreadableInputError(
            f"{path}: cannot be read, the data file that {path.name} names is missing ({name}); "
            "copy or export it again, with the data file beside it"
        )
    return data


def check_units(path: Path, kind: str) -> None:
    """Check that the header of a "metaimage" or "nrrd" has lengths in mm.

    Raises:
        GeometryError: it names another unit.
    """
    for given in _UNITS.findall(_header(path, kind)):
        text = given.decode("utf-8", "replace").strip()
        names = re.findall(r'"([^"]*)"', text) if '"' in text else text.split()
        for name in names:
            if name.strip().lower() not in _MILLIMETRES | _UNKNOWN_UNITS:
                raise GeometryError(
                    f"{path}: the header gives lengths in {printable_start(name.strip(), 20)}; "
                    "save the image again with lengths in mm"
                )


def skipped_bytes(path: Path, kind: str, data: Path) -> int:
    """Return how many uncompressed bytes precede the voxels according to the header of a "metaimage" or "nrrd".

    Raises:
        UnreadableInputError: the voxels would begin within the header, or before the file.
    """
    header, total = _header(path, kind), 0
    for field, given in _SKIPS.findall(header):
        text = given.strip().decode("ascii", "replace")
        skip = int(text) if re.fullmatch(r"[+-]?\d{1,15}", text) else None
        # A MetaImage counts from the start of the file; -1: the voxels are at its end.
        least = len(header) if kind == "metaimage" and data == path and skip else 0
        may_be_end = skip == -1 and not field.lower().startswith(b"line")
        if skip is None or (skip < least and not may_be_end):
            raise UnreadableInputError(
                f"{path}: cannot be read, {field.decode('ascii')} of the header is {printable_start(text, 20)}, where "
                "no voxels can begin; export the file again"
            )
        if not field.lower().startswith(b"line"):
            total += max(skip, 0)
    return total


def most_bytes(path: Path, data: Path) -> int:
    """Return the maximum bytes of voxels that the file ``data`` can hold in the encoding of the header ``path``.

    Raises:
        UnreadableInputError: the header claims more compressed bytes than there are.
    """
    start = _start(path)
    size = data.stat().st_size
    for claimed in _COMPRESSED_BYTES.findall(start):
        if not claimed.isdigit() or int(claimed) > size:
            shown = claimed[:20].decode("ascii", "replace")
            raise UnreadableInputError(
                f"{path}: truncated, {size} bytes where the header promises {shown} compressed ones; "
                "copy or export the file again"
            )
    return size * (DEFLATE_MAX_RATIO if _COMPRESSED.search(start) else _TEXT_MAX_RATIO if _TEXT.search(start) else 1)


def _header(path: Path, kind: str) -> bytes:
    start = _start(path)
    end = _END[kind].search(start)
    return start[: end.end()] if end else start


def _start(path: Path) -> bytes:
    with path.open("rb") as f:
        return f.read(MAX_HEADER_BYTES)


def _is_comment(start: bytes, at: int) -> bool:
    line = max(start.rfind(b"\n", 0, at), start.rfind(b"\r", 0, at)) + 1
    return start[line : line + 1] == b"#"
