"""Stages of a case: progress, cancellation, timing, and errors that name the CT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from attunet3d.errors import CancelledError, MemoryLimitError
from attunet3d.inferers.stitching import Cancel
from attunet3d.io.paths import PathLike
from attunet3d.runtime.device import wait_for
from attunet3d.runtime.process_memory import is_out_of_memory

Progress = Callable[[str, int, int], None]


class Stages:
    """Runs the stages of one case.

    Args:
        ct: as it was given, for messages.
        device: its work counts for the stage in which it was started.
        progress: called as ``progress(stage, done, total)``.
        cancel: asked before each stage whether to stop.

    Attributes:
        seconds: wall time by stage, s.
    """

    def __init__(
        self, ct: PathLike, device: torch.device, progress: Progress | None = None, cancel: Cancel | None = None
    ) -> None:
        self._ct = ct
        self._device = device
        self._progress = progress or ignore_progress
        self.cancel = cancel
        self.seconds: dict[str, float] = {}

    @contextmanager
    def run(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Run the block as a stage; it gets a function that reports its progress, ``(done, total)``.

        Raises:
            CancelledError: the case was cancelled before the stage began.
            MemoryLimitError: the stage ran out of memory.
        """
        if self.cancel is not None and self.cancel():
            raise CancelledError("cancelled")
        self._progress(name, 0, 1)
        start = time.perf_counter()
        try:
            yield partial(self._progress, name)
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{self._ct}: {error}") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryLimitError(
                f"{self._ct}: out of memory in stage {name}: close other programs, or use a machine with more"
            ) from error
        wait_for(self._device)
        self.seconds[name] = round(time.perf_counter() - start, 3)


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing: the default ``progress``."""
