"""How much memory a case takes, how much there is, and what to do where it is tight."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attunet3d.errors import MemoryLimitError
from attunet3d.inferers.windows import SMALLEST_SIDE, SlidingWindow, WindowPlan

logger = logging.getLogger(__name__)

_SLAB_BYTES_PER_PIXEL = 16 * 4 * 4  # the resampler's slab: 16 planes, float32, a few copies
# Features of a window at the finest level, as multiples of one skip and one upsampled set; with the coarser levels, the
# convolution's own buffers and what the allocator keeps. Measured: 2.4 in bf16 on a CPU, 2.4 with the concatenation.
_FEATURE_COPIES = 2.5
_IMAGES_BESIDE_NETWORK = 4  # of float32 on the model grid: the image, its logits, their weights, and one for sums
_RESERVE = 0.05  # of what is free is left to others
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt's parameters in glibc


@dataclass(frozen=True)
class MemoryPlan:
    """What a case will take.

    Attributes:
        peak_bytes: predicted peak of this process.
        allowed_bytes: what this process may take at most, or None where it is unknown.
        limit_voxels: voxels that may go through the network at once, or None if nothing has to be limited.
    """

    peak_bytes: int
    allowed_bytes: int | None
    limit_voxels: int | None

    def has_room_for(self, more_bytes: int) -> bool:
        """Whether something else fits beside the case."""
        return self.allowed_bytes is None or self.peak_bytes + more_bytes <= self.allowed_bytes


def plan_memory(
    shape: Sequence[int],
    model_shape: Sequence[int],
    window_voxels: int,
    bytes_per_voxel: int,
    device: torch.device,
    *,
    base_bytes: int,
    keeps_ct: bool = False,
    maps: int = 0,
    limit_bytes: int | None = None,
) -> MemoryPlan:
    """Predict a case's peak from its header, and limit the windows where it would not fit.

    Args:
        shape: voxels of the CT.
        model_shape: voxels on the model grid.
        window_voxels: voxels that go through the network at once if nothing limits them.
        bytes_per_voxel: of the network, see `network_bytes_per_voxel`.
        device: where the network runs.
        base_bytes: what this process holds without a case.
        keeps_ct: whether the CT is needed until the end (for a picture).
        maps: attention maps, made beside the logits and kept on the model grid; one at a time is brought to the CT's.
        limit_bytes: most that this process may take; by default what the machine has left.

    Raises:
        MemoryLimitError: it does not fit, however small the windows; the message says what is needed and what there is.
    """
    voxels, model = math.prod(shape), math.prod(model_shape)
    hu, mask, image = 2 * voxels, voxels, 4 * model
    images = (_IMAGES_BESIDE_NETWORK + maps) * image
    slab = _SLAB_BYTES_PER_PIXEL * shape[0] * shape[1]
    smallest = SMALLEST_SIDE**3
    size = " x ".join(map(str, shape))
    # Stage by stage; the CT goes when it has been resampled, unless it is kept.
    kept = hu if keeps_ct else 0
    resampling = max(hu + image + slab, kept + 2 * mask + (1 + maps) * image + slab)
    beside_network = base_bytes + kept + images
    allowed = _allowed_bytes(base_bytes, limit_bytes)
    limit: int | None = None
    if device.type == "cuda":
        room = int(torch.cuda.mem_get_info(device)[0] * (1 - _RESERVE)) - hu - images
        limit = room // bytes_per_voxel
        if limit < smallest:
            raise MemoryLimitError(f"a CT of {size} voxels does not fit into what is free on {device}: use device cpu")
        at_once = 0
    else:
        if allowed is not None:
            limit = (allowed - beside_network) // bytes_per_voxel
        at_once = window_voxels if limit is None else max(min(window_voxels, limit), smallest)
    peak = max(base_bytes + resampling, beside_network + at_once * bytes_per_voxel)
    if allowed is not None and peak > allowed:
        raise MemoryLimitError(
            f"a CT of {size} voxels needs {_gib(peak)} of memory, and there are {_gib(allowed)}: close other programs, "
            "crop the CT to the abdomen, or use a machine with more"
        )
    return MemoryPlan(peak, allowed, None if limit is None or window_voxels <= limit else limit)


def run_in_memory(
    window: SlidingWindow,
    run: Callable[[Tensor, nn.Module, WindowPlan], Tensor],
    image: Tensor,
    network: nn.Module,
    plan: WindowPlan,
) -> tuple[Tensor, WindowPlan]:
    """``run(image, network, plan)`` and the plan that it took: with smaller windows where memory runs out all the same.

    Args:
        window: what the plan is of.
        run: a method of it.
        image: (1, C, X, Y, Z).
        network: what is run on the windows.
        plan: the windows to begin with.

    Raises:
        MemoryLimitError: not even the smallest windows fit.
    """
    while True:
        try:
            with keep_freed_memory():
                return run(image, network, plan), plan
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            limit_voxels = plan.voxels // 2
            if limit_voxels < SMALLEST_SIDE**3:
                raise MemoryLimitError(f"the smallest windows do not fit into the memory of {image.device}") from error
            logger.warning("out of memory with windows of %s: smaller ones are tried", plan.roi)
            plan = window.plan(image, limit_voxels)


def network_bytes_per_voxel(network: nn.Module, dtype: torch.dtype) -> int:
    """Memory that a forward pass takes per voxel of the input, bytes; a generous guess for networks of others."""
    channels = getattr(network, "channels", None) or (64, 128)
    size = torch.empty((), dtype=dtype).element_size()
    return int(_FEATURE_COPIES * (channels[0] + channels[1]) * size) + 16  # and the image and its logits


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_bytes() -> int | None:
    """Peak resident memory of this process so far; unknown on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Memory that this process could still take: what the machine has left, or its container; None if unknown."""
    found = [n for n in (_machine_available(), _cgroup_available()) if n is not None]
    return min(found) if found else None


@contextmanager
def keep_freed_memory(always: bool = False) -> Iterator[None]:
    """Let glibc reuse the memory of freed tensors, and return it to the system at the end only.

    By default each large tensor is fresh memory, whose pages the system has to clear: a sixth of a forward pass. With
    huge pages (see `ask_for_huge_pages`) that is soon done, so memory is only returned; but a step of training, which
    makes and frees some gigabytes, still takes a third longer without ``always``. Elsewhere than on glibc this does
    nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, TypeError, AttributeError):
        yield
        return
    keep = always or os.environ.get("THP_MEM_ALLOC_ENABLE") != "1"
    if keep:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        if keep:
            mallopt(_M_MMAP_MAX, 65536)  # glibc's defaults
            mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        trim(0)


def _allowed_bytes(base: int, limit_bytes: int | None) -> int | None:
    """What this process may hold: with what it held beyond ``base`` given back, and some left to others."""
    available = available_bytes()
    free = None if available is None else int((available + (resident_bytes() or base)) * (1 - _RESERVE))
    return min((n for n in (free, limit_bytes) if n is not None), default=None)


def _machine_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_available() -> int | None:
    """What the container may still take: cgroup v2, then v1. Caches that the kernel can drop do not count as taken."""
    for limit, usage, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            most = (root / limit).read_text().strip()
            if most == "max":
                return None
            taken = int((root / usage).read_text())
            reclaimable = dict(line.split() for line in (root / stat).read_text().splitlines())
            return max(int(most) - taken + int(reclaimable.get(cache, 0)), 0)
        except (OSError, ValueError):
            continue
    return None


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB"
