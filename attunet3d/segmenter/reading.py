"""Read CTs for a session: what fits into memory, and the next one while the network works on another."""

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
    """A CT that has been read, and the plan that was made from its header.

    Attributes:
        grid: its own.
        model: the network's grid for it.
        metadata: what its reader said, see `Volume.metadata`.
        files, frames: its DICOM images, see `StoredImage`.
        memory: what the case will take.
        seconds: how long it took to read.
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
        """The voxels, HU int16 (X, Y, Z). They are given away: whoever takes them can free them."""
        hu, self._hu = self._hu, None
        if hu is None:
            raise RuntimeError("the voxels have been taken already")
        return hu


class CaseReader:
    """Reads CTs for one session.

    Args:
        spacing: of the model grid, mm.
        plan: from the header of a CT, its model grid, and whether a picture is wanted, to what it will take; raises
            where that is too much, or where its mask could not be written. Voxels are read after it.
        allow_uneven: see `open_ct`.
        results: folder that results are written to, which is no part of a CT in whose folder it lies.
    """

    def __init__(
        self,
        spacing: tuple[float, float, float],
        plan: Callable[[StoredImage, Grid, bool], MemoryPlan],
        allow_uneven: bool = False,
        results: PathLike | None = None,
    ) -> None:
        self._results = results
        self._spacing = spacing
        self._allow_uneven = allow_uneven
        self._plan = plan

    def read(self, ct: PathLike, series_uid: str | None, qc: bool) -> PlannedCT:
        """Plan the memory from a CT's header, then read its voxels.

        Errors as `open_ct` and `plan_memory`; UnreadableInputError also for a CT that was written to meanwhile.
        """
        start = time.perf_counter()
        image, files = self._open(ct, series_uid)
        return self._read(image, files, qc, start)

    def read_all(self, cts: Sequence[PathLike], series_uid: str | None, qc: bool) -> Iterator[PlannedCT | Exception]:
        """Each CT, or what went wrong with it.

        While the caller works on one, the next one is read in the background, if there is room for it beside.
        """
        waiting: Future[PlannedCT | None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="read") as background:
            for index, ct in enumerate(cts):
                ahead, waiting = waiting, None
                try:
                    given = (ahead.result() if ahead else None) or self.read(ct, series_uid, qc)
                except Exception as error:
                    yield error
                    continue
                if index + 1 < len(cts):
                    waiting = background.submit(self.read_beside, cts[index + 1], series_uid, qc, given.memory)
                yield given

    def read_beside(self, ct: PathLike, series_uid: str | None, qc: bool, current: MemoryPlan) -> PlannedCT | None:
        """As `read`, while another case has its plan; None where there is no room for both."""
        start = time.perf_counter()
        image, files = self._open(ct, series_uid)
        if not current.has_room_for(2 * math.prod(image.shape)):
            return None
        return self._read(image, files, qc, start)

    def _open(self, ct: PathLike, series_uid: str | None) -> tuple[StoredImage, FileStates]:
        """The CT, and its files as they were before."""
        files = input_files(ct, self._results)
        try:
            image = open_ct(ct, series_uid=series_uid, allow_uneven=self._allow_uneven)
        except AttUNet3dError as error:
            _refuse_changed(Path(ct), files, error)
            raise
        image.metadata["state"] = input_sha256(ct, series_uid, files)
        return image, files

    def _read(self, image: StoredImage, files: FileStates, qc: bool, start: float) -> PlannedCT:
        check_affine(image.path, image.affine)  # before a grid is made from it
        model = model_grid(Grid(image.shape, image.affine), self._spacing)
        memory = self._plan(image, model, qc)
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
