"""Windows in the memory that there is: what changes no voxel is reduced first, and smaller ones are no surprise."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from attunet3d.errors import MemoryLimitError
from attunet3d.inferers.windows import SMALLEST_SIDE, SlidingWindow, WindowPlan
from attunet3d.runtime.process_memory import has_huge_pages, is_out_of_memory, keep_freed_memory
from attunet3d.segmenter.memory_plan import CURE_OF_SIZE, CURE_OF_WINDOWS, MemoryPlan, by_axis, gib

logger = logging.getLogger(__name__)


def windows_in_memory(
    window: SlidingWindow, image: Tensor, plan: WindowPlan, memory: MemoryPlan, smaller: bool
) -> WindowPlan:
    """An image's windows, fewer of them at once where memory is short, and smaller ones only if that is allowed.

    Args:
        window: the windows' settings.
        image: (1, C, X, Y, Z).
        plan: the windows that these settings give for the image.
        memory: the case's.
        smaller: whether windows may be smaller than that.

    Raises:
        MemoryLimitError: one window does not fit, and smaller ones were not allowed.
    """
    limit, one = memory.limit_voxels, math.prod(plan.roi)
    if limit is None or plan.voxels <= limit:
        return plan
    if one <= limit:
        return replace(plan, batch=limit // one)
    if not smaller:
        where = f" on {image.device}" if memory.on_gpu else ""
        raise MemoryLimitError(
            f"windows of {by_axis(plan.roi)} voxels need {gib(memory.network_bytes(one))} of memory{where}, and there "
            f"are {gib(memory.room_bytes or 0)}: {CURE_OF_WINDOWS}",
            arguments=("allow_smaller_windows",),
        )
    return window.plan(image, limit)


def said_of_windows(full: WindowPlan, run: WindowPlan) -> list[str]:
    """What a record says where windows were not run as the settings give them."""
    if run.roi != full.roi:
        return [
            f"memory was short: windows of {by_axis(run.roi)} voxels were run in place of {by_axis(full.roi)}; they "
            "see less around each voxel, and the mask is not that of full windows"
        ]
    if run.batch != full.batch:  # libraries choose other kernels for it
        return [
            f"memory was short: {run.batch} windows were run at once in place of {full.batch}; that may round "
            "differently, which can move single voxels of the mask's surface"
        ]
    return []


def run_in_memory(
    window: SlidingWindow,
    run: Callable[[Tensor, nn.Module, WindowPlan], Tensor],
    image: Tensor,
    network: nn.Module,
    plan: WindowPlan,
    smaller: bool = False,
    keep: bool = False,
) -> tuple[Tensor, WindowPlan]:
    """``run(image, network, plan)`` and the plan that it took, where memory runs out all the same.

    Then fewer windows are run at once, and if one is too much, smaller ones where they are allowed.

    Args:
        window: what the plan is of.
        run: a method of it.
        image: (1, C, X, Y, Z).
        network: what is run on the windows.
        plan: the windows to begin with.
        smaller: whether windows may become smaller.
        keep: whether there is room to keep freed memory, see `MemoryPlan.holes`.

    Raises:
        MemoryLimitError: one window does not fit, and none that is smaller was allowed or fits.
    """
    while True:
        try:
            with keep_freed_memory(never=not keep):
                return run(image, network, plan), plan
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if keep and not has_huge_pages():
                keep = False
                continue
            if plan.batch > 1:
                plan = replace(plan, batch=plan.batch // 2)
                continue
            where = f"out of memory on {image.device} with windows of {by_axis(plan.roi)} voxels"
            if not smaller:
                raise MemoryLimitError(f"{where}: {CURE_OF_WINDOWS}", arguments=("allow_smaller_windows",)) from error
            limit_voxels = plan.voxels // 2
            if limit_voxels < SMALLEST_SIDE**3:
                raise MemoryLimitError(f"{where}, and there are no smaller ones: {CURE_OF_SIZE}") from error
            logger.warning("%s: smaller ones are tried", where)
            plan = window.plan(image, limit_voxels)
