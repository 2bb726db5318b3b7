"""Run the windows of an image within the free memory: first fewer at once, then smaller ones if allowed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from attunet3d.errors import MemoryLimitError
from attunet3d.inferers.stitching import Cancel, Progress
from attunet3d.inferers.windows import SMALLEST_SIDE, SlidingWindow, WindowPlan
from attunet3d.runtime.process_memory import has_huge_pages, is_out_of_memory, keep_freed_memory
from attunet3d.segmenter.memory_plan import HINT_FOR_SIZE, HINT_FOR_WINDOWS, MemoryPlan, by_axis, gib

logger = logging.getLogger(__name__)


class WindowRun:
    """Runs the windows of one image, fewer at once or smaller if memory is short.

    Args:
        window: settings of the windows.
        image: (1, C, X, Y, Z).
        memory: plan of the case.
        allow_smaller: whether windows may be smaller than configured if memory is short.
        several_scales: whether the network runs at several test-time scales.

    Attributes:
        plan: the windows; changed by ``logits`` if memory runs out.
        predicted_bytes: peak of this process that is expected with these windows.
        warnings: how the windows differ from the configured ones, for the record.

    Raises:
        MemoryLimitError: one window does not fit, and smaller ones are not allowed.
    """

    def __init__(
        self, window: SlidingWindow, image: Tensor, memory: MemoryPlan, allow_smaller: bool, several_scales: bool
    ) -> None:
        self._window = window
        self._allow_smaller = allow_smaller
        self._configured = window.plan(image)
        self.plan = self._fit(image, memory)
        fragmentation = memory.fragmentation(self.plan.voxels, several_scales)
        self._keep_freed = fragmentation is not None
        self.predicted_bytes = memory.peak_with(self.plan.voxels, fragmentation or 0)
        self.warnings: list[str] = []

    def _fit(self, image: Tensor, memory: MemoryPlan) -> WindowPlan:
        plan, limit = self._configured, memory.limit_voxels
        one = math.prod(plan.roi)
        if limit is None or plan.voxels <= limit:
            return plan
        if one <= limit:
            return replace(plan, batch=limit // one)
        if not self._allow_smaller:
            where = f" on {image.device}" if memory.on_gpu else ""
            raise MemoryLimitError(
                f"windows of {by_axis(plan.roi)} voxels need {gib(memory.network_bytes(one))} of memory{where}, and "
                f"there are {gib(memory.room_bytes or 0)}: {HINT_FOR_WINDOWS}",
                arguments=("allow_smaller_windows",),
            )
        return self._window.plan(image, limit)

    def logits(self, image: Tensor, network: nn.Module, progress: Progress, cancel: Cancel | None) -> Tensor:
        """Run a network on the windows, see ``SlidingWindow.run``.

        If memory runs out, fewer windows are run at once, and then smaller ones if they are allowed.

        Raises:
            CancelledError: ``cancel`` returned true.
            MemoryLimitError: one window does not fit, and no smaller one is allowed or fits.
        """
        run = partial(self._window.run, progress=progress, cancel=cancel)
        logits, self.plan = self._run(run, image, network)
        self.warnings += _differences(self._configured, self.plan)
        return logits

    def maps(self, image: Tensor, network: nn.Module, progress: Progress, cancel: Cancel | None) -> Tensor:
        """Average the maps of a network, see ``SlidingWindow.average``; after ``logits``, with the same errors."""
        run = partial(self._window.average, progress=progress, cancel=cancel)
        maps, plan = self._run(run, image, network)
        self.warnings += [f"attention maps: {line}" for line in _differences(self.plan, plan)]
        return maps

    def _run(
        self, run: Callable[[Tensor, nn.Module, WindowPlan], Tensor], image: Tensor, network: nn.Module
    ) -> tuple[Tensor, WindowPlan]:
        """Return the result of ``run``, and the windows that fitted into memory."""
        plan, keep_freed = self.plan, self._keep_freed
        while True:
            try:
                with keep_freed_memory(never=not keep_freed):
                    return run(image, network, plan), plan
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if keep_freed and not has_huge_pages():
                    keep_freed = False
                    continue
                if plan.batch > 1:
                    plan = replace(plan, batch=plan.batch // 2)
                    continue
                where = f"out of memory on {image.device} with windows of {by_axis(plan.roi)} voxels"
                if not self._allow_smaller:
                    raise MemoryLimitError(
                        f"{where}: {HINT_FOR_WINDOWS}", arguments=("allow_smaller_windows",)
                    ) from error
                limit_voxels = plan.voxels // 2
                if limit_voxels < SMALLEST_SIDE**3:
                    raise MemoryLimitError(f"{where}, and there are no smaller ones: {HINT_FOR_SIZE}") from error
                logger.warning("%s: smaller ones are tried", where)
                plan = self._window.plan(image, limit_voxels)


def _differences(configured: WindowPlan, run: WindowPlan) -> list[str]:
    if run.roi != configured.roi:
        return [
            f"memory was short: windows of {by_axis(run.roi)} voxels were run instead of {by_axis(configured.roi)}; "
            "they have less context around each voxel, so the mask differs from that of full windows"
        ]
    if run.batch != configured.batch:  # libraries choose other kernels for it
        return [
            f"memory was short: {run.batch} windows were run at once instead of {configured.batch}; that may round "
            "differently, which can change single voxels of the mask's surface"
        ]
    return []
