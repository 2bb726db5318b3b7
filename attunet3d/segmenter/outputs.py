"""Write the results of a case: masks, record, picture and attention maps, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np

from attunet3d.checkpoint import file_sha256
from attunet3d.io.cases import case_name
from attunet3d.io.json_text import parse_json
from attunet3d.io.output_formats import FORMATS, PICTURE_SUFFIX, RECORD_SUFFIX, MaskSource, OutputFormat, find_formats
from attunet3d.io.paths import PathLike
from attunet3d.io.slabs import StoredImage
from attunet3d.io.writer import (
    make_folder,
    remove_left_behind,
    replace_as_one,
    save_map,
    temporary_path,
)
from attunet3d.runtime.process_memory import peak_bytes
from attunet3d.segmenter.attention import MEANING
from attunet3d.segmenter.reading import PlannedCT
from attunet3d.segmenter.record import CaseRecord, megabytes

_MATPLOTLIB_BYTES = 80 * 2**20  # with a figure
_MASK_COPIES_OF_PICTURE = 3  # made to find the slices with most of the pancreas


@dataclass(frozen=True)
class Segmentation:
    """A pancreas mask on the CT's own grid.

    Attributes:
        mask: uint8 (X, Y, Z), 1 is pancreas.
        affine: voxel -> RAS+ mm, the CT's own.
        path: the mask's file, if one was written.
        record: how the mask was made, see ``CaseRecord``.
        attention: if it was asked for, each gate's map by its name ("level2", ...), finest level first: uint8
            (X, Y, Z), 255 is a weight of 1. A map is computed at each access, see ``MapsOnCT``.
    """

    mask: np.ndarray
    affine: np.ndarray
    path: Path | None
    record: CaseRecord
    attention: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Outputs:
    """The results to write for each case of a session.

    Attributes:
        folder: where files are written; None writes none.
        output_format: names of ``FORMATS``, one or several. The file of the first one is ``Segmentation.path`` and the
            record's ``output``.
        qc: whether to write a picture of the mask over the CT.
        attention: whether to write the maps of the attention gates.
        keep_uids: whether the record names the DICOM series.

    Raises:
        ConfigError: as ``find_formats``.
    """

    folder: PathLike | None = None
    output_format: str | list[str] | tuple[str, ...] = "nifti"
    qc: bool = False
    attention: bool = False
    keep_uids: bool = True

    def __post_init__(self) -> None:
        find_formats(self.output_format)

    @property
    def formats(self) -> tuple[OutputFormat, ...]:
        """The formats of ``output_format``."""
        return find_formats(self.output_format)

    def remove_left_behind(self) -> None:
        """Remove unfinished files of dead processes from the folder."""
        if self.folder is not None:
            remove_left_behind(self.folder)

    def check_header(self, image: StoredImage) -> None:
        """Raise UnsupportedImageError if one of the formats cannot be written for a CT; its voxels are not read."""
        for output in self.formats:
            if output.check_header is not None:
                output.check_header(image)

    def writing_bytes(self, voxels: int) -> int:
        """Return the memory, bytes, needed to write the results of a CT of so many voxels, one after another."""
        picture = _MASK_COPIES_OF_PICTURE * voxels + _MATPLOTLIB_BYTES if self.qc else 0
        return max(picture, *(output.writing_bytes(voxels) for output in self.formats))


class CaseWriter:
    """Writes the files of one case; created before the network runs, so that what cannot be written is refused early.

    Args:
        outputs: what to write.
        ct: as it was given.
        name: of the case, with which the names of its files begin; by default that of the CT.
        read: the CT.
        checkpoint_sha256: of the weights.

    Raises:
        UnsupportedImageError, UnreadableInputError, OutputError: a format cannot be written for this CT.
    """

    def __init__(
        self, outputs: Outputs, ct: PathLike, name: str | None, read: PlannedCT, checkpoint_sha256: str
    ) -> None:
        self._outputs = outputs
        self._name = name or case_name(ct)
        self._source = MaskSource(ct, read.grid.affine, read.metadata, read.files, read.frames, checkpoint_sha256)
        self._savers = {output: output.prepare(self._source) for output in outputs.formats}

    def write(
        self,
        mask: np.ndarray,
        record: CaseRecord,
        maps: Mapping[str, np.ndarray],
        hu: np.ndarray | None,
        writing: AbstractContextManager[object],
    ) -> Path | None:
        """Write the files of a case atomically, and return the path of the first mask; None if nothing is written.

        They replace an earlier result of the same name, including files that are not written again.

        Args:
            mask: uint8 (X, Y, Z).
            record: the names of the files are added to it.
            maps: as ``Segmentation.attention``.
            hu: int16 (X, Y, Z), for the picture.
            writing: context that is entered while images are written, and left before the record, which may contain its
                measurements.

        Raises:
            OutputError: the folder cannot be created, a file cannot be written, or a DICOM SEG differs from the mask.
        """
        if self._outputs.folder is None:
            return None
        folder = make_folder(self._outputs.folder)
        masks = {output.name: folder / f"{self._name}{output.suffix}" for output in self._savers}
        map_files = {level: folder / f"{self._name}_attention_{level}.nii.gz" for level in maps}
        picture_file, record_file = (folder / f"{self._name}{suffix}" for suffix in (PICTURE_SUFFIX, RECORD_SUFFIX))
        new: list[tuple[Path, Path]] = []
        with ExitStack() as files:

            def temporary(path: Path) -> Path:
                new.append((files.enter_context(temporary_path(path)), path))
                return new[-1][0]

            # All or nothing: each file is complete before the first one takes its place.
            with writing:
                for output, save in self._savers.items():
                    save(temporary(masks[output.name]), mask)
                record["mask_sha256"] = file_sha256(new[0][0])
                for level, path in map_files.items():
                    save_map(temporary(path), maps[level], self._source.affine, metadata=self._source.metadata)
                picture = None if hu is None else self._picture(mask, record, hu)
                if picture is not None:
                    temporary(picture_file).write_bytes(picture)
            first_format, first = next(iter(masks.items()))
            record["output"], record["output_format"] = first.name, first_format
            if len(masks) > 1:
                record["outputs"] = {name: path.name for name, path in masks.items()}
            if maps:
                record["attention"] = {level: path.name for level, path in map_files.items()}
                record["attention_meaning"] = MEANING
            record["memory_mb"]["peak"] = megabytes(peak_bytes())
            temporary(record_file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
            # The first mask marks the result as complete, so it comes last; the record, which names the rest, first.
            mask_file, *others, new_record = new
            replace_as_one([new_record, *others, mask_file], self._former(folder, record_file))
        return first

    def _former(self, folder: Path, record_file: Path) -> list[Path]:
        """List the files, mask first, of the earlier result that a record in the same place describes.

        Files that no record names may not be results, so without a record there are none.
        """
        if not record_file.is_file():  # reading a pipe would block
            return []
        try:
            record = parse_json(record_file.read_bytes())
            named = [record["output"], *record.get("outputs", {}).values(), *record.get("attention", {}).values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        named.append(f"{self._name}{PICTURE_SUFFIX}")
        own = tuple(f"{self._name}{part}" for part in ("_seg.", "_attention_", *(f.suffix for f in FORMATS.values())))
        return [
            folder / file
            for file in named
            if isinstance(file, str) and file.startswith(own) and PurePath(file).name == file
        ]

    def _picture(self, mask: np.ndarray, record: CaseRecord, hu: np.ndarray) -> bytes | None:
        """Draw the picture as PNG. If that fails, the record gets a warning and there is none: the mask is kept."""
        title = f"{self._name}: {record['volume_ml']:.1f} mL (research use only)"
        png = BytesIO()
        try:
            from attunet3d.pictures.qc import qc_picture

            qc_picture(png, hu, mask, self._source.affine, title)
        except Exception as error:  # matplotlib's fonts, layouts and settings can raise anything
            record["warnings"].append(f"the picture could not be drawn ({type(error).__name__}); the mask is complete")
            return None
        return png.getvalue()
