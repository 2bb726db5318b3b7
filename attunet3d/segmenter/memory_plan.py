"""How much memory a case takes, how much there is, and what to do where it is tight.

Windows are fixed by the config and the image: the mask must not depend on what else a machine is doing. Where they do
not fit, first what changes no voxel is reduced, then the case is refused, or run in smaller windows when that was asked
for.

The prediction, beside the peaks of fresh processes (two threads; VmHWM, which the record has as ``memory_mb``) of
``attunet3d segment CT -o OUT``: see docs/memory.md.
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

# While resampling, for each pixel of a slice: slabs of 8 planes in float32, and their neighbours. Turned against the
# model grid, the way back also takes the places of the eight neighbours of each voxel.
_SLAB_BYTES_PER_PIXEL, _OBLIQUE_BYTES_PER_PIXEL = 160, 1120
_IMAGES_BESIDE_NETWORK = 4  # of float32 on the model grid: the image, its logits, their weights, and one for sums
# Whatever the image: what libraries load with a first case, code and buffers that oneDNN makes, small tensors.
FIRST_CASE_BYTES = 64 * 2**20
_LIBRARY_BYTES = 80 * 2**20  # matplotlib and its figure, or highdicom
# Where freed memory is kept (see `keep_freed_memory`), as a share of what the tensors take: the holes that they leave,
# if the image is looked at in one size, and in several.
_HOLES, _HOLES_OF_SEVERAL = 0.25, 1.0
_RESERVE = 0.05  # of what is free is left to others
CURE_OF_SIZE = "close other programs, crop the CT to the abdomen, or use a machine with more"
CURE_OF_WINDOWS = (
    "close other programs, use a machine with more, or allow smaller windows (--allow-smaller-windows), whose mask is "
    "not that of full ones"
)


@dataclass(frozen=True)
class MemoryPlan:
    """What a case will take.

    Attributes:
        peak_bytes: predicted peak of this process, at most: which windows the image needs is known when it is there.
        allowed_bytes: what this process may take at most, or None where it is unknown.
        limit_voxels: voxels that may go through the network at once, or None if nothing has to be limited.
        elsewhere_bytes: predicted peak of this process, but for the network.
        beside_bytes: on the network's device, while it runs, without what runs through it.
        bytes_per_voxel: on that device, for each voxel that goes through the network at once.
        room_bytes: on that device, for both.
        on_gpu: whether that device has a memory of its own.
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
        """Whether something else fits beside the case."""
        return self.allowed_bytes is None or self.peak_bytes + more_bytes <= self.allowed_bytes

    def network_bytes(self, voxels: int) -> int:
        """On the network's device, where so many voxels go through it at once."""
        return self.beside_bytes + voxels * self.bytes_per_voxel

    def peak_with(self, voxels: int, holes: int = 0) -> int:
        """Predicted peak of this process, bytes, where so many voxels go through the network at once."""
        return self.elsewhere_bytes if self.on_gpu else max(self.elsewhere_bytes, self.network_bytes(voxels) + holes)

    def holes(self, voxels: int, several: bool) -> int | None:
        """What is lost where freed memory is kept, bytes; None where there is no room for them, so that it must not be.

        Args:
            voxels: that go through the network at once.
            several: whether the image is looked at in several sizes.
        """
        if self.on_gpu or has_huge_pages():  # nothing is kept
            return 0
        holes = int(voxels * self.bytes_per_voxel * (_HOLES_OF_SEVERAL if several else _HOLES))
        # Twice: another CT may be read beside.
        return holes if self.room_bytes is None or self.network_bytes(voxels) + 2 * holes <= self.room_bytes else None


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
    dicom_seg: bool = False,
    maps: int = 0,
    limit_bytes: int | None = None,
) -> MemoryPlan:
    """Predict a case's peak from its header, and what may go through the network at once.

    Args:
        shape: voxels of the CT.
        model_shape: voxels on the model grid.
        window_voxels: voxels that go through the network at once, at most.
        bytes_per_voxel: of the network, see `network_bytes_per_voxel`.
        device: where the network runs.
        base_bytes: what this process holds without the case's images.
        smallest_voxels: the fewest that can go through the network at once.
        oblique: whether the CT's axes are turned against the model grid's.
        keeps_ct: whether the CT is needed until the end, for a picture.
        dicom_seg: whether the mask is written as one.
        maps: attention maps, made beside the logits and kept on the model grid; one at a time is brought to the CT's.
        limit_bytes: most that this process may take; by default what the machine has left.

    Raises:
        MemoryLimitError: it does not fit, however small the windows; the message says what is needed and what there is.
    """
    voxels, model, pixels = math.prod(shape), math.prod(model_shape), shape[0] * shape[1]
    hu, mask, image = 2 * voxels, voxels, 4 * model
    images = (_IMAGES_BESIDE_NETWORK + maps) * image
    # Stage by stage; the CT goes when it has been resampled, unless it is kept. Turned, it is copied for that.
    kept = hu if keeps_ct else 0
    copied = device.type == "mps"  # to the GPU, in the same memory
    there = (1 + oblique + copied) * hu + image + _SLAB_BYTES_PER_PIXEL * pixels
    slab = _OBLIQUE_BYTES_PER_PIXEL if oblique else _SLAB_BYTES_PER_PIXEL
    back = kept + (2 + copied) * mask + (1 + maps) * image + slab * pixels
    # The mask is copied to find its fullest slices, and for a DICOM SEG, which is read again and compared.
    written = kept + max(keeps_ct * (3 * mask + _LIBRARY_BYTES), dicom_seg * (5 * mask + _LIBRARY_BYTES))
    elsewhere = base_bytes + max(there, back, written)
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
            cure = CURE_OF_WINDOWS if helps else CURE_OF_SIZE + (", or device cpu" if where else "")
            raise MemoryLimitError(
                f"a CT of {by_axis(shape)} voxels needs {gib(bytes_needed)} of memory{where}, and there are "
                f"{gib(bytes_there)}: {cure}"
            )
    limit = None if room is None else (room - beside) // bytes_per_voxel
    if limit is not None and window_voxels <= limit:
        limit = None
    at_once = window_voxels if limit is None else limit
    plan = MemoryPlan(0, allowed, limit, elsewhere, beside, bytes_per_voxel, room, on_gpu)
    return replace(plan, peak_bytes=plan.peak_with(at_once))


def _allowed_bytes(base: int, limit_bytes: int | None) -> int | None:
    """What this process may hold: with what it held beyond ``base`` given back, and some left to others."""
    available = available_bytes()
    free = None if available is None else int((available + (resident_bytes() or base)) * (1 - _RESERVE))
    return min((n for n in (free, limit_bytes) if n is not None), default=None)


def _free_on(device: torch.device) -> int:
    """Memory of a GPU that this process may take, with what torch keeps there for itself and does not use."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + max(kept, 0)


def by_axis(shape: Sequence[int]) -> str:
    """Voxels by axis for a reader: "512 x 512 x 300"."""
    return " x ".join(map(str, shape))


def gib(n: int) -> str:
    """Bytes for a reader."""
    return f"{n / 2**30:.2f} GiB"
