"""Predict the memory that a case takes, and limit its windows to what is free.

The size of windows depends only on the config and the image, as the mask must not depend on the load of the machine. If
they do not fit into memory, fewer are run at once. If not even one fits, the case is refused, or run in smaller windows
if that is allowed.

docs/explanation/memory.md compares the prediction with the peaks of fresh processes (two threads; VmHWM, ``memory_mb``
in the record).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from attunet3d.errors import MemoryLimitError
from attunet3d.inferers.windows import SMALLEST_SIDE
from attunet3d.runtime.free_memory import available_bytes
from attunet3d.runtime.process_memory import has_huge_pages, resident_bytes

# For resampling, per pixel of a slice: slabs of 8 planes in float32, and their neighbours. If the CT is oblique to the
# model grid, resampling back also needs the positions of the eight neighbours of each voxel.
_SLAB_BYTES_PER_PIXEL, _OBLIQUE_BYTES_PER_PIXEL = 160, 1120
_IMAGES_BESIDE_NETWORK = 4  # float32, on the model grid: the image, the logits, their weights, and a temporary one
# For the first case of a session: code that libraries load, kernels and buffers of oneDNN, small tensors.
FIRST_CASE_BYTES = 64 * 2**20
# Fragmentation if freed memory is kept (see `keep_freed_memory`), as a share of the memory of the tensors: with one
# test-time scale, and with several.
_FRAGMENTATION, _FRAGMENTATION_OF_SEVERAL = 0.25, 1.0
_RESERVE = 0.05  # share of the free memory that is left to other processes
HINT_FOR_SIZE = "close other programs, crop the CT to the abdomen, or use a machine with more"
HINT_FOR_WINDOWS = (
    "close other programs, use a machine with more, or set allow_smaller_windows=True, which changes the mask"
)


@dataclass(frozen=True)
class MemoryPlan:
    """Memory that a case is expected to take.

    Attributes:
        peak_bytes: upper bound of the peak of this process; its windows are only known once the image has been read.
        allowed_bytes: most that this process may take; None if unknown.
        limit_voxels: most voxels per forward pass; None if no limit is needed.
        elsewhere_bytes: predicted peak of this process outside the network.
        beside_bytes: on the network's device while it runs, besides its own tensors.
        bytes_per_voxel: of the network's tensors, for each voxel of a forward pass.
        room_bytes: free on that device for ``beside_bytes`` and the network; None if unknown.
        on_gpu: whether that device has memory of its own.
    """

    peak_bytes: int
    allowed_bytes: int | None
    limit_voxels: int | None
    elsewhere_bytes: int = 0
    beside_bytes: int = 0
    bytes_per_voxel: int = 0
    room_bytes: int | None = None
    on_gpu: bool = False

    def has_room_for(self, more_bytes: int) -> bool:
        """Whether so many bytes more fit beside the case."""
        return self.allowed_bytes is None or self.peak_bytes + more_bytes <= self.allowed_bytes

    def network_bytes(self, voxels: int) -> int:
        """Predict the memory on the network's device, bytes, for a number of voxels per forward pass."""
        return self.beside_bytes + voxels * self.bytes_per_voxel

    def peak_with(self, voxels: int, fragmentation: int = 0) -> int:
        """Predict the peak of this process, bytes, for a number of voxels per forward pass."""
        network = self.network_bytes(voxels) + fragmentation
        return self.elsewhere_bytes if self.on_gpu else max(self.elsewhere_bytes, network)

    def fragmentation(self, voxels: int, several: bool) -> int | None:
        """Estimate the bytes lost to fragmentation if freed memory is kept; None if there is no room for that.

        Args:
            voxels: per forward pass.
            several: whether there are several test-time scales.
        """
        if self.on_gpu or has_huge_pages():  # nothing is kept
            return 0
        lost = int(voxels * self.bytes_per_voxel * (_FRAGMENTATION_OF_SEVERAL if several else _FRAGMENTATION))
        # Twice: another CT may be read meanwhile.
        return lost if self.room_bytes is None or self.network_bytes(voxels) + 2 * lost <= self.room_bytes else None


