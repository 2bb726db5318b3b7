"""Let torch use huge pages, if the system has them."""

import os
import sys


def ask_for_huge_pages() -> None:
    """Set torch's ``THP_MEM_ALLOC_ENABLE``, unless it is set, or torch, which reads it once, has been imported already.

    On a CPU each forward pass allocates large tensors: the system clears their pages of 4 KB one by one, which takes a
    fifth of the pass. Set the variable to 0 to disable this.
    """
    if "torch" in sys.modules:
        return
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            there = "[never]" not in file.read()
    except OSError:  # not Linux
        return
    if there:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
