"""Ask torch for memory in huge pages, where the system has them."""

import os
import sys


def ask_for_huge_pages() -> None:
    """Set torch's ``THP_MEM_ALLOC_ENABLE``, unless it is set or torch, which looks once, has been imported already.

    A CPU network's tensors are large and fresh: with pages of 4 KB the system clears them one by one, which takes a
    fifth of a forward pass. Set it to 0 to have it otherwise.
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