def plan_memory(
    shape: Sequence[int],
    model_shape: Sequence[int],
    window_voxels: int,
    bytes_per_voxel: int,
    device: torch.device,
    *,
    base_bytes: int,
    smallest_voxels: int = SMALLEST_SIDE**3,
    oblique: bool = False,
    keeps_ct: bool = False,
    writing_bytes: int = 0,
    maps: int = 0,
    limit_bytes: int | None = None,
) -> MemoryPlan:
    """Predict a case's peak from its header, and how many voxels may go through the network at once.

    Args:
        shape: voxels of the CT.
        model_shape: voxels on the model grid.
        window_voxels: most voxels per forward pass.
        bytes_per_voxel: of the network's tensors, see ``network_bytes_per_voxel``.
        device: where the network runs.
        base_bytes: held by this process without the case's images.
        smallest_voxels: fewest voxels per forward pass.
        oblique: whether the CT's axes are oblique to the model grid's.
        keeps_ct: whether the CT is needed until the end, for a picture.
        writing_bytes: needed to write the results, besides the CT if that is kept, see ``Outputs.writing_bytes``.
        maps: number of attention maps, which are stored on the model grid and resampled one at a time.
        limit_bytes: most that this process may take; by default what is free on the machine.

    Raises:
        MemoryLimitError: the case does not fit even with the smallest windows; the message states what it needs and
            what is free.
    """
    voxels, model, pixels = math.prod(shape), math.prod(model_shape), shape[0] * shape[1]
    hu, mask, image = 2 * voxels, voxels, 4 * model
    images = (_IMAGES_BESIDE_NETWORK + maps) * image
    # Stage by stage. The CT is freed once it is resampled, unless it is kept; resampling an oblique one needs a copy.
    kept = hu if keeps_ct else 0
    copied = device.type == "mps"  # to the GPU, which shares the memory
    there = (1 + oblique + copied) * hu + image + _SLAB_BYTES_PER_PIXEL * pixels
    slab = _OBLIQUE_BYTES_PER_PIXEL if oblique else _SLAB_BYTES_PER_PIXEL
    back = kept + (2 + copied) * mask + (1 + maps) * image + slab * pixels
    elsewhere = base_bytes + max(there, back, kept + writing_bytes)
    allowed = _allowed_bytes(base_bytes, limit_bytes)
    on_gpu = device.type == "cuda"
    room: int | None
    if on_gpu:
        beside, room = images, int(_free_on(device) * (1 - _RESERVE))
        least = max(there, back)
    else:
        beside, room = base_bytes + kept + images, allowed
        least = elsewhere
    smallest = min(smallest_voxels, window_voxels)
    for bytes_needed, bytes_there, where in (
        (max(least, beside + smallest * bytes_per_voxel), room, f" on {device}" if on_gpu else ""),
        (elsewhere, allowed, ""),
    ):
        if bytes_there is not None and bytes_needed > bytes_there:
            helps = max(least, beside + SMALLEST_SIDE**3 * bytes_per_voxel) <= bytes_there and bytes_needed > least
            hint = HINT_FOR_WINDOWS if helps else HINT_FOR_SIZE + (", or device cpu" if where else "")
            raise MemoryLimitError(
                f"a CT of {by_axis(shape)} voxels needs {gib(bytes_needed)} of memory{where}, and there are "
                f"{gib(bytes_there)}: {hint}",
                arguments=("allow_smaller_windows",) if helps else ("device",) if where else (),
            )
    limit = None if room is None else (room - beside) // bytes_per_voxel
    if limit is not None and window_voxels <= limit:
        limit = None
    at_once = window_voxels if limit is None else limit
    plan = MemoryPlan(0, allowed, limit, elsewhere, beside, bytes_per_voxel, room, on_gpu)
    return replace(plan, peak_bytes=plan.peak_with(at_once))


def _allowed_bytes(base: int, limit_bytes: int | None) -> int | None:
    """Return the memory that this process may take; what it holds beyond ``base`` is freed, and a reserve is left."""
    available = available_bytes()
    free = None if available is None else int((available + (resident_bytes() or base)) * (1 - _RESERVE))
    return min((n for n in (free, limit_bytes) if n is not None), default=None)


def _free_on(device: torch.device) -> int:
    """Return the memory of a GPU that this process may take, including what torch has reserved and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + max(kept, 0)


def by_axis(shape: Sequence[int]) -> str:
    """Format a shape for messages: "512 x 512 x 300"."""
    return " x ".join(map(str, shape))


def gib(n: int) -> str:
    """Format bytes for messages: "1.50 GiB"."""
    return f"{n / 2**30:.2f} GiB"
