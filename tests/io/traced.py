"""Measure memory as bytes allocated by Python, independent of other processes and of speed."""

import tracemalloc
from collections.abc import Callable
from typing import Any


def traced(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of a call, and the peak of bytes it allocated, including NumPy's arrays.

    It is made twice, and traced the second time: what is imported and cached once does not count.
    """
    call()
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
