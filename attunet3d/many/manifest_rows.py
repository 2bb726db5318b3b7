"""Read the rows of a manifest, as spreadsheets, scripts and people write them; refuse ambiguous ones."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attunet3d.errors import ConfigError
from attunet3d.io.json_text import parse_json
from attunet3d.io.printable import printable
from attunet3d.io.slabs import IMAGE_SUFFIXES

COLUMNS = ("path", "id", "series_uid")
Row = dict[str, Any]

# Other names of the columns, in lower case and without separators.
_NAMES = {
    **dict.fromkeys(("path", "file", "filename", "filepath", "image", "imagepath", "ct", "ctpath"), "path"),
    **dict.fromkeys(("id", "case", "caseid"), "id"),
    **dict.fromkeys(("seriesuid", "series", "seriesinstanceuid"), "series_uid"),
}
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # with its end
_BLANKS = " \t\xa0\u3000"  # around a value; line breaks belong to the value
_SEPARATORS = (",", ";", "\t", "|")
# UTF-32 first: its mark begins as that of UTF-16 does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEADER = "path,id,series_uid"


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Read each row of a manifest with the number of its line, from 1: texts by the names of ``COLUMNS``, and others.

    A table has a header, in which columns may have common other names; separators are commas, semicolons, tabs or bars.
    A list of paths needs no header. JSON lines have one object each. The encoding is UTF-8, or that of the byte order
    mark.

    Raises:
        ConfigError: the manifest cannot be read, or is ambiguous.
    """
    text = _decoded(path)
    json_lines = path.suffix.lower() in (".jsonl", ".ndjson") or text.lstrip().startswith("{")
    return _json_lines(path, text) if json_lines else _table(path, text)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a manifest ({error.strerror}); check its permissions") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: cannot be read as a manifest (not {encoding.upper()}); save it as CSV in UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path}, line {line}: cannot be read as a manifest (no text); save it as CSV in UTF-8")
    return text


def _table(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    parts = [(number, line) for number, line in enumerate(_LINE.findall(text), 1)]
    begin = next((index for index, (_, line) in enumerate(parts) if line.strip()), len(parts))
    told = None
    if parts[begin:] and (first := re.fullmatch(r'"?sep=(.)"?', parts[begin][1].strip(" \ufeff\r\n"), re.I)):  # Excel's
        told, begin = first[1], begin + 1
    header = next((line for _, line in parts[begin:] if line.strip()), "")
    separator = told or max(_SEPARATORS, key=lambda s: sum(name in _NAMES for name in map(_plain, header.split(s))))
    lines = [(number, line) for number, line in _whole(path, parts[begin:], separator) if line.strip()]
    if not lines:
        return
    number, header = lines[0]
    if header.lstrip()[:1] == "[":
        raise ConfigError(f"{path}, line {number}: a JSON list; give JSON lines, one object in each line")
    columns = [_plain(field) for field in _fields(path, number, header, separator)]
    if not any(name in _NAMES for name in columns):
        if told is None and _is_path(path, header):
            yield from _paths(path, lines, separator)
            return
        raise ConfigError(f'{path}, line {number}: no column "path"; the first line must name the columns: {_HEADER}')
    names = [_NAMES.get(name, name) for name in columns]
    if "path" not in names:
        raise ConfigError(f'{path}, line {number}: no column "path"; the first line must name the columns: {_HEADER}')
    for name in COLUMNS:
        if names.count(name) > 1:
            same = ", ".join(column for column, known in zip(columns, names, strict=True) if known == name)
            raise ConfigError(f"{path}, line {number}: several columns for {name} ({same}); keep one of them")
    if len(names) == 1:
        yield from _paths(path, lines[1:], separator)
        return
    for number, line in lines[1:]:
        fields = _fields(path, number, line, separator)
        if not any(fields):
            continue
        others = len(fields) == 1 and any(s in fields[0] for s in _SEPARATORS) and not _exists(path, fields[0])
        if others or any(fields[len(names) :]):
            raise ConfigError(
                f"{path}, line {number}: {len(fields)} values for {len(names)} columns; put {separator!r} between "
                "them, and quotes around a value that holds it"
            )
        yield number, {name or "?": value for name, value in zip(names, fields, strict=False) if name or value}


def _whole(path: Path, lines: list[tuple[int, str]], separator: str) -> Iterator[tuple[int, str]]:
    """Yield lines without their ends; lines that a quoted value spans are one, with the number of the first."""
    reader = csv.reader((line for _, line in lines), delimiter=separator, skipinitialspace=True)
    begin = 0
    try:
        for _ in reader:
            yield lines[begin][0], "".join(line for _, line in lines[begin : reader.line_num]).rstrip("\r\n")
            begin = reader.line_num
    except csv.Error as error:
        raise _unreadable(path, lines[begin][0], error) from error


def _unreadable(path: Path, number: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path}, line {number}: cannot be read as a manifest ({error}); close the quotes, and double those within"
    )


def _paths(path: Path, lines: Iterable[tuple[int, str]], separator: str) -> Iterator[tuple[int, Row]]:
    """Yield lines that hold only a path, which may hold a separator if there is such a file."""
    for number, line in lines:
        whole = _unquoted(line)
        values = (
            [whole] if _exists(path, whole) else [field for field in _fields(path, number, line, separator) if field]
        )
        if len(values) > 1:
            raise ConfigError(
                f"{path}, line {number}: {len(values)} values for a path alone; name the columns in the first line: "
                f"{_HEADER}"
            )
        if values:
            yield number, {"path": values[0]}


def _fields(path: Path, number: int, line: str, separator: str) -> list[str]:
    line = re.sub(rf'" +(?={re.escape(separator)}|$)', '"', line)
    try:
        source = io.StringIO(line, newline="")
        (fields,) = csv.reader(source, delimiter=separator, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise _unreadable(path, number, error) from error
    return [field.strip(_BLANKS) for field in fields]


def _unquoted(line: str) -> str:
    """Return a line, which may contain separators, without quotes around it."""
    line = line.strip(_BLANKS)
    return line[1:-1].replace('""', '"') if len(line) > 1 and line[0] == line[-1] == '"' else line


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name.strip(' \t"\ufeff')).lower()


def _is_path(path: Path, line: str) -> bool:
    value = _unquoted(line)
    is_image = value.lower().endswith(IMAGE_SUFFIXES) and not any(s in value for s in _SEPARATORS)
    return is_image or _exists(path, value)


def _exists(path: Path, value: str) -> bool:
    return os.path.exists(path.parent / value)


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_LINE.findall(text), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON, or none that can be used ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(f'{path}, line {number}: expected an object such as {{"path": "ct.nii.gz"}}')
        named = [(_NAMES.get(_plain(key), str(key)), value) for key, value in row.items()]
        if len(dict(named)) < len(named):
            keys = ", ".join(printable(key) for key in row)
            raise ConfigError(f"{path}, line {number}: several names of one column ({keys}); keep one of them")
        yield number, {name: value.strip(_BLANKS) if isinstance(value, str) else value for name, value in named}
