"""What comes out of a case, and its files: mask, record, picture and attention maps, all of them or none."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from attunet3d.checkpoint import file_sha256
from attunet3d.errors import ConfigError
from attunet3d.io.cases import case_name
from attunet3d.io.json_text import parse_json
from attunet3d.io.paths import PathLike
from attunet3d.io.slabs import StoredImage
from attunet3d.io.writer import (
    make_folder,
    remove_left_behind,
    replace_as_one,
    save_map,
    save_mask,
    temporary_path,
)
from attunet3d.runtime.process_memory import peak_bytes
from attunet3d.segmenter.attention import MEANING
from attunet3d.segmenter.reading import PlannedCT
from attunet3d.segmenter.record import megabytes

MASK_SUFFIXES = {"nifti": ".nii.gz", "dicom-seg": ".dcm", "dicom-seg-labelmap": ".dcm"}  # of each output format
SEG_TYPES = {"dicom-seg": "BINARY", "dicom-seg-labelmap": "LABELMAP"}  # SegmentationType of the DICOM formats


@dataclass(frozen=True)
class Segmentation:
    """A pancreas mask on the CT's own grid.

    Attributes:
        mask: uint8 (X, Y, Z), 1 is pancreas.
        affine: voxel -> RAS+ mm, the CT's own.
        path: the mask's file, if one was written.
        record: how the mask came about (see `Segmenter.segment`).
        attention: if it was asked for, each gate's map by its name ("level2", ...), finest level first: uint8
            (X, Y, Z), 255 is a weight of 1. A map is made anew whenever it is asked for, see `MapsOnCT`.
    """

    mask: np.ndarray
    affine: np.ndarray
    path: Path | None
    record: dict[str, Any]
    attention: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Outputs:
    """What is wanted of each case of a session.

    Attributes:
        folder: where files are written; None: nowhere.
        output_format: of the mask, one of `MASK_SUFFIXES`.
        qc: a picture of the mask over the CT.
        attention: the attention gates' maps.
        keep_uids: whether the record names the DICOM series.

    Raises:
        ConfigError: the format does not exist, or its library is not installed.
    """

    folder: PathLike | None = None
    output_format: str = "nifti"
    qc: bool = False
    attention: bool = False
    keep_uids: bool = True

    def __post_init__(self) -> None:
        check_format(self.output_format)

    def remove_left_behind(self) -> None:
        """Clear the folder of what processes that are dead did not finish there."""
        if self.folder is not None:
            remove_left_behind(self.folder)

    def check_source(self, image: StoredImage) -> None:
        """Raise UnsupportedImageError for a CT that a mask of this format cannot refer to; its header is enough."""
        if self.output_format in SEG_TYPES:
            from attunet3d.io.dicom.seg import check_images

            check_images(image)


class CaseWriter:
    """Writes the files of one case. It is made before the network runs: what cannot be written is refused then.

    Args:
        outputs: what is wanted.
        ct: as it was given.
        name: what the files are called; by default as the CT.
        read: the CT.
        checkpoint_sha256: of the weights.

    Raises:
        UnsupportedImageError, UnreadableInputError, OutputError: a DICOM SEG cannot be made of the CT's images.
    """

    def __init__(
        self, outputs: Outputs, ct: PathLike, name: str | None, read: PlannedCT, checkpoint_sha256: str
    ) -> None:
        self._outputs = outputs
        self._name = name or case_name(ct)
        self._mask_suffix = MASK_SUFFIXES[outputs.output_format]
        self._affine = read.grid.affine
        self._metadata = read.metadata
        self._save: Callable[[Path, np.ndarray, np.ndarray], None] = partial(save_mask, metadata=read.metadata)
        if outputs.output_format in SEG_TYPES:
            from attunet3d.io.dicom.seg import save_seg, source_headers

            kind = SEG_TYPES[outputs.output_format]
            self._save = partial(
                save_seg,
                sources=source_headers(ct, read.files, self._affine, read.metadata["warnings"], read.frames, kind),
                frames=read.frames,
                checkpoint_sha256=checkpoint_sha256,
                segmentation_type=kind,
            )

    def write(
        self,
        mask: np.ndarray,
        record: dict[str, Any],
        maps: Mapping[str, np.ndarray],
        hu: np.ndarray | None,
        writing: AbstractContextManager[None],
    ) -> Path | None:
        """Write what is wanted, and give the mask's path; None where nothing is written.

        A former result of the same name is replaced as one, with all its files: also those that are not written again.

        Args:
            mask: uint8 (X, Y, Z).
            record: gets the names of the files.
            maps: as `Segmentation.attention`.
            hu: int16 (X, Y, Z), for the picture.
            writing: entered while images are written; the record, which may hold what it measures, is written after it.

        Raises:
            OutputError: the folder cannot be made, a file not be written, or a DICOM SEG is not the mask.
        """
        if self._outputs.folder is None:
            return None
        folder = make_folder(self._outputs.folder)
        place = {suffix: folder / f"{self._name}_seg{suffix}" for suffix in (self._mask_suffix, ".json", ".png")}
        map_places = {level: folder / f"{self._name}_attention_{level}.nii.gz" for level in maps}
        new: list[tuple[Path, Path]] = []
        with ExitStack() as files:

            def temporary(path: Path) -> Path:
                new.append((files.enter_context(temporary_path(path)), path))
                return new[-1][0]

            # All or nothing: each file is complete before the first one takes its place.
            with writing:
                self._save(temporary(place[self._mask_suffix]), mask, self._affine)
                record["mask_sha256"] = file_sha256(new[0][0])
                for level, path in map_places.items():
                    save_map(temporary(path), maps[level], self._affine, metadata=self._metadata)
                picture = None if hu is None else self._picture(mask, record, hu)
                if picture is not None:
                    temporary(place[".png"]).write_bytes(picture)
            record |= {"output": place[self._mask_suffix].name, "output_format": self._outputs.output_format}
            if maps:
                names = {level: path.name for level, path in map_places.items()}
                record |= {"attention": names, "attention_meaning": MEANING}
            record["memory_mb"]["peak"] = megabytes(peak_bytes())
            temporary(place[".json"]).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            # The mask stands for the result. The record goes before what it describes: it says what belongs to it.
            mask_file, *others, record_file = new
            former = self._former(folder, place[".json"])
            replace_as_one([record_file, *others, mask_file], former)
        return place[self._mask_suffix]

    def _former(self, folder: Path, record: Path) -> list[Path]:
        """The files of the result that a record in the same place describes, but for the record: its mask first.

        Files that no record names are not known to be of a result; so without a record there are none.
        """
        if not record.is_file():  # a pipe would be waited for
            return []
        try:
            described = parse_json(record.read_bytes())
            named = [described["output"], *described.get("attention", {}).values(), f"{self._name}_seg.png"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        own = (f"{self._name}_seg.", f"{self._name}_attention_")
        return [folder / file for file in named if isinstance(file, str) and file.startswith(own) and "/" not in file]

    def _picture(self, mask: np.ndarray, record: dict[str, Any], hu: np.ndarray) -> bytes | None:
        """A PNG; None, and a warning in the record, where it cannot be drawn: that must not cost the mask."""
        title = f"{self._name}: {record['volume_ml']:.1f} mL (research use only)"
        png = BytesIO()
        try:
            from attunet3d.pictures.qc import qc_picture

            qc_picture(png, hu, mask, self._affine, title)
        except Exception as error:  # matplotlib's fonts, layouts and settings fail in ways of their own
            record["warnings"].append(f"the picture could not be drawn ({type(error).__name__}); the mask is complete")
            return None
        return png.getvalue()


def check_format(output_format: str) -> None:
    """Raise ConfigError for an output format that does not exist, or whose library is not installed."""
    if output_format not in MASK_SUFFIXES:
        raise ConfigError(f"output format {output_format!r}: unknown; there are {', '.join(MASK_SUFFIXES)}")
    if output_format in SEG_TYPES and importlib.util.find_spec("highdicom") is None:
        raise ConfigError("DICOM SEG needs highdicom, which is not installed; run: pip install 'attunet3d[seg]'")
