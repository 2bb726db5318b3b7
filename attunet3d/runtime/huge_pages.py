"""Let torch use huge pages, if the system has them."""

import os
import sys


def ask_for_huge_pages() -> None:
    """Set ``THP_MEM_ALLOC_ENABLE`` for torch, unless it is set, or torch, which reads it once, has been imported.

    On a CPU each forward pass allocates large tensors. The system clears their pages of 4 KB one by one, which takes a
    fifth of the time. Set the variable to 0 to disable huge pages.
    """
    if "torch" in sys.modules:
        return
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            allowed = "[never]" not in file.read()
    except OSError:  # not Linux
        return
    if allowed:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
