"""Readers, a writer and a folder layout for MONAI's ``LoadImaged`` and ``SaveImaged``."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import FolderLayoutBase, ImageReader, ImageWriter, NibabelWriter
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

from attunet3d.errors import UnsupportedImageError
from attunet3d.io.cases import case_name
from attunet3d.io.paths import PathLike
from attunet3d.io.reader import open_label, read_volume
from attunet3d.io.slabs import to_labels
from attunet3d.io.writer import atomic_path, set_geometry

logger = logging.getLogger(__name__)


class _Reader(ImageReader):
    """Base of the readers below, for MONAI's ``LoadImage``.

    ``LoadImage`` swallows errors of ``read`` and tries MONAI's own readers instead, which would accept images that are
    refused here. Errors of ``get_data`` reach the caller, so ``read`` only keeps the path.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(p) for p in data]

    def get_data(self, img: list[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        if len(img) != 1:
            raise UnsupportedImageError(f"{img[0]}: one of {len(img)} files for one image; for DICOM give the folder")
        path = img[0]
        array, affine, metadata = self._load(path)
        meta = {
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # MONAI's "no channel"
            ImageMetaKey.FILENAME_OR_OBJ: str(path),
            # As text, since MONAI's collation needs the same keys and lengths in every image of a batch.
            "source": json.dumps(metadata),
        }
        return array, meta

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        raise NotImplementedError


class CTReader(_Reader):
    """Read CTs for MONAI: ``LoadImaged(keys="image", reader=CTReader, dtype=None)`` gives int16 HU.

    The metadata has the keys of MONAI's readers (affine in RAS+ mm) and "source": ``Volume.metadata`` as JSON text. Its
    warnings are logged when a CT is read for the first time. Arguments and errors are those of ``open_ct``.
    """

    def __init__(self, series_uid: str | None = None, allow_uneven: bool = False) -> None:
        self.series_uid = series_uid
        self.allow_uneven = allow_uneven
        self._warned: set[Path] = set()

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        volume = read_volume(path, series_uid=self.series_uid, allow_uneven=self.allow_uneven)
        if path not in self._warned:
            self._warned.add(path)
            for warning in volume.metadata["warnings"]:
                logger.warning("%s: %s", path, warning)
        return volume.array, volume.affine, volume.metadata


class LabelReader(_Reader):
    """Read label maps for MONAI: ``LoadImaged(keys="label", reader=LabelReader, dtype=None)`` gives uint8."""

    def _load(self, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        image = open_label(path)
        return to_labels(image), image.affine, image.metadata


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer, with atomic writes and with the geometry fields of the CT's own header.

    Use: ``SaveImaged(keys="pred", writer="attunet3d.io.AtomicNibabelWriter", ...)``.
    """

    metadata: Mapping[str, Any] | None = None

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Set the metadata like MONAI's writer; also keep those that ``CTReader`` has put into ``meta_dict``."""
        super().set_metadata(meta_dict, resample=resample, **options)
        source = (meta_dict or {}).get("source")
        self.metadata = json.loads(source) if isinstance(source, str) else None

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write like MONAI's writer, but atomically.

        Raises:
            OutputError: the file cannot be written. ``SaveImage`` quotes it in a RuntimeError.
        """
        ImageWriter.write(self, filename, verbose=verbose)
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype, **obj_kwargs)
        set_geometry(image, np.asarray(image.affine, np.float64), self.metadata)
        with atomic_path(filename) as temporary:
            nib.save(image, temporary)


class MaskLayout(FolderLayoutBase):
    """Layout of the masks that ``SaveImaged`` writes: ``<output_dir>/<folders below root>/<case>_seg.nii.gz``.

    MONAI's own layout would write the masks of ``a/ct.nii.gz`` and ``b/ct.nii.gz`` to one file, and so those of series
    in folders named by UIDs, which it cuts at the last dot.
    """

    def __init__(self, output_dir: PathLike, root: PathLike) -> None:
        self.output_dir = Path(output_dir)
        self.root = Path(os.path.abspath(root))

    def filename(self, subject: PathLike = "subject", idx: object = None, **kwargs: object) -> str:
        path = self.path(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def case(self, subject: PathLike) -> str:
        """Return the name of a CT's case, with its folders below ``root``: "a/ct" for ``<root>/a/ct.nii.gz``."""
        folder = Path(os.path.abspath(subject)).parent
        below = folder.relative_to(self.root) if folder.is_relative_to(self.root) else Path()
        return (below / case_name(subject)).as_posix()

    def path(self, subject: PathLike) -> Path:
        """Return the path of a CT's mask."""
        return self.output_dir / f"{self.case(subject)}_seg.nii.gz"
