"""Read CTs for a session: what fits into memory, and the next one while the network works on another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from attunet3d.io.reader import PathLike, open_ct
from attunet3d.io.slabs import StoredImage, check_affine, to_hu
from attunet3d.memory import MemoryPlan
from attunet3d.transforms.resample import Grid, model_grid


class PlannedCT:
    """A CT that has been read, and the plan that was made from its header.

    Attributes:
        grid: its own.
        model: the network's grid for it.
        facts: what its reader said, see `Volume.source`.
        files, frames: its DICOM images, see `StoredImage`.
        memory: what the case will take.
        seconds: how long it took to read.
    """

    def __init__(self, image: StoredImage, model: Grid, memory: MemoryPlan, start: float) -> None:
        self._hu: np.ndarray | None = to_hu(image)
        self.grid = Grid(image.shape, image.affine)
        self.model = model
        self.facts = image.facts
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
    """

    def __init__(
        self,
        spacing: tuple[float, float, float],
        plan: Callable[[StoredImage, Grid, bool], MemoryPlan],
        allow_uneven: bool = False,
    ) -> None:
        self._spacing = spacing
        self._allow_uneven = allow_uneven
        self._plan = plan

    def read(self, ct: PathLike, series_uid: str | None, qc: bool) -> PlannedCT:
        """Plan the memory from a CT's header, then read its voxels. Errors as `open_ct` and `plan_memory`."""
        start = time.perf_counter()
        return self._read(self._open(ct, series_uid), qc, start)

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
        image = self._open(ct, series_uid)
        return self._read(image, qc, start) if current.has_room_for(2 * math.prod(image.shape)) else None

    def _open(self, ct: PathLike, series_uid: str | None) -> StoredImage:
        return open_ct(ct, series_uid=series_uid, allow_uneven=self._allow_uneven)

    def _read(self, image: StoredImage, qc: bool, start: float) -> PlannedCT:
        check_affine(image.path, image.affine)  # before a grid is made from it
        model = model_grid(Grid(image.shape, image.affine), self._spacing)
        return PlannedCT(image, model, self._plan(image, model, qc), start)
