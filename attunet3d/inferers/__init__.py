"""Running the network over a whole volume."""

from .sliding_window import SlidingWindowInferer

__all__ = ["SlidingWindowInferer"]
