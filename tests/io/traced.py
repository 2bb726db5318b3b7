"""Memory as a count of bytes that Python was asked for, which no other process and no speed has a part in."""

import tracemalloc
from collections.abc import Callable
from typing import Any


def traced(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and the most bytes that it held at once, NumPy's arrays among them.

    It is made twice, and traced the second time: what is imported and cached once does not count.
    """
    call()
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
