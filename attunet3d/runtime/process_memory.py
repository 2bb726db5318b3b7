"""Memory of this process: what it holds, and what is done with what is freed."""

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
    """Whether an error says that memory ran out, in the words of Python, torch or the libraries below it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not say."""
    try:
        return int(psutil.Process().memory_info().rss)
    except (psutil.Error, OSError, ValueError):
        return None


def peak_bytes() -> int | None:
    """Peak resident memory of this process so far; None where the system does not say."""
    try:
        # psutil has none for Linux, whose rusage goes on from that of the process that started this one.
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
    """Whether torch asks for memory in huge pages, see ``ask_for_huge_pages``."""
    return os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"


@contextmanager
def keep_freed_memory(always: bool = False, never: bool = False) -> Iterator[None]:
    """Let glibc reuse the memory of freed tensors, and return it to the system at the end only.

    By default each large tensor is fresh memory, whose pages the system has to clear: a sixth of a forward pass. With
    huge pages (see ``ask_for_huge_pages``) that is soon done, so memory is only returned, of tensors that fill a huge
    page at once: left to itself glibc keeps what is smaller than 32 MB, in holes that add a quarter to the peak. A step
    of training, which makes and frees some gigabytes, still takes a third longer without ``always``. With
    ``never`` it is returned whatever the pages: where there is no room for holes. Elsewhere than on glibc this does
    nothing.
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
            mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc comes to by itself
        trim(0)
