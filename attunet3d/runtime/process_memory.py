"""Measure the memory of this process, and control whether freed memory is reused or returned to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # mallopt's parameters in glibc
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "alloc_failed")  # in lower case


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, torch or the libraries below it means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None if unknown."""
    try:
        return int(psutil.Process().memory_info().rss)
    except (psutil.Error, OSError, ValueError):
        return None


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process; None if unknown."""
    try:
        # Not by psutil, which lacks it on Linux, nor by rusage, which there starts with the peak of the parent process.
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_on_windows() -> int | None:
    try:
        return int(psutil.Process().memory_info().peak_wset)
    except (psutil.Error, OSError, AttributeError):
        return None


def has_huge_pages() -> bool:
    """Return whether torch allocates memory in huge pages, see ``ask_for_huge_pages``."""
    return os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"


@contextmanager
def keep_freed_memory(always: bool = False, never: bool = False) -> Iterator[None]:
    """Let glibc reuse the memory of freed tensors, and return it to the system only at the end of the block.

    By default each large tensor gets fresh memory, and the system takes a sixth of a forward pass to clear its pages.
    Huge pages (see ``ask_for_huge_pages``) are cleared fast. So with these memory is not kept, but returned at once for
    tensors of at least a huge page: by default glibc keeps freed blocks of less than 32 MB, in holes that add a quarter
    to the peak. Does nothing without glibc.

    Args:
        always: keep memory even with huge pages: a training step, which allocates and frees some gigabytes, takes a
            third longer otherwise.
        never: return memory even without huge pages, if there is no room for holes.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, TypeError, AttributeError):
        yield
        return
    keep = always or not (never or has_huge_pages())
    if keep:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        mallopt(_M_MMAP_THRESHOLD, 2 * 2**20)
    try:
        yield
    finally:
        if keep:
            mallopt(_M_MMAP_MAX, 65536)  # glibc's defaults
            mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
        else:
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the maximum of glibc's dynamic threshold
        trim(0)
