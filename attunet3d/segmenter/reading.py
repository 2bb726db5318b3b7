"""Read CTs that fit into memory, each while the network works on the one before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from attunet3d.errors import AttUNet3dError, UnreadableInputError
from attunet3d.io.identity import FileStates, file_state, input_files, input_sha256
from attunet3d.io.paths import PathLike
from attunet3d.io.reader import open_ct
from attunet3d.io.slabs import StoredImage, check_affine, to_hu
from attunet3d.segmenter.memory_plan import MemoryPlan
from attunet3d.transforms.grid import Grid, model_grid


class PlannedCT:
    """A CT that has been read, with the memory plan made from its header.

    Attributes:
        grid: grid of the CT.
        model: grid that the network works on.
        metadata: of the image, see ``Volume.metadata``.
        files, frames: its DICOM images, see ``StoredImage``.
        memory: plan of the case.
        seconds: time that reading took.
    """

    def __init__(self, image: StoredImage, model: Grid, memory: MemoryPlan, start: float) -> None:
        self._hu: np.ndarray | None = to_hu(image)
        self.grid = Grid(image.shape, image.affine)
        self.model = model
        self.metadata = image.metadata
        self.files, self.frames = image.files, image.frames
        self.memory = memory
        self.seconds = round(time.perf_counter() - start, 3)

    def take(self) -> np.ndarray:
        """Hand over the voxels, HU int16 (X, Y, Z), once, so that the caller can free them."""
        hu, self._hu = self._hu, None
        if hu is None:
            raise RuntimeError("the voxels have been taken already")
        return hu


class CaseReader:
    """Reads CTs for one session.

    Args:
        spacing: of the model grid, mm.
        plan: called with a CT of which only the header has been read, and its model grid; returns the memory plan of
            the case, or raises if it does not fit or its results could not be written. Voxels are read after it.
        allow_uneven: see ``open_ct``.
        results: folder of the results; it may be inside the folder of a CT, but is not part of it.
    """

    def __init__(
        self,
        spacing: tuple[float, float, float],
        plan: Callable[[StoredImage, Grid], MemoryPlan],
        allow_uneven: bool = False,
        results: PathLike | None = None,
    ) -> None:
        self._results = results
        self._spacing = spacing
        self._allow_uneven = allow_uneven
        self._plan = plan

    def read(self, ct: PathLike, series_uid: str | None = None) -> PlannedCT:
        """Plan the memory from a CT's header, then read its voxels.

        Raises:
            AttUNet3dError: as ``open_ct`` and the plan; UnreadableInputError also if the CT was written to meanwhile.
        """
        start = time.perf_counter()
        image, files = self._open(ct, series_uid)
        return self._read(image, files, start)

    def read_all(self, cts: Sequence[PathLike], series_uid: str | None = None) -> Iterator[PlannedCT | Exception]:
        """Read each CT in order, and the next one in the background, if both fit into memory.

        Yields:
            The CT, or the error that was raised when it was read.
        """
        waiting: Future[PlannedCT | None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="read") as background:
            for index, ct in enumerate(cts):
                ahead, waiting = waiting, None
                try:
                    given = (ahead.result() if ahead else None) or self.read(ct, series_uid)
                except Exception as error:
                    yield error
                    continue
                if index + 1 < len(cts):
                    waiting = background.submit(self.read_beside, cts[index + 1], given.memory, series_uid)
                yield given

    def read_beside(self, ct: PathLike, current: MemoryPlan, series_uid: str | None = None) -> PlannedCT | None:
        """Read a CT like ``read`` while another case is running; None if both do not fit into memory."""
        start = time.perf_counter()
        image, files = self._open(ct, series_uid)
        if not current.has_room_for(2 * math.prod(image.shape)):
            return None
        return self._read(image, files, start)

    def _open(self, ct: PathLike, series_uid: str | None) -> tuple[StoredImage, FileStates]:
        """Open a CT; return it with the states of its files before."""
        files = input_files(ct, self._results)
        try:
            image = open_ct(ct, series_uid=series_uid, allow_uneven=self._allow_uneven)
        except AttUNet3dError as error:
            _refuse_changed(Path(ct), files, error)
            raise
        image.metadata["state"] = input_sha256(ct, series_uid, files)
        return image, files

    def _read(self, image: StoredImage, files: FileStates, start: float) -> PlannedCT:
        check_affine(image.path, image.affine)  # before a grid is made from it
        model = model_grid(Grid(image.shape, image.affine), self._spacing)
        memory = self._plan(image, model)
        of_ct = {file: files.get(file) for file in map(str, image.files)} or files
        try:
            read = PlannedCT(image, model, memory, start)
        except AttUNet3dError as error:
            _refuse_changed(image.path, of_ct, error)
            raise
        _refuse_changed(image.path, of_ct)
        return read


def _refuse_changed(
    path: Path, files: Mapping[str, tuple[int, int] | None], error: AttUNet3dError | None = None
) -> None:
    for file, before in files.items():
        if file_state(file) != before:
            raise UnreadableInputError(
                f"{path}: {Path(file).name} was written to while the CT was read; give it again when it is complete"
            ) from error
